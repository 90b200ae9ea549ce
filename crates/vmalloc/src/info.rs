//! Views: `/proc/vmallocinfo` and the counters.

use core::fmt;

use kmem_gfp::{NodeId, PAGE_SIZE, PageAllocator};
use kmem_sync::atomic::Ordering;

use crate::query::bytes;
use crate::vmalloc::{Shared, Vmalloc};
use crate::{PoolShrinker, VmFlags, VmallocEnv};

/// Counters of a window. Each is exact when nothing else runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmallocStats {
    /// Bytes of the window (`VmallocTotal`).
    pub total_bytes: u64,
    /// Bytes of memory that areas own (`VmallocUsed`).
    pub used_bytes: u64,
    /// Bytes of the longest free range (`VmallocChunk`), purges and pools left aside.
    pub largest_free_bytes: u64,
    /// Pages of address space that wait for a purge.
    pub lazy_pages: u64,
    /// Above so many of them a purge starts.
    pub lazy_limit: u64,
    /// Ranges in pools.
    pub pooled: u64,
    /// Areas whose range came out of a pool.
    pub pool_hits: u64,
    /// Purges so far.
    pub purges: u64,
    /// Flushes so far.
    pub flushes: u64,
    /// Blocks of bookkeeping memory: nodes of the tree and descriptors.
    pub metadata_blocks: u64,
    /// Pages of these blocks.
    pub metadata_pages: u64,
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// The counters. Any context but NMI.
    pub fn stats(&self) -> VmallocStats {
        let Some(shared) = self.try_shared() else { return VmallocStats::default() };
        let used: i64 = shared.nodes().map(|node| node.used_pages.load(Ordering::Relaxed)).sum();
        let (longest, metadata_blocks, metadata_pages) = shared
            .tree
            .with(self.env.cpu(), |tree| (tree.map.longest(), tree.metadata_blocks(), tree.metadata_pages()));
        VmallocStats {
            total_bytes: shared.nr_pages * PAGE_SIZE as u64,
            used_bytes: u64::try_from(used).unwrap_or(0) * PAGE_SIZE as u64,
            largest_free_bytes: longest * PAGE_SIZE as u64,
            lazy_pages: shared.lazy_pages.load(Ordering::Relaxed),
            lazy_limit: shared.lazy_limit,
            pooled: self.count_objects() as u64,
            pool_hits: shared.nodes().map(|node| node.pool_hits.load(Ordering::Relaxed)).sum(),
            purges: shared.purges.load(Ordering::Relaxed),
            flushes: shared.flushes.load(Ordering::Relaxed),
            metadata_blocks,
            metadata_pages,
        }
    }

    /// What `/proc/vmallocinfo` shows, as something to print. Sorted by address; areas under construction are left out,
    /// and freed ones that wait for a purge come last.
    #[doc(alias = "/proc/vmallocinfo")]
    pub fn vmallocinfo(&self) -> VmallocInfo<'_, E> {
        VmallocInfo { vmalloc: self }
    }
}

/// Prints the areas of a window; from [`Vmalloc::vmallocinfo`].
#[derive(Debug)]
pub struct VmallocInfo<'v, E: VmallocEnv> {
    vmalloc: &'v Vmalloc<E>,
}

/// The words for flags, in the order in which they are printed.
const WORDS: [(VmFlags, &str); 6] = [
    (VmFlags::IOREMAP, " ioremap"),
    (VmFlags::SPARSE, " sparse"),
    (VmFlags::ALLOC, " vmalloc"),
    (VmFlags::MAP, " vmap"),
    (VmFlags::USERMAP, " user"),
    (VmFlags::DMA_COHERENT, " dma-coherent"),
];

impl<E: VmallocEnv> fmt::Display for VmallocInfo<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(shared) = self.vmalloc.try_shared() else { return Ok(()) };
        let mut result = Ok(());
        self.vmalloc.for_areas(shared, |pinned| {
            if result.is_ok() {
                result = self.line(f, shared, pinned);
            }
        });
        self.vmalloc.for_lazy(shared, |pages| {
            if result.is_ok() {
                result = range(f, shared, pages.start, pages.end).and_then(|()| writeln!(f, " unpurged vm_area"));
            }
        });
        result
    }
}

fn range(f: &mut fmt::Formatter<'_>, shared: &Shared, start: u64, end: u64) -> fmt::Result {
    write!(f, "{:#018x}-{:#018x} {:7}", shared.address(start), shared.address(end), bytes(end - start))
}

impl<E: VmallocEnv> VmallocInfo<'_, E> {
    fn line(&self, f: &mut fmt::Formatter<'_>, shared: &Shared, pinned: &crate::area::Pinned<'_>) -> fmt::Result {
        range(f, shared, pinned.page(), pinned.page() + pinned.pages())?;
        pinned.with(|body| {
            if body.flags.contains(VmFlags::RAM) {
                return writeln!(f, " vm_map_ram");
            }
            write!(f, " {}:{}", body.caller.file(), body.caller.line())?;
            if body.mapped > 0 && !body.flags.contains(VmFlags::IOREMAP) {
                write!(f, " pages={}", body.mapped)?;
            }
            if body.flags.contains(VmFlags::IOREMAP) && body.phys != 0 {
                write!(f, " phys={:#018x}", body.phys)?;
            }
            for (flag, word) in WORDS {
                if body.flags.contains(flag) {
                    f.write_str(word)?;
                }
            }
            if body.flags.contains(VmFlags::ALLOC) {
                let pages = self.vmalloc.env.pages();
                for node in 0..pages.nr_nodes() {
                    let mut count = 0;
                    let counted = body.runs.for_groups_from_end(|runs, _| {
                        let here = runs.iter().filter(|run| pages.node_of(run.first()) == NodeId(node));
                        count += here.map(|run| run.nr_pages()).sum::<u64>();
                        Ok::<(), fmt::Error>(())
                    });
                    counted?;
                    if count > 0 {
                        write!(f, " N{node}={count}")?;
                    }
                }
            }
            writeln!(f)
        })
    }
}
