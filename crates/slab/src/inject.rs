//! Fault injection: allocations that fail on purpose (`failslab`).
//!
//! While the injector is armed every cache's `care` word sends requests here first; disarmed it costs nothing.

use kmem_gfp::{AllocError, Gfp};
use kmem_sync::atomic::{AtomicBool, Ordering};
use kmem_sync::{Cpu, SpinLock};

use crate::cache::CARE_INJECT;
use crate::{KmemCache, SlabEnv, SlabFlags, Slabs};

/// When requests fail. The default never does.
#[doc(alias("failslab", "fault_attr"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultInjection {
    /// Chance in percent that a request that got this far fails; 0 switches injection off.
    pub probability: u32,
    /// Only every `interval`-th request may fail.
    pub interval: u32,
    /// How many requests fail before injection stops; `None` is without limit.
    pub times: Option<u32>,
    /// Bytes that requests may take before any fails.
    pub space: usize,
    /// Only caches marked with [`Slabs::set_failslab`].
    pub cache_filter: bool,
    /// Requests that may sleep never fail.
    pub ignore_blocking: bool,
    /// Fail exactly the `n`-th request from now (1 is the next), whatever the rest says.
    pub fail_nth: Option<u32>,
}

impl FaultInjection {
    /// Never fails; `interval` 1, one time, ignoring requests that may sleep.
    pub const OFF: Self = Self {
        probability: 0,
        interval: 1,
        times: Some(1),
        space: 0,
        cache_filter: false,
        ignore_blocking: true,
        fail_nth: None,
    };

    /// Fails exactly the `n`-th request from now on, sleeping or not.
    #[must_use]
    pub const fn nth(n: u32) -> Self {
        Self { fail_nth: Some(n), ignore_blocking: false, ..Self::OFF }
    }

    /// Reads the boot string `interval,probability,space,times`; `times` -1 is without limit.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(',').map(str::trim);
        let interval = fields.next()?.parse().ok()?;
        let probability = fields.next()?.parse().ok()?;
        let space = fields.next()?.parse().ok()?;
        let times = match fields.next()?.parse::<i64>().ok()? {
            -1 => None,
            times => Some(u32::try_from(times).ok()?),
        };
        if fields.next().is_some() {
            return None;
        }
        Some(Self { interval, probability, space, times, ..Self::OFF })
    }

    const fn is_on(&self) -> bool {
        self.probability > 0 || self.fail_nth.is_some()
    }
}

impl Default for FaultInjection {
    fn default() -> Self {
        Self::OFF
    }
}

#[derive(Debug)]
struct State {
    rule: FaultInjection,
    seen: u32,
    random: u64,
    failed: u64,
}

impl State {
    /// Decides in the reference's order: the countdown, probability, times, space, interval, the dice.
    fn decide(&mut self, size: usize) -> bool {
        if let Some(left) = self.rule.fail_nth {
            self.rule.fail_nth = left.checked_sub(1).filter(|left| *left > 0);
            return left == 1;
        }
        if self.rule.probability == 0 || self.rule.times == Some(0) {
            return false;
        }
        if self.rule.space > size {
            self.rule.space -= size;
            return false;
        }
        if self.rule.interval > 1 {
            self.seen = self.seen.wrapping_add(1);
            if !self.seen.is_multiple_of(self.rule.interval) {
                return false;
            }
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if self.random % 100 >= self.rule.probability as u64 {
            return false;
        }
        if let Some(times) = &mut self.rule.times {
            *times = times.saturating_sub(1);
        }
        true
    }
}

/// The family's injector.
#[derive(Debug)]
pub(crate) struct Injector {
    armed: AtomicBool,
    state: SpinLock<State>,
}

impl Injector {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            armed: AtomicBool::new(false),
            state: SpinLock::new(State { rule: FaultInjection::OFF, seen: 0, random: seed | 1, failed: 0 }),
        }
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    pub(crate) fn set<C: Cpu>(&self, cpu: &C, rule: FaultInjection) {
        self.state.with(cpu, |state| {
            state.rule = rule;
            state.seen = 0;
        });
        self.armed.store(rule.is_on(), Ordering::Relaxed);
    }

    /// Whether this call is to fail.
    pub(crate) fn fires<C: Cpu>(&self, cpu: &C) -> bool {
        self.state.with(cpu, |state| state.decide(0))
    }
}

impl<E: SlabEnv> Slabs<E> {
    /// Sets when requests fail, and starts counting anew. [`FaultInjection::OFF`] disarms.
    pub fn set_fault_injection(&self, rule: FaultInjection) {
        let Some(core) = self.core() else { return };
        core.injector.set(self.env.cpu(), rule);
        self.set_care(CARE_INJECT, rule.is_on());
    }

    /// How many requests have failed on purpose.
    pub fn injected_failures(&self) -> u64 {
        self.core().map_or(0, |core| core.injector.state.with(self.env.cpu(), |state| state.failed))
    }

    /// Marks a cache for the injector's cache filter, or takes the mark away. `false` (nothing done) if the cache is
    /// shared.
    pub fn set_failslab(&self, cache: &KmemCache, on: bool) -> bool {
        if cache.refs.load(Ordering::Relaxed) > 1 {
            return false;
        }
        cache.failslab.store(u32::from(on), Ordering::Relaxed);
        true
    }

    /// Asks the injector. Called for caches whose `care` word says so.
    #[cold]
    pub(crate) fn may_fail(&self, cache: &KmemCache, gfp: Gfp) -> Result<(), AllocError> {
        let Some(core) = self.core() else { return Ok(()) };
        if gfp.contains(Gfp::NOFAIL) || cache.flags.contains(SlabFlags::INTERNAL) {
            return Ok(());
        }
        let marked = cache.failslab.load(Ordering::Relaxed) != 0;
        let fails = core.injector.state.with(self.env.cpu(), |state| {
            if (state.rule.ignore_blocking && gfp.allows_blocking()) || (state.rule.cache_filter && !marked) {
                return false;
            }
            let fails = state.decide(cache.object_size());
            state.failed += u64::from(fails);
            fails
        });
        if fails { Err(AllocError::Injected) } else { Ok(()) }
    }
}
