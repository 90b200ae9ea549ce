//! What reclaim shows: counters for `vmstat` and `zoneinfo`, `meminfo`, `memory.stat`.

use core::fmt;

use kmem_gfp::{NodeId, PAGE_SHIFT};
use kmem_reclaim::{GroupId, ListCounts, PageLists, ReclaimEvent, Zones};

use super::groups::plus;
use super::mm::Mm;
use super::platform::ReclaimPlatform;

/// `/proc/meminfo` of a moment, in pages. Prints in the kernel's format, the lines that this machine knows about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemInfo {
    /// Pages that the page allocator manages.
    pub total: u64,
    /// Free pages.
    pub free: u64,
    /// An estimate of what could be had without swapping: free pages above the reserves, half of the page cache, half of the
    /// reclaimable objects.
    pub available: u64,
    /// What lies on the page lists.
    pub lists: ListCounts,
    /// All swap.
    pub swap_total: u64,
    /// Free swap.
    pub swap_free: u64,
    /// Slabs that shrinkers can empty.
    pub slab_reclaimable: u64,
    /// Other slabs, and large kmalloc blocks.
    pub slab_unreclaimable: u64,
    /// The vmalloc window.
    pub vmalloc_total: u64,
    /// Memory of areas.
    pub vmalloc_used: u64,
}

impl MemInfo {
    /// The figures of this moment.
    pub fn of<P: ReclaimPlatform>(mm: &Mm<P>) -> Self {
        let (kmem, platform) = (mm.side.kmem, mm.side.platform());
        let lists = (0..mm.side.nr_nodes())
            .map(NodeId)
            .fold(ListCounts::default(), |sum, node| plus(sum, mm.lists.counts(node, None)));
        let slabs = kmem.slabs.stats();
        let vmalloc = kmem.vmalloc.stats();
        let free = kmem.pages.free_page_count();
        let reserve = kmem.pages.total_reserve_pages();
        let cache = lists.inactive_file.saturating_add(lists.active_file);
        let low = reserve / 2;
        let keep = |pages: u64| pages.saturating_sub((pages / 2).min(low));
        Self {
            total: kmem.pages.managed_pages(),
            free,
            available: free
                .saturating_sub(reserve)
                .saturating_add(keep(cache))
                .saturating_add(keep(slabs.reclaimable_pages)),
            lists,
            swap_total: platform.swap_total_pages(),
            swap_free: platform.swap_free_pages(),
            slab_reclaimable: slabs.reclaimable_pages,
            slab_unreclaimable: slabs.unreclaimable_pages.saturating_add(kmem.kmalloc.large_pages() as u64),
            vmalloc_total: vmalloc.total_bytes >> PAGE_SHIFT,
            vmalloc_used: vmalloc.used_bytes >> PAGE_SHIFT,
        }
    }

    /// Names and pages, in the kernel's order.
    fn rows(&self) -> [(&'static str, u64); 20] {
        let lists = &self.lists;
        let anon = lists.inactive_anon.saturating_add(lists.active_anon).saturating_add(lists.isolated_anon);
        let file = lists.inactive_file.saturating_add(lists.active_file).saturating_add(lists.isolated_file);
        [
            ("MemTotal", self.total),
            ("MemFree", self.free),
            ("MemAvailable", self.available),
            ("Cached", file),
            ("Active", lists.active_anon.saturating_add(lists.active_file)),
            ("Inactive", lists.inactive_anon.saturating_add(lists.inactive_file)),
            ("Active(anon)", lists.active_anon),
            ("Inactive(anon)", lists.inactive_anon),
            ("Active(file)", lists.active_file),
            ("Inactive(file)", lists.inactive_file),
            ("Unevictable", lists.unevictable),
            ("SwapTotal", self.swap_total),
            ("SwapFree", self.swap_free),
            ("AnonPages", anon),
            ("KReclaimable", self.slab_reclaimable),
            ("Slab", self.slab_reclaimable.saturating_add(self.slab_unreclaimable)),
            ("SReclaimable", self.slab_reclaimable),
            ("SUnreclaim", self.slab_unreclaimable),
            ("VmallocTotal", self.vmalloc_total),
            ("VmallocUsed", self.vmalloc_used),
        ]
    }

    /// Hands each line to `line`; for reports.
    pub(super) fn lines(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        for (name, pages) in self.rows() {
            line(format_args!("{name}: {} kB", pages << (PAGE_SHIFT - 10)));
        }
    }
}

impl fmt::Display for MemInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, pages) in self.rows() {
            let width = 24usize.saturating_sub(name.len() + 1);
            writeln!(f, "{name}:{:>width$} kB", pages << (PAGE_SHIFT - 10), width = width)?;
        }
        Ok(())
    }
}

impl<P: ReclaimPlatform> Mm<P> {
    /// `/proc/meminfo`.
    #[doc(alias = "/proc/meminfo")]
    pub fn meminfo(&self) -> MemInfo {
        MemInfo::of(self)
    }

    /// Writes `memory.stat` of a group with its descendants. Sleepable contexts.
    ///
    /// # Errors
    /// The writer's own.
    #[doc(alias = "memory.stat")]
    pub fn write_memory_stat(&self, group: GroupId, out: &mut dyn fmt::Write) -> fmt::Result {
        self.groups.write_stat(group, out)
    }

    /// For [`Platform::reclaim_counter`](crate::Platform::reclaim_counter).
    pub fn node_counter(&self, node: NodeId, name: &str) -> Option<u64> {
        let counts = self.lists.counts(node, None);
        Some(match name {
            "nr_inactive_anon" => counts.inactive_anon,
            "nr_active_anon" => counts.active_anon,
            "nr_inactive_file" => counts.inactive_file,
            "nr_active_file" => counts.active_file,
            "nr_unevictable" => counts.unevictable,
            "nr_isolated_anon" => counts.isolated_anon,
            "nr_isolated_file" => counts.isolated_file,
            "nr_anon_pages" => counts.inactive_anon.saturating_add(counts.active_anon),
            "nr_file_pages" => counts.inactive_file.saturating_add(counts.active_file),
            _ => return self.engine.node_stats(node).get(own_event(name)?).into(),
        })
    }

    /// For [`Platform::reclaim_event`](crate::Platform::reclaim_event).
    pub fn event(&self, name: &str) -> Option<u64> {
        own_event(name).map(|event| self.engine.stats().get(event))
    }
}

/// The engine's event of that name. What came of node reclaim the page allocator counts itself.
fn own_event(name: &str) -> Option<ReclaimEvent> {
    let counted = |event: &ReclaimEvent| {
        event.name() == name && !matches!(event, ReclaimEvent::NodeReclaimSuccess | ReclaimEvent::NodeReclaimFailed)
    };
    ReclaimEvent::ALL.into_iter().find(counted)
}
