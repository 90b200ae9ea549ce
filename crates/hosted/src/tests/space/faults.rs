//! What must not be touched kills whoever touches it; what has been handed out again leads nowhere else.
//!
//! A case that dies runs in a child: this program once more, with the case's name in its environment.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_vmalloc::{Prot, VmFlags, VmRequest};

use super::{boot, look, read, small, word_of, write};

const CASE: &str = "KMEM_HOSTED_FAULT";
const REACHED: &str = "about to touch it";

/// The cases, in a child. Does nothing in the parent.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let machine = boot(small().lingering_translations(case.starts_with("lingering")));
    let vmalloc = machine.kmem().vmalloc_layer();
    let first = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap().addr().get();
    let second = vmalloc.vmalloc(PAGE_SIZE).unwrap().addr().get();
    let free = |at: usize| {
        // SAFETY: ours; what is done with it afterwards is the point.
        unsafe { vmalloc.vfree(at as *mut u8) }.unwrap();
    };
    write(first, 1);
    write(first + 3 * PAGE_SIZE - 8, 2);
    write(second, 3);
    let touch: Box<dyn Fn() -> u64> = match case.as_str() {
        "nothing" => Box::new(|| read(first) + read(second)),
        "guard page" => Box::new(|| read(first + 3 * PAGE_SIZE)),
        "write to guard page" => Box::new(|| {
            write(first + 3 * PAGE_SIZE, 1);
            0
        }),
        "freed area" => {
            free(first);
            Box::new(|| read(first + PAGE_SIZE))
        }
        "lingering freed area" => {
            free(first);
            assert_eq!(read(first), 1, "translations linger");
            vmalloc.purge();
            Box::new(|| read(first))
        }
        "area freed in an interrupt" => {
            machine.in_interrupt(|| {
                free(second);
                assert_eq!(read(second), 3, "not yet");
            });
            Box::new(|| read(second))
        }
        "tail given back" => {
            // SAFETY: ours.
            let same = unsafe { vmalloc.vrealloc(first as *mut u8, PAGE_SIZE, Gfp::KERNEL) }.unwrap().unwrap();
            assert_eq!((same.addr().get(), read(first)), (first, 1));
            Box::new(|| read(first + 3 * PAGE_SIZE - 8))
        }
        "read-only area" => {
            // SAFETY: ours.
            unsafe { vmalloc.protect(first as *mut u8, 3, Prot::KERNEL_RO) }.unwrap();
            assert_eq!(read(first), 1);
            Box::new(|| {
                write(first, 4);
                0
            })
        }
        "reserved range" => {
            let range = vmalloc.get_vm_area(PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap();
            Box::new(move || read(range.addr().get()))
        }
        "unmapped view" => {
            let frames = [machine.kmem().alloc_page(Gfp::KERNEL).unwrap()];
            // SAFETY: ours.
            let view = unsafe { vmalloc.vm_map_ram(&frames, None) }.unwrap();
            write(view.addr().get(), 9);
            // SAFETY: ours.
            unsafe { vmalloc.vm_unmap_ram(view.as_ptr(), 1) }.unwrap();
            Box::new(move || read(view.addr().get()))
        }
        other => panic!("no case {other}"),
    };
    println!("{REACHED}");
    std::process::exit(if touch() == 0 { 17 } else { 18 });
}

/// The signal that ends the child in this case, which gets as far as touching.
fn signal_of(case: &str) -> Option<i32> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::space::faults::child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(text.contains(REACHED), "{case}: {text}");
    child.status.signal()
}

#[test]
fn what_is_nobodys_faults() {
    for case in [
        "guard page",
        "write to guard page",
        "freed area",
        "lingering freed area",
        "area freed in an interrupt",
        "tail given back",
        "read-only area",
        "reserved range",
        "unmapped view",
    ] {
        assert_eq!(signal_of(case), Some(libc::SIGSEGV), "{case}");
    }
    assert_eq!(signal_of("nothing"), None);
}

