//! Allocation flags as a trace spells them: names joined by `|`, composites first, `none` for 0.

use std::collections::HashMap;

/// Flags with the bit positions of the recorded kernel (Linux 7.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
pub struct TraceGfp(pub u32);

macro_rules! flags {
    ($($name:ident = $value:expr, $doc:literal;)*) => {
        impl TraceGfp {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*
        }
    };
}

flags! {
    DMA = 1, "The DMA zone.";
    HIGHMEM = 1 << 1, "May be high memory.";
    DMA32 = 1 << 2, "The DMA32 zone.";
    MOVABLE = 1 << 3, "May be moved.";
    RECLAIMABLE = 1 << 4, "Comes back under pressure.";
    HIGH = 1 << 5, "High priority.";
    IO = 1 << 6, "May start I/O.";
    FS = 1 << 7, "May call into file systems.";
    ZERO = 1 << 8, "Zeroed.";
    DIRECT_RECLAIM = 1 << 10, "May reclaim directly.";
    KSWAPD_RECLAIM = 1 << 11, "Wakes background reclaim.";
    WRITE = 1 << 12, "Will be dirtied.";
    NOWARN = 1 << 13, "No failure report.";
    RETRY_MAYFAIL = 1 << 14, "Tries hard, may fail.";
    NOFAIL = 1 << 15, "Never fails.";
    NORETRY = 1 << 16, "One light try.";
    MEMALLOC = 1 << 17, "May use every reserve.";
    COMP = 1 << 18, "A compound page.";
    NOMEMALLOC = 1 << 19, "May not use the reserves.";
    HARDWALL = 1 << 20, "Stays in the cpuset.";
    THISNODE = 1 << 21, "This node or none.";
    ACCOUNT = 1 << 22, "Charged to the memory cgroup.";
    ZEROTAGS = 1 << 23, "Memory tags zeroed.";
    NO_OBJ_EXT = 1 << 24, "Without an extension vector.";
}

impl TraceGfp {
    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both flags.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True for the flags that slab allocators ask the page allocator with, and hardly anybody else does.
    #[must_use]
    pub const fn is_slabs(self) -> bool {
        const ALL: u32 = TraceGfp::NOWARN.0 | TraceGfp::NORETRY.0 | TraceGfp::COMP.0 | TraceGfp::NOMEMALLOC.0;
        const NONE: u32 = TraceGfp::HIGHMEM.0 | TraceGfp::MOVABLE.0 | TraceGfp::HARDWALL.0;
        self.0 & (ALL | NONE) == ALL
    }

    fn named(name: &[u8]) -> Option<Self> {
        const RECLAIM: u32 = 1 << 10 | 1 << 11;
        const KERNEL: u32 = RECLAIM | 1 << 6 | 1 << 7;
        const HIGHUSER_MOVABLE: u32 = KERNEL | 1 << 20 | 1 << 1 | 1 << 3;
        const TRANSHUGE_LIGHT: u32 = (HIGHUSER_MOVABLE | 1 << 18 | 1 << 19 | 1 << 13) & !RECLAIM;
        Some(match name {
            b"none" => Self(0),
            b"GFP_TRANSHUGE" => Self(TRANSHUGE_LIGHT | 1 << 10),
            b"GFP_TRANSHUGE_LIGHT" => Self(TRANSHUGE_LIGHT),
            b"GFP_HIGHUSER_MOVABLE" => Self(HIGHUSER_MOVABLE),
            b"GFP_HIGHUSER" => Self(KERNEL | 1 << 20 | 1 << 1),
            b"GFP_USER" => Self(KERNEL | 1 << 20),
            b"GFP_KERNEL_ACCOUNT" => Self(KERNEL | 1 << 22),
            b"GFP_KERNEL" => Self(KERNEL),
            b"GFP_NOFS" => Self(RECLAIM | 1 << 6),
            b"GFP_ATOMIC" => Self(1 << 5 | 1 << 11),
            b"GFP_NOIO" => Self(RECLAIM),
            b"GFP_NOWAIT" => Self(1 << 11 | 1 << 13),
            b"GFP_DMA" | b"__GFP_DMA" => Self::DMA,
            b"GFP_DMA32" | b"__GFP_DMA32" => Self::DMA32,
            b"__GFP_RECLAIM" => Self(RECLAIM),
            b"__GFP_HIGHMEM" => Self::HIGHMEM,
            b"__GFP_MOVABLE" => Self::MOVABLE,
            b"__GFP_RECLAIMABLE" => Self::RECLAIMABLE,
            b"__GFP_HIGH" => Self::HIGH,
            b"__GFP_IO" => Self::IO,
            b"__GFP_FS" => Self::FS,
            b"__GFP_ZERO" => Self::ZERO,
            b"__GFP_DIRECT_RECLAIM" => Self::DIRECT_RECLAIM,
            b"__GFP_KSWAPD_RECLAIM" => Self::KSWAPD_RECLAIM,
            b"__GFP_WRITE" => Self::WRITE,
            b"__GFP_NOWARN" => Self::NOWARN,
            b"__GFP_RETRY_MAYFAIL" => Self::RETRY_MAYFAIL,
            b"__GFP_NOFAIL" => Self::NOFAIL,
            b"__GFP_NORETRY" => Self::NORETRY,
            b"__GFP_MEMALLOC" => Self::MEMALLOC,
            b"__GFP_COMP" => Self::COMP,
            b"__GFP_NOMEMALLOC" => Self::NOMEMALLOC,
            b"__GFP_HARDWALL" => Self::HARDWALL,
            b"__GFP_THISNODE" => Self::THISNODE,
            b"__GFP_ACCOUNT" => Self::ACCOUNT,
            b"__GFP_ZEROTAGS" => Self::ZEROTAGS,
            b"__GFP_NO_OBJ_EXT" => Self::NO_OBJ_EXT,
            _ => return None,
        })
    }

