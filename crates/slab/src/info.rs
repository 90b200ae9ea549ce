//! Views: one row of `slabinfo`, the whole file, and every number of one cache.

use core::fmt;

use kmem_gfp::NodeId;
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::cache::CacheName;
use crate::{KmemCache, SlabEnv, SlabFlags, Slabs};

/// The first two lines of `/proc/slabinfo`.
pub const SLABINFO_HEADER: &str = "slabinfo - version: 2.1\n\
    # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : \
    tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n";

/// One row of `/proc/slabinfo`; [`Display`](fmt::Display) prints it in the kernel's layout, without the newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabInfo {
    /// The cache.
    pub name: CacheName,
    /// Objects that are not free in a slab; those that sheaves hold count as active.
    pub active_objs: u64,
    /// Slots of all slabs.
    pub num_objs: u64,
    /// Bytes from one object to the next.
    pub stride: usize,
    /// Objects in a slab of the preferred order.
    pub objs_per_slab: usize,
    /// Pages in a slab of the preferred order.
    pub pages_per_slab: usize,
    /// Slabs.
    pub num_slabs: u64,
}

impl fmt::Display for SlabInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, active_objs, num_objs, stride, objs_per_slab, pages_per_slab, num_slabs } = self;
        write!(
            f,
            "{name:<17} {active_objs:>6} {num_objs:>6} {stride:>6} {objs_per_slab:>4} {pages_per_slab:>4} : \
             tunables {:>4} {:>4} {:>4} : slabdata {num_slabs:>6} {num_slabs:>6} {:>6}",
            0, 0, 0, 0
        )
    }
}

/// Every number of one cache, as the files under `/sys/kernel/slab/<cache>` show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache.
    pub name: CacheName,
    /// Bytes that users may touch.
    pub object_size: usize,
    /// Bytes from one object to the next (`slab_size`).
    pub stride: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Objects in a slab of the preferred order.
    pub objs_per_slab: usize,
    /// The preferred order.
    pub order: u32,
    /// Objects in a sheaf.
    pub sheaf_capacity: usize,
    /// Partial slabs that a node keeps before it gives an empty one back.
    pub min_partial: u32,
    /// Users beyond the first.
    pub aliases: u32,
    /// Whether there is a constructor.
    pub has_ctor: bool,
    /// Length of the usercopy window in bytes.
    pub usersize: usize,
    /// Properties and debug options.
    pub flags: SlabFlags,
    /// Whether the fault injector's filter passes it.
    pub failslab: bool,
    /// Chance in percent of looking at other nodes' partial slabs before making a new one.
    pub remote_node_defrag_ratio: u32,
    /// Slabs.
    pub slabs: u64,
    /// Pages of all slabs.
    pub pages: u64,
    /// Slots of all slabs.
    pub total_objects: u64,
    /// Slots not free in their slab: in use, or held by sheaves.
    pub objects: u64,
    /// Slabs on partial lists.
    pub partial: u64,
    /// Slots of those that are not free.
    pub objects_partial: u64,
    /// Full sheaves in barns.
    pub barn_full: u32,
    /// Empty sheaves in barns.
    pub barn_empty: u32,
}

/// A cache's share on one node: what stands behind `N0=` in its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Slabs.
    pub slabs: u64,
    /// Pages of all slabs.
    pub pages: u64,
    /// Slots of all slabs.
    pub total_objects: u64,
    /// Slots not free in their slab: in use, or held by sheaves.
    pub objects: u64,
    /// Slabs on the partial list.
    pub partial: u64,
    /// Slots of those that are not free.
    pub objects_partial: u64,
    /// Full sheaves in the barn.
    pub barn_full: u32,
    /// Empty sheaves in the barn.
    pub barn_empty: u32,
}

impl<E: SlabEnv> Slabs<E> {
    /// The row of one cache. Takes the list locks; long partial lists are sampled.
    pub fn slab_info(&self, cache: &KmemCache) -> SlabInfo {
        let mut num_objs = 0;
        let mut free = 0;
        let mut num_slabs = 0;
        for node in cache.nodes() {
            num_objs += node.nr_objects.load(Ordering::Relaxed);
            num_slabs += node.nr_slabs.load(Ordering::Relaxed);
            free += self.count_free(node, Locking::Wait).unwrap_or(0);
        }
        SlabInfo {
            name: cache.name,
            active_objs: num_objs.saturating_sub(free),
            num_objs,
            stride: cache.stride(),
            objs_per_slab: cache.objects_per_slab(),
            pages_per_slab: cache.order().nr_pages(),
            num_slabs,
        }
    }

