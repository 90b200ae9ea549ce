//! A pageblock's record: one word that says what the block is and under which order it is filed.
//!
//! ```text
//! 31 ........ 12  11  10       9     8      7        6..4   3..0
//! zone            -   present  gaps  tails  isolate  type   largest free order + 1, 0: nothing free
//! ```

use kmem_gfp::MigrateType;

/// The value of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record(pub(crate) u32);

/// How many zones a record can tell apart.
pub(crate) const MAX_ZONES: usize = 1 << 20;

const TYPE_SHIFT: u32 = 4;
const ZONE_SHIFT: u32 = 12;

impl Record {
    /// Taken out of circulation, whatever the type below says.
    pub(crate) const ISOLATE: u32 = 1 << 7;
    /// Blocks above order 0 have been handed out here, so tail bits may be set.
    pub(crate) const TAILS: u32 = 1 << 8;
    /// Some frames are reserved or do not exist.
    pub(crate) const GAPS: u32 = 1 << 9;
    /// There is memory here.
    pub(crate) const PRESENT: u32 = 1 << 10;

    /// A pageblock of a zone, with nothing free.
    pub(crate) const fn new(zone: usize, migratetype: MigrateType, flags: u32) -> Self {
        Self((zone as u32) << ZONE_SHIFT | (migratetype as u32) << TYPE_SHIFT | flags)
    }

    /// The largest free order plus one; 0 if nothing is free.
    #[inline(always)]
    pub(crate) const fn filed(self) -> u32 {
        self.0 & 15
    }

    /// Filed under another order.
    #[inline(always)]
    pub(crate) const fn with_filed(self, filed: u32) -> Self {
        Self(self.0 & !15 | filed)
    }

    /// The type below an isolation.
    #[inline(always)]
    pub(crate) const fn stored_type(self) -> MigrateType {
        match (self.0 >> TYPE_SHIFT) & 7 {
            0 => MigrateType::Unmovable,
            1 => MigrateType::Movable,
            2 => MigrateType::Reclaimable,
            3 => MigrateType::HighAtomic,
            4 => MigrateType::Cma,
            _ => MigrateType::Isolate,
        }
    }

    /// The type as reported: isolation overrides.
    #[inline(always)]
    pub(crate) const fn migratetype(self) -> MigrateType {
        if self.has(Self::ISOLATE) { MigrateType::Isolate } else { self.stored_type() }
    }

    /// With another stored type.
    pub(crate) const fn with_type(self, migratetype: MigrateType) -> Self {
        Self(self.0 & !(7 << TYPE_SHIFT) | (migratetype as u32) << TYPE_SHIFT)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub(crate) const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// With a flag set or clear.
    #[inline(always)]
    pub(crate) const fn with(self, flag: u32, value: bool) -> Self {
        Self(if value { self.0 | flag } else { self.0 & !flag })
    }

    /// The zone's number.
    #[inline(always)]
    pub(crate) const fn zone(self) -> usize {
        (self.0 >> ZONE_SHIFT) as usize
    }

    /// Whether free frames here are counted apart (highatomic, CMA, isolated).
    #[inline(always)]
    pub(crate) const fn is_special(self) -> bool {
        // The mergeable types are the first three; an isolation is one bit further up.
        (self.0 >> TYPE_SHIFT) & 15 >= 3
    }
}
