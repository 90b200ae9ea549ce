//! Asking the shrinkers: one pass over those that serve a node and a group, and passes until there is nothing left.

use kmem_gfp::{AllocContext, Gfp, NoReclaimScope, NodeId, TaskFlags};

use super::formula::{left_over, next_batch, total};
use super::{ShrinkControl, ShrinkCount, ShrinkScan, ShrinkerSlot};
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, Zones};
use crate::events::ReclaimEvent;
use crate::{GroupId, Groups};

/// What asking one shrinker came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shrunk {
    freed: u64,
    scanned: u64,
    empty: bool,
}

/// Asks one shrinker at one priority (R-36..R-39).
fn shrink_one(slot: &ShrinkerSlot<'_>, control: &ShrinkControl<'_>, priority: u8) -> Shrunk {
    let shrinker = slot.shrinker();
    let freeable = match shrinker.count_objects(control) {
        ShrinkCount::Empty => return Shrunk { empty: true, ..Shrunk::default() },
        ShrinkCount::Skip | ShrinkCount::Objects(0) => return Shrunk::default(),
        ShrinkCount::Objects(freeable) => freeable,
    };
    let deferred = slot.take_deferred(control.node, control.group);
    let mut left = total(freeable, deferred, priority, slot.seeks());
    let mut done = Shrunk::default();
    while let Some(nr) = next_batch(left, freeable, slot.batch()) {
        let ShrinkScan::Scanned { freed, scanned } = shrinker.scan_objects(control, nr) else { break };
        // Whoever neither frees nor looks at anything has stopped, whether it says so or not.
        let counted = scanned.max(u64::from(freed > 0));
        if counted == 0 {
            break;
        }
        done.freed = done.freed.saturating_add(freed);
        done.scanned = done.scanned.saturating_add(counted);
        left = left.saturating_sub(counted);
        control.context.yield_now();
    }
    let later = left_over(freeable, deferred, priority, slot.seeks(), done.scanned);
    slot.defer(control.node, control.group, later);
    done
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Asks the shrinkers for objects of a node and group at a priority and returns what they freed. Shrinkers that do
    /// not tell groups apart are asked for the root only, which stands for all of global reclaim. Where sleeping is
    /// allowed.
    pub fn shrink_slab(&self, node: NodeId, group: GroupId, priority: u8, gfp: Gfp, context: &dyn AllocContext) -> u64 {
        let (mut freed, mut scanned) = (0u64, 0u64);
        let accounted = self.env().accounts_kernel_memory();
        self.shrinkers().for_each(self.env().cpu(), self.env().park(), |slot| {
            let told = slot.node_told(node);
            let asked = slot.serves(gfp)
                && (group == GroupId::ROOT || (slot.is_memcg_aware() && (accounted || slot.is_nonslab())))
                && slot.is_filled(told, group);
            if !asked {
                return;
            }
            let control = ShrinkControl { gfp, node: told, group, context };
            let mut done = shrink_one(slot, &control, priority);
            if done.empty && slot.clear_filled(told, group) {
                done = shrink_one(slot, &control, priority);
                if !done.empty {
                    slot.note_objects(told, group);
                }
            }
            freed = freed.saturating_add(done.freed);
            scanned = scanned.saturating_add(done.scanned);
        });
        if let Some(state) = self.node(node) {
            state.events.add(ReclaimEvent::SlabsScanned, scanned);
        }
        freed
    }

    /// Empties all shrinkers of all nodes and groups, again and again until it is no longer worth while, and returns
    /// what they freed. A fatal signal ends it. Where sleeping is allowed.
    #[doc(alias = "drop_caches")]
    pub fn drop_slab(&self, context: &dyn AllocContext) -> u64 {
        let _reserves = NoReclaimScope::enter(context);
        let mut sum = 0u64;
        for pass in 0..u64::BITS {
            let mut freed = 0u64;
            for node in (0..self.env().zones().nr_nodes()).map(NodeId) {
                if context.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                    return sum;
                }
                if let Some(state) = self.node(node)
                    && pass == 0
                {
                    state.events.add(ReclaimEvent::DropSlab, 1);
                }
                let groups = self.env().groups();
                let mut at = groups.next_in_subtree(GroupId::ROOT, None);
                while let Some(group) = at {
                    freed = freed.saturating_add(self.shrink_slab(node, group, 0, Gfp::KERNEL, context));
                    at = groups.next_in_subtree(GroupId::ROOT, Some(group));
                }
            }
            sum = sum.saturating_add(freed);
            if freed >> pass <= 1 {
                break;
            }
        }
        sum
    }

    /// The shrinkers that are registered.
    pub fn shrinkers(&self) -> &super::Shrinkers {
        &self.shrinkers
    }

    /// Registers a shrinker ([`Shrinkers::register`](super::Shrinkers::register)).
    ///
    /// # Errors
    /// [`RegisterError::AlreadyRegistered`](super::RegisterError::AlreadyRegistered).
    pub fn register_shrinker(&self, slot: &'static ShrinkerSlot<'static>) -> Result<(), super::RegisterError> {
        self.shrinkers.register(self.env().cpu(), slot)
    }

    /// Unregisters a shrinker ([`Shrinkers::unregister`](super::Shrinkers::unregister)). Where sleeping is allowed.
    ///
    /// # Errors
    /// [`RegisterError::NotRegistered`](super::RegisterError::NotRegistered).
    pub fn unregister_shrinker(&self, slot: &ShrinkerSlot<'_>) -> Result<(), super::RegisterError> {
        self.shrinkers.unregister(self.env().cpu(), self.env().park(), self.env().context(), slot)
    }

    /// Runs `body` while a borrowed slot is registered ([`Shrinkers::with_registered`](super::Shrinkers::with_registered)).
    ///
    /// # Errors
    /// [`RegisterError::AlreadyRegistered`](super::RegisterError::AlreadyRegistered); `body` has not run then.
    pub fn with_shrinker<R>(
        &self,
        slot: &ShrinkerSlot<'_>,
        body: impl FnOnce() -> R,
    ) -> Result<R, super::RegisterError> {
        let env = self.env();
        self.shrinkers.with_registered(env.cpu(), env.park(), env.context(), slot, body)
    }
}
