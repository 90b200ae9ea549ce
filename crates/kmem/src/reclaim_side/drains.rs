//! What the allocators keep and can give back: slabs without objects, ranges that vmalloc holds.

use kmem_reclaim::{ShrinkControl, ShrinkCount, ShrinkScan, Shrinker};
use kmem_sync::atomic::{AtomicBool, Ordering};

use super::platform::ReclaimPlatform;
use crate::Kmem;

/// The memory of empty slabs and of the sheaves and barns in front of them, in pages.
#[derive(Debug)]
pub(super) struct ObjectDrain<P: ReclaimPlatform> {
    kmem: &'static Kmem<P>,
    /// One at a time: emptying sheaves shuts every CPU out for a moment.
    busy: AtomicBool,
}

impl<P: ReclaimPlatform> ObjectDrain<P> {
    pub(super) fn new(kmem: &'static Kmem<P>) -> Self {
        Self { kmem, busy: AtomicBool::new(false) }
    }
}

/// Pages of a cache that its objects do not need, at most.
fn unused_pages(info: &kmem_slab::SlabInfo) -> u64 {
    let unused = info.num_objs.saturating_sub(info.active_objs) / (info.objs_per_slab as u64).max(1);
    unused.saturating_mul(info.pages_per_slab as u64)
}

impl<P: ReclaimPlatform> Shrinker for ObjectDrain<P> {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        if self.busy.load(Ordering::Relaxed) {
            return ShrinkCount::Skip;
        }
        let mut pages = 0u64;
        self.kmem.slabs.for_each_cache(|cache| {
            pages = pages.saturating_add(unused_pages(&self.kmem.slabs.slab_info(cache)));
        });
        ShrinkCount::Objects(pages)
    }

    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        if self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return ShrinkScan::Stop;
        }
        let slabs = &self.kmem.slabs;
        let before = slabs.stats().slab_pages();
        let freed = || before.saturating_sub(slabs.stats().slab_pages());
        slabs.for_each_cache(|cache| {
            if freed() < nr && unused_pages(&slabs.slab_info(cache)) > 0 {
                slabs.shrink(cache);
            }
        });
        let freed = freed();
        self.busy.store(false, Ordering::Release);
        ShrinkScan::Scanned { freed, scanned: nr.max(freed) }
    }
}

/// The ranges in vmalloc's pools, and areas that wait to be flushed.
#[derive(Debug)]
pub(super) struct RangeDrain<P: ReclaimPlatform> {
    kmem: &'static Kmem<P>,
}

impl<P: ReclaimPlatform> RangeDrain<P> {
    pub(super) fn new(kmem: &'static Kmem<P>) -> Self {
        Self { kmem }
    }
}

impl<P: ReclaimPlatform> Shrinker for RangeDrain<P> {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        let stats = self.kmem.vmalloc.stats();
        ShrinkCount::Objects(stats.pooled.saturating_add(stats.lazy_pages))
    }

    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        let before = self.kmem.vmalloc.stats();
        if before.lazy_pages > 0 {
            self.kmem.vmalloc.purge();
        }
        let emptied = kmem_vmalloc::PoolShrinker::scan_objects(&self.kmem.vmalloc) as u64;
        // Addresses are no memory; what describes them is.
        let freed = before.metadata_pages.saturating_sub(self.kmem.vmalloc.stats().metadata_pages);
        ShrinkScan::Scanned { freed, scanned: emptied.saturating_add(before.lazy_pages).max(nr) }
    }
}
