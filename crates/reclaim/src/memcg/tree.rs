//! The tree of groups: links under a lock, and the walk that reclaim makes.
//!
//! ```text
//! slot.parent          slot.first_child ──▶ child ⇄ child ⇄ child ◀── slot.last_child
//!                                           serial 4   7       9       in order of creation
//! ```
//!
//! A walk holds nothing between two steps. If the group it stands at has left the tree meanwhile, the serial numbers tell
//! which sibling comes next, as long as the number has not been given out again; then the walk goes on from the new group's
//! place, or ends if that lies elsewhere.

use kmem_sync::atomic::Ordering;

use crate::memcg::slot::{NONE, Slot};
use crate::memcg::table::State;
use crate::memcg::{Memcg, MemcgEnv};
use crate::{GroupId, Groups, Protection};

/// What the tree's lock protects, beside the links in the places.
#[derive(Debug)]
pub(crate) struct Tree {
    serial: u64,
}

impl Tree {
    pub(crate) const fn new() -> Self {
        Self { serial: 0 }
    }

    /// A number for a new group.
    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// Makes `group` the last child of `parent`.
    pub(crate) fn link(&mut self, state: &State, parent: GroupId, group: GroupId) {
        let (Some(above), Some(slot)) = (state.slot(parent), state.slot(group)) else { return };
        let last = above.last_child.load(Ordering::Relaxed);
        slot.prev.store(last, Ordering::Relaxed);
        slot.next.store(NONE, Ordering::Relaxed);
        match state.slot(GroupId(last)) {
            Some(before) => before.next.store(group.0, Ordering::Relaxed),
            None => above.first_child.store(group.0, Ordering::Relaxed),
        }
        above.last_child.store(group.0, Ordering::Relaxed);
        slot.linked.store(true, Ordering::Relaxed);
    }

    /// Takes `group`, which has no children, out of the tree.
    pub(crate) fn unlink(&mut self, state: &State, group: GroupId) {
        let Some(slot) = state.slot(group) else { return };
        let Some(above) = slot.parent().and_then(|parent| state.slot(parent)) else { return };
        let (prev, next) = (slot.prev.load(Ordering::Relaxed), slot.next.load(Ordering::Relaxed));
        match state.slot(GroupId(prev)) {
            Some(before) => before.next.store(next, Ordering::Relaxed),
            None => above.first_child.store(next, Ordering::Relaxed),
        }
        match state.slot(GroupId(next)) {
            Some(after) => after.prev.store(prev, Ordering::Relaxed),
            None => above.last_child.store(prev, Ordering::Relaxed),
        }
        slot.linked.store(false, Ordering::Relaxed);
    }

    /// The group after `after` in the subtree of `root`, children before siblings.
    fn next(&self, state: &State, root: GroupId, after: GroupId) -> Option<GroupId> {
        let slot = state.slot(after)?;
        let is_linked = |slot: &Slot| slot.linked.load(Ordering::Relaxed);
        if is_linked(slot)
            && let Some(child) = link(&slot.first_child)
        {
            return Some(child);
        }
        let mut at = (after, slot);
        while at.0 != root {
            let (_, slot) = at;
            let parent = slot.parent()?;
            let above = state.slot(parent)?;
            let next = if is_linked(slot) {
                link(&slot.next)
            } else if is_linked(above) {
                // Gone: the first sibling that is younger.
                let serial = slot.serial.load(Ordering::Relaxed);
                let mut sibling = link(&above.first_child);
                while let Some(slot) = sibling.and_then(|sibling| state.slot(sibling)) {
                    if slot.serial.load(Ordering::Relaxed) > serial {
                        break;
                    }
                    sibling = link(&slot.next);
                }
                sibling
            } else {
                None
            };
            if next.is_some() {
                // Only what lies below the root of the walk: a number may have been given out anew elsewhere.
                return next.filter(|&next| state.up_from(next).any(|(group, _)| group == root));
            }
            at = (parent, above);
        }
        None
    }
}

fn link(word: &kmem_sync::atomic::AtomicU32) -> Option<GroupId> {
    let id = word.load(Ordering::Relaxed);
    (id != NONE).then_some(GroupId(id))
}

impl<E: MemcgEnv> Memcg<E> {
    /// The groups of the subtree of `root`, children before siblings. Each step takes the tree's lock.
    pub fn subtree(&self, root: GroupId) -> impl Iterator<Item = GroupId> {
        let mut at = self.step(root, None);
        core::iter::from_fn(move || {
            let group = at?;
            at = self.step(root, Some(group));
            Some(group)
        })
    }

    /// Whether `group` lies in the subtree of `root`. Any context; O(depth).
    pub fn is_within(&self, group: GroupId, root: GroupId) -> bool {
        root == GroupId::ROOT || self.state().is_some_and(|state| state.up_from(group).any(|(above, _)| above == root))
    }
}

impl<E: MemcgEnv + Sync> Groups for Memcg<E> {
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        self.step(root, after)
    }

    fn protection(&self, root: GroupId, group: GroupId) -> Protection {
        self.state().map_or(Protection::default(), |state| state.protection(root, group))
    }

    fn is_online(&self, group: GroupId) -> bool {
        group == GroupId::ROOT || self.state().is_some_and(|state| state.online(group).is_some())
    }

    fn swappiness(&self, group: GroupId) -> Option<u8> {
        let value = self.state()?.online(group)?.swappiness.load(Ordering::Relaxed);
        u8::try_from(value).ok()
    }

    fn uncharge(&self, group: GroupId, pages: u64) {
        self.uncharge_listed(group, pages);
    }
}

impl<E: MemcgEnv> Memcg<E> {
    /// One step of a walk.
    pub(crate) fn step(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        let Some(state) = self.state() else {
            return if after.is_none() { Some(root) } else { None };
        };
        state.tree.with(self.env.cpu(), |tree| match after {
            None => state.slot(root).filter(|slot| slot.linked.load(Ordering::Relaxed)).map(|_| root),
            Some(after) => tree.next(state, root, after),
        })
    }
}
