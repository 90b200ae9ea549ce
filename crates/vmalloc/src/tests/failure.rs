//! Every failure point: page N, table N, block of bookkeeping N. Nothing is lost, and the next try works.

use kmem_gfp::{Gfp, PAGE_SIZE};

use super::machine::{BASE, Machine};
use crate::{Prot, VmFlags, VmRequest, Vmalloc, VmallocError};

/// Fails request 1, 2, ... of `step` until it succeeds; after each failure everything is as before, but for tables and
/// bookkeeping that stay for later.
fn fail_everywhere(
    prepare: impl Fn(&Machine),
    step: impl Fn(&Machine, &Vmalloc<&Machine>) -> Result<usize, VmallocError>,
) {
    let mut failures = 0;
    for fail_on in [false, true] {
        for request in 1.. {
            let machine = Machine::new(4096);
            let vmalloc = machine.window(1 << 20);
            prepare(&machine);
            machine.frames.lock().unwrap().fail_on = fail_on;
            machine.fail_at(Some(request));
            let outcome = step(&machine, &vmalloc);
            machine.fail_at(None);
            if let Err(error) = outcome {
                failures += 1;
                assert!(
                    matches!(error, VmallocError::NoMemory { .. } | VmallocError::NotMapped { .. }),
                    "request {request}: {error}"
                );
                assert_eq!(machine.nr_mapped(), 0, "request {request}");
                assert_eq!(vmalloc.stats().used_bytes, 0);
                assert_eq!(vmalloc.live_areas(), 0);
                // It works now, in the same place once the lazy list is purged.
                vmalloc.vm_unmap_aliases();
                crate::PoolShrinker::scan_objects(&vmalloc);
                let whole = (1_u64 << 20) * PAGE_SIZE as u64;
                let blocks = usize::from(vmalloc.stats().largest_free_bytes != whole);
                assert!(blocks == 0 || vmalloc.vmallocinfo().to_string_is_ram(), "addresses are lost");
                step(&machine, &vmalloc).unwrap();
            }
            let over = outcome.is_ok();
            drop(vmalloc);
            machine.tables.lock().unwrap().flushed.clear();
            if over {
                break;
            }
            assert!(request < 2000);
        }
    }
    assert!(failures > 0, "nothing failed");
}

trait OnlyRam {
    fn to_string_is_ram(&self) -> bool;
}

impl OnlyRam for crate::VmallocInfo<'_, &Machine> {
    fn to_string_is_ram(&self) -> bool {
        std::format!("{self}").lines().all(|line| line.contains("vm_map_ram"))
    }
}

fn free(vmalloc: &Vmalloc<&Machine>, at: *mut u8) -> usize {
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(at) }.unwrap();
    at.addr()
}

#[test]
fn vmalloc_of_many_scattered_pages() {
    // VM-22, VM-23: frames, the list of frames (several blocks of it), tables, nodes, descriptors
    fail_everywhere(
        |machine| {
            let mut frames = machine.frames.lock().unwrap();
            (frames.scattered, frames.largest) = (true, 0);
        },
        |machine, vmalloc| {
            let before = machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks;
            let outcome = vmalloc.vmalloc(1100 * PAGE_SIZE).map(|memory| free(vmalloc, memory.as_ptr()));
            assert_eq!(machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks, before, "frames are lost");
            outcome
        },
    );
}

#[test]
fn vmalloc_of_large_blocks_and_huge() {
    fail_everywhere(
        |_| (),
        |machine, vmalloc| {
            let before = machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks;
            let outcome = vmalloc
                .vmalloc(999 * PAGE_SIZE)
                .map(|memory| free(vmalloc, memory.as_ptr()))
                .and_then(|_| vmalloc.vmalloc_huge(5 << 20, Gfp::KERNEL).map(|memory| free(vmalloc, memory.as_ptr())));
            assert_eq!(machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks, before, "frames are lost");
            outcome
        },
    );
}

#[test]
fn vmap_with_frames_given_away() {
    fail_everywhere(
        |_| (),
        |machine, vmalloc| {
            let all = machine.take_frames(1200);
            let (frames, rest): (std::vec::Vec<_>, std::vec::Vec<_>) = all.iter().partition(|frame| frame.0 % 2 == 0);
            machine.give_frames(&rest);
            // SAFETY: the frames are ours.
            let outcome = unsafe { vmalloc.vmap(&frames, VmFlags::MAP_PUT_PAGES, Prot::KERNEL) };
            outcome.map(|at| free(vmalloc, at.as_ptr())).inspect_err(|_| machine.give_frames(&frames))
        },
    );
}

#[test]
fn vm_map_ram() {
    fail_everywhere(
        |_| (),
        |machine, vmalloc| {
            let one = kmem_gfp::Pfn(super::machine::FIRST);
            // SAFETY: nothing is accessed.
            let at = unsafe { vmalloc.vm_map_ram(&[one; 10], None) }?;
            // SAFETY: not used any more.
            unsafe { vmalloc.vm_unmap_ram(at.as_ptr(), 10) }.unwrap();
            let _ = machine;
            Ok(at.addr().get())
        },
    );
}

#[test]
fn vrealloc_that_has_to_move() {
    fail_everywhere(
        |_| (),
        |machine, vmalloc| {
            let old = vmalloc.vmalloc(PAGE_SIZE)?;
            machine.store(old.addr().get(), 42);
            // SAFETY: ours.
            match unsafe { vmalloc.vrealloc(old.as_ptr(), 20 * PAGE_SIZE, Gfp::KERNEL) } {
                Ok(new) => {
                    let new = new.unwrap();
                    assert_eq!(machine.load(new.addr().get()), 42);
                    Ok(free(vmalloc, new.as_ptr()))
                }
                Err(error) => {
                    assert_eq!(machine.load(old.addr().get()), 42, "the old memory is as it was");
                    free(vmalloc, old.as_ptr());
                    Err(error)
                }
            }
        },
    );
}

#[test]
fn a_host_that_refuses_mappings() {
    let machine = Machine::new(256);
    let vmalloc = machine.window(1000);
    machine.tables.lock().unwrap().refuse = true;
    let before = machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks;
    for _ in 0..50 {
        assert!(matches!(vmalloc.vmalloc(9 * PAGE_SIZE), Err(VmallocError::NotMapped { .. })));
    }
    assert_eq!(machine.in_use_but_tables() as u64 - vmalloc.stats().metadata_blocks, before);
    machine.tables.lock().unwrap().refuse = false;
    assert!(vmalloc.vmalloc(9 * PAGE_SIZE).is_ok());
}

#[test]
fn a_full_address_space() {
    // VM-05
    let machine = Machine::new(256);
    let vmalloc = machine.window(100);
    let mut areas = std::vec::Vec::new();
    let error = loop {
        match vmalloc.vmalloc(PAGE_SIZE) {
            Ok(memory) => areas.push(memory),
            Err(error) => break error,
        }
    };
    assert_eq!((areas.len(), error), (50, VmallocError::NoSpace { nr_pages: 2 }));
    for memory in areas {
        free(&vmalloc, memory.as_ptr());
    }
    let all = VmRequest { flags: VmFlags::NO_GUARD, ..VmRequest::new(100 * PAGE_SIZE, Gfp::KERNEL) };
    assert_eq!(vmalloc.alloc(&all).unwrap().addr().get(), BASE);
}
