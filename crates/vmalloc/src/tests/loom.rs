//! Models of what meets on several CPUs. `cargo xtask loom --crate vmalloc`.
//!
//! The page source and the page tables are plain structures that no model thread leaves half-way: their order of
//! events is the schedule's. What is explored are vmalloc's own words and locks.

mod machine;

use core::ptr::NonNull;
use std::vec::Vec;

use kmem_gfp::{Gfp, Order, PAGE_SIZE, PageAllocator, TaskFlags};
use loom::sync::Arc;
use loom::thread;

use self::machine::{BASE, Machine, become_cpu, become_task};
use crate::area::{Area, Owned, State};
use crate::node::AreaStack;
use crate::{AddressSpace, VmFlags, Vmalloc};

fn window(nr_cpus: u32, nr_pages: usize) -> Arc<Vmalloc<Machine>> {
    let vmalloc = Vmalloc::new(Machine::new(nr_cpus));
    // SAFETY: the addresses are only numbers.
    unsafe { vmalloc.init(BASE..BASE + nr_pages * PAGE_SIZE) }.unwrap();
    Arc::new(vmalloc)
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    model_with(2, f);
}

/// Every schedule with so many preemptions at most.
fn model_with(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(f);
}

fn alloc(vmalloc: &Vmalloc<Machine>) -> usize {
    vmalloc.vmalloc(1).unwrap().addr().get()
}

fn free(vmalloc: &Vmalloc<Machine>, at: usize) -> bool {
    // SAFETY: models use nothing after this.
    unsafe { vmalloc.vfree(at as *mut u8) }.is_ok()
}

#[test]
fn a_range_is_handed_out_again_only_after_its_flush() {
    model(|| {
        let vmalloc = window(1, 4);
        let old = alloc(&vmalloc);
        alloc(&vmalloc);
        vmalloc.env().reach(1, old).unwrap();
        assert!(free(&vmalloc, old));
        // So that the new area has another frame than the old one.
        vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let purger = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || vmalloc.purge()
        });
        // The window is full but for the freed range: it comes from the pool, or after a purge of our own.
        let new = alloc(&vmalloc);
        assert_eq!(new, old);
        assert_eq!(vmalloc.env().reach(1, new), vmalloc.env().translate(new), "an old translation is left");
        purger.join().unwrap();
    });
}

#[test]
fn of_a_free_in_an_interrupt_and_one_in_a_task_one_succeeds() {
    model(|| {
        let vmalloc = window(2, 8);
        let area = alloc(&vmalloc);
        let other = alloc(&vmalloc);
        let interrupt = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                become_cpu(1);
                become_task(TaskFlags::IN_IRQ);
                free(&vmalloc, area)
            }
        });
        let mine = free(&vmalloc, area);
        assert!(free(&vmalloc, other));
        let theirs = interrupt.join().unwrap();
        assert!(mine ^ theirs, "exactly one");
        assert_eq!(vmalloc.run_deferred(), usize::from(theirs));
        assert_eq!(vmalloc.env().nr_mapped(), 0);
    });
}

#[test]
fn frees_put_off_are_done_once() {
    model_with(3, || {
        let vmalloc = window(1, 8);
        let [first, second, third] = [(); 3].map(|()| alloc(&vmalloc));
        let interrupt = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                become_task(TaskFlags::IN_SOFTIRQ);
                assert!(free(&vmalloc, first));
                assert!(free(&vmalloc, third));
            }
        });
        // Takes the list of its CPU over, if something is on it.
        assert!(free(&vmalloc, second));
        interrupt.join().unwrap();
        vmalloc.run_deferred();
        assert_eq!(vmalloc.env().nr_mapped(), 0);
        assert_eq!(vmalloc.stats().lazy_pages, 6);
    });
}

#[test]
fn ranges_that_change_nodes_have_one_owner() {
    model(|| {
        let vmalloc = window(2, 16);
        let made: Vec<usize> = (0..2).map(|_| alloc(&vmalloc)).collect();
        let other = thread::spawn({
            let (vmalloc, made) = (vmalloc.clone(), made.clone());
            move || {
                become_cpu(1);
                assert!(free(&vmalloc, made[0]));
                vmalloc.purge();
                alloc(&vmalloc)
            }
        });
        assert!(free(&vmalloc, made[1]));
        let mine = alloc(&vmalloc);
        let theirs = other.join().unwrap();
        assert_ne!(mine, theirs);
        assert_eq!(vmalloc.live_areas(), 2);
        assert_eq!(vmalloc.env().nr_mapped(), 2);
    });
}

