//! Giving memory back to the host: on request, and when more is resident than the program wants.
//!
//! A round of giving back empties the per-CPU sets and owns one free block at a time. Requests that find nothing meanwhile
//! wait for its end and try again, so a program does not see it.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use kmem_gfp::PAGE_SIZE;

use super::env::{BUDDY, MEDIUM, SLABS, host};
use super::grow;
use crate::release::release_free;
use crate::sys;

/// The resident bytes above which freed memory is given back; zero: no limit.
static LIMIT: AtomicU64 = AtomicU64::new(0);
/// Pages freed in large blocks since the last look.
static FREED: AtomicUsize = AtomicUsize::new(0);
/// Odd while a round of giving back runs.
static ROUND: AtomicU32 = AtomicU32::new(0);

/// Sets the limit.
pub(super) fn set(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// A large block of `nr` pages has been freed: now and then the time to look at the limit.
#[inline]
pub(super) fn freed(nr: usize) {
    let limit = LIMIT.load(Ordering::Relaxed);
    if limit != 0 {
        look(nr, limit);
    }
}

#[cold]
fn look(nr: usize, limit: u64) {
    // A sixteenth of the limit between looks, which cost a walk over the host's page tables.
    let between = (limit / 16).max(1 << 20) as usize / PAGE_SIZE;
    if FREED.fetch_add(nr, Ordering::Relaxed).saturating_add(nr) < between {
        return;
    }
    FREED.store(0, Ordering::Relaxed);
    let resident = resident_bytes();
    if resident > limit {
        release(resident - limit);
    }
}

/// Bytes of the host's memory behind the heap's frames.
pub(super) fn resident_bytes() -> u64 {
    host().ram.resident_below(grow::end()).saturating_mul(PAGE_SIZE as u64)
}

/// Gives free memory back to the host, `bytes` or as much as there is; returns how much it was. Zero as well if another
/// thread is at it.
pub(super) fn release(bytes: u64) -> u64 {
    let round = ROUND.load(Ordering::Relaxed);
    let odd = round.wrapping_add(1);
    if round & 1 != 0 || ROUND.compare_exchange(round, odd, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return 0;
    }
    SLABS.shrink_all();
    MEDIUM.shrink_all();
    BUDDY.drain_all_pages();
    let released = release_free(&BUDDY, host().ram, grow::end(), bytes);
    ROUND.store(round.wrapping_add(2), Ordering::Release);
    released
}

/// Keeps rounds of giving back from running until [`allow`]: they revoke CPUs, which must not be under way at a fork.
pub(super) fn forbid() {
    loop {
        let round = ROUND.load(Ordering::Relaxed);
        let even = round & !1;
        if ROUND.compare_exchange(even, even.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return;
        }
        sys::sched_yield();
    }
}

/// Ends what [`forbid`] began.
pub(super) fn allow() {
    ROUND.fetch_add(1, Ordering::Release);
}

/// Tries `attempt`, and again as long as the heap can grow or a round of giving back may have been in its way.
pub(super) fn persist<T>(attempt: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        let before = ROUND.load(Ordering::Acquire);
        let given = grow::given();
        if let Some(got) = attempt() {
            return Some(got);
        }
        if grow::since(given) {
            continue;
        }
        if before & 1 == 0 && ROUND.load(Ordering::Acquire) == before {
            return None;
        }
        while ROUND.load(Ordering::Acquire) & 1 != 0 {
            sys::sched_yield();
        }
    }
}
