//! Lazy unmapping, pools, thresholds; and that nobody reaches what is gone.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE};

use super::machine::{BASE, Machine, on_cpu};
use crate::{PoolShrinker, VmFlags, VmRequest, Vmalloc};

fn reserve(vmalloc: &Vmalloc<&Machine>, pages: usize) -> *mut u8 {
    vmalloc.get_vm_area((pages - 1) * PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap().as_ptr()
}

fn release(vmalloc: &Vmalloc<&Machine>, at: *mut u8) {
    // SAFETY: tests use nothing after this.
    unsafe { vmalloc.vfree(at) }.unwrap();
}

#[test]
fn the_threshold_grows_with_the_logarithm_of_the_cpus() {
    // VM-13
    for (cpus, pages) in [(1, 8192), (2, 16384), (4, 24576), (8, 32768)] {
        let machine = Machine::with_cpus(256, cpus);
        assert_eq!(machine.window(1000).stats().lazy_limit, pages);
    }
}

#[test]
fn a_purge_starts_strictly_above_the_threshold_and_flushes_once() {
    // VM-12, VM-13, VM-14
    let machine = Machine::new(64);
    let vmalloc = machine.window(40_000);
    let areas: Vec<_> = (0..32).map(|_| reserve(&vmalloc, 256)).collect();
    let last = reserve(&vmalloc, 2);
    areas.iter().for_each(|&area| release(&vmalloc, area));
    assert_eq!((vmalloc.stats().lazy_pages, vmalloc.stats().purges), (8192, 0), "not at the threshold");
    assert!(machine.flushes().is_empty(), "no flush so far");
    release(&vmalloc, last);
    assert_eq!((vmalloc.stats().lazy_pages, vmalloc.stats().purges), (0, 1));
    assert_eq!(machine.flushes(), [BASE..BASE + 8194 * PAGE_SIZE], "one flush over the union");
    assert_eq!(vmalloc.stats().pooled, 33);
}

#[test]
fn ranges_return_to_the_pool_of_the_node_that_made_them() {
    // VM-10, VM-11, VM-14
    let machine = Machine::with_cpus(256, 4);
    let vmalloc = machine.window(10_000);
    let made: Vec<*mut u8> = (0..4).map(|cpu| on_cpu(cpu, || reserve(&vmalloc, 3))).collect();
    // CPU 0 frees all of them.
    made.iter().for_each(|&area| release(&vmalloc, area));
    vmalloc.purge();
    assert_eq!(vmalloc.count_objects(), 4);
    for cpu in (0..4).rev() {
        assert_eq!(on_cpu(cpu, || reserve(&vmalloc, 3)), made[cpu as usize]);
    }
    assert_eq!(vmalloc.stats().pool_hits, 4);
    // Another size, or a range of the caller's, does not come from a pool.
    release(&vmalloc, made[0]);
    vmalloc.purge();
    assert_ne!(reserve(&vmalloc, 2), made[0]);
    let above = BASE + 5000 * PAGE_SIZE..BASE + 6000 * PAGE_SIZE;
    let ranged = vmalloc.get_vm_area(2 * PAGE_SIZE, 1, VmFlags::SPARSE, Some(above.clone()), Gfp::KERNEL).unwrap();
    assert_eq!(ranged.addr().get(), above.start);
}

#[test]
fn large_ranges_merge_into_the_free_space_at_once() {
    // VM-11, VM-14
    let machine = Machine::new(64);
    let vmalloc = machine.window(10_000);
    let (small, large) = (reserve(&vmalloc, 256), reserve(&vmalloc, 257));
    release(&vmalloc, small);
    release(&vmalloc, large);
    vmalloc.purge();
    assert_eq!(vmalloc.count_objects(), 1);
    assert_eq!(vmalloc.stats().largest_free_bytes, (10_000 - 256) * PAGE_SIZE as u64);
}

#[test]
fn only_the_first_entry_of_a_pool_is_looked_at() {
    // VM-11
    let machine = Machine::new(64);
    let vmalloc = machine.window(10_000);
    let areas: Vec<_> = (0..3).map(|_| reserve(&vmalloc, 5)).collect();
    areas.iter().for_each(|&area| release(&vmalloc, area));
    vmalloc.purge();
    let aligned = |pages: usize| {
        let request = VmRequest { align: pages * PAGE_SIZE, ..VmRequest::new(4 * PAGE_SIZE, Gfp::KERNEL) };
        vmalloc.alloc(&request).unwrap().addr().get()
    };
    // The entries lie at pages 0, 5 and 10; which one is first only the pool knows.
    let hits = vmalloc.stats().pool_hits;
    let mut misses = 0;
    while vmalloc.stats().pool_hits == hits {
        assert_eq!(aligned(8) % (8 * PAGE_SIZE), 0);
        misses += 1;
        assert!(misses <= 3, "the entry that suits comes to the front");
    }
    assert!(misses <= 3);
}

#[test]
fn an_ordinary_purge_takes_a_quarter_from_each_pool() {
    // VM-15
    let machine = Machine::new(64);
    let vmalloc = machine.window(10_000);
    let twos: Vec<_> = (0..11).map(|_| reserve(&vmalloc, 2)).collect();
    let threes: Vec<_> = (0..3).map(|_| reserve(&vmalloc, 3)).collect();
    twos.iter().chain(&threes).for_each(|&area| release(&vmalloc, area));
    vmalloc.purge();
    assert_eq!(vmalloc.count_objects(), 14);
    vmalloc.purge();
    assert_eq!(vmalloc.count_objects(), 12, "11 - 2; 3 has no quarter");
    for _ in 0..10 {
        vmalloc.purge();
    }
    assert_eq!(vmalloc.count_objects(), 6, "below four nothing is taken");
    // The shrinker takes all and says how many.
    assert_eq!((vmalloc.scan_objects(), vmalloc.count_objects(), vmalloc.scan_objects()), (6, 0, 0));
    assert_eq!(vmalloc.stats().largest_free_bytes, 10_000 * PAGE_SIZE as u64);
}

#[test]
fn exhaustion_empties_the_pools_and_does_not_fill_them() {
    // VM-05, VM-15
    let machine = Machine::new(64);
    let vmalloc = machine.window(100);
    let areas: Vec<_> = (0..50).map(|_| reserve(&vmalloc, 2)).collect();
    areas[..25].iter().for_each(|&area| release(&vmalloc, area));
    vmalloc.purge();
    areas[25..].iter().for_each(|&area| release(&vmalloc, area));
    assert_eq!(vmalloc.count_objects(), 25);
    assert_eq!(reserve(&vmalloc, 100).addr(), BASE);
    assert_eq!(vmalloc.count_objects(), 0);
}

#[test]
fn freed_memory_stays_reachable_until_a_flush_and_never_after() {
    // VM-12, VM-16
    let machine = Machine::with_cpus(256, 2);
    let vmalloc = machine.window(1000);
    let memory = vmalloc.vmalloc(1).unwrap().addr().get();
    let frame = on_cpu(1, || machine.reach(memory)).unwrap();
    release(&vmalloc, memory as *mut u8);
    assert_eq!(on_cpu(0, || machine.reach(memory)), None, "unmapped at once");
    assert_eq!(on_cpu(1, || machine.reach(memory)), Some(frame), "a stale translation lingers");
    vmalloc.vm_unmap_aliases();
    assert_eq!(on_cpu(1, || machine.reach(memory)), None);
}

#[test]
fn no_cpu_ever_reaches_an_old_mapping_through_a_new_area() {
    // VM-12, VM-14, VM-51
    let machine = Machine::with_cpus(4096, 4);
    let vmalloc = machine.window(300);
    std::thread::scope(|scope| {
        for cpu in 0..4_u32 {
            let (vmalloc, machine) = (&vmalloc, &machine);
            scope.spawn(move || {
                on_cpu(cpu, || {
                    for round in 0..400_usize {
                        let pages = 1 + (round * 7 + cpu as usize) % 5;
                        let memory = vmalloc.vmalloc(pages * PAGE_SIZE).unwrap().addr().get();
                        for page in 0..pages {
                            let at = memory + page * PAGE_SIZE;
                            // Every CPU's view is the present one, and all write through it.
                            for other in 0..4 {
                                let now = kmem_gfp_translate(machine, at);
                                assert_eq!(on_cpu(other, || machine.reach(at)), now, "{at:#x}");
                            }
                        }
                        release(vmalloc, memory as *mut u8);
                        if round % 61 == 0 {
                            vmalloc.purge();
                        }
                    }
                });
            });
        }
    });
    drop(vmalloc);
    assert_eq!(machine.in_use_but_tables(), 0);
    assert_eq!(machine.nr_mapped(), 0);
}

fn kmem_gfp_translate(machine: &Machine, at: usize) -> Option<kmem_gfp::Pfn> {
    crate::AddressSpace::translate(machine, at)
}
