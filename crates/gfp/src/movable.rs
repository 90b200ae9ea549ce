//! How a frame's owner lets it move.
//!
//! ```text
//! isolate(pfn) ──true──▶ migrate(source, target) ──Ok──▶ the source is the caller's, the target the owner's
//!      │                        └─Err──▶ still isolated ──▶ again, or put_back(pfn)
//!      └─false─▶ left alone
//! ```

use crate::{Order, Pfn};

/// Why a page was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// A lock or a reader was in the way; trying again may help.
    #[error("{0} is in use at the moment")]
    Again(Pfn),
    /// The owner cannot move this page.
    #[error("{0} cannot be moved")]
    Permanent(Pfn),
    /// The owner needs memory of its own to move this page, and there is none: nothing else will move either.
    #[error("no memory to move {0} with")]
    NoMemory(Pfn),
}

/// How much a migration may wait for, from the least (`MIGRATE_ASYNC` and its relatives).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrateMode {
    /// For nothing.
    #[doc(alias = "MIGRATE_ASYNC")]
    Async,
    /// For locks, not for writeback.
    #[doc(alias = "MIGRATE_SYNC_LIGHT")]
    SyncLight,
    /// For everything.
    #[doc(alias = "MIGRATE_SYNC")]
    Sync,
}

/// The owner of movable frames: isolate, migrate, put back.
///
/// Whoever moves frames finds the owner of one by asking the platform, which may be out of date a moment later; so
/// [`isolate`](Self::isolate) decides. All methods are called with no lock of the page allocator held, where sleeping is allowed.
///
/// # Safety
/// 1. After [`isolate`](Self::isolate) returned `true` the owner neither frees nor hands out the frame until
///    [`migrate`](Self::migrate) succeeded or [`put_back`](Self::put_back) was called, and answers `false` to others who ask.
/// 2. A successful `migrate` leaves nothing that refers to the source frame, and the source is the caller's then: the owner
///    does not free it.
/// 3. `isolate` returns `false` for a frame that is not this owner's, or not any more.
pub unsafe trait MovableOwner: Sync {
    /// Prepares the frame for moving; `false` if it cannot be moved now, or is not (any more) this owner's.
    fn isolate(&self, pfn: Pfn) -> bool;

    /// Moves the contents and every reference from the isolated frame `source` to `target`, which the caller owns and
    /// gives to the owner on success.
    ///
    /// # Errors
    /// The reason; the source stays isolated and unchanged, the target stays the caller's.
    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError>;

    /// Ends the isolation of a frame that was not moved. The owner may free it from then on.
    fn put_back(&self, pfn: Pfn);

    /// As [`migrate`](Self::migrate), told how much it may wait for. The default never waits for more than `migrate` does.
    ///
    /// # Errors
    /// Those of [`migrate`](Self::migrate).
    fn migrate_with(&self, source: Pfn, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        let _ = mode;
        self.migrate(source, target)
    }

    /// Whether this owner moves allocated blocks of `order` as a whole; then `source` and `target` are the first frames of
    /// such blocks. By default it moves single frames only.
    fn moves(&self, order: Order) -> bool {
        order == Order::ZERO
    }

    /// Whether moving its frames may enter a filesystem; such an owner is left alone on behalf of requests that must not.
    fn needs_fs(&self) -> bool {
        false
    }
}
