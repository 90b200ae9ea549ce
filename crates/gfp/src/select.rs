//! What a [`Gfp`] selects: the highest zone, the migratetype and the zonelist.
//!
//! ```text
//!   low four bits        ceiling               bits 3..5      migratetype
//!   (none)    MV         Normal                (none)         Unmovable
//!   DMA       DMA|MV     Dma                   MV             Movable
//!   D32       D32|MV     Dma32                 RC             Reclaimable
//!   HM                   HighMem               MV|RC          refused
//!   HM|MV                Movable
//!   two of DMA, D32, HM  refused
//! ```
//!
//! The ceiling is an upper bound: the request may use that zone and every lower one, tried from high to low within a
//! node. A zone that the machine does not have is replaced by Normal. The MOVABLE zone needs `MOVABLE` **and**
//! `HIGHMEM`, even on machines without high memory: `MOVABLE` alone stays in Normal.
//!
//! Everything here is pure, `const` and constant-time; [`ZoneTable`] packs the whole zone table into one word that a
//! page allocator computes once.

use crate::{
    alloc_flags::MobilityGrouping,
    flags::Gfp,
    verdict::GfpError,
    zone::{MigrateType, ZoneKind},
};

bitflags::bitflags! {
    /// The zones that a machine may lack. Normal and Movable always exist (if perhaps empty).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct OptionalZones: u8 {
        /// The machine has a DMA zone.
        const DMA = 1 << 0;
        /// The machine has a DMA32 zone.
        const DMA32 = 1 << 1;
        /// The machine has memory that the kernel does not map permanently.
        const HIGHMEM = 1 << 2;
    }
}

/// The zone table of one machine: low four bits of a [`Gfp`] to zone ceiling.
///
/// # Invariants
///
/// Nibble `i` of `nibbles` holds the ceiling for `gfp & 0xf == i` as the number of a [`ZoneKind`], or 15 where two zones
/// are named.
///
/// # Examples
///
/// ```
/// use kmem_gfp::{Gfp, ZoneKind, select::{OptionalZones, ZoneTable}};
///
/// let table = ZoneTable::new(OptionalZones::DMA.union(OptionalZones::DMA32));
/// assert_eq!(table.ceiling(Gfp::KERNEL), Ok(ZoneKind::Normal));
/// assert_eq!(table.ceiling(Gfp::KERNEL | Gfp::DMA32), Ok(ZoneKind::Dma32));
/// assert_eq!(table.ceiling(Gfp::HIGHUSER_MOVABLE), Ok(ZoneKind::Movable));
/// assert!(table.ceiling(Gfp::DMA | Gfp::DMA32).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneTable {
    nibbles: u64,
}

/// The nibble of a combination that names two zones.
const CONFLICT: u64 = 0xf;

impl ZoneTable {
    /// The table of a machine that has `zones` besides Normal and Movable.
    #[must_use]
    pub const fn new(zones: OptionalZones) -> Self {
        let normal = ZoneKind::Normal as u64;
        let dma = if zones.contains(OptionalZones::DMA) { ZoneKind::Dma as u64 } else { normal };
        let dma32 = if zones.contains(OptionalZones::DMA32) { ZoneKind::Dma32 as u64 } else { normal };
        let highmem = if zones.contains(OptionalZones::HIGHMEM) { ZoneKind::HighMem as u64 } else { normal };
        let mut nibbles = 0;
        let mut low_bits = 0;
        while low_bits < 16 {
            let zone = match low_bits {
                0x0 | 0x8 => normal,
                0x1 | 0x9 => dma,
                0x2 => highmem,
                0x4 | 0xc => dma32,
                0xa => ZoneKind::Movable as u64,
                _ => CONFLICT,
            };
            nibbles |= zone << (low_bits * 4);
            low_bits += 1;
        }
        // INVARIANT: every value above is the number of a `ZoneKind` or `CONFLICT`.
        Self { nibbles }
    }

    /// The highest zone that `gfp` may use.
    ///
    /// # Errors
    ///
    /// [`GfpError::ZoneConflict`] when `gfp` names more than one of DMA, DMA32 and HIGHMEM.
    #[doc(alias = "gfp_zone")]
    #[inline]
    pub const fn ceiling(self, gfp: Gfp) -> Result<ZoneKind, GfpError> {
        match zone_of((self.nibbles >> ((gfp.bits() & 0xf) * 4)) & 0xf) {
            Some(zone) => Ok(zone),
            None => Err(GfpError::ZoneConflict { gfp }),
        }
    }

    /// Everything that the flags select, at once.
    ///
    /// # Errors
    ///
    /// [`GfpError::ZoneConflict`] and [`GfpError::MobilityConflict`].
    #[inline]
    pub const fn select(self, gfp: Gfp, grouping: MobilityGrouping) -> Result<Selection, GfpError> {
        let ceiling = match self.ceiling(gfp) {
            Ok(zone) => zone,
            Err(error) => return Err(error),
        };
        let migrate_type = match migrate_type(gfp, grouping) {
            Ok(migrate_type) => migrate_type,
            Err(error) => return Err(error),
        };
        Ok(Selection { ceiling, migrate_type, zonelist: Zonelist::of(gfp) })
    }
}

const fn zone_of(nibble: u64) -> Option<ZoneKind> {
    match nibble {
        0 => Some(ZoneKind::Dma),
        1 => Some(ZoneKind::Dma32),
        2 => Some(ZoneKind::Normal),
        3 => Some(ZoneKind::HighMem),
        4 => Some(ZoneKind::Movable),
        _ => None,
    }
}

/// What the placement flags of a request select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The highest zone allowed; every lower one is too.
    pub ceiling: ZoneKind,
    /// The kind of pageblock to take the memory from.
    pub migrate_type: MigrateType,
    /// Which nodes may serve it.
    pub zonelist: Zonelist,
}

/// Which nodes may serve a request for one node. The same for both where there is only one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zonelist {
    /// Every node, the nearest first.
    Fallback,
    /// The requested node and no other ([`Gfp::THISNODE`]).
    ThisNode,
}

impl Zonelist {
    /// The zonelist that `gfp` asks for.
    #[doc(alias = "gfp_zonelist")]
    #[must_use]
    #[inline]
    pub const fn of(gfp: Gfp) -> Self {
        if gfp.contains(Gfp::THISNODE) { Self::ThisNode } else { Self::Fallback }
    }
}

/// The migratetype that `gfp` selects; always Unmovable where pages are not grouped by mobility.
///
/// # Errors
///
/// [`GfpError::MobilityConflict`] when `gfp` says both MOVABLE and RECLAIMABLE.
#[doc(alias = "gfp_migratetype")]
#[inline]
pub const fn migrate_type(gfp: Gfp, grouping: MobilityGrouping) -> Result<MigrateType, GfpError> {
    if matches!(grouping, MobilityGrouping::Disabled) {
        return Ok(MigrateType::Unmovable);
    }
    match (gfp.contains(Gfp::MOVABLE), gfp.contains(Gfp::RECLAIMABLE)) {
        (false, false) => Ok(MigrateType::Unmovable),
        (true, false) => Ok(MigrateType::Movable),
        (false, true) => Ok(MigrateType::Reclaimable),
        (true, true) => Err(GfpError::MobilityConflict { gfp }),
    }
}
