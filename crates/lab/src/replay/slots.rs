//! Where each live object and each live block is, by slot.
//!
//! A slot's `turn` says what may happen to it next: an allocation carries an even turn `t` and runs when the slot is at `t`; the free
//! of the same object runs when the slot is at `t + 1`, and moves it to `t + 2`. On one thread the turn is always right. On
//! many, whoever comes early waits; it is always waiting for an operation that stands earlier in the trace, so the earliest
//! operation of all never waits and the replay goes on.
//!
//! The table grows by chunks that never move, so threads use it without a lock.

use crate::program::Ref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

const CHUNK: usize = 1 << 14;
const CHUNKS: usize = 1 << 14;

/// One slot.
///
/// # Invariants
/// The other fields are written only by the thread whose operation's turn it is.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    turn: AtomicU32,
    /// Blocks only: pages not yet freed.
    pub(crate) left: AtomicU32,
    /// Address of the object, or first frame of the block; 0 if there is none.
    pub(crate) place: AtomicUsize,
    /// Bytes of the object, or pages of the block.
    pub(crate) bytes: AtomicUsize,
}

impl Slot {
    /// Waits until the slot is at `turn`; false if the replay has been given up.
    #[inline]
    pub(crate) fn wait(&self, turn: u32, stop: &AtomicBool) -> bool {
        // Acquire: pairs with the Release in `advance`, so that the fields and the object's bytes are seen.
        self.turn.load(Ordering::Acquire) == turn || self.wait_long(turn, stop)
    }

    #[cold]
    fn wait_long(&self, turn: u32, stop: &AtomicBool) -> bool {
        for round in 0u32.. {
            if self.turn.load(Ordering::Acquire) == turn {
                return true;
            }
            if round > 64 {
                if stop.load(Ordering::Relaxed) {
                    return false;
                }
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Lets the operation with `turn` run.
    #[inline]
    pub(crate) fn advance(&self, turn: u32) {
        // Release: pairs with the Acquire in `wait`.
        self.turn.store(turn, Ordering::Release);
    }
}

/// All slots of one kind.
pub(crate) struct SlotTable {
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
}

impl SlotTable {
    pub(crate) fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    /// The slot of `used`; `None` beyond 268 million.
    #[inline]
    pub(crate) fn get(&self, used: Ref) -> Option<&Slot> {
        let at = used.slot as usize;
        let chunk = self.chunks.get(at / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect()).get(at % CHUNK)
    }

    /// Every slot that has been used.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Ref, &Slot)> {
        self.chunks.iter().enumerate().filter_map(|(n, c)| c.get().map(|c| (n, c))).flat_map(|(n, c)| {
            c.iter().enumerate().map(move |(at, slot)| {
                // Odd while something is live; its operations carry the even turn below.
                let turn = slot.turn.load(Ordering::Acquire) & !1;
                (Ref { slot: (n * CHUNK + at) as u32, turn, seen: false }, slot)
            })
        })
    }
}
