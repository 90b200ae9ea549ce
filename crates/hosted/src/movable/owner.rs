//! [`Movable`]: the owner of a machine's movable pages, as those who move frames see it.
//!
//! ```text
//! frame words   owner │ slot's address        ╴╴╴ tag Other │     state │ this owner's address │
//!                        └─▶ Slot ─ lock, frame, second mapping
//!
//! migrate   lock the page against writers ─▶ copy by the direct map ─▶ repoint the second mapping ─▶ words of the target
//! ```
//!
//! **Locking:** frame words of ours change under `table_lock`, which is held for a few loads and stores. A slot that the words of a frame
//! lead to is alive for as long as that lock is held, and as long as its page is isolated.

use core::ptr::NonNull;

use kmem_gfp::{
    FlatFrameTable, FrameTable, FrameWords, MigrateError, MigrateMode, MovableOwner, OwnerTag, PAGE_SIZE, Pfn,
};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, SpinLock};

use super::inject::{Injection, MoveFailure};
use super::slot::Slot;
use crate::space::HostSpace;
use crate::sys;

/// How often a migration that may wait looks whether a page's users have let go of it.
const LOOKS: u32 = 1000;

/// What a machine's movable pages went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MovableStats {
    /// Pages in use.
    pub pages: u64,
    /// Pages moved so far.
    pub moved: u64,
    /// Migrations that failed for the moment, somebody being in the way.
    pub contended: u64,
    /// Migrations that failed for good, or for lack of memory.
    pub failed: u64,
}

/// The owner of a machine's movable pages: see [`MovableMemory`](crate::MovableMemory).
#[derive(Debug)]
pub(crate) struct Movable<C> {
    cpu: C,
    table: FlatFrameTable,
    space: HostSpace,
    table_lock: SpinLock<()>,
    pub(crate) injection: Injection,
    pages: AtomicU64,
    moved: AtomicU64,
    contended: AtomicU64,
    failed: AtomicU64,
}

