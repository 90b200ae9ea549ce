//! Models: marking a victim against its exit. Run with `cargo xtask loom --crate reclaim`.

use loom::sync::Arc;
use loom::thread;

use crate::oom::{VictimMark, Victims};

#[test]
fn a_mark_and_an_exit_leave_no_victim_behind() {
    // O-12
    loom::model(|| {
        let machine = Arc::new((Victims::new(), VictimMark::new()));
        let exiting = thread::spawn({
            let machine = machine.clone();
            move || {
                let was_victim = machine.0.exit(&machine.1);
                // Whoever waits for the last victim must not be told of one that never was, nor of fewer than none.
                assert!(machine.0.count() <= 1);
                was_victim
            }
        });
        let marked = machine.0.mark(&machine.1, 0);
        let was_victim = exiting.join().unwrap();
        assert_eq!(marked, was_victim, "who was marked knows it when it exits");
        assert_eq!(machine.0.count(), 0);
        assert!(!machine.1.is_victim());
    });
}

#[test]
fn a_reaper_and_an_exit_agree() {
    // O-13
    loom::model(|| {
        let machine = Arc::new((Victims::new(), VictimMark::new()));
        assert!(machine.0.mark(&machine.1, 0));
        let reaper = thread::spawn({
            let machine = machine.clone();
            move || machine.1.skip()
        });
        assert!(machine.0.exit(&machine.1), "a victim exits once, skipped or not");
        reaper.join().unwrap();
        assert_eq!((machine.0.count(), machine.1.is_victim()), (0, false));
    });
}
