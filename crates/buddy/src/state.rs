//! What an initialised allocator knows: zones, nodes, arenas, tunables.
//!
//! ```text
//! State ─▶ zones[node x kind]      ─▶ segments ─▶ arenas
//!       ─▶ zonelists[node][rank]      every zone, nearest node first, highest kind first within a node
//!       ─▶ blocks[cpu]                page sets
//! ```
//!
//! Built once by value in the caller's memory, never moved, never freed. What may change is atomic; the configuration
//! lock serialises those who recompute it.

use core::ptr::NonNull;

use kmem_gfp::select::ZoneTable;
use kmem_gfp::{NodeId, Pfn, ZoneKind};
use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::arena::Arena;
use crate::block::Block;
use crate::compact::Captures;
use crate::cpu::CpuBlock;
use crate::pcp::ZoneSet;
use crate::stats::Event;
use crate::table::Table;
use crate::zone::Zone;

/// What the system administrator can turn.
#[derive(Debug)]
pub(crate) struct Tunables {
    pub(crate) min_free_kbytes: AtomicU64,
    /// Whether somebody set the former by hand, and to what.
    pub(crate) user_min_free_kbytes: AtomicI64,
    pub(crate) watermark_scale_factor: AtomicU32,
    pub(crate) watermark_boost_factor: AtomicU32,
    pub(crate) percpu_pagelist_high_fraction: AtomicU32,
    pub(crate) lowmem_reserve_ratio: [AtomicU32; ZoneKind::COUNT],
    pub(crate) extfrag_threshold: AtomicU32,
    pub(crate) compaction_proactiveness: AtomicU32,
}

impl Tunables {
    pub(crate) fn new() -> Self {
        Self {
            min_free_kbytes: AtomicU64::new(0),
            user_min_free_kbytes: AtomicI64::new(-1),
            watermark_scale_factor: AtomicU32::new(10),
            watermark_boost_factor: AtomicU32::new(15000),
            percpu_pagelist_high_fraction: AtomicU32::new(0),
            lowmem_reserve_ratio: [256, 256, 32, 0, 0].map(AtomicU32::new),
            extfrag_threshold: AtomicU32::new(500),
            compaction_proactiveness: AtomicU32::new(20),
        }
    }
}

/// Where a CPU's block lies.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct CpuPointer(pub(crate) NonNull<CpuBlock>);

// SAFETY: gives out shared references to a `Sync` type.
unsafe impl Sync for CpuPointer {}
// SAFETY: as above.
unsafe impl Send for CpuPointer {}

/// Everything behind a [`Buddy`](crate::Buddy).
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) zones: Table<Zone>,
    /// The kinds that exist here, lowest first; the rest is padding.
    pub(crate) kinds: [ZoneKind; ZoneKind::COUNT],
    pub(crate) nr_kinds: usize,
    pub(crate) nr_nodes: u32,
    pub(crate) zone_table: ZoneTable,
    /// For each node all zones' numbers in the order in which they are tried.
    pub(crate) zonelists: Table<AtomicU32>,
    /// Each CPU's block.
    pub(crate) blocks: Table<CpuPointer>,
    pub(crate) arenas: AtomicPtr<Arena>,
    pub(crate) tunables: Tunables,
    /// Pages are grouped by mobility.
    pub(crate) grouping: AtomicBool,
    /// A fault injector is armed that the fast paths do not ask.
    pub(crate) injecting: AtomicBool,
    /// One drain of all sets at a time.
    pub(crate) draining: AtomicBool,
    /// Flags that pass at all (`gfp_allowed_mask`).
    pub(crate) allowed_mask: AtomicU32,
    /// When the last failure and stall were reported, in milliseconds plus one.
    pub(crate) last_failure_report: AtomicU64,
    pub(crate) last_stall_report: AtomicU64,
    /// Requests that wait for the block that compaction makes for them.
    pub(crate) captures: Captures,
    pub(crate) events: [AtomicU64; Event::COUNT],
    /// Serialises whoever recomputes marks, reserves and sizes, or adds memory.
    pub(crate) config: IrqLock<()>,
    pub(crate) metadata_bytes: AtomicU64,
    /// Counts changes of zones and marks: whoever saw an older one starts over rather than fail.
    pub(crate) generation: AtomicU64,
    /// Warnings that have been given (each is given once).
    pub(crate) warned: AtomicU32,
}

impl State {
    /// The number of a zone.
    pub(crate) fn zone_number(&self, node: NodeId, kind: ZoneKind) -> Option<usize> {
        let rank = self.kinds.iter().take(self.nr_kinds).position(|&k| k == kind)?;
        (node.0 < self.nr_nodes).then_some(node.index() * self.nr_kinds + rank)
    }

    /// A zone.
    pub(crate) fn zone(&self, node: NodeId, kind: ZoneKind) -> Option<&Zone> {
        self.zones.get(self.zone_number(node, kind)?)
    }

    /// The zones of one node, lowest kind first.
    pub(crate) fn zones_of(&self, node: NodeId) -> &[Zone] {
        let first = node.index() * self.nr_kinds;
        self.zones.get(first..first + self.nr_kinds).unwrap_or(&[])
    }

    /// Zones that have memory, by node, lowest kind first.
    pub(crate) fn populated(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter().filter(|zone| zone.is_populated())
    }

    /// All zones in the order in which `node` tries them.
    #[inline]
    pub(crate) fn zonelist(&self, node: NodeId) -> impl Iterator<Item = &Zone> {
        let len = self.zones.len();
        let start = node.index() * len;
        self.zonelists
            .get(start..start + len)
            .unwrap_or(&[])
            .iter()
            .filter_map(|number| self.zones.get(number.load(Ordering::Relaxed) as usize))
    }

    /// All arenas.
    pub(crate) fn arenas(&self) -> impl Iterator<Item = &Arena> {
        let mut next = self.arenas.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: arenas are published whole and live as long as the allocator.
            let arena = unsafe { next.as_ref() }?;
            next = arena.next.load(Ordering::Acquire);
            Some(arena)
        })
    }

    /// The pageblock that holds a frame.
    #[inline]
    pub(crate) fn block_of(&self, pfn: Pfn) -> Option<Block<'_>> {
        self.arenas().find_map(|arena| arena.block_of(pfn))
    }

    /// Every CPU's block.
    pub(crate) fn cpus(&self) -> impl Iterator<Item = &CpuBlock> {
        // SAFETY: written when the allocator was initialised, in memory that outlives it.
        self.blocks.iter().map(|pointer| unsafe { pointer.0.as_ref() })
    }

    /// How many CPUs there are.
    pub(crate) fn nr_cpus(&self) -> usize {
        self.blocks.len()
    }

    /// Every CPU's set of a zone.
    pub(crate) fn sets_of(&self, zone: &Zone) -> impl Iterator<Item = &ZoneSet> {
        let set = zone.set;
        self.cpus().filter_map(move |block| block.set(set?))
    }

    /// Counts an event.
    pub(crate) fn count(&self, event: Event) {
        self.count_n(event, 1);
    }

    /// Counts an event `n` times.
    pub(crate) fn count_n(&self, event: Event, n: u64) {
        if let Some(counter) = self.events.get(event as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }
}
