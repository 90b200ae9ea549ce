//! [`Retry`]: how long a request is pursued before it fails.
//!
//! | flags | order <= 3 | order > 3 |
//! | --- | --- | --- |
//! | no DIRECT_RECLAIM | [`Never`](Retry::Never) | [`Never`](Retry::Never) |
//! | none of the modifiers | [`UntilOom`](Retry::UntilOom) | [`FullRound`](Retry::FullRound) |
//! | NORETRY | [`LightRound`](Retry::LightRound) | [`LightRound`](Retry::LightRound) |
//! | RETRY_MAYFAIL | [`WhileProgress`](Retry::WhileProgress) | as before if it may compact, else [`FullRound`](Retry::FullRound) |
//! | NOFAIL | [`Forever`](Retry::Forever) | [`Forever`](Retry::Forever) |

use crate::{
    flags::Gfp,
    frame::Order,
    reclaimer::CompactPriority,
    zone::{MigrateType, ZoneKind},
};

/// How long a request that found nothing free is pursued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Not at all: the caller cannot wait. NOFAIL without DIRECT_RECLAIM belongs here, so it can fail.
    Never,
    /// One round of reclaim and compaction at the lightest priority.
    LightRound,
    /// One full round; costly orders by default.
    FullRound,
    /// As long as reclaim or compaction makes progress; then it fails.
    WhileProgress,
    /// As long as there is progress; then the OOM killer makes some. Fails only for an OOM victim, or where killing
    /// cannot help.
    UntilOom,
    /// Until it succeeds.
    Forever,
}

impl Retry {
    /// How a request of `gfp` and `order` is pursued on a machine that has compaction (`can_compact`) or not.
    ///
    /// The modifiers exclude one another by design; of several, NOFAIL wins over NORETRY over RETRY_MAYFAIL.
    #[must_use]
    pub const fn of(gfp: Gfp, order: Order, can_compact: bool) -> Self {
        if !gfp.allows_blocking() {
            Self::Never
        } else if gfp.contains(Gfp::NOFAIL) {
            Self::Forever
        } else if gfp.contains(Gfp::NORETRY) {
            Self::LightRound
        } else if gfp.contains(Gfp::RETRY_MAYFAIL) && (!order.is_costly() || (can_compact && gfp.allows_compaction())) {
            Self::WhileProgress
        } else if order.is_costly() {
            Self::FullRound
        } else {
            Self::UntilOom
        }
    }

    /// Whether a caller need not expect failure (but must still handle it, [`Forever`](Self::Forever) aside).
    #[must_use]
    pub const fn practically_succeeds(self) -> bool {
        matches!(self, Self::UntilOom | Self::Forever)
    }
}

/// Whether the OOM killer may act for a request, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OomEligibility {
    /// The request never gets as far as the OOM step.
    NeverReached,
    /// It does, but nothing is killed and that counts as no progress.
    NoKill,
    /// It does, nothing is killed, and it goes on as if there were progress: it keeps looping.
    PretendProgress,
    /// A victim may be chosen.
    Kill,
}

impl OomEligibility {
    /// What the flags, order and zone ceiling of a request say; the state of the machine is another matter.
    #[must_use]
    pub const fn of(gfp: Gfp, order: Order, ceiling: ZoneKind, can_compact: bool) -> Self {
        let tries_costly = gfp.contains(Gfp::RETRY_MAYFAIL) && can_compact && gfp.allows_compaction();
        if !gfp.allows_blocking() || gfp.contains(Gfp::NORETRY) || (order.is_costly() && !tries_costly) {
            return Self::NeverReached;
        }
        let low_zone = matches!(ceiling, ZoneKind::Dma | ZoneKind::Dma32);
        if order.is_costly() || gfp.intersects(Gfp::RETRY_MAYFAIL.union(Gfp::THISNODE)) || low_zone {
            return Self::NoKill;
        }
        if gfp.contains(Gfp::FS) { Self::Kill } else { Self::PretendProgress }
    }
}

impl Gfp {
    /// Whether a round of compaction alone precedes the first reclaim: only for callers that may block and compact, for
    /// costly orders and for those above 0 whose pages do not move.
    #[must_use]
    pub const fn compacts_first(self, order: Order, migrate_type: MigrateType, can_compact: bool) -> bool {
        self.allows_blocking()
            && can_compact
            && self.allows_compaction()
            && (order.is_costly() || (order.get() > 0 && !matches!(migrate_type, MigrateType::Movable)))
    }

    /// The compaction priority to begin with: the lightest when compaction comes first.
    #[must_use]
    pub const fn initial_priority(self, order: Order, migrate_type: MigrateType, can_compact: bool) -> CompactPriority {
        if self.compacts_first(order, migrate_type, can_compact) {
            CompactPriority::Async
        } else {
            CompactPriority::SyncLight
        }
    }
}
