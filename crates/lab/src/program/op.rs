//! The operations of a replay.

use super::CacheId;
use crate::trace::TraceGfp;

/// Which of a trace's requests are replayed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// kmalloc and object caches only.
    Objects,
    /// Every page that Linux took, those of its slabs too; no objects.
    Pages,
    /// Objects, and every page that is neither a slab's nor a large kmalloc's.
    #[default]
    All,
}

/// One use of a slot: which object, block or area an operation is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ref {
    /// The slot. Objects, blocks of pages and areas have a numbering of their own each.
    pub slot: u32,
    /// Even; two more with every use of the slot.
    pub turn: u32,
    /// Linux served this object from a slab whose creation the trace shows by a `slab_new`.
    pub seen: bool,
}

/// One request, on the CPU on which it was made.
#[derive(Clone, Debug)]
pub struct Op {
    /// The trace's CPU.
    pub cpu: u16,
    /// The request.
    pub kind: OpKind,
}

/// What is asked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are arguments under their usual names")]
pub enum OpKind {
    /// `kmalloc`.
    Kmalloc { object: Ref, size: u64, gfp: TraceGfp, node: i32 },
    /// `kmem_cache_alloc`.
    CacheAlloc { object: Ref, cache: CacheId, gfp: TraceGfp, node: i32 },
    /// `kmem_cache_alloc_bulk`.
    CacheAllocBulk { objects: Box<[Ref]>, cache: CacheId, gfp: TraceGfp },
    /// `kfree`, of whatever it was allocated as.
    Kfree { object: Ref },
    /// `kmem_cache_free`.
    CacheFree { object: Ref, cache: CacheId },
    /// `kmem_cache_free_bulk`.
    CacheFreeBulk { objects: Box<[Ref]>, cache: CacheId },
    /// `kvfree_rcu`.
    KfreeRcu { object: Ref },
    /// `alloc_pages`.
    PageAlloc { block: Ref, order: u8, gfp: TraceGfp, migratetype: u8 },
    /// `alloc_pages_bulk`: single pages.
    PageAllocBulk { blocks: Box<[Ref]>, gfp: TraceGfp, migratetype: u8 },
    /// Frees `1 << order` pages from page `offset` of a block on; `last` if none of the block is left.
    PageFree { block: Ref, offset: u32, order: u8, last: bool },
    /// A range of addresses for vmalloc, of so many pages, its guard page included.
    AreaAlloc { area: Ref, pages: u64, align: u64 },
    /// The range is given back.
    AreaFree { area: Ref },
    /// `vm_unmap_aliases`.
    UnmapAliases,
    /// A moment at which to look at the machine.
    Mark(Box<Mark>),
    /// Withdrawn.
    Void,
}

/// What a mark knows of the trace at its place.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Mark {
    /// Events before it.
    pub event: u64,
    /// Pages of Linux's slabs for all requests.
    pub linux_slab_pages: u64,
    /// Pages that Linux had freed lazily.
    pub linux_lazy_pages: u64,
    /// The name of a phase that begins here, as written into the trace.
    pub phase: Option<String>,
}

impl OpKind {
    /// True for requests that take memory.
    #[must_use]
    pub const fn takes(&self) -> bool {
        matches!(
            self,
            Self::Kmalloc { .. }
                | Self::CacheAlloc { .. }
                | Self::CacheAllocBulk { .. }
                | Self::PageAlloc { .. }
                | Self::PageAllocBulk { .. }
                | Self::AreaAlloc { .. }
        )
    }
}
