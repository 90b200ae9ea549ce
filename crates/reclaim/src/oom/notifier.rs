//! Those who can free something at the last moment (a balloon, a cache without shrinker), asked before anybody is killed.
//!
//! ```text
//! head ──▶ OomNotifier ──▶ OomNotifier ──▶ none      newest first; the turn protects the list
//! ```

use core::ptr::NonNull;

use kmem_gfp::AllocContext;
use kmem_sync::UnsafeCell;

use crate::oom::{Oom, OomEnv};

/// One that is asked to free pages. Lives where its owner put it.
pub struct OomNotifier<'a> {
    next: UnsafeCell<Link>,
    free: &'a (dyn Fn() -> u64 + Sync),
}

/// A link of the list. Lifetimes end at [`Oom::unregister`], which the promise of [`Oom::register`] demands.
pub(crate) type Link = Option<NonNull<OomNotifier<'static>>>;

// SAFETY: `next` is touched with the turn held only; the function is `Sync`.
unsafe impl Sync for OomNotifier<'_> {}
// SAFETY: nothing is tied to the creating thread.
unsafe impl Send for OomNotifier<'_> {}

impl core::fmt::Debug for OomNotifier<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OomNotifier").finish_non_exhaustive()
    }
}

impl<'a> OomNotifier<'a> {
    /// `free` frees what it can and returns how many pages; it must not allocate, and is called with the turn held.
    pub fn new(free: &'a (dyn Fn() -> u64 + Sync)) -> Self {
        Self { next: UnsafeCell::new(None), free }
    }
}

impl<E: OomEnv> Oom<E> {
    /// Puts a notifier on the list. May sleep: waits until nobody is killing.
    ///
    /// # Safety
    /// The notifier is on no list, and stays where it is, alive, until [`unregister`](Self::unregister) has returned for it.
    #[doc(alias = "register_oom_notifier")]
    pub unsafe fn register(&self, notifier: &OomNotifier<'_>) {
        let node = NonNull::from(notifier).cast::<OomNotifier<'static>>();
        self.wait_for_turn();
        self.notifiers.with_mut(|head| {
            // SAFETY: the turn is ours, so nobody else touches the head or any link.
            let head = unsafe { &mut *head };
            // SAFETY: as above.
            notifier.next.with_mut(|next| unsafe { *next = *head });
            *head = Some(node);
        });
        self.end_turn();
    }

    /// Takes a notifier off the list; `false` if it is not on it. Afterwards it is not called. May sleep.
    #[doc(alias = "unregister_oom_notifier")]
    pub fn unregister(&self, notifier: &OomNotifier<'_>) -> bool {
        let node = NonNull::from(notifier).cast::<OomNotifier<'static>>();
        self.wait_for_turn();
        let found = self.notifiers.with_mut(|head| {
            let mut at: *mut Link = head;
            // SAFETY: `at` is the head or the link of a registered notifier, which is alive; the turn is ours.
            while let Some(found) = unsafe { *at } {
                // SAFETY: registered, hence alive (promise of `register`).
                let next: *mut Link = unsafe { found.as_ref() }.next.with_mut(|next| next);
                if found == node {
                    // SAFETY: as above.
                    unsafe { *at = *next };
                    return true;
                }
                at = next;
            }
            false
        });
        self.end_turn();
        found
    }

    /// Asks all notifiers; returns how many pages they freed. The caller has the turn.
    pub(crate) fn notify(&self) -> u64 {
        let mut freed: u64 = 0;
        // SAFETY: the turn is ours.
        let mut at = self.notifiers.with(|head| unsafe { *head });
        while let Some(node) = at {
            // SAFETY: registered, hence alive (promise of `register`).
            let notifier = unsafe { node.as_ref() };
            freed = freed.saturating_add((notifier.free)());
            // SAFETY: the turn is ours.
            at = notifier.next.with(|next| unsafe { *next });
        }
        freed
    }

    pub(crate) fn wait_for_turn(&self) {
        while !self.try_turn() {
            self.env.context().yield_now();
        }
    }
}
