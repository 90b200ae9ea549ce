//! Where a machine's memory lies: physical ranges chosen so that every zone exists, however small the machine.
//!
//! ```text
//! 0      16 MiB                4 GiB
//! │ DMA │ DMA32 │   hole ...   │ Normal 0 │ Movable 0 │ Normal 1 │ Movable 1 │ ...      by node
//! ```
//!
//! The span from the lowest to the highest frame is one range of host addresses (the direct map). Holes in it are address
//! space without memory.

use core::fmt;

use kmem_gfp::{NodeId, PAGE_SIZE, Pfn, PfnRange, ZoneKind};

/// Zones begin and end at multiples of this: the largest block, 4 MiB.
const UNIT: u64 = 4 << 20;
/// The end of the DMA zone.
const DMA_END: u64 = 16 << 20;
/// The end of the DMA32 zone; the top quarter is left to imaginary devices.
const DMA32_END: u64 = 3 << 30;
/// The beginning of normal memory.
const NORMAL_START: u64 = 4 << 30;
/// The most physical address space that a machine can have.
const MAX_RAM: u64 = 1 << 45;

/// The most nodes that a machine can have.
pub const MAX_NODES: u32 = 64;
/// The least memory that a machine can have.
pub const MIN_RAM_BYTES: u64 = UNIT;

/// The most ranges: two zones a node, and two more on node 0.
const MAX_RANGES: usize = 2 * MAX_NODES as usize + 2;

/// How memory is divided among zones. Amounts are rounded to 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneSplit {
    /// Bytes below 16 MiB, at most 16 MiB.
    pub dma_bytes: u64,
    /// Bytes between 16 MiB and 4 GiB, at most 3 GiB less 16 MiB.
    pub dma32_bytes: u64,
    /// Bytes for movable pages only, spread over the nodes.
    pub movable_bytes: u64,
}

impl ZoneSplit {
    /// All memory above 4 GiB and normal: one zone on each node.
    pub const NORMAL_ONLY: Self = Self { dma_bytes: 0, dma32_bytes: 0, movable_bytes: 0 };

    /// A bit of every zone: up to 16 MiB of DMA, a quarter of the memory as DMA32, an eighth movable.
    pub const fn every_zone(ram_bytes: u64) -> Self {
        let dma = if ram_bytes / 8 < DMA_END { ram_bytes / 8 } else { DMA_END };
        let dma32_room = DMA32_END - DMA_END;
        let dma32 = if ram_bytes / 4 < dma32_room { ram_bytes / 4 } else { dma32_room };
        Self { dma_bytes: dma, dma32_bytes: dma32, movable_bytes: ram_bytes / 8 }
    }
}

/// A range of frames in one zone of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The node.
    pub node: NodeId,
    /// The zone.
    pub zone: ZoneKind,
    /// The frames.
    pub frames: PfnRange,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.frames.len() * PAGE_SIZE as u64 / (1 << 20);
        write!(f, "{} {:<8} {} ({mib} MiB)", self.node, self.zone.name(), self.frames)
    }
}

/// Why memory cannot be laid out as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Less than one 4 MiB block for each node, or more than physical addresses reach.
    #[error("{ram_bytes} bytes of memory for {nodes} nodes: from {MIN_RAM_BYTES} bytes a node to {MAX_RAM} in all")]
    RamBytes {
        /// The memory asked for.
        ram_bytes: u64,
        /// The nodes asked for.
        nodes: u32,
    },
    /// No node, or too many.
    #[error("{0} nodes: from 1 to {MAX_NODES}")]
    Nodes(u32),
    /// The zones need more than there is, or more than their address range holds.
    #[error("{split:?} does not fit into {ram_bytes} bytes of memory")]
    Split {
        /// The split asked for.
        split: ZoneSplit,
        /// The memory there is.
        ram_bytes: u64,
    },
}

/// The memory of a machine, lowest range first.
///
/// # Invariants
/// The first `len` ranges are filled, ascending and disjoint.
#[derive(Clone)]
pub struct MemoryPlan {
    ranges: [Range; MAX_RANGES],
    len: usize,
    nodes: u32,
}

