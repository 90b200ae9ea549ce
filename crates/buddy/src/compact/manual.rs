//! Compaction by hand, and what can be tuned.

use kmem_gfp::{AllocContext, MigrateMode, NodeId, TaskFlags};
use kmem_sync::atomic::Ordering;

use crate::buddy::Buddy;
use crate::compact::scan::Run;
use crate::env::BuddyEnv;
use crate::state::State;
use crate::watermark::TuneError;

impl<E: BuddyEnv> Buddy<E> {
    /// Compacts all nodes from end to end, waiting for everything (`vm.compact_memory`). Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`TuneError::OutOfRange`] for any `value` but 1.
    pub fn compact_memory(&self, value: u32) -> Result<(), TuneError> {
        if value != 1 {
            return Err(TuneError::OutOfRange { value: u64::from(value), least: 1, most: 1 });
        }
        let state = self.state().ok_or(TuneError::NotInitialised)?;
        (0..state.nr_nodes).for_each(|node| self.compact_node(NodeId(node)));
        Ok(())
    }

    /// Compacts the zones of one node from end to end, waiting for everything. Only where sleeping is allowed.
    pub fn compact_node(&self, node: NodeId) {
        if let Some(state) = self.state() {
            self.compact_node_with(state, node, &Run::everything(MigrateMode::Sync));
        }
    }

    pub(crate) fn compact_node_with(&self, state: &State, node: NodeId, run: &Run<'_>) {
        let context = self.env().context();
        let before = context.update_task_flags(TaskFlags::MEMALLOC, TaskFlags::empty());
        for zone in state.zones_of(node).iter().filter(|zone| zone.is_populated()) {
            if run.until_score.is_none_or(|low| state.zone_score(zone) > low) {
                self.compact_zone(state, zone, run);
            }
        }
        if !before.contains(TaskFlags::MEMALLOC) {
            context.update_task_flags(TaskFlags::empty(), TaskFlags::MEMALLOC);
        }
    }

    /// Sets `extfrag_threshold`, 0..=1000: zones whose fragmentation index for a costly order is not above it are not
    /// compacted but reclaimed.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_extfrag_threshold(&self, threshold: u32) -> Result<(), TuneError> {
        let state = self.state().ok_or(TuneError::NotInitialised)?;
        within(threshold, 1000)?;
        state.tunables.extfrag_threshold.store(threshold, Ordering::Relaxed);
        Ok(())
    }

    /// Sets `compaction_proactiveness`, 0..=100: how much the daemons compact before anybody asks; 0: not at all.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_compaction_proactiveness(&self, proactiveness: u32) -> Result<(), TuneError> {
        let state = self.state().ok_or(TuneError::NotInitialised)?;
        within(proactiveness, 100)?;
        state.tunables.compaction_proactiveness.store(proactiveness, Ordering::Relaxed);
        Ok(())
    }
}

fn within(value: u32, most: u64) -> Result<(), TuneError> {
    let value = u64::from(value);
    if value > most { Err(TuneError::OutOfRange { value, least: 0, most }) } else { Ok(()) }
}
