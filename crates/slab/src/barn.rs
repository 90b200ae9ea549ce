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

use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};
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
    /// How full the barn should be: see [`Wanted`]. One word, changed by a load and a store: a race loses a step.
    wanted: AtomicU64,
}

/// How full a barn should be. Packed as `earned │ spilled │ demand`, 20, 20 and 24 bits.
#[derive(Clone, Copy)]
struct Wanted {
    /// How many full sheaves are worth keeping, in quarters: each refill from slabs adds one whole, each overflow takes a
    /// quarter away.
    demand: u32,
    /// Full sheaves that went to the slabs for want of room and that no refill has missed so far.
    spilled: u32,
    /// Sheaves beyond the limit that repeated bursts have earned.
    earned: u32,
}

impl Wanted {
    const DEMAND: u32 = (1 << 24) - 1;
    const COUNT: u32 = (1 << 20) - 1;

    const fn unpacked(word: u64) -> Self {
        Self {
            demand: word as u32 & Self::DEMAND,
            spilled: (word >> 24) as u32 & Self::COUNT,
            earned: (word >> 44) as u32 & Self::COUNT,
        }
    }

    fn packed(self) -> u64 {
        self.demand.min(Self::DEMAND) as u64
            | (self.spilled.min(Self::COUNT) as u64) << 24
            | (self.earned.min(Self::COUNT) as u64) << 44
    }
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
                wanted: AtomicU64::new((limit.saturating_mul(PATIENCE) & Wanted::DEMAND) as u64),
            }
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted::unpacked(self.wanted.load(Ordering::Relaxed))
    }

    /// How many full sheaves the barn keeps at the moment.
    pub(crate) fn room(&self) -> u32 {
        self.wanted().demand.div_ceil(PATIENCE)
    }

    /// Notes that objects had to come from slabs: a fuller barn, up to `limit`, would have helped; up to `most` if it had been
    /// full before.
    pub(crate) fn note_refill(&self, limit: u32, most: u32) {
        let mut wanted = self.wanted();
        if wanted.spilled > 0 {
            wanted.spilled -= 1;
            wanted.earned = (wanted.earned + 1).min(most.saturating_sub(limit));
        }
        let top = limit.saturating_add(wanted.earned).saturating_mul(PATIENCE);
        wanted.demand = wanted.demand.saturating_add(PATIENCE).min(top);
        self.wanted.store(wanted.packed(), Ordering::Relaxed);
    }

    /// Notes that a full sheaf found no room; returns whether the barn has become too full for what it is used.
    pub(crate) fn note_overflow(&self) -> bool {
        let mut wanted = self.wanted();
        wanted.spilled += 1;
        if wanted.demand > PATIENCE {
            wanted.demand -= 1;
        }
        self.wanted.store(wanted.packed(), Ordering::Relaxed);
        self.nr_full() > wanted.demand.div_ceil(PATIENCE)
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
