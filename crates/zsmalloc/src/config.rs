//! How a pool is set up.

bitflags::bitflags! {
    /// Checks that a pool makes at a cost; all off by default.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DebugFlags: u8 {
        /// Keeps checksums and second copies of metadata, and verifies a zspage's records, a handle's entry and their
        /// agreement before following them. Damage is an error ([`Corruption`](crate::Corruption)), not a jump.
        const VERIFY = 1 << 0;
    }
}

/// The parameters of a pool; constant for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The largest zspage, in frames: [`MIN_CHAIN`](Self::MIN_CHAIN)..=[`MAX_CHAIN`](Self::MAX_CHAIN). Longer chains waste
    /// less at a zspage's end, and since zspages get their frames one by one they cost nothing at its growing edge; an
    /// object that is being read holds up the compaction of its whole zspage.
    pub chain: u8,
    /// The distance of size classes in bytes: a power of two, 16..=1024.
    pub granule: u16,
    /// How many objects a free may move to fill holes, when its class has more than
    /// [`slack_percent`](Self::slack_percent) of them. 0: only [`Pool::compact`](crate::Pool::compact) moves objects.
    pub moves_per_free: u8,
    /// The share of a class's objects, in percent, that may be holes before a free moves objects.
    pub slack_percent: u8,
    /// Checks with a cost.
    pub debug: DebugFlags,
}

impl Config {
    /// The shortest longest zspage.
    pub const MIN_CHAIN: u8 = 4;
    /// The longest zspage possible, in frames.
    pub const MAX_CHAIN: u8 = 16;

    /// The default: zspages of up to 12 frames, classes 16 bytes apart, no incremental compaction, no debugging.
    pub const fn new() -> Self {
        Self { chain: 12, granule: 16, moves_per_free: 0, slack_percent: 6, debug: DebugFlags::empty() }
    }

    /// With zspages of up to `chain` frames.
    #[must_use]
    pub const fn with_chain(self, chain: u8) -> Self {
        Self { chain, ..self }
    }

    /// With classes `granule` bytes apart.
    #[must_use]
    pub const fn with_granule(self, granule: u16) -> Self {
        Self { granule, ..self }
    }

    /// With incremental compaction: a free moves at most `moves` objects.
    #[must_use]
    pub const fn with_moves_per_free(self, moves: u8) -> Self {
        Self { moves_per_free: moves, ..self }
    }

    /// With another share of holes tolerated by incremental compaction.
    #[must_use]
    pub const fn with_slack_percent(self, percent: u8) -> Self {
        Self { slack_percent: percent, ..self }
    }

    /// With these checks on.
    #[must_use]
    pub const fn with_debug(self, debug: DebugFlags) -> Self {
        Self { debug, ..self }
    }

    /// Whether all parameters are in range.
    pub const fn is_valid(&self) -> bool {
        self.chain >= Self::MIN_CHAIN
            && self.chain <= Self::MAX_CHAIN
            && self.granule.is_power_of_two()
            && self.granule >= 16
            && self.granule <= 1024
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}
