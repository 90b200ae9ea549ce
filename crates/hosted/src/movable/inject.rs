//! [`MoveFailure`]: migrations that fail when a test wants them to.

use kmem_sync::atomic::{AtomicU64, Ordering};

/// How a migration is to fail; see [`Machine::fail_migration`](crate::Machine::fail_migration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveFailure {
    /// The page cannot be isolated.
    Isolation,
    /// Somebody is in the way at the moment.
    Again,
    /// The page cannot be moved at all.
    Permanent,
    /// Its owner has no memory to move it with.
    NoMemory,
    /// The host refuses to repoint the second mapping, after the contents have been copied.
    Mapping,
}

impl MoveFailure {
    /// Every way to fail.
    pub const ALL: [Self; 5] = [Self::Isolation, Self::Again, Self::Permanent, Self::NoMemory, Self::Mapping];
}

/// A failure to come: so many more occasions of a kind succeed. `kind << 32 | occasions`; zero occasions: none fails.
#[derive(Debug, Default)]
pub(crate) struct Injection(AtomicU64);

impl Injection {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The `nth` occasion of `failure` from now on fails.
    pub(crate) fn set(&self, nth: u32, failure: MoveFailure) {
        self.0.store((failure as u64) << 32 | u64::from(nth), Ordering::Relaxed);
    }

    pub(crate) fn pending(&self) -> bool {
        self.0.load(Ordering::Relaxed) as u32 != 0
    }

    /// Whether this occasion of `failure` is the one.
    pub(crate) fn fails_now(&self, failure: MoveFailure) -> bool {
        if !self.pending() {
            return false;
        }
        let count = |word: u64| (word >> 32 == failure as u64 && word as u32 != 0).then(|| word - 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok_and(|before| before as u32 == 1)
    }
}
