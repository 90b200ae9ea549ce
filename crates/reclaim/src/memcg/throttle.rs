//! How long a task sleeps that has charged above `memory.high` (A-15).
//!
//! ```text
//! overage = (usage − high) × 2^20 / high          1.0 is 2^20
//! ticks   = overage² × HZ >> 20 >> 14, × backlog / 64, at most 2 s; 10 ms and less: none
//! ```

use crate::memcg::stock::BATCH;

const PRECISION_SHIFT: u32 = 20;
const SCALING_SHIFT: u32 = 14;

/// How far a group is above its high limit, in 2^-20 of the limit; zero if it is not.
pub(crate) const fn overage(usage: u64, high: u64) -> u64 {
    if usage <= high {
        return 0;
    }
    let limit = if high == 0 { 1 } else { high };
    let overage = (((usage - high) as u128) << PRECISION_SHIFT) / limit as u128;
    if overage > u64::MAX as u128 { u64::MAX } else { overage as u64 }
}

/// The sleep of a task, in ticks of which a second has `hz`: for a group with `usage` pages charged of `high`, when the
/// task has charged `backlog` pages above the limit. At most two seconds; zero for what is not worth a sleep.
///
/// ```
/// use kmem_reclaim::memcg::throttle_ticks;
/// assert_eq!(throttle_ticks(1000, 1000, 64, 1000), 0, "not above");
/// assert_eq!(throttle_ticks(1050, 1000, 64, 1000), 159, "5 % above");
/// assert_eq!(throttle_ticks(1100, 1000, 64, 1000), 639, "10 % above: four times as long");
/// assert_eq!(throttle_ticks(2000, 1000, 64, 1000), 2000, "never more than two seconds");
/// ```
pub const fn throttle_ticks(usage: u64, high: u64, backlog: u64, hz: u64) -> u64 {
    ticks_of(overage(usage, high), backlog, hz)
}

/// The same for an overage that is known.
pub(crate) const fn ticks_of(overage: u64, backlog: u64, hz: u64) -> u64 {
    let most = hz.saturating_mul(2);
    let square = (overage as u128).saturating_mul(overage as u128);
    let ticks = square.saturating_mul(hz as u128) >> PRECISION_SHIFT >> SCALING_SHIFT;
    let ticks = ticks.saturating_mul(backlog as u128) / BATCH as u128;
    let ticks = if ticks > most as u128 { most } else { ticks as u64 };
    if ticks <= hz / 100 { 0 } else { ticks }
}
