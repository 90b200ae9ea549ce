//! `vm_map_ram` and its blocks.

use std::vec::Vec;

use kmem_gfp::{PAGE_SIZE, Pfn};

use super::machine::{BASE, Machine, on_cpu};
use crate::{VfreeError, Vmalloc};

fn map(vmalloc: &Vmalloc<&Machine>, frames: &[Pfn]) -> usize {
    // SAFETY: the frames are the test's.
    unsafe { vmalloc.vm_map_ram(frames, None) }.unwrap().addr().get()
}

fn unmap(vmalloc: &Vmalloc<&Machine>, at: usize, nr: usize) -> Result<(), VfreeError> {
    // SAFETY: not used any more, or refused.
    unsafe { vmalloc.vm_unmap_ram(at as *mut u8, nr) }
}

fn page(at: usize) -> usize {
    (at - BASE) / PAGE_SIZE
}

#[test]
fn small_mappings_are_carved_out_of_blocks_one_after_the_other() {
    // VM-36, TS-14
    let machine = Machine::with_cpus(512, 2);
    let vmalloc = machine.window(1 << 20);
    let frames = machine.take_frames(64);
    let sizes = [1, 3, 2, 64, 5];
    let places: Vec<usize> = sizes.iter().map(|&nr| map(&vmalloc, &frames[..nr])).collect();
    let pages: Vec<usize> = places.iter().map(|&at| page(at)).collect();
    assert_eq!(pages, [0, 1, 5, 7, 71], "room is a power of two");
    for (&at, &nr) in places.iter().zip(&sizes) {
        for (i, &frame) in frames[..nr].iter().enumerate() {
            assert_eq!(machine.reach(at + i * PAGE_SIZE), Some(frame));
            machine.store(at + i * PAGE_SIZE, i as u8);
        }
    }
    // Another CPU has blocks of its own, aligned to their size.
    let other = on_cpu(1, || map(&vmalloc, &frames[..1]));
    assert_eq!(page(other), 1024);
    // What is given back is not reused.
    unmap(&vmalloc, places[0], 1).unwrap();
    assert_eq!(page(map(&vmalloc, &frames[..1])), 79);
    // The first area of a machine without so many addresses is smaller.
    assert_eq!(crate::map_ram::block_pages(1 << 23, 1), 1024);
    assert_eq!(crate::map_ram::block_pages(1 << 12, 2), 128);
    assert_eq!(crate::map_ram::block_pages(1 << 13, 2), 256);
    machine.give_frames(&frames);
}

#[test]
fn many_pages_get_an_area_of_their_own() {
    // VM-36, VM-38
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 16);
    let frames = machine.take_frames(65);
    let at = map(&vmalloc, &frames);
    let info = vmalloc.find_vm_area(at as *const u8).unwrap();
    assert_eq!(info.range.len(), 65 * PAGE_SIZE);
    assert_eq!(unmap(&vmalloc, at, 64), Err(VfreeError::WrongCount { address: at, given: 64 }));
    // SAFETY: refused.
    assert!(matches!(unsafe { vmalloc.vfree(at as *mut u8) }, Err(VfreeError::WrongKind { .. })));
    unmap(&vmalloc, at, 65).unwrap();
    assert_eq!(unmap(&vmalloc, at, 65), Err(VfreeError::AlreadyFree(at)));
    assert_eq!(machine.nr_mapped(), 0);
    machine.give_frames(&frames);
}

#[test]
fn unmapping_takes_the_count_that_was_mapped() {
    // VM-38
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 16);
    let frames = machine.take_frames(8);
    let at = map(&vmalloc, &frames[..5]);
    let next = map(&vmalloc, &frames[..2]);
    for wrong in [4, 6, 8] {
        assert_eq!(unmap(&vmalloc, at, wrong), Err(VfreeError::WrongCount { address: at, given: wrong as u64 }));
    }
    assert!(matches!(unmap(&vmalloc, at + PAGE_SIZE, 4), Err(VfreeError::WrongCount { .. })));
    assert!(matches!(unmap(&vmalloc, at + 1, 5), Err(VfreeError::Misaligned(_))));
    assert!(matches!(unmap(&vmalloc, BASE - PAGE_SIZE, 5), Err(VfreeError::Foreign(_))));
    // SAFETY: refused.
    assert!(matches!(unsafe { vmalloc.vfree(at as *mut u8) }, Err(VfreeError::WrongKind { .. })));
    unmap(&vmalloc, at, 5).unwrap();
    assert_eq!(unmap(&vmalloc, at, 5), Err(VfreeError::AlreadyFree(at)));
    assert_eq!(machine.reach(next), Some(frames[0]), "the neighbour is untouched");
    let memory = vmalloc.vmalloc(1).unwrap();
    assert!(matches!(unmap(&vmalloc, memory.addr().get(), 1), Err(VfreeError::WrongKind { .. })));
    // SAFETY: refused.
    assert!(unsafe { vmalloc.vm_map_ram(&[], None) }.is_err());
    machine.give_frames(&frames);
}

#[test]
fn a_block_goes_as_a_whole_once_all_of_it_is_dirty() {
    // VM-36
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 12);
    let frames = machine.take_frames(64);
    let places: Vec<usize> = (0..4).map(|_| map(&vmalloc, &frames)).collect();
    assert_eq!(page(places[3]), 192);
    for &at in &places {
        assert_eq!(vmalloc.stats().lazy_pages, 0);
        unmap(&vmalloc, at, 64).unwrap();
    }
    assert_eq!(vmalloc.stats().lazy_pages, 256);
    assert_eq!(page(map(&vmalloc, &frames)), 256, "not reused before a purge");
    vmalloc.vm_unmap_aliases();
    for _ in 0..3 {
        map(&vmalloc, &frames);
    }
    assert_eq!(page(map(&vmalloc, &frames)), 0);
    machine.give_frames(&frames);
}

