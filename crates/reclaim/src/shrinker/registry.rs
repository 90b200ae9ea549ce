//! The shrinkers that are registered: a list through slots that their owners supply, changed while scans walk it.
//!
//! ```text
//! head ─▶ slot ─▶ slot ─▶ slot        lock: held for a step, never during a callback
//!                  ▲ walkers 2        a slot with walkers stays on the list
//!                  └ dying            unregistering: no new walker, wait for 0, take it off
//! ```

use core::ptr::NonNull;

use kmem_gfp::AllocContext;
use kmem_sync::atomic::Ordering;
use kmem_sync::{Cpu, SpinLock, const_fn};

use super::slot::{Link, ShrinkerSlot, State};
use crate::wait::{Park, Wait, WaitQueue};

type SlotPtr = NonNull<ShrinkerSlot<'static>>;

/// Why a shrinker could not be registered or unregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The slot is on a list already.
    #[error("the shrinker is registered already")]
    AlreadyRegistered,
    /// The slot is not on this list, or somebody else is taking it off.
    #[error("the shrinker is not registered here")]
    NotRegistered,
}

/// The registered shrinkers.
///
/// # Invariants
/// 1. Every slot reachable from the head is live memory: it is taken off before its owner may take it away.
/// 2. The links of these slots are touched under the lock only.
#[derive(Debug)]
pub struct Shrinkers {
    list: SpinLock<List>,
    /// Woken when the last walker leaves a slot that is on its way out.
    left: WaitQueue,
}

#[derive(Debug)]
struct List {
    head: Option<SlotPtr>,
}

// SAFETY: the pointers lead to slots, which are `Sync`, and are followed under the lock (invariants 1 and 2).
unsafe impl Send for List {}

impl List {
    /// Runs `f` on a slot's link.
    ///
    /// # Safety
    /// `slot` is on this list, or is being put there by the caller, who holds its claim.
    unsafe fn link<R>(&mut self, slot: SlotPtr, f: impl FnOnce(&mut Link) -> R) -> R {
        // SAFETY: the slot is live (invariant 1, or the caller's), and `&mut self` means that the lock is held (invariant 2).
        unsafe { slot.as_ref().link.with_mut(|link| f(&mut *link)) }
    }

    fn contains(&mut self, slot: SlotPtr) -> bool {
        let mut at = self.head;
        while let Some(here) = at
            && here != slot
        {
            // SAFETY: reached from the head.
            at = unsafe { self.link(here, |link| link.next) };
        }
        at.is_some()
    }

    fn append(&mut self, slot: SlotPtr) {
        // SAFETY: the caller has claimed the slot, which is on no list.
        unsafe { self.link(slot, |link| *link = Link { next: None, state: State::Live, walkers: 0 }) };
        let mut at = self.head;
        let mut last = None;
        while let Some(here) = at {
            last = Some(here);
            // SAFETY: reached from the head.
            at = unsafe { self.link(here, |link| link.next) };
        }
        match last {
            None => self.head = Some(slot),
            // SAFETY: reached from the head.
            Some(last) => unsafe { self.link(last, |link| link.next = Some(slot)) },
        }
    }

    fn remove(&mut self, slot: SlotPtr) {
        // SAFETY: the caller found it dying on this list.
        let next = unsafe { self.link(slot, |link| link.next.take()) };
        if self.head == Some(slot) {
            self.head = next;
        } else {
            let mut at = self.head;
            while let Some(here) = at {
                // SAFETY: reached from the head.
                at = unsafe {
                    self.link(here, |link| {
                        if link.next == Some(slot) {
                            link.next = next;
                            None
                        } else {
                            link.next
                        }
                    })
                };
            }
        }
        // SAFETY: off the list, but the caller still holds its claim.
        unsafe { self.link(slot, |link| link.state = State::Free) };
    }

    /// Leaves `at` and enters the next live slot. Also whether a slot on its way out has lost its last walker.
    fn step(&mut self, at: Option<SlotPtr>) -> (Option<SlotPtr>, bool) {
        let (mut next, mut freed) = (self.head, false);
        if let Some(at) = at {
            // SAFETY: it has a walker, so it is on the list still.
            (next, freed) = unsafe {
                self.link(at, |link| {
                    link.walkers = link.walkers.saturating_sub(1);
                    (link.next, link.walkers == 0 && link.state == State::Dying)
                })
            };
        }
        while let Some(here) = next {
            // SAFETY: reached from the head, or from a slot that was on the list.
            let (entered, after) = unsafe {
                self.link(here, |link| {
                    let live = link.state == State::Live;
                    link.walkers = link.walkers.saturating_add(u32::from(live));
                    (live, link.next)
                })
            };
            if entered {
                break;
            }
            next = after;
        }
        (next, freed)
    }
}

impl Shrinkers {
    const_fn! {
        /// No shrinkers.
        pub fn new() -> Self {
            Self { list: SpinLock::new(List { head: None }), left: WaitQueue::new() }
        }
    }

