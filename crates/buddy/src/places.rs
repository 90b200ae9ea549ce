//! Where frames lie and in which order nodes are tried, and what background reclaim gives back: questions of whoever reclaims
//! for this allocator.

use kmem_gfp::{NodeId, Pfn, ZoneKind};

use crate::buddy::Buddy;
use crate::env::BuddyEnv;

impl<E: BuddyEnv> Buddy<E> {
    /// The zone that a frame lies in; `None` for frames that no zone holds. Any context; two loads.
    pub fn zone_of(&self, pfn: Pfn) -> Option<(NodeId, ZoneKind)> {
        let zone = self.state()?.block_of(pfn)?.zone()?;
        Some((zone.node, zone.kind))
    }

    /// The `n`-th node that a request that prefers `from` uses, nearest first; `None` behind the last one. Any context;
    /// O(zones).
    pub fn nth_node(&self, from: NodeId, n: u32) -> Option<NodeId> {
        let state = self.state().filter(|state| from.0 < state.nr_nodes)?;
        let mut last = None;
        let mut nodes =
            state.zonelist(from).map(|zone| zone.node).filter(move |&node| last.replace(node) != Some(node));
        nodes.nth(n as usize)
    }

    /// Takes up to `pages` off a zone's boost: background reclaim has worked for them. The per-CPU sets open again if the zone
    /// is comfortable without it. Any context but NMI.
    pub fn lower_boost(&self, node: NodeId, kind: ZoneKind, pages: u64) {
        let Some(state) = self.state() else { return };
        let Some(zone) = state.zone(node, kind) else { return };
        zone.lower_boost(pages);
        state.compute_comfort(zone);
        self.settle(state, zone);
    }

    /// Makes compaction forget which pageblocks of a node it had given up on, where that has served a whole scan: background
    /// reclaim has finished its work. Any context; O(pageblocks / 64).
    #[doc(alias = "reset_isolation_suitable")]
    pub fn reset_compaction_hints(&self, node: NodeId) {
        let zones = self.state().map_or(&[][..], |state| state.zones_of(node));
        for zone in zones.iter().filter(|zone| zone.is_populated()) {
            zone.forget_stale_skips();
        }
    }
}