#[test]
fn fragmented_blocks_are_given_up_late_or_under_pressure() {
    // VM-37, VM-15
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 12);
    let frames = machine.take_frames(64);
    let first = map(&vmalloc, &frames);
    unmap(&vmalloc, first, 64).unwrap();
    vmalloc.vm_unmap_aliases();
    assert_eq!(page(map(&vmalloc, &frames)), 64, "three quarters are free: the block stays");
    unmap(&vmalloc, first + 64 * PAGE_SIZE, 64).unwrap();
    let third = map(&vmalloc, &frames);
    let fourth = map(&vmalloc, &frames[..32]);
    unmap(&vmalloc, third, 64).unwrap();
    vmalloc.vm_unmap_aliases();
    assert!(vmalloc.find_vm_area(first as *const u8).is_some(), "a mapping is left");
    unmap(&vmalloc, fourth, 32).unwrap();
    vmalloc.vm_unmap_aliases();
    assert_eq!(vmalloc.find_vm_area(first as *const u8), None, "less than a quarter is free");

    let at = map(&vmalloc, &frames);
    unmap(&vmalloc, at, 64).unwrap();
    let all =
        vmalloc.get_vm_area((1 << 12) * PAGE_SIZE - PAGE_SIZE, 1, crate::VmFlags::SPARSE, None, kmem_gfp::Gfp::KERNEL);
    assert_eq!(page(all.unwrap().addr().get()), 0, "under exhaustion always");
    machine.give_frames(&frames);
}

#[test]
fn aliases_of_unmapped_pages_are_flushed_on_demand() {
    // VM-16
    let machine = Machine::with_cpus(512, 2);
    let vmalloc = machine.window(1 << 16);
    let frames = machine.take_frames(4);
    let at = map(&vmalloc, &frames);
    assert_eq!(on_cpu(1, || machine.reach(at)), Some(frames[0]));
    unmap(&vmalloc, at, 4).unwrap();
    assert_eq!(on_cpu(1, || machine.reach(at)), Some(frames[0]));
    machine.flushes();
    vmalloc.vm_unmap_aliases();
    assert_eq!(machine.flushes(), [at..at + 4 * PAGE_SIZE]);
    assert_eq!(on_cpu(1, || machine.reach(at)), None);
    vmalloc.vm_unmap_aliases();
    assert!(machine.flushes().is_empty(), "once is enough");
    machine.give_frames(&frames);
}

#[test]
fn a_mapping_that_fails_leaves_nothing() {
    // VM-38
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 16);
    let frames = machine.take_frames(8);
    machine.tables.lock().unwrap().refuse = true;
    for _ in 0..200 {
        // SAFETY: the frames are ours.
        assert!(unsafe { vmalloc.vm_map_ram(&frames, None) }.is_err());
    }
    assert_eq!(machine.nr_mapped(), 0);
    machine.tables.lock().unwrap().refuse = false;
    let at = map(&vmalloc, &frames);
    unmap(&vmalloc, at, 8).unwrap();
    drop(vmalloc);
    machine.give_frames(&frames);
    assert_eq!(machine.in_use_but_tables(), 0);
}

#[test]
fn threads_map_and_unmap_at_once() {
    // TS-14
    let machine = Machine::with_cpus(2048, 4);
    let vmalloc = machine.window(1 << 14);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (vmalloc, machine) = (&vmalloc, &machine);
            scope.spawn(move || {
                on_cpu(cpu, || {
                    let frames = machine.take_frames(64);
                    for round in 0..300_usize {
                        let nr = 1 + round * 5 % 64;
                        let at = map(vmalloc, &frames[..nr]);
                        assert_eq!(machine.reach(at), Some(frames[0]));
                        assert_eq!(machine.reach(at + (nr - 1) * PAGE_SIZE), Some(frames[nr - 1]));
                        on_cpu((cpu + round as u32) % 4, || unmap(vmalloc, at, nr)).unwrap();
                        if round % 50 == 0 {
                            vmalloc.vm_unmap_aliases();
                        }
                    }
                    machine.give_frames(&frames);
                });
            });
        }
    });
    drop(vmalloc);
    assert_eq!((machine.in_use_but_tables(), machine.nr_mapped()), (0, 0));
}

#[test]
fn the_node_of_a_mapping_is_where_its_blocks_description_goes() {
    let machine = Machine::new(512);
    let vmalloc = machine.window(1 << 20);
    let frames = machine.take_frames(1);
    let map_on = |node| {
        // SAFETY: the frames are the test's.
        unsafe { vmalloc.vm_map_ram(&frames, Some(kmem_gfp::NodeId(node))) }.unwrap().addr().get()
    };
    machine.watch();
    let first = map_on(3);
    let asked: Vec<_> = machine.seen().iter().filter_map(|seen| seen.node).collect();
    assert_eq!(asked, [kmem_gfp::NodeId(3)]);
    machine.watch();
    let second = map_on(2);
    assert_eq!(page(second), page(first) + 1, "the block of the CPU serves all nodes");
    assert!(machine.seen().iter().all(|seen| seen.node.is_none()));
    unmap(&vmalloc, first, 1).unwrap();
    unmap(&vmalloc, second, 1).unwrap();
}
