//! What is left of an evicted page: a token that its owner keeps in the page's place.
//!
//! ```text
//! bit 0: 1 │ workingset:1 │ references:3 │ node:8 │ group:20 │ age:31
//! ```
//!
//! Bit 0 is set, so that an owner can tell a shadow from an aligned pointer in the same word. `age` counts evictions (classic
//! lists) or generations, modulo 2^31.

use core::num::NonZeroU64;

use kmem_gfp::NodeId;

use super::word::{GROUP_LIMIT, NODE_LIMIT};
use crate::GroupId;

/// A token for an evicted page (R-24, R-31). The owner stores it, and gives it back when it adds the page again; it may be
/// thrown away at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Shadow(NonZeroU64);

const AGE_BITS: u32 = 31;

impl Shadow {
    pub(crate) fn new(node: NodeId, group: GroupId, age: u64, workingset: bool, refs: u64) -> Self {
        let bits = 1
            | u64::from(workingset) << 1
            | (refs & 7) << 2
            | (u64::from(node.0) & (u64::from(NODE_LIMIT) - 1)) << 5
            | (u64::from(group.0) & (u64::from(GROUP_LIMIT) - 1)) << 13
            | age << 33;
        Self(NonZeroU64::MIN | bits)
    }

    /// The token as a word; its bit 0 is set.
    pub const fn to_word(self) -> u64 {
        self.0.get()
    }

    /// The token in a word that [`to_word`](Self::to_word) gave; `None` if bit 0 is not set. A word from anywhere else makes a
    /// token that says something wrong about a page's past, and no more than that.
    pub const fn from_word(word: u64) -> Option<Self> {
        if word & 1 == 0 {
            return None;
        }
        match NonZeroU64::new(word) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    pub(crate) const fn workingset(self) -> bool {
        self.0.get() & 2 != 0
    }

    pub(crate) const fn refs(self) -> u64 {
        self.0.get() >> 2 & 7
    }

    pub(crate) const fn node(self) -> NodeId {
        NodeId((self.0.get() >> 5) as u32 & (NODE_LIMIT - 1))
    }

    pub(crate) const fn group(self) -> GroupId {
        GroupId((self.0.get() >> 13) as u32 & (GROUP_LIMIT - 1))
    }

    /// How far the count has come since, given that it is at `now`.
    pub(crate) const fn distance(self, now: u64) -> u64 {
        now.wrapping_sub(self.0.get() >> 33) & ((1 << AGE_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_keeps_what_was_put_in() {
        // R-24: group, node, age and workingset
        let shadow = Shadow::new(NodeId(255), GroupId(GROUP_LIMIT - 1), (5 << AGE_BITS) + 7, true, 4);
        assert_eq!((shadow.node(), shadow.group()), (NodeId(255), GroupId(GROUP_LIMIT - 1)));
        assert_eq!((shadow.workingset(), shadow.refs(), shadow.distance(17)), (true, 4, 10));
        assert_eq!(Shadow::from_word(shadow.to_word()), Some(shadow));
        assert_eq!(Shadow::from_word(0x1000), None);
        let plain = Shadow::new(NodeId(0), GroupId(0), 0, false, 0);
        assert_eq!((plain.to_word(), plain.distance(0), plain.distance(u64::MAX)), (1, 0, (1 << AGE_BITS) - 1));
    }
}
