//! Moving frames: isolated at their owner, moved in passes, put back exactly once if they cannot be.
//!
//! ```text
//! Batch  [Isolated, Isolated, ...]    an `Isolated` that is dropped is put back; one that was moved is not
//! pass 1..=3   without waiting          Again ──▶ the next pass     Permanent ──▶ left     NoMemory ──▶ all is left
//! pass 4..=10  waiting as far as the caller may
//! ```

use kmem_gfp::{MigrateError, MigrateMode, MovableOwner, Order, Pfn};

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::state::State;
use crate::stats::Event;
use crate::used::Used;

/// Passes over a batch.
pub(crate) const PASSES: u32 = 10;
/// Those of them that wait for nothing.
const ASYNC_PASSES: u32 = 3;
/// Blocks in a batch.
pub(crate) const BATCH: usize = 32;

/// A block that its owner has isolated.
///
/// # Invariants
/// `owner.isolate(pfn)` returned `true`, and neither `put_back` nor a successful `migrate` came after it.
pub(crate) struct Isolated<'o> {
    owner: &'o dyn MovableOwner,
    pfn: Pfn,
    order: Order,
}

impl<'o> Isolated<'o> {
    /// Isolates a block in use; `None` if its owner does not move it, or it has changed meanwhile.
    pub(crate) fn new<E: BuddyEnv>(buddy: &'o Buddy<E>, state: &State, used: Used, enter_fs: bool) -> Option<Self> {
        let order = used.order?;
        let owner = buddy.env().movable_owner(used.pfn)?;
        if !owner.moves(order) || (owner.needs_fs() && !enter_fs) || !owner.isolate(used.pfn) {
            return None;
        }
        // INVARIANT: just isolated.
        let isolated = Self { owner, pfn: used.pfn, order };
        // From here on it stays as large as it is; it may have changed between our look and the isolation.
        let block = state.block_of(used.pfn)?;
        block.check_allocated((used.pfn.0 % 512) as u32, order).is_ok().then_some(isolated)
    }

    fn migrate(&self, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        self.owner.migrate_with(self.pfn, target, mode)
    }

    /// It has been moved: there is nothing to put back.
    fn moved(self) -> (Pfn, Order) {
        let (pfn, order) = (self.pfn, self.order);
        core::mem::forget(self);
        (pfn, order)
    }
}

impl Drop for Isolated<'_> {
    fn drop(&mut self) {
        self.owner.put_back(self.pfn);
    }
}

/// Isolated blocks that are moved together.
pub(crate) struct Batch<'o> {
    entries: [Option<Isolated<'o>>; BATCH],
    len: usize,
}

/// Where moved blocks go, and what becomes of the places they leave.
pub(crate) trait Destination {
    /// A block to move to.
    fn target(&mut self, order: Order) -> Option<Pfn>;
    /// A target that was not needed.
    fn unused(&mut self, target: Pfn, order: Order);
    /// A place that has been left. It is the caller's.
    fn vacated(&mut self, source: Pfn, order: Order);
}

/// Nothing to move to: the rest of the list was not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoTarget;

impl<'o> Batch<'o> {
    pub(crate) fn new() -> Self {
        Self { entries: [const { None }; BATCH], len: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == BATCH
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a block; the batch is not full.
    pub(crate) fn push(&mut self, isolated: Isolated<'o>) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = Some(isolated);
            self.len += 1;
        }
    }

    /// Moves what can be moved. What is left stays in the batch, isolated; returns how many that are.
    pub(crate) fn migrate(
        &mut self,
        state: &State,
        mode: MigrateMode,
        destination: &mut impl Destination,
    ) -> Result<usize, NoTarget> {
        let mut result = Ok(());
        // Blocks that are worth another pass, a bit each.
        let mut open = u64::MAX;
        'passes: for pass in 0..PASSES {
            let mut again = 0;
            for (i, slot) in self.entries.iter_mut().enumerate() {
                let Some(isolated) = slot.as_ref().filter(|_| open >> i & 1 != 0) else { continue };
                let order = isolated.order;
                let Some(target) = destination.target(order) else {
                    result = Err(NoTarget);
                    break 'passes;
                };
                let now = if pass < ASYNC_PASSES { MigrateMode::Async } else { mode };
                match isolated.migrate(target, now) {
                    Ok(()) => {
                        if let Some((pfn, order)) = slot.take().map(Isolated::moved) {
                            state.count_n(Event::MigrateSuccess, order.nr_pages() as u64);
                            destination.vacated(pfn, order);
                        }
                    }
                    Err(error) => {
                        destination.unused(target, order);
                        match error {
                            MigrateError::Again(_) => again |= 1 << i,
                            MigrateError::Permanent(_) => {}
                            MigrateError::NoMemory(_) => {
                                result = Err(NoTarget);
                                break 'passes;
                            }
                        }
                    }
                }
            }
            open = again;
            if again == 0 {
                break;
            }
        }
        let left = || self.entries.iter().flatten();
        let nr = left().count();
        state.count_n(Event::MigrateFail, left().map(|isolated| isolated.order.nr_pages() as u64).sum());
        result.map(|()| nr)
    }
}
