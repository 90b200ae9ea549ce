//! What Linux's test module for vmalloc exercises, on a machine whose mappings are real: every thread is a CPU, every area is
//! written to through its addresses. Parameters are cut to the time that tests have.

use kmem_gfp::{Gfp, PAGE_SIZE, TaskFlags};
use kmem_hosted::{Host, HostCpu, Machine, Reports, in_context};
use kmem_vmalloc::{VmFlags, VmRequest, Vmalloc};

type Area = *mut u8;
type Kernel = Vmalloc<kmem::VirtualSide<Host<HostCpu>>>;

const LOOPS: usize = 150;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

fn pages(nr: usize) -> VmRequest {
    VmRequest::new(nr * PAGE_SIZE, Gfp::KERNEL)
}

/// Allocates, writes to both ends and reads what was written.
fn touch(vmalloc: &Kernel, request: &VmRequest) -> Area {
    let memory = vmalloc.alloc(request).unwrap().as_ptr();
    let last = memory.wrapping_add(request.size - 1);
    // SAFETY: ours.
    unsafe {
        memory.write_volatile(1);
        last.write_volatile(2);
        assert_eq!((memory.read_volatile(), last.read_volatile()), (if request.size == 1 { 2 } else { 1 }, 2));
    }
    memory
}

fn free(vmalloc: &Kernel, memory: Area) {
    // SAFETY: the tests use nothing after this.
    unsafe { vmalloc.vfree(memory) }.unwrap();
}

/// Runs a suite on two CPUs at once, with and without lingering translations, and sees that all came back.
fn everywhere(suite: impl Fn(&'static Machine, &Kernel, &mut Random) + Sync) {
    for lingering in [false, true] {
        let builder = Machine::builder().cpus(2).ram_bytes(256 << 20).reports(Reports::Discard);
        let machine = builder.lingering_translations(lingering).boot().unwrap();
        let vmalloc = machine.kmem().vmalloc_layer();
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let suite = &suite;
                scope.spawn(move || suite(machine, machine.kmem().vmalloc_layer(), &mut Random(cpu + 1)));
            }
        });
        vmalloc.vm_unmap_aliases();
        let stats = machine.space_stats();
        assert_eq!((stats.host_mappings, stats.lingering_pages, vmalloc.live_areas()), (1, 0, 0));
        // SAFETY: nothing of the machine is kept.
        unsafe { machine.shut_down() };
    }
}

#[test]
fn fixed_sizes_small_and_huge() {
    // TS-12
    everywhere(|_, vmalloc, _| {
        for (nr, flags, loops) in
            [(1, VmFlags::empty(), LOOPS), (4, VmFlags::empty(), LOOPS), (512, VmFlags::ALLOW_HUGE, 8)]
        {
            (0..loops).for_each(|_| free(vmalloc, touch(vmalloc, &VmRequest { flags, ..pages(nr) })));
        }
    });
}

#[test]
fn a_full_window_with_junk_in_between() {
    // TS-12
    everywhere(|_, vmalloc, _| {
        let both: Vec<_> = (0..1000).map(|_| (touch(vmalloc, &pages(1)), touch(vmalloc, &pages(1)))).collect();
        both.iter().for_each(|&(junk, _)| free(vmalloc, junk));
        (0..LOOPS).for_each(|_| free(vmalloc, touch(vmalloc, &pages(1))));
        both.iter().for_each(|&(_, kept)| free(vmalloc, kept));
    });
}

#[test]
fn a_long_list_of_live_areas() {
    // TS-12: as many as the host's mappings allow beside the other tests of this file
    everywhere(|_, vmalloc, _| {
        let live: Vec<_> = (0..2500).map(|_| touch(vmalloc, &pages(1))).collect();
        for _ in 0..LOOPS / 5 {
            free(vmalloc, touch(vmalloc, &pages(100)));
            free(vmalloc, touch(vmalloc, &pages(1)));
        }
        live.into_iter().for_each(|memory| free(vmalloc, memory));
    });
}

#[test]
fn random_sizes_and_alignments() {
    // TS-12, TS-13
    everywhere(|_, vmalloc, random| {
        for _ in 0..LOOPS {
            free(vmalloc, touch(vmalloc, &pages(1 + random.below(100))));
            free(vmalloc, touch(vmalloc, &VmRequest { align: 32 << 10, ..pages(5) }));
            let align = 1 << random.below(23);
            let memory = touch(vmalloc, &VmRequest { align, ..pages(1 + random.below(10)) });
            assert_eq!(memory.addr() % align, 0);
            free(vmalloc, memory);
        }
    });
}

#[test]
fn short_mappings_of_given_frames() {
    // TS-14, TS-37
    everywhere(|machine, vmalloc, random| {
        let frames: Vec<_> = (0..8).map(|_| machine.kmem().alloc_page(Gfp::KERNEL).unwrap()).collect();
        for round in 0..LOOPS {
            let some = &frames[..1 + random.below(8)];
            // SAFETY: the frames are ours; nothing is used after it is unmapped.
            unsafe {
                let view = vmalloc.vm_map_ram(some, None).unwrap().as_ptr();
                view.write_volatile(round as u8);
                assert_eq!(machine.kmem().page_address(some[0]).unwrap().read_volatile(), round as u8);
                vmalloc.vm_unmap_ram(view, some.len()).unwrap();
            }
        }
        for pfn in frames {
            // SAFETY: ours, unmapped.
            unsafe { machine.kmem().free_page(pfn) }.unwrap();
        }
    });
}

#[test]
fn requests_that_must_not_sleep_and_frees_in_interrupts() {
    // TS-15
    everywhere(|machine, vmalloc, random| {
        for _ in 0..LOOPS {
            let gfp = if random.below(2) == 0 { Gfp::NOWAIT } else { Gfp::ATOMIC };
            let request = VmRequest::new((1 + random.below(10)) * PAGE_SIZE, gfp);
            let made = in_context(TaskFlags::ATOMIC, || vmalloc.alloc(&request));
            if let Ok(memory) = made {
                machine.in_interrupt(|| free(vmalloc, memory.as_ptr()));
            }
        }
    });
}

#[test]
fn resizing_keeps_the_first_byte() {
    // TS-15
    everywhere(|_, vmalloc, _| {
        for round in 0..LOOPS / 5 {
            let mut memory = std::ptr::null_mut::<u8>();
            for (step, nr) in [2, 8, 2, 1, 2].into_iter().enumerate() {
                // SAFETY: ours; the old address is not used again.
                memory =
                    unsafe { vmalloc.vrealloc(memory, nr * PAGE_SIZE / 2, Gfp::KERNEL) }.unwrap().unwrap().as_ptr();
                // SAFETY: ours.
                unsafe {
                    assert!(step == 0 || memory.read_volatile() == round as u8);
                    memory.write_volatile(round as u8);
                }
            }
            free(vmalloc, memory);
        }
    });
}
