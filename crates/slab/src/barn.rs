//! The barn: where a node's CPUs trade full sheaves for empty ones.
//!
//! ```text
//! Barn ─┬─ full  ──▶ sheaf ──▶ sheaf      at most 10, soft; fewer while nobody wants them, more while bursts repeat
//!       └─ empty ──▶ sheaf                at most 10, soft
//! ```
//!
//! A cache whose users take more at a time than the barn holds, give it all back and take it again would send the same objects
//! to their slabs and fetch them from there every time. The barn notices: a sheaf that went to the slabs for want of room and
//! that a refill misses afterwards is room for one more, up to [`BURST_BYTES`] of objects.
//!
//! **Locking:** one [`IrqLock`] over both lists; it may be taken inside a CPU's local section. The counts are repeated in
//! atomics so that the common "nothing there" needs no lock.

use core::ptr;

use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::{Cpu, IrqLock, const_fn};

use crate::backend::Locking;
use crate::sheaf::Sheaf;

/// A singly linked stack of sheaves.
#[derive(Debug)]
pub(crate) struct Stack {
    head: *mut Sheaf,
    len: u32,
}

impl Stack {
    pub(crate) const fn new() -> Self {
        Self { head: ptr::null_mut(), len: 0 }
    }

    /// # Safety
    /// The caller gives up `sheaf`.
    unsafe fn push(&mut self, sheaf: *mut Sheaf) {
        // SAFETY: the caller held the sheaf.
        unsafe { (*sheaf).next = self.head };
        self.head = sheaf;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<*mut Sheaf> {
        let sheaf = self.head;
        if sheaf.is_null() {
            return None;
        }
        // SAFETY: sheaves on the stack are held by it.
        self.head = unsafe { (*sheaf).next };
        self.len -= 1;
        Some(sheaf)
    }
}

#[derive(Debug)]
struct Lists {
    full: Stack,
    empty: Stack,
}

// SAFETY: the sheaves belong to the barn alone.
unsafe impl Send for Lists {}

/// One node's barn of one cache.
#[derive(Debug)]
pub(crate) struct Barn {
    lists: IrqLock<Lists>,
    nr_full: AtomicU32,
    nr_empty: AtomicU32,
    /// How many full sheaves are worth keeping, in quarters: each refill from slabs adds one whole, each overflow takes a
    /// quarter away.
    demand: AtomicU32,
    /// Full sheaves that went to the slabs for want of room and that no refill has missed so far.
    spilled: AtomicU32,
    /// Sheaves beyond the limit that repeated bursts have earned.
    earned: AtomicU32,
}

/// Overflows that make the barn smaller by one sheaf.
const PATIENCE: u32 = 4;

/// Bytes of objects up to which repeated bursts enlarge a barn.
pub(crate) const BURST_BYTES: usize = 256 << 10;

impl Barn {
    const_fn! {
        /// A barn with nothing in it and room for `limit` full sheaves.
        pub(crate) fn new(limit: u32) -> Self {
            Self {
                lists: IrqLock::new(Lists { full: Stack::new(), empty: Stack::new() }),
                nr_full: AtomicU32::new(0),
                nr_empty: AtomicU32::new(0),
                demand: AtomicU32::new(limit.saturating_mul(PATIENCE)),
                spilled: AtomicU32::new(0),
                earned: AtomicU32::new(0),
            }
        }
    }

    /// How many full sheaves the barn keeps at the moment.
    pub(crate) fn room(&self) -> u32 {
        self.demand.load(Ordering::Relaxed).div_ceil(PATIENCE)
    }

    /// Notes that objects had to come from slabs: a fuller barn, up to `limit`, would have helped; up to `most` if it had been
    /// full before. The counts are estimates: a race loses a step.
    pub(crate) fn note_refill(&self, limit: u32, most: u32) {
        let spilled = self.spilled.load(Ordering::Relaxed);
        let mut earned = self.earned.load(Ordering::Relaxed);
        if spilled > 0 {
            self.spilled.store(spilled - 1, Ordering::Relaxed);
            earned = earned.saturating_add(1).min(most.saturating_sub(limit));
            self.earned.store(earned, Ordering::Relaxed);
        }
        let demand = self.demand.load(Ordering::Relaxed).saturating_add(PATIENCE);
        let top = limit.saturating_add(earned).saturating_mul(PATIENCE);
        self.demand.store(demand.min(top), Ordering::Relaxed);
    }

