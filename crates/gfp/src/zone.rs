//! Zones, migratetypes and watermarks by name.

use core::fmt;

macro_rules! names {
    ($type:ty, $($variant:ident => $name:literal),+ $(,)?) => {
        impl $type {
            /// The kernel's spelling.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

/// A kind of zone, from the most to the least restricted address range. The order is the order of preference: a
/// request with a ceiling may use that kind and every lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ZoneKind {
    /// Below 16 MiB, for devices with 24 address bits.
    Dma = 0,
    /// Below 4 GiB, for devices with 32 address bits.
    Dma32 = 1,
    /// Directly mapped memory without other limits.
    Normal = 2,
    /// Memory that is not always mapped.
    HighMem = 3,
    /// Memory for movable pages only.
    Movable = 4,
}

impl ZoneKind {
    /// How many kinds there are.
    pub const COUNT: usize = 5;
    /// All kinds, lowest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Dma, Self::Dma32, Self::Normal, Self::HighMem, Self::Movable];

    /// The kind as an index below [`COUNT`](Self::COUNT).
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}

names!(ZoneKind, Dma => "DMA", Dma32 => "DMA32", Normal => "Normal", HighMem => "HighMem", Movable => "Movable");

/// What may happen to a page, and so which pageblocks it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MigrateType {
    /// Stays where it is until freed.
    Unmovable = 0,
    /// Its owner can move it.
    Movable = 1,
    /// Its owner can give it back under pressure.
    Reclaimable = 2,
    /// Reserved for high-order atomic requests.
    HighAtomic = 3,
    /// Lent by a contiguous memory area.
    Cma = 4,
    /// Taken out of circulation.
    Isolate = 5,
}

impl MigrateType {
    /// How many there are.
    pub const COUNT: usize = 6;
    /// Those that requests name and per-CPU page sets keep; the mergeable ones.
    pub const PCP: [Self; 3] = [Self::Unmovable, Self::Movable, Self::Reclaimable];
    /// All of them, in the order of `/proc/pagetypeinfo`.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Unmovable, Self::Movable, Self::Reclaimable, Self::HighAtomic, Self::Cma, Self::Isolate];

    /// The type as an index below [`COUNT`](Self::COUNT).
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The type with this number; `None` if there is none.
    pub const fn from_index(index: usize) -> Option<Self> {
        match index {
            0 => Some(Self::Unmovable),
            1 => Some(Self::Movable),
            2 => Some(Self::Reclaimable),
            3 => Some(Self::HighAtomic),
            4 => Some(Self::Cma),
            5 => Some(Self::Isolate),
            _ => None,
        }
    }

    /// Whether pageblocks of this type may take over one another (unmovable, movable, reclaimable).
    #[inline(always)]
    pub const fn is_mergeable(self) -> bool {
        (self as u8) < 3
    }
}

names!(MigrateType, Unmovable => "Unmovable", Movable => "Movable", Reclaimable => "Reclaimable",
    HighAtomic => "HighAtomic", Cma => "CMA", Isolate => "Isolate");

/// A level of free pages that a zone wants to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Watermark {
    /// Below it only requests with access to reserves succeed.
    Min = 0,
    /// Below it background reclaim is woken.
    Low = 1,
    /// Background reclaim stops here.
    High = 2,
    /// The level at which memory tiering promotes.
    Promo = 3,
}

impl Watermark {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All, lowest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Min, Self::Low, Self::High, Self::Promo];
}

names!(Watermark, Min => "min", Low => "low", High => "high", Promo => "promo");