#[test]
fn a_freed_area_can_be_reached_until_the_flush_and_never_after() {
    let machine = boot(small().lingering_translations(true));
    let vmalloc = machine.kmem().vmalloc_layer();
    let at = vmalloc.vmalloc(2 * PAGE_SIZE).unwrap().addr().get();
    write(at, 41);
    // SAFETY: the memory is looked at on purpose.
    unsafe { vmalloc.vfree(at as *mut u8) }.unwrap();
    assert_eq!(look(at), Some(41));
    assert_eq!((vmalloc.vmalloc_to_pfn(at as *const u8), machine.space_stats().lingering_pages), (None, 2));
    vmalloc.purge();
    assert_eq!(look(at), None);
    assert_eq!(machine.space_stats().lingering_pages, 0);
}

/// Freed ranges are handed out again while threads free, allocate and purge. Whoever gets one writes through its addresses and
/// looks at the frames behind them: through a mapping that is left over he would have written to somebody else's.
#[test]
fn a_range_that_is_handed_out_again_leads_to_its_own_frames_only() {
    for lingering in [false, true] {
        let machine = boot(small().cpus(3).lingering_translations(lingering).vmalloc_bytes(2 << 20));
        let vmalloc = machine.kmem().vmalloc_layer();
        let next = AtomicU64::new(1);
        let done = AtomicBool::new(false);
        let reused = AtomicU64::new(0);
        let lingered = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (next, reused, lingered, machine) = (&next, &reused, &lingered, &machine);
                    scope.spawn(move || {
                        let mut seen = std::collections::BTreeSet::new();
                        for round in 0..700_usize {
                            let pages = 1 + (round * 7 + worker) % 5;
                            let memory = vmalloc.vmalloc(pages * PAGE_SIZE).unwrap().addr().get();
                            reused.fetch_add(u64::from(!seen.insert(memory)), Ordering::Relaxed);
                            for page in 0..pages {
                                let at = memory + page * PAGE_SIZE;
                                let tag = next.fetch_add(1, Ordering::Relaxed);
                                write(at, tag);
                                let pfn = vmalloc.vmalloc_to_pfn(at as *const u8).unwrap();
                                assert_eq!(word_of(machine, pfn), tag, "an old mapping is left at {at:#x}");
                                assert_eq!(look(at), Some(tag));
                            }
                            // SAFETY: ours.
                            unsafe { vmalloc.vfree(memory as *mut u8) }.unwrap();
                            if machine.space_stats().lingering_pages > 0 {
                                lingered.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    vmalloc.purge();
                    std::thread::yield_now();
                }
            });
            for worker in workers {
                worker.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(reused.into_inner() > 200, "ranges were handed out again");
        assert_eq!(lingered.into_inner() > 0, lingering, "there was something to see");
        vmalloc.vm_unmap_aliases();
        assert_eq!(machine.space_stats().host_mappings, 1);
    }
}

#[test]
fn the_reader_sees_a_mapping_that_was_not_flushed() {
    use kmem_gfp::Pfn;
    use kmem_vmalloc::{AddressSpace, CpuSet, Granule, Run, TableSource};

    /// No table is missing.
    struct None;
    impl TableSource for None {
        fn table(&mut self) -> Result<Pfn, kmem_gfp::AllocError> {
            Err(kmem_gfp::AllocError::NotReady)
        }
    }
    let machine = boot(small().lingering_translations(true));
    let vmalloc = machine.kmem().vmalloc_layer();
    let space = machine.kmem().platform().space;
    let area = vmalloc.area(&VmRequest::new(PAGE_SIZE, Gfp::KERNEL)).unwrap();
    let at = area.as_ptr().addr();
    let old = vmalloc.vmalloc_to_pfn(area.as_ptr()).unwrap();
    let new = machine.kmem().alloc_page(Gfp::KERNEL).unwrap();
    write(at, 1);
    // What vmalloc must never do: map without a flush in between.
    // SAFETY: the area is ours, and so is the frame.
    unsafe {
        space.unmap(at, PAGE_SIZE);
        space.map(at, &[Run::new(new, 1).unwrap()], Prot::KERNEL, Granule::BASE, &mut None).unwrap();
    }
    write(at, 2);
    assert_eq!((space.translate(at), word_of(&machine, old)), (Some(new), 2), "the new owner writes to the old frame");
    space.flush(at..at + PAGE_SIZE, CpuSet::All);
    write(at, 3);
    assert_eq!((word_of(&machine, old), word_of(&machine, new)), (2, 3));
}
