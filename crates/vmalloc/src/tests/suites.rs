//! What Linux's test module for vmalloc exercises, with its parameters cut to the time that tests have.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE, TaskFlags};

use super::machine::{Machine, as_task, on_cpu};
use crate::{VmFlags, VmRequest, Vmalloc};

const LOOPS: usize = 500;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

fn touch(machine: &Machine, vmalloc: &Vmalloc<&Machine>, request: &VmRequest) -> *mut u8 {
    let memory = vmalloc.alloc(request).unwrap();
    machine.store(memory.addr().get(), 1);
    memory.as_ptr()
}

fn pages(nr: usize) -> VmRequest {
    VmRequest::new(nr * PAGE_SIZE, Gfp::KERNEL)
}

fn free(vmalloc: &Vmalloc<&Machine>, at: *mut u8) {
    // SAFETY: tests use nothing after this.
    unsafe { vmalloc.vfree(at) }.unwrap();
}

/// Runs a suite on every CPU of a machine at once, and sees that all came back.
fn everywhere(nr_frames: usize, suite: impl Fn(&Machine, &Vmalloc<&Machine>, &mut Random) + Sync) {
    let machine = Machine::with_cpus(nr_frames, 2);
    let vmalloc = machine.window(1 << 22);
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (machine, vmalloc, suite) = (&machine, &vmalloc, &suite);
            scope.spawn(move || on_cpu(cpu, || suite(machine, vmalloc, &mut Random(u64::from(cpu) + 1))));
        }
    });
    drop(vmalloc);
    assert_eq!((machine.in_use_but_tables(), machine.nr_mapped()), (0, 0));
}

#[test]
fn fix_size() {
    // TS-12
    for (nr, flags) in [(1, VmFlags::empty()), (4, VmFlags::empty()), (512, VmFlags::ALLOW_HUGE)] {
        everywhere(8192, |machine, vmalloc, _| {
            for _ in 0..LOOPS / nr.min(20) {
                free(vmalloc, touch(machine, vmalloc, &VmRequest { flags, ..pages(nr) }));
            }
        });
    }
}

#[test]
fn full_fit() {
    // TS-12: as many areas as are freed lazily at most, interleaved with junk that goes
    everywhere(12_000, |machine, vmalloc, _| {
        let junk_and_kept: Vec<_> =
            (0..2000).map(|_| (touch(machine, vmalloc, &pages(1)), touch(machine, vmalloc, &pages(1)))).collect();
        junk_and_kept.iter().for_each(|&(junk, _)| free(vmalloc, junk));
        for _ in 0..LOOPS {
            free(vmalloc, touch(machine, vmalloc, &pages(1)));
        }
        junk_and_kept.iter().for_each(|&(_, kept)| free(vmalloc, kept));
    });
}

#[test]
fn long_busy_list() {
    // TS-12: 15000 live areas on all CPUs
    everywhere(20_000, |machine, vmalloc, _| {
        let live: Vec<_> = (0..7500).map(|_| touch(machine, vmalloc, &pages(1))).collect();
        for _ in 0..LOOPS / 5 {
            free(vmalloc, touch(machine, vmalloc, &pages(100)));
            free(vmalloc, touch(machine, vmalloc, &pages(1)));
        }
        live.into_iter().for_each(|at| free(vmalloc, at));
    });
}

#[test]
fn random_size() {
    // TS-12
    everywhere(4096, |machine, vmalloc, random| {
        for _ in 0..LOOPS {
            free(vmalloc, touch(machine, vmalloc, &pages(1 + random.below(100))));
        }
    });
}

#[test]
fn alignment_sweeps() {
    // TS-13
    everywhere(4096, |machine, vmalloc, random| {
        for _ in 0..LOOPS {
            free(vmalloc, touch(machine, vmalloc, &VmRequest { align: 32 << 10, ..pages(5) }));
            let request = VmRequest { align: 1 << random.below(23), ..pages(1 + random.below(10)) };
            free(vmalloc, touch(machine, vmalloc, &request));
        }
        let failures = (0..64)
            .filter(|&shift| match vmalloc.alloc(&VmRequest { align: 1 << shift, ..pages(1) }) {
                Ok(memory) => {
                    free(vmalloc, memory.as_ptr());
                    false
                }
                Err(_) => true,
            })
            .count();
        assert!(failures > 20, "most of these do not fit any window");
    });
}

#[test]
fn vm_map_ram_suite() {
    // TS-14
    everywhere(1024, |machine, vmalloc, _| {
        let frames = machine.take_frames(1);
        for _ in 0..LOOPS {
            // SAFETY: the frames are ours; not used after unmapping.
            unsafe {
                let at = vmalloc.vm_map_ram(&frames, None).unwrap();
                machine.store(at.addr().get(), b'a');
                vmalloc.vm_unmap_ram(at.as_ptr(), 1).unwrap();
            }
        }
        machine.give_frames(&frames);
    });
}

#[test]
fn no_block_alloc() {
    // TS-15: may fail, must not sleep
    everywhere(1024, |machine, vmalloc, random| {
        as_task(TaskFlags::ATOMIC, || {
            for _ in 0..LOOPS {
                let gfp = if random.below(2) == 0 { Gfp::NOWAIT } else { Gfp::ATOMIC };
                if let Ok(memory) = vmalloc.alloc(&VmRequest::new((1 + random.below(10)) * PAGE_SIZE, gfp)) {
                    free(vmalloc, memory.as_ptr());
                }
            }
        });
        let _ = machine;
    });
}

#[test]
fn zeroed_sizes() {
    // TS-18
    let machine = Machine::new(2048);
    let vmalloc = machine.window(1 << 16);
    for shift in 0..20 {
        let size = 1 << shift;
        let dirty = vmalloc.vmalloc(size).unwrap();
        let at = dirty.addr().get();
        (at..at + size).step_by(61).for_each(|at| machine.store(at, 0xff));
        free(&vmalloc, dirty.as_ptr());
        let at = vmalloc.vzalloc(size).unwrap().addr().get();
        assert!((at..at + size).step_by(61).all(|at| machine.load(at) == 0));
        free(&vmalloc, at as *mut u8);
    }
}

#[test]
fn congruent_percpu_sets_come_and_go() {
    // TS-14: the part of pcpu_alloc that is vmalloc's
    everywhere(256, |_, vmalloc, random| {
        for _ in 0..LOOPS / 5 {
            let unit = (1 + random.below(32)) * PAGE_SIZE;
            let set: Vec<_> =
                (0..4).map(|cpu| crate::PercpuArea { offset: cpu * 64 * PAGE_SIZE, size: unit }).collect();
            let base = vmalloc.get_percpu_areas(&set, PAGE_SIZE << random.below(4), Gfp::KERNEL).unwrap();
            // SAFETY: not used.
            unsafe { vmalloc.free_percpu_areas(base, &set) }.unwrap();
        }
    });
}
