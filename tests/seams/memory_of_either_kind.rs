//! kvmalloc over the real kmalloc and vmalloc: on a machine without virtual memory, in interrupts, when any page request fails,
//! and on many threads at once.

use std::sync::mpsc;

use kmem::{AllocError, Gfp, KMALLOC_MAX_SIZE, KvmallocError, PAGE_SIZE, RcuHead, VfreeError, VmallocError};
use kmem_hosted::{Machine, Reports, TaskFlags, in_context};
use kmem_tests::{Kmem, machine};

use super::board;

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn without_virtual_memory_vmalloc_says_so_and_kvmalloc_is_kmalloc() {
    let kmem = board::kmem();
    let gfp = KERNEL | Gfp::NOWARN | Gfp::NORETRY;
    assert_eq!(kmem.vmalloc(100), Err(VmallocError::NotReady));
    assert_eq!(VmallocError::NotReady.to_string(), "vmalloc has no window of addresses");
    for size in [10, PAGE_SIZE, 20_000] {
        let memory = kmem.kvmalloc(size, gfp).unwrap().as_ptr();
        assert!(!kmem.is_vmalloc_addr(memory));
        // SAFETY: ours; what `kvrealloc` gives replaces it, and is freed once. The rest is refused.
        unsafe {
            assert_eq!(kmem.vfree(memory), Err(VfreeError::NotReady));
            let grown = kmem.kvrealloc(memory, size * 2, gfp).unwrap().unwrap();
            kmem.kvfree(grown.as_ptr()).unwrap();
        }
    }
    let size_bytes = KMALLOC_MAX_SIZE + 1;
    let kmalloc = AllocError::TooLarge { size_bytes };
    let neither = KvmallocError::Neither { size_bytes, kmalloc, vmalloc: VmallocError::NotReady };
    assert_eq!(kmem.kvmalloc(size_bytes, gfp), Err(neither));
    assert_eq!(kmem.vmallocinfo().to_string(), "");
    kmem.vm_unmap_aliases();
    kmem.kvfree_rcu_barrier();
}

// KV-05, KV-07
#[test]
fn in_interrupts_areas_are_freed_later_and_not_made() {
    let machine = machine();
    let kmem = machine.kmem();
    let [one, other, third] = [(); 3].map(|()| kmem.kvmalloc(5 << 20, KERNEL).unwrap().as_ptr());
    let small = kmem.kvmalloc(100, KERNEL).unwrap().as_ptr();
    let used = || kmem.vmalloc_stats().used_bytes;
    let before = used();
    in_context(TaskFlags::IN_IRQ, || {
        // SAFETY: ours, freed once each; nobody reads the one with a head.
        unsafe {
            kmem.kvfree(one).unwrap();
            kmem.kvfree(small).unwrap();
            kmem.kvfree_rcu(third, core::ptr::NonNull::new(third.cast::<RcuHead>()).unwrap()).unwrap();
        }
        assert_eq!(used(), before, "put off");
        let error = kmem.kvmalloc(5 << 20, Gfp::ATOMIC).unwrap_err();
        assert!(matches!(error, KvmallocError::Neither { vmalloc: VmallocError::BadContext { .. }, .. }), "{error}");
        let block = kmem.kvmalloc(20_000, Gfp::ATOMIC).unwrap();
        // SAFETY: ours, freed once.
        unsafe { kmem.kvfree(block.as_ptr()) }.unwrap();
    });
    in_context(TaskFlags::ATOMIC, || {
        // SAFETY: ours, freed once.
        unsafe { kmem.kvfree_atomic(other) }.unwrap();
    });
    assert_eq!(used(), before, "put off as well");
    kmem.kvfree_rcu_barrier();
    kmem.vm_unmap_aliases();
    assert_eq!(used(), 0);
    // Non-blocking requests in a task do fall back.
    let memory = kmem.kvmalloc(5 << 20, Gfp::NOWAIT).unwrap();
    assert!(kmem.is_vmalloc_addr(memory.as_ptr()));
    // SAFETY: ours, freed once.
    unsafe { kmem.kvfree(memory.as_ptr()) }.unwrap();
}