    /// The flags that `text` spells. A name that is not known counts as no flag; the rest still holds.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        text.split(|&b| b == b'|').fold(Self(0), |all, name| {
            let number = || super::fields::parse_hex(name.strip_prefix(b"0x")?).map(|n| Self(n as u32));
            all.union(Self::named(name).or_else(number).unwrap_or_default())
        })
    }
}

/// Remembers what each spelling means: a trace has a few dozen, each a hundred thousand times.
#[derive(Debug, Default)]
pub struct GfpNames {
    known: HashMap<Box<[u8]>, TraceGfp>,
    last: (Vec<u8>, TraceGfp),
}

impl GfpNames {
    /// The flags that `text` spells.
    #[inline]
    pub fn get(&mut self, text: &[u8]) -> TraceGfp {
        if self.last.0 == text {
            return self.last.1;
        }
        let gfp = match self.known.get(text) {
            Some(&gfp) => gfp,
            None => {
                let gfp = TraceGfp::parse(text);
                // A trace that is made up may have endless spellings; forget rather than grow.
                if self.known.len() > 4096 {
                    self.known.clear();
                }
                self.known.insert(text.into(), gfp);
                gfp
            }
        };
        self.last.0.clear();
        self.last.0.extend_from_slice(text);
        self.last.1 = gfp;
        gfp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_add_up_to_the_recorded_bits() {
        assert_eq!(TraceGfp::parse(b"none"), TraceGfp(0));
        assert_eq!(TraceGfp::parse(b"GFP_KERNEL").0, 0xcc0);
        assert_eq!(TraceGfp::parse(b"GFP_KERNEL|__GFP_ZERO").0, 0xdc0);
        assert_eq!(TraceGfp::parse(b"GFP_KERNEL|0x1000000"), TraceGfp(0xcc0).union(TraceGfp::NO_OBJ_EXT));
        assert!(TraceGfp::parse(b"GFP_TRANSHUGE").contains(TraceGfp::DIRECT_RECLAIM));
        assert!(!TraceGfp::parse(b"GFP_TRANSHUGE_LIGHT").contains(TraceGfp::DIRECT_RECLAIM));
        assert!(TraceGfp::parse(b"GFP_NOFS|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP|__GFP_NOMEMALLOC").is_slabs());
        assert!(!TraceGfp::parse(b"GFP_TRANSHUGE_LIGHT|__GFP_NORETRY|__GFP_THISNODE").is_slabs());
        let mut names = GfpNames::default();
        assert_eq!(names.get(b"GFP_NOFS"), names.get(b"GFP_NOFS"));
        assert_eq!(names.get(b"GFP_ATOMIC").0, 0x820);
    }
}
