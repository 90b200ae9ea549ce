//! A single-producer, single-consumer ring of batches: how one thread hands allocations to another.
//!
//! Batches of [`BATCH`] words keep the ring's own cost (two shared lines per batch) well under a nanosecond a word.

use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Words per batch.
pub(crate) const BATCH: usize = 64;
const SLOTS: usize = 32;

#[repr(align(128))]
struct Line(AtomicUsize);

/// The ring.
///
/// # Invariants
/// Slots `taken..given` (modulo [`SLOTS`]) belong to the consumer, all others to the producer.
pub(crate) struct Ring {
    slots: [UnsafeCell<[usize; BATCH]>; SLOTS],
    given: Line,
    taken: Line,
}

// SAFETY: a slot is touched only by the side that owns it (invariant); ownership passes with Release and Acquire.
unsafe impl Sync for Ring {}

impl Ring {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self {
            slots: [const { UnsafeCell::new([0; BATCH]) }; SLOTS],
            given: Line(AtomicUsize::new(0)),
            taken: Line(AtomicUsize::new(0)),
        }
    }

    /// Hands over one batch, waiting for a free slot. Only one thread may give.
    pub(crate) fn give(&self, fill: impl FnOnce(&mut [usize; BATCH])) {
        let given = self.given.0.load(Ordering::Relaxed);
        wait(|| given - self.taken.0.load(Ordering::Acquire) < SLOTS);
        // SAFETY: the slot is outside `taken..given`, so it is the producer's, and there is one producer.
        fill(unsafe { &mut *self.slots[given % SLOTS].get() });
        self.given.0.store(given + 1, Ordering::Release);
    }

    /// Takes one batch, waiting for it. Only one thread may take.
    pub(crate) fn take(&self, empty: impl FnOnce(&[usize; BATCH])) {
        let taken = self.taken.0.load(Ordering::Relaxed);
        wait(|| self.given.0.load(Ordering::Acquire) != taken);
        // SAFETY: the slot is inside `taken..given`, so it is the consumer's, and there is one consumer.
        empty(unsafe { &*self.slots[taken % SLOTS].get() });
        self.taken.0.store(taken + 1, Ordering::Release);
    }
}

fn wait(mut done: impl FnMut() -> bool) {
    let mut tries = 0_u32;
    while !done() {
        tries += 1;
        if tries.is_multiple_of(256) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BATCH, Ring};

    #[test]
    fn every_word_arrives_once_and_in_order() {
        let ring = Ring::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for batch in 0..1000 {
                    ring.give(|words| {
                        for (index, word) in words.iter_mut().enumerate() {
                            *word = batch * BATCH + index;
                        }
                    });
                }
            });
            let mut expected = 0;
            for _ in 0..1000 {
                ring.take(|words| {
                    for word in words {
                        assert_eq!(*word, expected);
                        expected += 1;
                    }
                });
            }
        });
    }
}
