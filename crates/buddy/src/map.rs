//! The memory map: which frames exist, on which node, in which zone, and which of them are taken already.
//!
//! ```text
//! regions    [ node 0        ]     [ node 0 | node 1          ]      any number, any order, holes between
//! reserved      ##                        ###                        firmware, the kernel's image, this metadata
//! limits     DMA | DMA32 ------------------| Normal ------------     zone by address, or given for each region
//! ```
//!
//! A pageblock (512 frames) belongs to one zone and node: to those of its last frame. A limit inside a pageblock is
//! thereby rounded down, so that no zone holds a frame that its limit excludes.

use kmem_gfp::select::OptionalZones;
use kmem_gfp::{NodeId, Pfn, PfnRange, ZoneKind};

use crate::line::{FRAMES_SHIFT, WORDS};

/// Contiguous memory on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its frames.
    pub range: PfnRange,
    /// Its node.
    pub node: NodeId,
    /// Its zone; `None`: by address, from the map's [`ZoneLimits`].
    pub zone: Option<ZoneKind>,
}

impl Region {
    /// Memory on node 0 whose zone follows from its address.
    pub const fn new(range: PfnRange) -> Self {
        Self { range, node: NodeId(0), zone: None }
    }

    /// The same memory on another node.
    pub const fn on_node(mut self, node: NodeId) -> Self {
        self.node = node;
        self
    }

    /// The same memory in a given zone, whatever its address.
    pub const fn in_zone(mut self, zone: ZoneKind) -> Self {
        self.zone = Some(zone);
        self
    }
}

/// Where zones end. A limit that is `None` means that the machine has no such zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneLimits {
    /// The first frame above the DMA zone.
    pub dma_end: Option<Pfn>,
    /// The first frame above the DMA32 zone.
    pub dma32_end: Option<Pfn>,
    /// The first frame of the HIGHMEM zone.
    pub highmem_start: Option<Pfn>,
    /// The first frame of the MOVABLE zone.
    pub movable_start: Option<Pfn>,
}

impl ZoneLimits {
    /// No address limits: everything is Normal.
    pub const NONE: Self = Self { dma_end: None, dma32_end: None, highmem_start: None, movable_start: None };
    /// DMA below 16 MiB, DMA32 below 4 GiB, Normal above.
    pub const X86_64: Self =
        Self { dma_end: Some(Pfn(0x1000)), dma32_end: Some(Pfn(0x10_0000)), highmem_start: None, movable_start: None };

    /// The first limit above a frame.
    fn next_after(&self, pfn: Pfn) -> u64 {
        [self.dma_end, self.dma32_end, self.highmem_start, self.movable_start]
            .into_iter()
            .flatten()
            .map(|limit| limit.0)
            .filter(|&limit| limit > pfn.0)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// The zone of a frame.
    pub const fn zone_of(&self, pfn: Pfn) -> ZoneKind {
        match (self.movable_start, self.dma_end, self.dma32_end, self.highmem_start) {
            (Some(start), ..) if pfn.0 >= start.0 => ZoneKind::Movable,
            (_, Some(end), ..) if pfn.0 < end.0 => ZoneKind::Dma,
            (_, _, Some(end), _) if pfn.0 < end.0 => ZoneKind::Dma32,
            (_, _, _, Some(start)) if pfn.0 >= start.0 => ZoneKind::HighMem,
            _ => ZoneKind::Normal,
        }
    }
}

/// The memory of a machine, or of a region added later.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryMap<'a> {
    /// What exists, in any order, without overlap.
    pub regions: &'a [Region],
    /// What exists but is not handed out, in any order; overlaps and parts outside of the regions do no harm.
    pub reserved: &'a [PfnRange],
    /// Zones by address.
    pub limits: ZoneLimits,
    /// How many nodes there are or ever will be; 0: as many as the regions name.
    pub nr_nodes: u32,
    /// Zones without memory that may be given some by [`add_region`](crate::Buddy::add_region).
    pub hotplug: &'a [(NodeId, ZoneKind)],
}

