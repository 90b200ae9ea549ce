//! Models of the local trylock. The locks are loom's own mutex in a model, so they have none. Run with `cargo xtask loom --crate sync`.

use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;

use crate::{Cpu, CpuId, CpuSlot, IrqState};

/// The CPU of the model: the thread that plays the owner is CPU 0. The barrier on all CPUs is a full fence of the
/// revoker; the owner's compiler fence is a full fence under loom, which is what the inter-processor interrupt gives it.
struct Model;

// SAFETY: each model has one owning thread (1, 3), nothing interrupts it (2, 4), and both fences are full (5).
unsafe impl Cpu for Model {
    fn nr_cpus(&self) -> u32 {
        1
    }
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(0))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[test]
fn owner_and_revoker_never_meet_inside_a_section() {
    loom::model(|| {
        let slot = Arc::new(CpuSlot::new(0_u32));
        let owner = thread::spawn({
            let slot = slot.clone();
            move || {
                let mut entered = 0;
                for _ in 0..2 {
                    // SAFETY: this thread is the only one pinned to the slot's CPU.
                    entered += u32::from(unsafe { slot.try_with::<Model, _>(|value| *value += 1) }.is_some());
                }
                entered
            }
        });
        slot.with_revoked(&Model, |value| *value += 100);
        let entered = owner.join().unwrap();
        assert_eq!(slot.with_revoked(&Model, |value| *value), 100 + entered, "no update is lost");
    });
}

#[test]
fn two_revokers_take_turns() {
    loom::model(|| {
        let slot = Arc::new(CpuSlot::new(0_u32));
        let other = thread::spawn({
            let slot = slot.clone();
            move || slot.with_revoked(&Model, |value| *value += 1)
        });
        slot.with_revoked(&Model, |value| *value += 1);
        other.join().unwrap();
        assert_eq!(slot.with_revoked(&Model, |value| *value), 2);
    });
}

#[test]
fn an_interrupting_user_is_turned_away_while_a_revoker_waits() {
    loom::model(|| {
        let slot = Arc::new(CpuSlot::new(0_u32));
        let owner = thread::spawn({
            let slot = slot.clone();
            move || {
                // SAFETY: this thread is the only one pinned to the slot's CPU; the inner call plays an interrupt on it.
                unsafe {
                    slot.try_with::<Model, _>(|value| {
                        *value += 1;
                        let inner = slot.try_with::<Model, _>(|_| ());
                        assert_eq!(inner, None, "re-entry takes the slower path");
                    })
                }
                .is_some()
            }
        });
        let drained = slot.with_revoked(&Model, core::mem::take);
        let entered = owner.join().unwrap();
        let left = slot.with_revoked(&Model, |value| *value);
        assert_eq!(drained + left, u32::from(entered));
    });
}

loom::lazy_static! {
    static ref CLOSED: loom::sync::atomic::AtomicBool = loom::sync::atomic::AtomicBool::new(false);
}

/// [`Model`] with a door before all sections.
struct Door;

// SAFETY: as for `Model`.
unsafe impl Cpu for Door {
    fn nr_cpus(&self) -> u32 {
        1
    }
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(0))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
    fn sections_closed() -> bool {
        CLOSED.load(Ordering::Acquire)
    }
}

#[test]
fn after_closing_and_one_revocation_nobody_is_inside() {
    loom::model(|| {
        let slot = Arc::new(CpuSlot::new(0_u32));
        let owner = thread::spawn({
            let slot = slot.clone();
            move || {
                // SAFETY: this thread is the only one pinned to the slot's CPU.
                unsafe { slot.try_with::<Door, _>(|value| *value += 1) }.is_some()
            }
        });
        CLOSED.store(true, Ordering::Relaxed);
        Door.barrier_all_cpus();
        slot.with_revoked(&Door, |_| ());
        // The slot is open again, and yet still: loom's cell objects if the owner is inside during either look.
        let [first, second] = [(); 2].map(|()| slot.peek());
        assert_eq!(first, second, "nobody enters a closed section");
        CLOSED.store(false, Ordering::Release);
        owner.join().unwrap();
    });
}