#[test]
fn a_block_goes_once_and_comes_back_clean() {
    model(|| {
        let vmalloc = window(1, 128);
        let frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let frames = [frame; 64];
        // SAFETY: the frames are ours.
        let [low, high] = [(); 2].map(|()| unsafe { vmalloc.vm_map_ram(&frames, None) }.unwrap().addr().get());
        vmalloc.env().reach(1, low).unwrap();
        let other = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                // SAFETY: not used any more.
                unsafe { vmalloc.vm_unmap_ram(high as *mut u8, 64) }.unwrap();
            }
        });
        // SAFETY: not used any more.
        unsafe { vmalloc.vm_unmap_ram(low as *mut u8, 64) }.unwrap();
        other.join().unwrap();
        assert_eq!(vmalloc.stats().lazy_pages, 128, "the block has gone, once");
        // The whole window was the block.
        let new_frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        // SAFETY: the frame is ours.
        let again = unsafe { vmalloc.vm_map_ram(&[new_frame], None) }.unwrap().addr().get();
        assert_eq!(again, low);
        assert_eq!(vmalloc.env().reach(1, again), Some(new_frame), "an old translation is left");
    });
}

#[test]
fn a_purge_and_the_last_unmapping_do_not_both_take_a_block() {
    model(|| {
        let vmalloc = window(1, 128);
        let frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        // SAFETY: the frames are ours.
        let at = unsafe { vmalloc.vm_map_ram(&[frame; 64], None) }.unwrap().addr().get();
        let other = thread::spawn({
            let vmalloc = vmalloc.clone();
            // Wants the whole window: purges under exhaustion.
            move || vmalloc.get_vm_area(128 * PAGE_SIZE, 1, VmFlags::NO_GUARD, None, Gfp::KERNEL).is_ok()
        });
        // SAFETY: not used any more.
        unsafe { vmalloc.vm_unmap_ram(at as *mut u8, 64) }.unwrap();
        let got_all = other.join().unwrap();
        assert_eq!(vmalloc.env().nr_mapped(), 0);
        assert_eq!(vmalloc.live_areas(), u64::from(got_all));
    });
}

#[test]
fn a_reader_sees_an_area_whole_or_not_at_all() {
    model(|| {
        let vmalloc = window(1, 8);
        let at = alloc(&vmalloc);
        let reader = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                let mut bytes = [9; 1];
                assert_eq!(vmalloc.vread(at as *const u8, &mut bytes), 1);
                assert!(bytes[0] <= 1);
                if let Some(info) = vmalloc.find_vm_area(at as *const u8) {
                    assert!(info.range.start == at && (info.nr_pages == 1 && info.requested_size <= 2), "{info:?}");
                }
            }
        });
        assert!(free(&vmalloc, at));
        vmalloc.purge();
        let again = vmalloc.vmalloc(2).unwrap().addr().get();
        assert_eq!(again, at, "the same range, another area");
        reader.join().unwrap();
    });
}

#[test]
fn a_claim_waits_for_readers_and_publishing_shows_everything() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        // SAFETY: made here, on no list.
        let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
        owned.assign(7, 2);
        owned.body(|body| body.requested = 1);
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                if let Some(pinned) = area.pin(8) {
                    let seen = pinned.with(|body| body.requested);
                    assert!(seen == 1 || seen == 2, "{seen}");
                }
            }
        });
        owned.publish();
        let pinned = area.pin(7).unwrap();
        let mut owned = pinned.claim().unwrap();
        area.wait_for_readers(&kmem_sync_cpu());
        owned.body(|body| body.requested = 2);
        owned.publish();
        reader.join().unwrap();
    });
}

/// A CPU for spinning only.
fn kmem_sync_cpu() -> kmem_sync::SingleCpu {
    // SAFETY: nothing but `relax` is called.
    unsafe { kmem_sync::SingleCpu::new() }
}

#[test]
fn of_two_claims_one_succeeds() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        // SAFETY: made here, on no list.
        let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
        owned.assign(7, 2);
        owned.publish();
        let other = thread::spawn(move || area.claim_exact(7).is_some());
        let mine = area.claim_exact(7).is_some();
        assert!(mine ^ other.join().unwrap(), "exactly one");
    });
}

#[test]
fn a_claim_sees_what_was_published() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        let publisher = thread::spawn(move || {
            // SAFETY: made above, on no list.
            let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
            owned.assign(7, 2);
            owned.body(|body| body.requested = 5);
            owned.publish();
        });
        let mut owned = loop {
            match area.claim_exact(7) {
                Some(owned) => break owned,
                None => thread::yield_now(),
            }
        };
        assert_eq!(owned.body(|body| body.requested), 5);
        publisher.join().unwrap();
    });
}

#[test]
fn a_stack_hands_each_area_to_one_taker_with_its_contents() {
    loom::model(|| {
        let stack = Arc::new(AreaStack::new());
        let areas: [&'static Area; 2] = [(); 2].map(|()| &*std::boxed::Box::leak(std::boxed::Box::new(Area::new())));
        fn count(stack: &AreaStack) -> usize {
            let mut nr = 0;
            for mut area in stack.take() {
                assert_eq!(area.body(|body| body.requested), 3);
                nr += 1;
            }
            nr
        }
        let taker = thread::spawn({
            let stack = stack.clone();
            move || {
                let first = count(&stack);
                first + count(&stack)
            }
        });
        for area in areas {
            // SAFETY: made above, on no list.
            let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
            owned.assign(1, 1);
            owned.body(|body| body.requested = 3);
            owned.set_state(State::Lazy);
            stack.push(owned);
        }
        let early = taker.join().unwrap();
        assert_eq!(early + count(&stack), 2);
    });
}