/// Why a memory map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// There is no memory in it.
    #[error("the memory map holds no memory")]
    Empty,
    /// Two regions share frames, or a region is known already.
    #[error("{0} is in the memory map twice")]
    Overlap(PfnRange),
    /// A region lies on a node beyond the number given.
    #[error("{node} is beyond the {nr_nodes} nodes of the memory map")]
    NoSuchNode {
        /// The node named.
        node: NodeId,
        /// How many there are.
        nr_nodes: u32,
    },
    /// Memory was added to a zone that had none and was not declared as growing.
    #[error("zone {zone} of {node} was not declared for memory to be added")]
    NoSuchZone {
        /// The node.
        node: NodeId,
        /// The zone.
        zone: ZoneKind,
    },
    /// The bookkeeping would not fit the address space.
    #[error("the memory map needs more bookkeeping than fits the address space")]
    TooLarge,
    /// The memory for bookkeeping is smaller or less aligned than asked for.
    #[error("the bookkeeping needs {size_bytes} bytes aligned to {align}")]
    NotEnoughMetadata {
        /// Bytes needed.
        size_bytes: usize,
        /// Alignment needed.
        align: usize,
    },
    /// The allocator has been initialised already.
    #[error("the allocator has been initialised already")]
    AlreadyInitialised,
    /// The allocator has not been initialised yet.
    #[error("the allocator has not been initialised")]
    NotInitialised,
}

/// One pageblock of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockOf {
    /// Its number: the first frame divided by 512.
    pub(crate) number: u64,
    /// Its node.
    pub(crate) node: NodeId,
    /// Its zone.
    pub(crate) kind: ZoneKind,
    /// Frames that exist, a bit each.
    pub(crate) present: [u64; WORDS],
    /// Frames that exist and are not reserved.
    pub(crate) managed: [u64; WORDS],
}

/// Pageblocks that are alike: either one, or any number of whole ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The first of them.
    pub(crate) block: BlockOf,
    /// How many.
    pub(crate) len: u64,
}

impl Run {
    /// Frames that exist.
    pub(crate) fn present(&self) -> u64 {
        count(&self.block.present) * self.len
    }

    /// Frames that exist and are not reserved.
    pub(crate) fn managed(&self) -> u64 {
        count(&self.block.managed) * self.len
    }
}

/// See [`MemoryMap::runs`].
#[derive(Clone, Debug)]
pub(crate) struct Runs<'a> {
    map: &'a MemoryMap<'a>,
    next: u64,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        // The lowest pageblock at or above `next` with memory in it.
        let number = self
            .map
            .regions
            .iter()
            .filter(|region| !region.range.is_empty() && (region.range.end.0 - 1) >> FRAMES_SHIFT >= self.next)
            .map(|region| (region.range.start.0 >> FRAMES_SHIFT).max(self.next))
            .min()?;
        let block = self.map.block(number);
        let mut len = 1;
        if block.managed == [u64::MAX; WORDS] {
            let start = Pfn(number << FRAMES_SHIFT);
            let mut end = u64::MAX;
            for region in self.map.regions {
                if region.range.contains(start) {
                    end = end.min(region.range.end.0);
                    if region.zone.is_none() {
                        end = end.min(self.map.limits.next_after(start));
                    }
                }
            }
            for reserved in self.map.reserved {
                if !reserved.is_empty() && reserved.end > start {
                    end = end.min(reserved.start.0);
                }
            }
            // A pageblock that straddles `end` is looked at by itself.
            len = (end >> FRAMES_SHIFT).saturating_sub(number).max(1);
        }
        self.next = number + len;
        Some(Run { block, len })
    }
}

