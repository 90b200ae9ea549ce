//! `/proc/zoneinfo`.

use core::fmt;

use kmem_gfp::{NodeId, Watermark, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::state::State;
use crate::views::{Extra, names};
use crate::zone::Zone;

/// All zones, populated or not, with marks, counters and per-CPU sets. See [`Buddy::zoneinfo`](crate::Buddy::zoneinfo).
#[derive(Clone, Copy)]
pub struct ZoneInfo<'a> {
    pub(crate) state: Option<&'a State>,
    pub(crate) extra: &'a dyn Extra,
}

impl fmt::Debug for ZoneInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZoneInfo").finish_non_exhaustive()
    }
}

/// The zones of a node as the kernel lists them: the device zone, which nothing is ever allocated from, comes last.
fn protection(f: &mut fmt::Formatter<'_>, state: &State, zone: Option<&Zone>) -> fmt::Result {
    write!(f, "\n        protection: (")?;
    let kinds = state.kinds.iter().take(state.nr_kinds);
    for (i, &kind) in kinds.enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        write!(f, "{separator}{}", zone.map_or(0, |zone| zone.lowmem_reserve(kind)))?;
    }
    writeln!(f, ", {})", zone.map_or(0, |zone| zone.lowmem_reserve(ZoneKind::Movable)))
}

fn levels(f: &mut fmt::Formatter<'_>, zone: Option<&Zone>) -> fmt::Result {
    let get = |value: fn(&Zone) -> u64| zone.map_or(0, value);
    let span = |zone: &Zone| {
        let end = zone.span_end.load(Ordering::Relaxed);
        end.saturating_sub(zone.span_start.load(Ordering::Relaxed))
    };
    write!(f, "\n  pages free     {}", get(Zone::free_pages))?;
    write!(f, "\n        boost    {}", get(Zone::boost_pages))?;
    for mark in Watermark::ALL {
        write!(f, "\n        {:<8} {}", mark.name(), zone.map_or(0, |zone| zone.watermark(mark)))?;
    }
    write!(f, "\n        spanned  {}", get(span))?;
    write!(f, "\n        present  {}", get(Zone::present_pages))?;
    write!(f, "\n        managed  {}", get(Zone::managed_pages))?;
    write!(f, "\n        cma      {}", get(|zone| zone.cma_pages.load(Ordering::Relaxed)))
}

impl ZoneInfo<'_> {
    fn zone(&self, f: &mut fmt::Formatter<'_>, state: &State, zone: &Zone, first: bool) -> fmt::Result {
        write!(f, "Node {}, zone {:>8}", zone.node.0, zone.kind.name())?;
        if first {
            write!(f, "\n  per-node stats")?;
            for name in names::NODE {
                write!(f, "\n      {name:<12} {}", self.extra.node_counter(zone.node, name))?;
            }
        }
        levels(f, Some(zone))?;
        protection(f, state, Some(zone))?;
        if !zone.is_populated() {
            return Ok(());
        }
        for name in names::ZONE {
            writeln!(f, "      {name:<12} {}", zone_counter(zone, name, self.extra))?;
        }
        let stats = state.zone_stats(zone);
        for (name, value) in names::NUMA.into_iter().zip(stats.numa()) {
            writeln!(f, "      {name:<12} {value}")?;
        }
        write!(f, "  pagesets")?;
        for (cpu, set) in state.sets_of(zone).enumerate() {
            write!(f, "\n    cpu: {cpu}")?;
            write!(f, "\n              count:    {}", set.pages())?;
            write!(f, "\n              high:     {}", set.high.load(Ordering::Relaxed))?;
            write!(f, "\n              batch:    {}", set.batch.load(Ordering::Relaxed))?;
            write!(f, "\n              high_min: {}", set.high_min.load(Ordering::Relaxed))?;
            write!(f, "\n              high_max: {}", set.high_max.load(Ordering::Relaxed))?;
        }
        write!(f, "\n  vm stats threshold: {}", stat_threshold(zone.managed_pages(), state.nr_cpus() as u64))?;
        write!(f, "\n  node_unreclaimable:  {}", self.extra.node_counter(zone.node, "node_unreclaimable"))?;
        write!(f, "\n  start_pfn:           {}", zone.span_start.load(Ordering::Relaxed))?;
        write!(f, "\n  reserved_highatomic: {}", zone.reserved_highatomic_pages())?;
        writeln!(f, "\n  free_highatomic:     {}", zone.free_of(kmem_gfp::MigrateType::HighAtomic))
    }
}

/// How far a CPU's difference of a counter may grow: the kernel's formula, shown for its readers. Counters here are exact.
pub(crate) fn stat_threshold(managed_pages: u64, cpus: u64) -> u64 {
    let bits = |n: u64| u64::from(u64::BITS - n.leading_zeros());
    (2 * bits(cpus) * (1 + bits(managed_pages >> (27 - 12)))).min(125)
}

/// A counter of `names::ZONE`.
pub(crate) fn zone_counter(zone: &Zone, name: &str, extra: &dyn Extra) -> u64 {
    match name {
        "nr_free_pages" => zone.free_pages(),
        "nr_free_pages_blocks" => zone.free_pages_in_whole_blocks(),
        "nr_free_cma" => zone.free_of(kmem_gfp::MigrateType::Cma),
        _ => extra.zone_counter(zone.node, zone.kind, name),
    }
}

impl fmt::Display for ZoneInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(state) = self.state else { return Ok(()) };
        for node in (0..state.nr_nodes).map(NodeId) {
            let mut first = true;
            for zone in state.zones_of(node) {
                self.zone(f, state, zone, first && zone.is_populated())?;
                first &= !zone.is_populated();
            }
            write!(f, "Node {}, zone {:>8}", node.0, "Device")?;
            levels(f, None)?;
            protection(f, state, None)?;
        }
        Ok(())
    }
}
