//! Grace periods: knowing that every reader which could still see something has finished.
//!
//! The interface is polled: whoever retires something notes a [`Grace`] beside it and looks later, from its own slow
//! path, whether that has passed. No callbacks, so no memory is needed to queue one, and nothing runs in a context
//! that its owner did not choose.

/// A point in time after which something is safe; from [`GracePeriod::snapshot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grace(pub u64);

/// Tells when every reader that is running now has finished.
///
/// # Safety
/// If [`has_passed`](Self::has_passed) returns `true` for a [`Grace`], every read-side section that was running when that
/// value was taken has ended, and its reads happened before the return. The same holds when
/// [`synchronize`](Self::synchronize) returns, for sections running when it was called.
pub unsafe trait GracePeriod {
    /// Notes the present, and starts a grace period if none is under way. Any context; never sleeps.
    fn snapshot(&self) -> Grace;

    /// Whether every reader that ran at `grace` has finished. Once `true` it stays so. Any context; never sleeps.
    fn has_passed(&self, grace: Grace) -> bool;

    /// Waits until every reader that runs now has finished. May sleep; not inside a read-side section.
    fn synchronize(&self);
}

// SAFETY: forwards to an implementation that keeps the promise.
unsafe impl<G: GracePeriod> GracePeriod for &G {
    fn snapshot(&self) -> Grace {
        (**self).snapshot()
    }
    fn has_passed(&self, grace: Grace) -> bool {
        (**self).has_passed(grace)
    }
    fn synchronize(&self) {
        (**self).synchronize();
    }
}

/// For platforms without lock-free readers: every grace period has passed at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReaders(());

impl NoReaders {
    /// No readers.
    ///
    /// # Safety
    /// Nobody reads objects of typesafe or RCU-freed caches outside of owning them.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: by the promise of `NoReaders::new` there are no read-side sections.
unsafe impl GracePeriod for NoReaders {
    fn snapshot(&self) -> Grace {
        Grace(0)
    }
    fn has_passed(&self, _grace: Grace) -> bool {
        true
    }
    fn synchronize(&self) {}
}
