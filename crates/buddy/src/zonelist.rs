//! In which order nodes and zones are tried.
//!
//! ```text
//! node 0:  node 0 Normal, DMA32, DMA | node 2 Normal | node 1 Normal ...     nearest node first, highest zone first
//! ```

use kmem_gfp::NodeId;
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::env::BuddyEnv;
use crate::state::State;

/// Fills the zonelists of all nodes. Each list begins with its own node; then comes, again and again, the cheapest node
/// not yet used: by distance, one more for nodes below the starting one, one more for nodes with CPUs, ties broken by how
/// often a node stands first among equals in the lists built before.
pub(crate) fn build(state: &State, env: &impl BuddyEnv) {
    let nr = state.nr_nodes;
    for local in (0..nr).map(NodeId) {
        let mut place = 0;
        let mut last = local;
        for rank in 0..nr {
            let node = if rank == 0 { local } else { next_node(state, env, local, place) };
            // Among equally distant nodes each list begins with another one.
            let farther = rank > 0 && env.distance(local, node) != env.distance(local, last);
            if let Some(load) = load(state, node).filter(|_| farther) {
                load.fetch_add(1, Ordering::Relaxed);
            }
            last = node;
            for zone in state.zones_of(node).iter().rev() {
                if let Some(slot) = state.zonelists.get(local.index() * state.zones.len() + place) {
                    slot.store(zone.number as u32, Ordering::Relaxed);
                }
                place += 1;
            }
        }
    }
}

/// How often a node was the first of its distance so far; kept in its first zone, which nobody counts in yet.
fn load(state: &State, node: NodeId) -> Option<&AtomicU64> {
    state.zones_of(node).first().map(|zone| &zone.boost)
}

fn next_node(state: &State, env: &impl BuddyEnv, local: NodeId, placed: usize) -> NodeId {
    let start = local.index() * state.zones.len();
    let used = |node: NodeId| {
        state
            .zonelists
            .get(start..start + placed)
            .unwrap_or(&[])
            .iter()
            .any(|number| state.zones.get(number.load(Ordering::Relaxed) as usize).is_some_and(|z| z.node == node))
    };
    let cost = |node: NodeId| {
        let mut cost = u64::from(env.distance(local, node));
        cost += u64::from(node < local);
        cost += u64::from(env.node_has_cpus(node));
        (cost, load(state, node).map_or(0, |load| load.load(Ordering::Relaxed)))
    };
    (0..state.nr_nodes).map(NodeId).filter(|&node| !used(node)).min_by_key(|&node| cost(node)).unwrap_or(local)
}