impl fmt::Debug for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

const fn rounded(bytes: u64) -> u64 {
    bytes.saturating_add(UNIT / 2) / UNIT * UNIT
}

impl MemoryPlan {
    /// Lays out `ram_bytes` (rounded down to 4 MiB) on `nodes` nodes of equal size. DMA and DMA32 are node 0's.
    ///
    /// ```
    /// use kmem_hosted::{MemoryPlan, ZoneSplit};
    ///
    /// let plan = MemoryPlan::new(512 << 20, 1, ZoneSplit::every_zone(512 << 20))?;
    /// let zones: Vec<_> = plan.ranges().iter().map(|range| range.zone.name()).collect();
    /// assert_eq!(zones, ["DMA", "DMA32", "Normal", "Movable"]);
    /// # Ok::<(), kmem_hosted::PlanError>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError`], which names the value that does not fit.
    pub fn new(ram_bytes: u64, nodes: u32, split: ZoneSplit) -> Result<Self, PlanError> {
        if nodes == 0 || nodes > MAX_NODES {
            return Err(PlanError::Nodes(nodes));
        }
        let total = ram_bytes / UNIT * UNIT;
        let count = u64::from(nodes);
        let share = total / count / UNIT * UNIT;
        if share == 0 || total > MAX_RAM {
            return Err(PlanError::RamBytes { ram_bytes, nodes });
        }
        let misfit = PlanError::Split { split, ram_bytes };
        let (dma, dma32) = (rounded(split.dma_bytes), rounded(split.dma32_bytes));
        let movable = rounded(split.movable_bytes / count);
        if dma > DMA_END || dma32 > DMA32_END - DMA_END {
            return Err(misfit);
        }
        let empty = Range { node: NodeId(0), zone: ZoneKind::Normal, frames: PfnRange::new(Pfn(0), Pfn(0)) };
        let mut plan = Self { ranges: [empty; MAX_RANGES], len: 0, nodes };
        // The first frame stays out: physical address zero is nobody's.
        plan.push(NodeId(0), ZoneKind::Dma, PAGE_SIZE as u64, dma.saturating_sub(PAGE_SIZE as u64));
        plan.push(NodeId(0), ZoneKind::Dma32, DMA_END, dma32);
        let mut next = NORMAL_START;
        for node in 0..nodes {
            let first = node == 0;
            let own = if first { total - share * (count - 1) } else { share };
            let below = if first { dma + dma32 } else { 0 };
            let above = own.checked_sub(below).ok_or(misfit)?;
            let normal = above.checked_sub(movable).ok_or(misfit)?;
            plan.push(NodeId(node), ZoneKind::Normal, next, normal);
            plan.push(NodeId(node), ZoneKind::Movable, next + normal, movable);
            next += above;
        }
        Ok(plan)
    }

    fn push(&mut self, node: NodeId, zone: ZoneKind, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        if let Some(range) = self.ranges.get_mut(self.len) {
            let frames = PfnRange::new(Pfn::containing(start), Pfn::containing(start + len));
            *range = Range { node, zone, frames };
            self.len += 1;
        }
    }

    /// The ranges, lowest first.
    pub fn ranges(&self) -> &[Range] {
        self.ranges.get(..self.len).unwrap_or_default()
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Frames of memory.
    pub fn nr_frames(&self) -> u64 {
        self.ranges().iter().map(|range| range.frames.len()).sum()
    }

    /// From the lowest block to the end of the highest, holes included. Starts at a multiple of 4 MiB.
    pub fn span(&self) -> PfnRange {
        let unit = UNIT / PAGE_SIZE as u64;
        match (self.ranges().first(), self.ranges().last()) {
            (Some(first), Some(last)) => PfnRange::new(Pfn(first.frames.start.0 / unit * unit), last.frames.end),
            _ => PfnRange::new(Pfn(0), Pfn(0)),
        }
    }
}
