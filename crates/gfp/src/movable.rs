//! How a frame's owner lets it move.

use crate::Pfn;

/// Why a page was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// A lock or a reader was in the way; trying again may help.
    #[error("{0} is in use at the moment")]
    Again(Pfn),
    /// The owner cannot move this page.
    #[error("{0} cannot be moved")]
    Permanent(Pfn),
}

/// The owner of movable frames: isolate, migrate, put back.
///
/// # Safety
/// After [`isolate`](Self::isolate) returned `true` the owner neither frees nor hands out the frame until
/// [`migrate`](Self::migrate) succeeded or [`put_back`](Self::put_back) was called. A successful `migrate` leaves
/// nothing that refers to the source frame.
pub unsafe trait MovableOwner: Sync {
    /// Prepares the frame for moving; `false` if it cannot be moved now.
    fn isolate(&self, pfn: Pfn) -> bool;

    /// Moves the contents and every reference from the isolated frame `source` to `target`, which the caller owns and
    /// gives to the owner on success.
    ///
    /// # Errors
    /// The reason; the source stays isolated and unchanged, the target stays the caller's.
    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError>;

    /// Ends the isolation of a frame that was not moved.
    fn put_back(&self, pfn: Pfn);
}