/// How many bits are set in a line's words.
pub(crate) fn count(words: &[u64; WORDS]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

impl MemoryMap<'_> {
    /// Checks what the rest relies on.
    pub(crate) fn check(&self) -> Result<(), MapError> {
        if self.regions.iter().all(|region| region.range.is_empty()) {
            return Err(MapError::Empty);
        }
        for (i, region) in self.regions.iter().enumerate() {
            if region.range.end.0 > u64::MAX >> (FRAMES_SHIFT + 1) {
                return Err(MapError::TooLarge);
            }
            if region.node.0 >= self.nodes() {
                return Err(MapError::NoSuchNode { node: region.node, nr_nodes: self.nodes() });
            }
            for other in self.regions.iter().skip(i + 1) {
                let common = region.range.intersection(&other.range);
                if !common.is_empty() {
                    return Err(MapError::Overlap(common));
                }
            }
        }
        for &(node, _) in self.hotplug {
            if node.0 >= self.nodes() {
                return Err(MapError::NoSuchNode { node, nr_nodes: self.nodes() });
            }
        }
        Ok(())
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> u32 {
        if self.nr_nodes > 0 {
            return self.nr_nodes;
        }
        self.regions.iter().filter(|r| !r.range.is_empty()).map(|r| r.node.0.saturating_add(1)).max().unwrap_or(1)
    }

    /// Which zones the machine has besides Normal and Movable.
    pub(crate) fn optional_zones(&self) -> OptionalZones {
        let mut zones = OptionalZones::empty();
        let named = |kind| {
            self.regions.iter().any(|region| region.zone == Some(kind)) || self.hotplug.iter().any(|&(_, k)| k == kind)
        };
        zones.set(OptionalZones::DMA, self.limits.dma_end.is_some() || named(ZoneKind::Dma));
        zones.set(OptionalZones::DMA32, self.limits.dma32_end.is_some() || named(ZoneKind::Dma32));
        zones.set(OptionalZones::HIGHMEM, self.limits.highmem_start.is_some() || named(ZoneKind::HighMem));
        zones
    }

    /// The zone of a frame of `region`.
    fn kind_of(&self, region: &Region, pfn: Pfn) -> ZoneKind {
        region.zone.unwrap_or_else(|| self.limits.zone_of(pfn))
    }

    /// The pageblocks that hold memory, upwards, in runs of equal ones. O(runs x (regions + reserved ranges)).
    pub(crate) fn runs(&self) -> Runs<'_> {
        Runs { map: self, next: 0 }
    }

    /// The pageblock with this number.
    fn block(&self, number: u64) -> BlockOf {
        let frames = PfnRange::new(Pfn(number << FRAMES_SHIFT), Pfn((number + 1) << FRAMES_SHIFT));
        let mut block =
            BlockOf { number, node: NodeId(0), kind: ZoneKind::Normal, present: [0; WORDS], managed: [0; WORDS] };
        let mut last = None;
        for region in self.regions {
            let part = region.range.intersection(&frames);
            if part.is_empty() {
                continue;
            }
            mark(&mut block.present, &frames, &part, true);
            if last.is_none_or(|last| part.end > last) {
                last = Some(part.end);
                block.node = region.node;
                block.kind = self.kind_of(region, Pfn(part.end.0 - 1));
            }
        }
        block.managed = block.present;
        for reserved in self.reserved {
            let part = reserved.intersection(&frames);
            if !part.is_empty() {
                mark(&mut block.managed, &frames, &part, false);
            }
        }
        block
    }
}

fn mark(words: &mut [u64; WORDS], frames: &PfnRange, part: &PfnRange, value: bool) {
    let start = part.start.0 - frames.start.0;
    let end = part.end.0 - frames.start.0;
    for (i, word) in words.iter_mut().enumerate() {
        let first = i as u64 * 64;
        let from = start.clamp(first, first + 64) - first;
        let to = end.clamp(first, first + 64) - first;
        let mask = crate::bits::low(to as u32) & !crate::bits::low(from as u32);
        if value {
            *word |= mask;
        } else {
            *word &= !mask;
        }
    }
}