    /// Writes `/proc/slabinfo`, byte for byte in the kernel's layout, newest cache first.
    ///
    /// # Errors
    /// Those of `out`.
    #[doc(alias = "/proc/slabinfo")]
    pub fn slabinfo(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(SLABINFO_HEADER)?;
        let mut result = Ok(());
        self.for_each_cache(|cache| {
            if result.is_ok() {
                result = writeln!(out, "{}", self.slab_info(cache));
            }
        });
        result
    }

    /// Every number of one cache. Takes the list locks.
    pub fn cache_stats(&self, cache: &KmemCache) -> CacheStats {
        let info = self.slab_info(cache);
        let mut stats = CacheStats {
            name: cache.name,
            object_size: cache.object_size(),
            stride: cache.stride(),
            align: cache.align(),
            objs_per_slab: cache.objects_per_slab(),
            order: cache.order().get(),
            sheaf_capacity: cache.sheaf_capacity(),
            min_partial: cache.min_partial(),
            aliases: cache.refs.load(Ordering::Relaxed).saturating_sub(1),
            has_ctor: cache.ctor.is_some(),
            usersize: cache.usersize,
            flags: cache.flags,
            failslab: cache.failslab.load(Ordering::Relaxed) != 0,
            remote_node_defrag_ratio: cache.defrag_ratio.load(Ordering::Relaxed) / 10,
            slabs: info.num_slabs,
            pages: 0,
            total_objects: info.num_objs,
            objects: info.active_objs,
            partial: 0,
            objects_partial: 0,
            barn_full: 0,
            barn_empty: 0,
        };
        for node in 0..cache.nodes().count() {
            let Some(part) = self.node_stats(cache, NodeId(node as u32)) else { continue };
            stats.pages += part.pages;
            stats.barn_full += part.barn_full;
            stats.barn_empty += part.barn_empty;
            stats.partial += part.partial;
            stats.objects_partial += part.objects_partial;
        }
        stats
    }

    /// A cache's share on one node; `None` if the cache knows no such node. Takes the node's list lock.
    pub fn node_stats(&self, cache: &KmemCache, node: NodeId) -> Option<NodeStats> {
        let node = cache.node(node.index())?;
        let mut stats = NodeStats {
            slabs: node.nr_slabs.load(Ordering::Relaxed),
            pages: node.nr_pages.load(Ordering::Relaxed),
            total_objects: node.nr_objects.load(Ordering::Relaxed),
            barn_full: node.barn.nr_full(),
            barn_empty: node.barn.nr_empty(),
            ..NodeStats::default()
        };
        let mut free = 0;
        node.with(self.env.cpu(), Locking::Wait, |slabs| {
            for slab in slabs.partial.iter(self.env.frames()) {
                stats.partial += 1;
                stats.objects_partial += slab.state().inuse() as u64;
                free += slab.state().free() as u64;
            }
        });
        stats.objects = stats.total_objects.saturating_sub(free);
        Some(stats)
    }

    /// Sets the chance, in percent, of looking at other nodes' partial slabs before making a new one. `false` (nothing
    /// done) above 100.
    pub fn set_remote_node_defrag_ratio(&self, cache: &KmemCache, percent: u32) -> bool {
        if percent > 100 {
            return false;
        }
        cache.defrag_ratio.store(percent * 10, Ordering::Relaxed);
        true
    }
}

/// A cache's unique id among shared ones, as the link in `/sys/kernel/slab` is called: `:flags-size`.
#[derive(Clone, Copy, Debug)]
pub struct SharedId<'c>(pub &'c KmemCache);

impl fmt::Display for SharedId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(":")?;
        let letters = [
            (SlabFlags::CACHE_DMA, 'd'),
            (SlabFlags::CACHE_DMA32, 'D'),
            (SlabFlags::RECLAIM_ACCOUNT, 'a'),
            (SlabFlags::CONSISTENCY_CHECKS, 'F'),
            (SlabFlags::ACCOUNT, 'A'),
        ];
        let mut any = false;
        for (flag, letter) in letters {
            if self.0.flags().contains(flag) {
                write!(f, "{letter}")?;
                any = true;
            }
        }
        if any {
            f.write_str("-")?;
        }
        write!(f, "{:07}", self.0.stride())
    }
}