    /// Notes that a full sheaf found no room; returns whether the barn has become too full for what it is used.
    pub(crate) fn note_overflow(&self) -> bool {
        let spilled = self.spilled.load(Ordering::Relaxed);
        self.spilled.store(spilled.saturating_add(1), Ordering::Relaxed);
        let demand = self.demand.load(Ordering::Relaxed);
        if demand > PATIENCE {
            self.demand.store(demand - 1, Ordering::Relaxed);
        }
        self.nr_full() > self.room()
    }

    /// Full sheaves, read without the lock.
    pub(crate) fn nr_full(&self) -> u32 {
        self.nr_full.load(Ordering::Relaxed)
    }

    /// Empty sheaves, read without the lock.
    pub(crate) fn nr_empty(&self) -> u32 {
        self.nr_empty.load(Ordering::Relaxed)
    }

    fn with<C: Cpu, R>(&self, cpu: &C, how: Locking, f: impl FnOnce(&mut Lists) -> R) -> Option<R> {
        let update = |lists: &mut Lists| {
            let result = f(lists);
            self.nr_full.store(lists.full.len, Ordering::Relaxed);
            self.nr_empty.store(lists.empty.len, Ordering::Relaxed);
            result
        };
        match how {
            Locking::Wait => Some(self.lists.with(cpu, update)),
            Locking::Try => self.lists.try_with(cpu, update),
        }
    }

    /// Takes a full sheaf.
    pub(crate) fn take_full<C: Cpu>(&self, cpu: &C, how: Locking) -> Option<*mut Sheaf> {
        if self.nr_full() == 0 {
            return None;
        }
        self.with(cpu, how, |lists| lists.full.pop()).flatten()
    }

    /// Takes an empty sheaf.
    pub(crate) fn take_empty<C: Cpu>(&self, cpu: &C, how: Locking) -> Option<*mut Sheaf> {
        if self.nr_empty() == 0 {
            return None;
        }
        self.with(cpu, how, |lists| lists.empty.pop()).flatten()
    }

    /// Trades the empty sheaf for a full one, if there is one.
    ///
    /// # Safety
    /// The caller holds `empty`, which is empty and of this cache; it gives it up exactly if the result is `Some`.
    pub(crate) unsafe fn trade_empty<C: Cpu>(&self, cpu: &C, how: Locking, empty: *mut Sheaf) -> Option<*mut Sheaf> {
        if self.nr_full() == 0 {
            return None;
        }
        self.with(cpu, how, |lists| {
            let full = lists.full.pop()?;
            // SAFETY: the caller gives it up.
            unsafe { lists.empty.push(empty) };
            Some(full)
        })
        .flatten()
    }

    /// Takes in a full sheaf if there are fewer than `limit`. `Ok(Some(empty))` hands an empty one out in exchange.
    ///
    /// # Safety
    /// The caller holds `full`, of this cache; it gives it up exactly if the result is `Ok`.
    pub(crate) unsafe fn put_full<C: Cpu>(
        &self,
        cpu: &C,
        how: Locking,
        full: *mut Sheaf,
        limit: u32,
        trade: bool,
    ) -> Result<Option<*mut Sheaf>, ()> {
        if self.nr_full() >= limit {
            return Err(());
        }
        self.with(cpu, how, |lists| {
            // SAFETY: the caller gives it up.
            unsafe { lists.full.push(full) };
            if trade { lists.empty.pop() } else { None }
        })
        .ok_or(())
    }

    /// Takes in an empty sheaf if there are fewer than `limit`; `false` leaves it with the caller.
    ///
    /// # Safety
    /// The caller holds `empty`, which is empty and of this cache; it gives it up exactly if the result is `true`.
    pub(crate) unsafe fn put_empty<C: Cpu>(&self, cpu: &C, how: Locking, empty: *mut Sheaf, limit: u32) -> bool {
        if self.nr_empty() >= limit {
            return false;
        }
        // SAFETY: the caller gives it up.
        self.with(cpu, how, |lists| unsafe { lists.empty.push(empty) }).is_some()
    }
}
