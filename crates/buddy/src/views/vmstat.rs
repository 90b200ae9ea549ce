//! `/proc/vmstat`.

use core::fmt;

use kmem_gfp::{NodeId, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::state::State;
use crate::stats::{Event, ZoneStats};
use crate::views::zoneinfo::zone_counter;
use crate::views::{Extra, names};

/// All counters of the machine. See [`Buddy::vmstat`](crate::Buddy::vmstat).
#[derive(Clone, Copy)]
pub struct VmStat<'a> {
    pub(crate) state: Option<&'a State>,
    pub(crate) extra: &'a dyn Extra,
}

impl fmt::Debug for VmStat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmStat").finish_non_exhaustive()
    }
}

/// The kind of zone that a counter such as `pgalloc_dma32` is about.
fn kind_of(suffix: &str) -> Option<ZoneKind> {
    ZoneKind::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(suffix))
}

fn own_event(state: &State, name: &str) -> u64 {
    let count = |event: Event| state.events.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed));
    let zones = |kind: ZoneKind| state.zones.iter().filter(move |zone| zone.kind == kind);
    let total =
        |value: fn(&ZoneStats) -> u64| -> u64 { state.zones.iter().map(|zone| value(&state.zone_stats(zone))).sum() };
    if let Some(kind) = name.strip_prefix("pgalloc_").and_then(kind_of) {
        return zones(kind).map(|zone| state.zone_stats(zone).allocated_pages).sum();
    }
    if let Some(kind) = name.strip_prefix("allocstall_").and_then(kind_of) {
        return count(Event::alloc_stall(kind));
    }
    match name {
        "pgfree" => total(|stats| stats.freed_pages),
        "zone_reclaim_success" => count(Event::ZoneReclaimSuccess),
        "zone_reclaim_failed" => count(Event::ZoneReclaimFailed),
        "pgmigrate_success" => count(Event::MigrateSuccess),
        "pgmigrate_fail" => count(Event::MigrateFail),
        "compact_migrate_scanned" => count(Event::CompactMigrateScanned),
        "compact_free_scanned" => count(Event::CompactFreeScanned),
        "compact_isolated" => count(Event::CompactIsolated),
        "compact_daemon_wake" => count(Event::CompactDaemonWake),
        "compact_daemon_migrate_scanned" => count(Event::CompactDaemonMigrateScanned),
        "compact_daemon_free_scanned" => count(Event::CompactDaemonFreeScanned),
        "compact_stall" => count(Event::CompactStall),
        "compact_fail" => count(Event::CompactFail),
        "compact_success" => count(Event::CompactSuccess),
        _ => 0,
    }
}

impl fmt::Display for VmStat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(state) = self.state else { return Ok(()) };
        for name in names::ZONE {
            let value: u64 = state.zones.iter().map(|zone| zone_counter(zone, name, self.extra)).sum();
            writeln!(f, "{name} {value}")?;
        }
        let sum = state.zones.iter().map(|zone| state.zone_stats(zone)).fold(ZoneStats::default(), ZoneStats::plus);
        for (name, value) in names::NUMA.into_iter().zip(sum.numa()) {
            writeln!(f, "{name} {value}")?;
        }
        for name in names::NODE {
            let value: u64 = (0..state.nr_nodes).map(|node| self.extra.node_counter(NodeId(node), name)).sum();
            writeln!(f, "{name} {value}")?;
        }
        for name in names::GLOBAL {
            writeln!(f, "{name} {}", self.extra.event(name).unwrap_or(0))?;
        }
        for name in names::EVENTS {
            writeln!(f, "{name} {}", self.extra.event(name).unwrap_or_else(|| own_event(state, name)))?;
        }
        writeln!(f, "nr_unstable 0")
    }
}