// UC-04
#[test]
fn copies_to_user_space_stay_inside_one_area_or_block() {
    let kmem = machine().kmem();
    for size in [100_000, 6 << 20] {
        let memory = kmem.kvmalloc(size, KERNEL).unwrap().as_ptr();
        let room = if kmem.is_vmalloc_addr(memory) { size + PAGE_SIZE } else { 128 << 10 };
        assert_eq!(kmem.check_object_size(memory, room), Ok(()), "the guard page is inside the bound");
        assert!(kmem.check_object_size(memory, room + 1).is_err());
        assert_eq!(kmem.check_object_size(memory.wrapping_add(room - 8), 8), Ok(()));
        assert!(kmem.check_object_size(memory.wrapping_add(room - 8), 9).is_err());
        let area = kmem.is_vmalloc_addr(memory);
        // SAFETY: ours, freed once.
        unsafe { kmem.kvfree(memory) }.unwrap();
        if area {
            assert!(kmem.check_object_size(memory, 8).is_err(), "no area is there any more");
        }
    }
}

/// Allocates and resizes both ways; whatever fails leaves the rest as it was. Everything is free at the end.
fn either_way(kmem: Kmem) {
    let gfp = KERNEL | Gfp::NOWARN;
    for (first, second) in [(100, 20_000), (20_000, 5 << 20), (5 << 20, 6 << 20), (3 * PAGE_SIZE, 100)] {
        let Ok(memory) = kmem.kvmalloc(first, gfp) else { continue };
        // SAFETY: ours, as long as it was last asked for; what `kvrealloc` gives replaces it, and is freed once.
        unsafe {
            memory.write_bytes(0x77, first);
            let memory = match kmem.kvrealloc(memory.as_ptr(), second, gfp) {
                Ok(resized) => resized.unwrap().as_ptr(),
                Err(_) => memory.as_ptr(),
            };
            for at in (0..first.min(second)).step_by(97) {
                assert_eq!(memory.add(at).read(), 0x77);
            }
            kmem.kvfree(memory).unwrap();
        }
    }
    assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.kmalloc_layer().large_pages()), (0, 0), "nothing is lost");
}

#[test]
fn whichever_page_request_fails_nothing_is_lost() {
    let machine = Machine::builder().cpus(1).ram_bytes(64 << 20).reports(Reports::Discard).boot().unwrap();
    let kmem = machine.kmem();
    let free = |kmem: Kmem| {
        kmem.vm_unmap_aliases();
        kmem.pages().drain_all_pages();
        kmem.pages().free_page_count() + kmem.slab_pages() + kmem.vmalloc_stats().metadata_pages
    };
    for _ in 0..3 {
        either_way(kmem);
        free(kmem);
    }
    // The same addresses again each time, and so the same bookkeeping pages.
    let before = free(kmem);
    let mut requests = 0;
    loop {
        requests += 1;
        machine.fail_page_request(requests);
        either_way(kmem);
        // What the window keeps for its own bookkeeping is not lost.
        assert!(free(kmem) + 8 >= before, "request {requests}: {} of {before} pages", free(kmem));
        if machine.failure_pending() {
            machine.fail_page_request(0);
            break;
        }
    }
    assert!(requests > 5, "{requests}");
}

