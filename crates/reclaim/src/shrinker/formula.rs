//! How many objects a shrinker is asked to look at (R-36..R-40). Pure.
//!
//! ```text
//! freeable 10000, priority 6, seeks 2:   delta = (10000 >> 6) x 4 / 2 = 312
//! nothing deferred:                      total = 312: 128, 128 are scanned, 56 are less than a batch and deferred
//! ```

/// Objects asked for at a time unless the shrinker says otherwise.
pub const DEFAULT_BATCH: u64 = 128;
/// What it costs to make an object again, in disk seeks, unless the shrinker says otherwise.
pub const DEFAULT_SEEKS: u32 = 2;

/// How much of `freeable` objects this pass adds to the work. Objects that cost nothing (`seeks` 0) are halved.
pub const fn delta(freeable: u64, priority: u8, seeks: u32) -> u64 {
    if seeks == 0 {
        return freeable / 2;
    }
    let share = (freeable >> if priority < 63 { priority } else { 63 }) as u128 * 4 / seeks as u128;
    if share > u64::MAX as u128 { u64::MAX } else { share as u64 }
}

/// The work of this pass: its own and a share of what was deferred, at most twice what there is.
pub const fn total(freeable: u64, deferred: u64, priority: u8, seeks: u32) -> u64 {
    let share = deferred >> if priority < 63 { priority } else { 63 };
    let total = share.saturating_add(delta(freeable, priority, seeks));
    let most = freeable.saturating_mul(2);
    if total < most { total } else { most }
}

/// What is left for later passes: all of the work known of, less what was done, at most twice what there is.
pub const fn left_over(freeable: u64, deferred: u64, priority: u8, seeks: u32, scanned: u64) -> u64 {
    let known = deferred.saturating_add(delta(freeable, priority, seeks));
    let left = known.saturating_sub(scanned);
    let most = freeable.saturating_mul(2);
    if left < most { left } else { most }
}

/// The size of the next call; `None` when what is left waits for a later pass. `total` is what is left of this pass's work.
pub const fn next_batch(total: u64, freeable: u64, batch: u64) -> Option<u64> {
    if total == 0 || (total < batch && total < freeable) {
        return None;
    }
    Some(if total < batch { total } else { batch })
}
