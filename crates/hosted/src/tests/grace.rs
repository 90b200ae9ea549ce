//! Grace periods under real threads.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use kmem_sync::{Cpu, GracePeriod};

use crate::slots::{Slot, SlotTable};
use crate::{Binding, EpochGrace, HostCpu};

fn grace(nr: usize) -> EpochGrace<HostCpu> {
    let slots = Vec::leak((0..nr).map(|_| Slot::new()).collect());
    EpochGrace::new(HostCpu::new(Box::leak(Box::new(SlotTable::new(slots, nr as u32))), Binding::OnDemand))
}

#[test]
fn without_readers_a_grace_period_passes_when_asked() {
    let grace = grace(2);
    let before = grace.snapshot();
    assert!(grace.has_passed(before));
    assert!(grace.has_passed(before), "once passed, always passed");
    grace.synchronize();
}

#[test]
fn a_reader_holds_up_what_was_noted_while_it_ran_and_nothing_older() {
    let grace = grace(2);
    let older = grace.snapshot();
    assert!(grace.has_passed(older));
    let outer = grace.read_lock();
    let noted = grace.snapshot();
    let inner = grace.read_lock();
    assert!(!grace.has_passed(noted));
    drop(outer);
    assert!(!grace.has_passed(noted), "sections nest, in any order of dropping");
    drop(inner);
    assert!(grace.has_passed(noted));
}

#[test]
fn a_reader_that_begins_later_holds_nothing_up_for_long() {
    let grace = grace(2);
    let first = grace.read_lock();
    let noted = grace.snapshot();
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let _second = grace.read_lock();
                assert!(!grace.has_passed(noted));
            })
            .join()
            .unwrap();
    });
    drop(first);
    assert!(grace.has_passed(noted));
}

#[test]
fn a_thread_without_a_cpu_reads_too() {
    let grace = grace(1);
    let own = grace.read_lock();
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let without = grace.read_lock();
                let noted = grace.snapshot();
                assert!(!grace.has_passed(noted));
                drop(without);
            })
            .join()
            .unwrap();
    });
    drop(own);
    grace.synchronize();
}

#[test]
fn a_guard_that_a_thread_forgot_ends_with_the_thread() {
    let grace = grace(2);
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(grace.read_lock()));
    });
    grace.synchronize();
}

#[test]
fn readers_never_see_what_was_reclaimed() {
    let grace = grace(3);
    let current = AtomicPtr::new(Box::into_raw(Box::new(AtomicU64::new(1))));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One reader more than there are CPUs besides the writer's.
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _section = grace.read_lock();
                    // SAFETY: reached inside a section, so not reclaimed before its end.
                    let value = unsafe { &*current.load(Ordering::Acquire) };
                    assert_eq!(value.load(Ordering::Relaxed), 1, "reclaimed under a reader");
                }
            });
        }
        for _ in 0..200 {
            let old = current.swap(Box::into_raw(Box::new(AtomicU64::new(1))), Ordering::AcqRel);
            grace.synchronize();
            // SAFETY: unlinked, and every reader that could reach it has finished.
            let old = unsafe { Box::from_raw(old) };
            old.store(0, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: nobody else is left.
    drop(unsafe { Box::from_raw(current.into_inner()) });
    assert!(grace.cpu().nr_cpus() == 3);
}
