//! What background reclaim has been asked for and what it is doing, in one word.
//!
//! ```text
//! bits  0..8   order + 1     the largest order asked for since it was taken; 0: nothing
//! bits  8..16  ceiling + 1   the highest zone asked for
//! bits 16..18  phase         running, napping, asleep
//! ```
//!
//! Because a request and the phase change in the same word, the thread cannot go to sleep over a request that came while it
//! ran: one exchange of the two fails.

use kmem_gfp::{Order, ZoneKind};
use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::const_fn;

/// What the thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It works, or is about to.
    Running,
    /// It has nothing to do and waits a moment whether that stays so.
    Napping,
    /// It sleeps until woken.
    Asleep,
}

const PHASE_SHIFT: u32 = 16;

impl Phase {
    const fn bits(self) -> u32 {
        match self {
            Self::Asleep => 0,
            Self::Running => 1 << PHASE_SHIFT,
            Self::Napping => 2 << PHASE_SHIFT,
        }
    }

    const fn of(word: u32) -> Self {
        match word >> PHASE_SHIFT {
            0 => Self::Asleep,
            1 => Self::Running,
            _ => Self::Napping,
        }
    }
}

/// A request: the largest order and the highest zone of all that came together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) order: Order,
    pub(crate) ceiling: ZoneKind,
}

impl Wanted {
    const fn bits(self) -> u32 {
        (self.order.get() + 1) | ((self.ceiling.index() as u32 + 1) << 8)
    }

    fn of(word: u32) -> Option<Self> {
        let order = Order::new((word & 0xff).checked_sub(1)?)?;
        let ceiling = *ZoneKind::ALL.get((word >> 8 & 0xff).checked_sub(1)? as usize)?;
        Some(Self { order, ceiling })
    }
}

/// The word. All changes are atomic read-modify-writes of it, so their order is its own.
#[derive(Debug)]
pub(crate) struct WakeWord(AtomicU32);

impl WakeWord {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Changes the word by `f` until that succeeds or `f` declines; the word as it was.
    fn change(&self, f: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let new = f(word).ok_or(word)?;
            match self.0.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(old) => return Ok(old),
                Err(now) => word = now,
            }
        }
    }

    /// Adds a request and tells what the thread is doing.
    pub(crate) fn record(&self, wanted: Wanted) -> Phase {
        let new = wanted.bits();
        let changed = self.change(|word| {
            let order = (word & 0xff).max(new & 0xff);
            let ceiling = (word & 0xff00).max(new & 0xff00);
            Some(word & !0xffff | ceiling | order)
        });
        match changed {
            Ok(word) | Err(word) => Phase::of(word),
        }
    }

    /// Lets the thread run; whether it did not.
    pub(crate) fn rouse(&self) -> bool {
        self.change(|word| (Phase::of(word) != Phase::Running).then_some(word & 0xffff | Phase::Running.bits())).is_ok()
    }

    /// Takes the requests.
    pub(crate) fn take(&self) -> Option<Wanted> {
        let changed = self.change(|word| Some(word & !0xffff));
        match changed {
            Ok(word) | Err(word) => Wanted::of(word),
        }
    }

    /// From running to napping; fails if a request has come, unless those no longer count.
    pub(crate) fn try_nap(&self, whatever_came: bool) -> bool {
        self.change(|word| {
            let may = Phase::of(word) == Phase::Running && (whatever_came || word & 0xffff == 0);
            may.then_some(Phase::Napping.bits())
        })
        .is_ok()
    }

    /// From napping to asleep; fails if it has been roused.
    pub(crate) fn try_sleep(&self) -> bool {
        self.change(|word| (Phase::of(word) == Phase::Napping).then_some(word & 0xffff | Phase::Asleep.bits())).is_ok()
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.0.load(Ordering::Acquire))
    }

    /// The highest zone asked for and not yet taken.
    pub(crate) fn pending(&self) -> Option<Wanted> {
        Wanted::of(self.0.load(Ordering::Acquire))
    }
}
