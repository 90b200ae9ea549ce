//! Models of movable pages. Run with `cargo xtask loom --crate hosted`.
//!
//! A page has two frames; where it is at the moment is a word that changes when it moves, as its second mapping does.

use kmem_sync::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::movable::PageLock;

struct Page {
    lock: PageLock,
    frames: [UnsafeCell<[u32; 2]>; 2],
    at: AtomicUsize,
}

// SAFETY: loom checks the accesses, which is what these models are about.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn new() -> Arc<Self> {
        let frames = [UnsafeCell::new([0, 0]), UnsafeCell::new([9, 9])];
        Arc::new(Self { lock: PageLock::new(), frames, at: AtomicUsize::new(0) })
    }

    /// Reads both words, of wherever the page is.
    fn read(&self, stays: bool) -> Option<u32> {
        if !self.lock.try_read(stays) {
            return None;
        }
        // What is behind a mapping is what the mapping leads to: no ordering but the lock's is to be relied on, except for
        // a mapping that is repointed meanwhile, which the host orders.
        let at = self.at.load(if stays { Ordering::Acquire } else { Ordering::Relaxed });
        // SAFETY: as the lock says.
        let [a, b] = self.frames[at].with(|frame| unsafe { *frame });
        assert_eq!(a, b, "torn, or another frame's");
        self.lock.end_read();
        Some(a)
    }

    fn write(&self, value: u32) -> bool {
        if !self.lock.try_write() {
            return false;
        }
        let at = self.at.load(Ordering::Relaxed);
        self.frames[at].with_mut(|frame| {
            // SAFETY: as the lock says.
            unsafe {
                (*frame)[0] = value;
                (*frame)[1] = value;
            }
        });
        self.lock.end_write();
        true
    }

    /// Isolates and moves; whether it did. The frame that was left is somebody else's afterwards, unless readers may be on
    /// their way in it through a mapping.
    fn migrate(&self, stays: bool) -> bool {
        if !self.lock.isolate() {
            return false;
        }
        if !self.lock.begin_move(stays) {
            self.lock.put_back();
            return false;
        }
        let from = self.at.load(Ordering::Relaxed);
        // SAFETY: as the lock says; the target is ours.
        let contents = self.frames[from].with(|frame| unsafe { *frame });
        // SAFETY: as above.
        self.frames[1 - from].with_mut(|frame| unsafe { *frame = contents });
        self.at.store(1 - from, if stays { Ordering::Release } else { Ordering::Relaxed });
        if !stays {
            // SAFETY: left, and nobody reads by the direct map.
            self.frames[from].with_mut(|frame| unsafe { *frame = [7, 8] });
        }
        self.lock.end_move(true);
        true
    }
}

#[test]
fn a_writer_and_a_move_keep_apart() {
    loom::model(|| {
        let page = Page::new();
        let writer = thread::spawn({
            let page = page.clone();
            move || page.write(5)
        });
        page.migrate(true);
        let written = writer.join().unwrap();
        assert_eq!(page.read(true), Some(if written { 5 } else { 0 }), "a write was lost");
    });
}

#[test]
fn a_reader_and_a_writer_keep_apart() {
    loom::model(|| {
        let page = Page::new();
        let reader = thread::spawn({
            let page = page.clone();
            move || page.read(true)
        });
        page.write(5);
        assert!(reader.join().unwrap().is_none_or(|value| value == 0 || value == 5));
    });
}

#[test]
fn readers_of_a_mapped_page_see_one_frame_or_the_other() {
    loom::model(|| {
        let page = Page::new();
        let reader = thread::spawn({
            let page = page.clone();
            move || page.read(true)
        });
        page.migrate(true);
        assert!(reader.join().unwrap().is_none_or(|value| value == 0));
    });
}

#[test]
fn readers_without_a_mapping_and_a_move_keep_apart() {
    loom::model(|| {
        let page = Page::new();
        let reader = thread::spawn({
            let page = page.clone();
            move || page.read(false)
        });
        page.migrate(false);
        assert!(reader.join().unwrap().is_none_or(|value| value == 0));
        assert_eq!(page.read(false), Some(0));
    });
}

#[test]
fn two_movers_never_have_a_page_both() {
    loom::model(|| {
        let page = Page::new();
        let other = thread::spawn({
            let page = page.clone();
            move || page.migrate(false)
        });
        page.migrate(false);
        other.join().unwrap();
        assert_eq!(page.read(false), Some(0));
    });
}

#[test]
fn a_retired_page_is_not_being_moved() {
    loom::model(|| {
        let page = Page::new();
        let mover = thread::spawn({
            let page = page.clone();
            move || page.migrate(false)
        });
        if page.lock.retire() {
            // Freed: whoever has it next writes to it without any lock of ours.
            let at = page.at.load(Ordering::Relaxed);
            // SAFETY: as the lock says.
            page.frames[at].with_mut(|frame| unsafe { *frame = [1, 2] });
        }
        mover.join().unwrap();
    });
}