    /// Registers a shrinker: its callbacks run from now on. Task context; a walk of the list under a spin lock.
    ///
    /// # Errors
    /// [`RegisterError::AlreadyRegistered`]; nothing is changed.
    #[doc(alias = "shrinker_register")]
    pub fn register<C: Cpu>(&self, cpu: &C, slot: &'static ShrinkerSlot<'static>) -> Result<(), RegisterError> {
        // SAFETY: a static slot stays where it is for ever; the registry is borrowed for the call only, but it may go
        // away before the slot without anything being followed.
        unsafe { self.register_unchecked(cpu, slot) }
    }

    /// As [`register`](Self::register) for a slot that does not live for ever.
    ///
    /// # Safety
    /// The slot, its shrinker and its words stay valid and where they are until [`unregister`](Self::unregister) has
    /// returned for it, or the registry is gone.
    ///
    /// # Errors
    /// [`RegisterError::AlreadyRegistered`]; nothing is changed.
    pub unsafe fn register_unchecked<C: Cpu>(&self, cpu: &C, slot: &ShrinkerSlot<'_>) -> Result<(), RegisterError> {
        if slot.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(RegisterError::AlreadyRegistered);
        }
        self.list.with(cpu, |list| list.append(NonNull::from(slot).cast()));
        Ok(())
    }

    /// Takes a shrinker off the list: no new callback begins, those that run are waited for. None of its callbacks runs when
    /// this has returned. Where sleeping is allowed; never from one of its own callbacks, which would wait for itself.
    ///
    /// # Errors
    /// [`RegisterError::NotRegistered`]; nothing is changed.
    #[doc(alias = "shrinker_free")]
    pub fn unregister<C: Cpu, P: Park + ?Sized>(
        &self,
        cpu: &C,
        park: &P,
        context: &dyn AllocContext,
        slot: &ShrinkerSlot<'_>,
    ) -> Result<(), RegisterError> {
        let at: SlotPtr = NonNull::from(slot).cast();
        let was_live = self.list.with(cpu, |list| {
            // SAFETY: on this list, whose lock is held.
            list.contains(at)
                && unsafe { list.link(at, |link| core::mem::replace(&mut link.state, State::Dying) == State::Live) }
        });
        if !was_live {
            return Err(RegisterError::NotRegistered);
        }
        loop {
            let seen = self.left.sequence();
            let gone = self.list.with(cpu, |list| {
                // SAFETY: this caller alone made it dying, so it is on the list still.
                let idle = unsafe { list.link(at, |link| link.walkers == 0) };
                if idle {
                    list.remove(at);
                }
                idle
            });
            if gone {
                slot.claimed.store(false, Ordering::Release);
                return Ok(());
            }
            self.left.wait(park, context, seen, Wait { timeout_ms: None, killable: false });
        }
    }

    /// Runs `body` while a borrowed slot is registered, and unregisters it at the end.
    ///
    /// # Errors
    /// [`RegisterError::AlreadyRegistered`]; `body` has not run then.
    pub fn with_registered<C: Cpu, P: Park + ?Sized, R>(
        &self,
        cpu: &C,
        park: &P,
        context: &dyn AllocContext,
        slot: &ShrinkerSlot<'_>,
        body: impl FnOnce() -> R,
    ) -> Result<R, RegisterError> {
        struct Leave<'a, C: Cpu, P: Park + ?Sized>(
            &'a Shrinkers,
            &'a C,
            &'a P,
            &'a dyn AllocContext,
            &'a ShrinkerSlot<'a>,
        );
        impl<C: Cpu, P: Park + ?Sized> Drop for Leave<'_, C, P> {
            fn drop(&mut self) {
                if self.0.unregister(self.1, self.2, self.3, self.4).is_err() {
                    // Only the holder of a slot can have it unregistered, and that was its last act.
                    self.3.report(format_args!("kmem: shrinker {} had gone before its scope ended", self.4.name()));
                }
            }
        }
        // SAFETY: the slot is borrowed until `Leave` has unregistered it, which it does even if `body` unwinds.
        unsafe { self.register_unchecked(cpu, slot)? };
        let _leave = Leave(self, cpu, park, context, slot);
        Ok(body())
    }

    /// Calls `visit` for each live shrinker in the order of registration. Slots that come or go meanwhile may be missed;
    /// `visit` never runs for one whose unregistration has returned.
    pub(crate) fn for_each<C: Cpu, P: Park + ?Sized>(
        &self,
        cpu: &C,
        park: &P,
        mut visit: impl FnMut(&ShrinkerSlot<'_>),
    ) {
        let mut at = None;
        loop {
            let (next, freed) = self.list.with(cpu, |list| list.step(at));
            if freed {
                self.left.wake(park);
            }
            let Some(slot) = next else { return };
            // SAFETY: entered as a walker, so it stays on the list, and live (invariant 1), until the next step leaves it.
            visit(unsafe { slot.as_ref() });
            at = next;
        }
    }

    /// How many shrinkers are registered.
    pub fn len<C: Cpu, P: Park + ?Sized>(&self, cpu: &C, park: &P) -> usize {
        let mut nr = 0;
        self.for_each(cpu, park, |_| nr += 1);
        nr
    }
}

impl Default for Shrinkers {
    fn default() -> Self {
        Self::new()
    }
}