impl<C: Cpu> Movable<C> {
    pub(crate) fn new(cpu: C, table: FlatFrameTable) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            cpu,
            table,
            space: HostSpace::NONE,
            table_lock: SpinLock::new(()),
            injection: Injection::new(),
            pages: zero(),
            moved: zero(),
            contended: zero(),
            failed: zero(),
        }
    }

    /// With a window to map pages in a second time.
    pub(crate) fn with_space(self, space: HostSpace) -> Self {
        Self { space, ..self }
    }

    pub(crate) fn stats(&self) -> MovableStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        MovableStats {
            pages: read(&self.pages),
            moved: read(&self.moved),
            contended: read(&self.contended),
            failed: read(&self.failed),
        }
    }

    /// What the state word of our frames holds. An address, so no other owner's word is the same.
    fn name(&self) -> u64 {
        (&raw const *self).addr() as u64
    }

    /// Whether the words of a frame are ours; a moment's answer.
    pub(crate) fn owns(&self, words: &FrameWords) -> bool {
        OwnerTag::of(words.owner.load(Ordering::Acquire)) == OwnerTag::Other
            && words.state.load(Ordering::Relaxed) == self.name()
    }

    /// The slot of a frame of ours. Under `table_lock`, or for a frame that is isolated.
    fn slot(&self, pfn: Pfn) -> Option<NonNull<Slot>> {
        let words = self.table.words(pfn).filter(|words| self.owns(words))?;
        let address = words.owner.load(Ordering::Relaxed) & !OwnerTag::MASK;
        NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
    }

    fn write_words(&self, pfn: Pfn, slot: NonNull<Slot>) {
        if let Some(words) = self.table.words(pfn) {
            words.state.store(self.name(), Ordering::Relaxed);
            let owner = slot.as_ptr().expose_provenance() as u64 | OwnerTag::Other as u64;
            words.owner.store(owner, Ordering::Release);
        }
    }

    fn clear_words(&self, pfn: Pfn) {
        if let Some(words) = self.table.words(pfn) {
            words.owner.store(OwnerTag::None as u64, Ordering::Release);
            words.state.store(0, Ordering::Relaxed);
        }
    }

    /// Makes `pfn`, which the caller has allocated, the page of `slot`.
    ///
    /// # Safety
    /// The slot stays where it is until [`release`](Self::release).
    pub(crate) unsafe fn adopt(&self, pfn: Pfn, slot: NonNull<Slot>) {
        // SAFETY: the caller's slot, alive.
        unsafe { slot.as_ref() }.set_frame(pfn);
        self.table_lock.with(&self.cpu, |()| self.write_words(pfn, slot));
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a page out of use: returns its frame, which is the caller's to free. Waits until nobody is moving it. Nobody reads
    /// or writes it.
    pub(crate) fn release(&self, slot: &Slot) -> Option<Pfn> {
        while !slot.lock.retire() {
            self.cpu.relax();
            sys::sched_yield();
        }
        let pfn = slot.frame()?;
        self.table_lock.with(&self.cpu, |()| self.clear_words(pfn));
        self.pages.fetch_sub(1, Ordering::Relaxed);
        Some(pfn)
    }

    /// Copies a page to `target` and lets it be reached there.
    fn move_to(&self, slot: NonNull<Slot>, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        // SAFETY: its page is isolated, so it is not released before that ends.
        let page = unsafe { slot.as_ref() };
        let (Some(from), Some(to)) = (self.table.address_of(source), self.table.address_of(target)) else {
            return Err(MigrateError::Permanent(source));
        };
        // SAFETY: two frames of the direct map; the source is ours and nobody writes to it while its lock says `moving`, the
        // target is the caller's.
        unsafe { to.copy_from_nonoverlapping(from, PAGE_SIZE) };
        if let Some(at) = page.second() {
            let refused = self.injection.fails_now(MoveFailure::Mapping);
            if refused || self.space.repoint(at, target).is_err() {
                return Err(MigrateError::NoMemory(source));
            }
        }
        self.table_lock.with(&self.cpu, |()| {
            self.clear_words(source);
            self.write_words(target, slot);
            page.set_frame(target);
        });
        Ok(())
    }

    fn injected(&self, source: Pfn) -> Result<(), MigrateError> {
        let errors = [
            (MoveFailure::Again, MigrateError::Again(source)),
            (MoveFailure::Permanent, MigrateError::Permanent(source)),
            (MoveFailure::NoMemory, MigrateError::NoMemory(source)),
        ];
        errors.into_iter().try_for_each(
            |(failure, error)| {
                if self.injection.fails_now(failure) { Err(error) } else { Ok(()) }
            },
        )
    }

    fn attempt(&self, source: Pfn, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        self.injected(source)?;
        let slot = self.slot(source).ok_or(MigrateError::Permanent(source))?;
        // SAFETY: as in `move_to`.
        let page = unsafe { slot.as_ref() };
        let mut looks = if mode == MigrateMode::Async { 1 } else { LOOKS };
        while !page.lock.begin_move(page.stays()) {
            looks -= 1;
            if looks == 0 {
                return Err(MigrateError::Again(source));
            }
            self.cpu.relax();
            sys::sched_yield();
        }
        let moved = self.move_to(slot, source, target);
        page.lock.end_move(moved.is_ok());
        moved
    }
}

// SAFETY: (1) an isolated page is not retired, so not freed, and `isolate` says `false` to others. (2) After a move the
// second mapping leads to the target, readers by the direct map were kept out, and the words of the source are cleared. (3) The words say
// whose a frame is, under the lock that they change under.
unsafe impl<C: Cpu + Sync> MovableOwner for Movable<C> {
    fn isolate(&self, pfn: Pfn) -> bool {
        if self.injection.fails_now(MoveFailure::Isolation) {
            return false;
        }
        self.table_lock.with(&self.cpu, |()| {
            // SAFETY: found under the lock, so alive.
            self.slot(pfn).is_some_and(|slot| unsafe { slot.as_ref() }.lock.isolate())
        })
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        self.migrate_with(source, target, MigrateMode::Async)
    }

    fn put_back(&self, pfn: Pfn) {
        if let Some(slot) = self.slot(pfn) {
            // SAFETY: isolated until here, so alive.
            unsafe { slot.as_ref() }.lock.put_back();
        }
    }

    fn migrate_with(&self, source: Pfn, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        let result = self.attempt(source, target, mode);
        let count = match result {
            Ok(()) => &self.moved,
            Err(MigrateError::Again(_)) => &self.contended,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        result
    }
}
