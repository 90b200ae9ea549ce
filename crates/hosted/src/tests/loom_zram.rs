//! Models of a compressed page's slot. Run with `cargo xtask loom --crate hosted`.

use kmem_sync::{Cpu, CpuId, IrqState};
use loom::sync::Arc;
use loom::thread;

use crate::zram::{Kind, Slot};

/// A CPU whose waiting lets others run.
#[derive(Clone, Copy)]
struct Waiting;

// SAFETY: it has no CPUs, so nobody is ever pinned to one; nothing interrupts a model's thread.
unsafe impl Cpu for Waiting {
    const REENTRANT: bool = false;

    fn nr_cpus(&self) -> u32 {
        0
    }
    fn try_pin(&self) -> Option<CpuId> {
        None
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn relax(&self) {
        loom::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {}
}

#[test]
fn a_slot_has_one_holder_who_sees_what_the_last_one_left() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        let change = |slot: &Slot, nr: u64| {
            let mut slot = slot.lock(&Waiting);
            let before = (slot.kind(), slot.word());
            // Kind and word always go together.
            assert!(before == (Kind::Empty, 0) || before.0 == Kind::Same && before.1 != 0, "{before:?}");
            slot.set(Kind::Same, before.1 + nr, 0, 0);
        };
        let other = thread::spawn({
            let slot = slot.clone();
            move || change(&slot, 1)
        });
        change(&slot, 10);
        other.join().unwrap();
        assert_eq!(slot.lock(&Waiting).word(), 11, "both were here, one behind the other");
    });
}