#[test]
fn an_area_that_shrinks_gives_back_parts_of_the_blocks_that_it_was_made_of() {
    let machine = Machine::builder().cpus(1).ram_bytes(64 << 20).reports(Reports::Capture).boot().unwrap();
    let kmem = machine.kmem();
    let free = |kmem: Kmem| {
        kmem.vm_unmap_aliases();
        kmem.vmalloc_shrinker().scan_objects();
        kmem.pages().drain_all_pages();
        kmem.pages().free_page_count() + kmem.vmalloc_stats().metadata_pages
    };
    // The window's own bookkeeping for so many pages comes once.
    // SAFETY: ours, freed once.
    unsafe { kmem.vfree(kmem.vmalloc(40 * PAGE_SIZE).unwrap().as_ptr()) }.unwrap();
    let before = free(kmem);
    for pages in 2..40 {
        let mut memory = kmem.vmalloc(pages * PAGE_SIZE).unwrap().as_ptr();
        for left in (1..pages).rev().step_by(1 + pages % 5) {
            // SAFETY: ours; what it gives replaces it.
            memory = unsafe { kmem.vrealloc(memory, left * PAGE_SIZE, KERNEL) }.unwrap().unwrap().as_ptr();
            assert_eq!(kmem.vmalloc_stats().used_bytes, (left * PAGE_SIZE) as u64);
        }
        // SAFETY: ours, freed once.
        unsafe { kmem.vfree(memory) }.unwrap();
        assert_eq!(free(kmem), before, "{pages} pages");
    }
    assert_eq!(machine.take_reports(), "");
}

/// Memory on its way: address, size, and the byte that fills it.
struct Parcel(usize, usize, u8);

#[test]
fn memory_of_either_kind_changes_threads_and_all_comes_back() {
    const THREADS: usize = 4;
    let machine = Machine::builder().cpus(2).ram_bytes(512 << 20).reports(Reports::Capture).boot().unwrap();
    let kmem = machine.kmem();
    let sizes = [40, 700, PAGE_SIZE, PAGE_SIZE + 1, 30_000, 300_000];
    // More than kmalloc has, now and then.
    let size_of =
        |round: usize| if round % 20 == 7 { KMALLOC_MAX_SIZE + PAGE_SIZE } else { sizes[round % sizes.len()] };
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Parcel>()).unzip();
    std::thread::scope(|scope| {
        for (me, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(me + 1) % THREADS].clone();
            scope.spawn(move || {
                let unpack = |Parcel(address, size, fill): Parcel, how: usize| {
                    let memory = core::ptr::with_exposed_provenance_mut::<u8>(address);
                    // SAFETY: the sender's, given to us; filled, `size` bytes; freed once.
                    unsafe {
                        for at in [0, size / 2, size - 1] {
                            assert_eq!(memory.add(at).read(), fill);
                        }
                        match how % 5 {
                            0 => {
                                let new = size_of(how / 5);
                                let resized = kmem.kvrealloc(memory, new, KERNEL).unwrap().unwrap();
                                assert_eq!(resized.add(size.min(new) - 1).read(), fill);
                                kmem.kvfree(resized.as_ptr()).unwrap();
                            }
                            1 => kmem.kvfree_rcu(memory, core::ptr::NonNull::new(memory.cast()).unwrap()).unwrap(),
                            2 => kmem.kvfree_atomic(memory).unwrap(),
                            3 => kmem.kvfree_sensitive(memory, size).unwrap(),
                            _ => kmem.kvfree(memory).unwrap(),
                        }
                    }
                };
                for round in 0..300 {
                    let size = size_of(round * 5 + me);
                    let fill = (round + me) as u8;
                    let memory = kmem.kvmalloc(size, KERNEL).unwrap();
                    // SAFETY: ours, of that size.
                    unsafe { memory.write_bytes(fill, size) };
                    next.send(Parcel(memory.as_ptr().expose_provenance(), size, fill)).unwrap();
                    if let Ok(parcel) = receiver.try_recv() {
                        unpack(parcel, round + me);
                    }
                }
                drop(next);
                for (how, parcel) in receiver.iter().enumerate() {
                    unpack(parcel, how);
                }
            });
        }
        drop(senders);
    });
    kmem.kvfree_rcu_barrier();
    kmem.vm_unmap_aliases();
    assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.kmalloc_layer().large_pages()), (0, 0));
    assert_eq!(machine.take_reports(), "");
}
