//! A group goes: its pages become its parent's.
//!
//! Whatever is listed moves at once. Pages in batches or in somebody's hands still bear the group's number; they find the
//! forwarding note when they come to its lists, and go to the parent's.

use kmem_gfp::{NodeId, Pfn};
use kmem_sync::atomic::Ordering;

use super::policy::{Arrival, Policy};
use super::vector::{Kind, NR_LISTS};
use super::{Lists, LruEnv};
use crate::GroupId;

/// Pages that change lists for one taking of each lock.
const PORTION: usize = 32;

/// A group's number may still be borne by pages that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pages on their way, {pages} of them isolated, may still bear the number of group {group}")]
pub struct GroupBusy {
    /// The group.
    pub group: u32,
    /// How many of them are isolated. None: pages are being brought to their lists or uncharged, which takes a moment.
    pub pages: u64,
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    /// Makes the number of a group that has gone usable for a new one. Slow: empties every CPU's batch. Numbers that no group
    /// has borne yet need no opening.
    ///
    /// # Errors
    /// [`GroupBusy`] while pages of the old group are, or may be, in somebody's hands: try again later.
    pub fn open_group(&self, group: GroupId) -> Result<(), GroupBusy> {
        self.drain_all();
        let vectors = || (0..self.env_nodes()).filter_map(|node| self.vector(NodeId(node), group));
        let held = |kind| vectors().map(|vector| vector.counts.get(kind)).sum::<u64>();
        let pages = held(Kind::IsolatedAnon) + held(Kind::IsolatedFile);
        // The counts first: what leaves them does so on a stretch that has begun by now.
        if pages > 0 || !self.hands_are_empty() {
            return Err(GroupBusy { group: group.0, pages });
        }
        for node in 0..self.env_nodes() {
            self.section(NodeId(node), group, |section| section.inner.forward = None);
        }
        Ok(())
    }

    pub(crate) fn env_nodes(&self) -> u32 {
        kmem_gfp::PageAllocator::nr_nodes(self.env.pages())
    }

    pub(crate) fn reparent_pages(&self, group: GroupId, parent: GroupId) {
        if group == parent || parent.0 >= self.max_groups() {
            return;
        }
        for node in (0..self.env_nodes()).map(NodeId) {
            self.section(node, group, |section| section.inner.forward = Some(parent));
        }
        // Nothing is listed there any more from here on.
        for node in (0..self.env_nodes()).map(NodeId) {
            for list in 0..NR_LISTS {
                while self.reparent_some(node, group, parent, list) {}
            }
        }
        self.drain_all();
    }

    /// Takes some pages off a list of the group and puts them on the parent's; `false` if there are none.
    fn reparent_some(&self, node: NodeId, group: GroupId, parent: GroupId, list: usize) -> bool {
        let mut pfns = [0u32; PORTION];
        let taken = self.section(node, group, |section| {
            let mut n = 0;
            while let (Some(entry), Some(pfn)) = (pfns.get_mut(n), section.tail(list)) {
                if !section.take_for_reparent(pfn, parent) {
                    break;
                }
                *entry = pfn.0 as u32;
                n += 1;
            }
            n
        });
        let pfns = pfns.get(..taken.unwrap_or(0)).unwrap_or(&[]);
        for &pfn in pfns {
            let pfn = Pfn(pfn.into());
            self.put_back_as(pfn, Some(Arrival::Back(list)));
        }
        !pfns.is_empty()
    }
}

impl<E: LruEnv, P: Policy> super::section::Section<'_, E, P> {
    /// Takes a listed page off its list, isolated in the name of `parent`, whatever its owner thinks of that.
    fn take_for_reparent(&mut self, pfn: Pfn, parent: GroupId) -> bool {
        let Some((words, word)) = self.listed(pfn) else { return false };
        let kind = super::word::State(words.state.load(Ordering::Relaxed)).kind();
        self.unlink_listed(words, word);
        words.owner.store(word.with_group(parent).isolated().0, Ordering::Release);
        self.tally.add(word.zone(), Kind::isolated(kind), 1);
        self.lists.move_isolated(self.node, self.group, parent, kind);
        true
    }
}
