//! Models of epochs and slots. Run with `cargo xtask loom --crate hosted`.

use kmem_sync::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering, fence};
use loom::thread;

use crate::door::Door;
use crate::epoch::{Epoch, Reader};
use crate::slots::Slot;

/// The barrier on all CPUs: a full fence of the caller. The readers' compiler fence is a full fence under loom, which is
/// what the barrier gives them on a host.
fn heavy() {
    fence(Ordering::SeqCst);
}

/// An object that readers reach while it is linked. Whoever unlinked it writes to it after the grace period; loom
/// objects if a reader still looks.
struct Shared {
    epoch: Epoch,
    readers: [Reader; 2],
    linked: AtomicBool,
    object: UnsafeCell<u32>,
}

// SAFETY: loom checks the accesses to the object, which is what these models are about.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Epoch::new(),
            readers: [Reader::new(), Reader::new()],
            linked: AtomicBool::new(true),
            object: UnsafeCell::new(7),
        })
    }

    fn look(&self) {
        if self.linked.load(Ordering::Acquire) {
            // SAFETY: linked when looked at, inside a read-side section.
            self.object.with(|object| assert_eq!(unsafe { *object }, 7, "reused under a reader"));
        }
    }

    fn read_on(&self, cpu: usize) {
        let reader = &self.readers[cpu];
        self.epoch.enter(reader);
        self.look();
        self.epoch.exit(reader);
    }

    /// Unlinks, asks `polls` times, and reuses the object once the grace period has passed.
    fn unlink_and_reuse(&self, polls: usize) {
        self.linked.store(false, Ordering::Relaxed);
        let grace = self.epoch.snapshot();
        for _ in 0..polls {
            if self.epoch.has_passed(grace, || self.readers.iter(), heavy) {
                // SAFETY: nobody reads any more.
                self.object.with_mut(|object| unsafe { *object = 0 });
                return;
            }
            thread::yield_now();
        }
    }
}

#[test]
fn an_object_is_reused_only_after_its_readers() {
    loom::model(|| {
        let shared = Shared::new();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || shared.read_on(0)
        });
        shared.unlink_and_reuse(2);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_that_begins_again_holds_nothing_up_wrongly() {
    loom::model(|| {
        let shared = Shared::new();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.read_on(0);
                shared.read_on(0);
            }
        });
        shared.unlink_and_reuse(2);
        reader.join().unwrap();
    });
}

#[test]
fn a_section_inside_another_does_not_end_it() {
    loom::model(|| {
        let shared = Shared::new();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || {
                let reader = &shared.readers[0];
                shared.epoch.enter(reader);
                shared.epoch.enter(reader);
                shared.epoch.exit(reader);
                shared.look();
                shared.epoch.exit(reader);
            }
        });
        shared.unlink_and_reuse(2);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_without_a_cpu_counts_too() {
    loom::model(|| {
        let shared = Shared::new();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || {
                let epoch = shared.epoch.enter_shared();
                shared.look();
                shared.epoch.exit_shared(epoch);
            }
        });
        shared.unlink_and_reuse(2);
        reader.join().unwrap();
    });
}

#[test]
fn two_askers_advance_the_epoch_together() {
    loom::model(|| {
        let shared = Shared::new();
        let asker = thread::spawn({
            let shared = shared.clone();
            move || {
                let grace = shared.epoch.snapshot();
                shared.epoch.has_passed(grace, || shared.readers.iter(), heavy)
            }
        });
        let reader = thread::spawn({
            let shared = shared.clone();
            move || {
                let epoch = shared.epoch.enter_shared();
                shared.look();
                shared.epoch.exit_shared(epoch);
            }
        });
        shared.unlink_and_reuse(1);
        asker.join().unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn a_slot_changes_hands_with_everything_its_owner_did() {
    loom::model(|| {
        let slot = Arc::new((Slot::new(), UnsafeCellOf(UnsafeCell::new(0_u32))));
        let owners: Vec<_> = (1..=2)
            .map(|token| {
                let slot = slot.clone();
                thread::spawn(move || {
                    let (slot, data) = &*slot;
                    if slot.try_take(token, token == 1) {
                        // SAFETY: the slot's data is its owner's.
                        data.0.with_mut(|data| unsafe { *data += 1 });
                        assert!(slot.is_owned_by(token));
                        // SAFETY: this thread owns it and is pinned nowhere.
                        unsafe { slot.give_back() };
                        return 1;
                    }
                    0
                })
            })
            .collect();
        let had: u32 = owners.into_iter().map(|owner| owner.join().unwrap()).sum();
        let (slot, data) = &*slot;
        assert!(slot.try_take(3, false));
        // SAFETY: taken.
        data.0.with(|data| assert_eq!(unsafe { *data }, had));
    });
}

/// A cell that threads of a model share.
struct UnsafeCellOf(UnsafeCell<u32>);
// SAFETY: loom checks the accesses.
unsafe impl Sync for UnsafeCellOf {}
// SAFETY: as above.
unsafe impl Send for UnsafeCellOf {}

/// One thread passes the door, as a CPU or without, and writes what is behind it; another closes it, waits, and reads.
fn door(with_slot: bool) {
    loom::model(move || {
        let room = Arc::new((Door::new(), Slot::new(), UnsafeCellOf(UnsafeCell::new(0_u32))));
        let visitor = thread::spawn({
            let room = room.clone();
            move || {
                let (door, slot, data) = &*room;
                let slot = with_slot.then_some(slot);
                if door.try_enter(slot) {
                    // SAFETY: inside; loom checks that nobody reads meanwhile.
                    data.0.with_mut(|data| unsafe { *data += 1 });
                    door.leave(slot);
                }
            }
        });
        let (door, slot, data) = &*room;
        door.close(heavy);
        if door.is_empty(std::iter::once(slot)) {
            // SAFETY: nobody is inside, and nobody enters; loom checks both, the second by looking twice.
            let [first, second] = [(); 2].map(|()| data.0.with(|data| unsafe { *data }));
            assert_eq!(first, second);
        }
        door.open();
        visitor.join().unwrap();
    });
}

#[test]
fn behind_a_closed_and_empty_door_nothing_moves() {
    door(true);
}

#[test]
fn a_visitor_without_a_cpu_counts_at_the_door() {
    door(false);
}
