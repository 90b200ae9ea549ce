//! The machine's state in the kernel's own text formats.

use core::fmt;

use kmem_buddy::views::{BuddyInfo, Extra, PageTypeInfo, VmStat, ZoneInfo};
use kmem_gfp::{NodeId, PAGE_SHIFT};

use crate::{Kmem, Platform};

/// # Views
///
/// Each prints what the file of that name under `/proc` would, byte for byte in layout, of a moment that may be
/// blurred on a busy machine.
impl<P: Platform> Kmem<P> {
    /// `/proc/buddyinfo`: free blocks by order.
    #[doc(alias = "/proc/buddyinfo")]
    pub fn buddyinfo(&self) -> BuddyInfo<'_> {
        self.pages.buddyinfo()
    }

    /// `/proc/pagetypeinfo`: free blocks by order and migratetype, pageblocks by migratetype.
    #[doc(alias = "/proc/pagetypeinfo")]
    pub fn pagetypeinfo(&self) -> PageTypeInfo<'_> {
        self.pages.pagetypeinfo()
    }

    /// `/proc/zoneinfo`: every zone in detail. Pages of slabs and of vmalloc are shown on node 0, for the whole machine.
    #[doc(alias = "/proc/zoneinfo")]
    pub fn zoneinfo(&self) -> ZoneInfo<'_> {
        self.pages.zoneinfo(self)
    }

    /// `/proc/vmstat`: every counter.
    #[doc(alias = "/proc/vmstat")]
    pub fn vmstat(&self) -> VmStat<'_> {
        self.pages.vmstat(self)
    }

    /// `/proc/slabinfo`, version 2.1: every cache.
    #[doc(alias = "/proc/slabinfo")]
    pub fn slabinfo(&self) -> SlabInfo<'_, P> {
        SlabInfo(self)
    }

    /// Pages that hold objects: those of slabs, and large kmalloc blocks.
    pub fn slab_pages(&self) -> u64 {
        self.slabs.stats().slab_pages().saturating_add(self.kmalloc.large_pages() as u64)
    }
}

impl<P: Platform> Extra for Kmem<P> {
    fn node_counter(&self, node: NodeId, name: &str) -> u64 {
        if let Some(count) = self.platform.reclaim_counter(node, name) {
            return count;
        }
        match name {
            _ if node != NodeId(0) => 0,
            "nr_slab_reclaimable" => self.slabs.stats().reclaimable_pages,
            "nr_slab_unreclaimable" => {
                self.slabs.stats().unreclaimable_pages.saturating_add(self.kmalloc.large_pages() as u64)
            }
            "nr_vmalloc" => self.vmalloc.stats().used_bytes >> PAGE_SHIFT,
            _ => 0,
        }
    }

    fn event(&self, name: &str) -> Option<u64> {
        self.platform.reclaim_event(name)
    }
}

/// A machine's `/proc/slabinfo`. See [`Kmem::slabinfo`].
pub struct SlabInfo<'k, P: Platform>(&'k Kmem<P>);

impl<P: Platform> fmt::Debug for SlabInfo<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabInfo").finish_non_exhaustive()
    }
}

impl<P: Platform> fmt::Display for SlabInfo<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.slabs.slabinfo(f)
    }
}
