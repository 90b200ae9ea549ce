//! What reclaim sees of memory cgroups: a tree of numbered groups, walked in pre-order, each with its protection.
//!
//! ```text
//!            ROOT (0)
//!           /        \
//!        GroupId(3)  GroupId(1)        next_in_subtree(ROOT): 0, 3, 7, 1
//!          |
//!        GroupId(7)
//! ```

/// A memory cgroup: an index into the table of groups. [`ROOT`](Self::ROOT) stands for the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group that every other group lies in.
    pub const ROOT: Self = Self(0);
}

/// How much of a group's memory a pass must leave alone, in pages: effective values, after the ancestors' shares (A-16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Effective `memory.min`: never reclaimed below it.
    pub min: u64,
    /// Effective `memory.low`: not reclaimed below it while others have something.
    pub low: u64,
    /// What the group uses, with its children.
    pub usage: u64,
}

/// The tree of groups as the reclaim engine and the page lists see it.
///
/// Every method may be called in any context that reclaim runs in, concurrently with groups coming and going; a group
/// that has gone in the meantime has no protection and no descendants.
pub trait Groups: Sync {
    /// The group after `after` in a pre-order walk of the subtree of `root`; the root itself for `None`. `None` at the end.
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId>;

    /// The protection of `group` against reclaim that was asked for in `root`. The target itself has none (R-45).
    fn protection(&self, root: GroupId, group: GroupId) -> Protection;

    /// Whether the group still takes charges; lists of a group that does not are scanned to the end (R-23).
    fn is_online(&self, group: GroupId) -> bool;

    /// The group's own swappiness, 0..=200; `None` for the machine's.
    fn swappiness(&self, group: GroupId) -> Option<u8>;

    /// Gives back `pages` pages that were charged to `group`, whose page is leaving it. Any context.
    fn uncharge(&self, group: GroupId, pages: u64);
}

/// A machine without memory cgroups: everything belongs to the root, nothing is protected, nothing is charged.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGroups;

impl Groups for NoGroups {
    #[inline(always)]
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        if after.is_none() { Some(root) } else { None }
    }
    #[inline(always)]
    fn protection(&self, _root: GroupId, _group: GroupId) -> Protection {
        Protection::default()
    }
    #[inline(always)]
    fn is_online(&self, _group: GroupId) -> bool {
        true
    }
    #[inline(always)]
    fn swappiness(&self, _group: GroupId) -> Option<u8> {
        None
    }
    #[inline(always)]
    fn uncharge(&self, _group: GroupId, _pages: u64) {}
}

impl<G: Groups> Groups for &G {
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        (**self).next_in_subtree(root, after)
    }
    fn protection(&self, root: GroupId, group: GroupId) -> Protection {
        (**self).protection(root, group)
    }
    fn is_online(&self, group: GroupId) -> bool {
        (**self).is_online(group)
    }
    fn swappiness(&self, group: GroupId) -> Option<u8> {
        (**self).swappiness(group)
    }
    fn uncharge(&self, group: GroupId, pages: u64) {
        (**self).uncharge(group, pages);
    }
}
