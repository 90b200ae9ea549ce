//! A page's state, packed into the words of its frame.
//!
//! ```text
//! owner   tag:3 │ whereabouts:2 │ dead:1 │ list:4 │ zone:3 │ owner:11 │ node:8 │ group:20
//! state   flags:7 │ references:3 │ ... │ key:48 (from bit 16)
//! links   previous:32 │ next:32      frame numbers plus one; 0: none
//! ```
//!
//! Where a page is, and whose list that is, stand in one word with the tag, so that a compare-and-swap that succeeds proves
//! that the frame is a page of these lists, on this list, at that moment. Nobody else writes that tag.
//!
//! | whereabouts | owner word changed by | links belong to |
//! | --- | --- | --- |
//! | batched | compare-and-swap: under the list lock to list it, without to remove it | nobody |
//! | listed | the holder of its list's lock | the holder of that lock |
//! | isolated | compare-and-swap: who isolated it, or who removes it (dead) | nobody |

use kmem_gfp::{NodeId, OwnerTag, ZoneKind};

use super::{OwnerId, PageKind};
use crate::GroupId;

/// Group numbers are below this.
pub(crate) const GROUP_LIMIT: u32 = 1 << 20;
/// Node numbers are below this.
pub(crate) const NODE_LIMIT: u32 = 1 << 8;
/// Keys are below this.
pub(crate) const KEY_LIMIT: u64 = 1 << 48;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// Not a page of the lists.
    Foreign,
    /// Added, and waiting in a CPU's batch to be put on its list.
    Batched,
    /// On a list.
    Listed,
    /// Taken off its list by somebody who will put it back or free it.
    Isolated,
}

/// The owner word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerWord(pub(crate) u64);

const WHERE: u64 = 3;
const DEAD: u64 = 1 << 5;
const LIST: u64 = 6;
const ZONE: u64 = 10;
const OWNER: u64 = 13;
const NODE: u64 = 24;
const GROUP: u64 = 32;

impl OwnerWord {
    pub(crate) const NONE: Self = Self(0);

    /// The word of a page that has just been added. The arguments are below their limits.
    pub(crate) fn batched(owner: OwnerId, node: NodeId, zone: ZoneKind, group: GroupId) -> Self {
        Self(
            OwnerTag::Lru as u64
                | 1 << WHERE
                | (zone.index() as u64) << ZONE
                | u64::from(owner.0) << OWNER
                | u64::from(node.0) << NODE
                | u64::from(group.0) << GROUP,
        )
    }

    pub(crate) fn whereabouts(self) -> Whereabouts {
        if self.0 & OwnerTag::MASK != OwnerTag::Lru as u64 {
            return Whereabouts::Foreign;
        }
        match self.0 >> WHERE & 3 {
            0 => Whereabouts::Foreign,
            1 => Whereabouts::Batched,
            2 => Whereabouts::Listed,
            _ => Whereabouts::Isolated,
        }
    }

    pub(crate) const fn listed(self, list: usize) -> Self {
        Self(self.0 & !(3 << WHERE | 15 << LIST) | 2 << WHERE | (list as u64 & 15) << LIST)
    }

    pub(crate) const fn isolated(self) -> Self {
        Self(self.0 | 3 << WHERE)
    }

    pub(crate) const fn is_dead(self) -> bool {
        self.0 & DEAD != 0
    }

    pub(crate) const fn dead(self) -> Self {
        Self(self.0 | DEAD)
    }

    pub(crate) const fn list(self) -> usize {
        (self.0 >> LIST & 15) as usize
    }

    pub(crate) const fn zone(self) -> usize {
        (self.0 >> ZONE & 7) as usize
    }

    pub(crate) const fn owner(self) -> OwnerId {
        OwnerId((self.0 >> OWNER & (OwnerId::LIMIT as u64 - 1)) as u16)
    }

    pub(crate) const fn node(self) -> NodeId {
        NodeId((self.0 >> NODE & (NODE_LIMIT as u64 - 1)) as u32)
    }

    pub(crate) const fn group(self) -> GroupId {
        GroupId((self.0 >> GROUP & (GROUP_LIMIT as u64 - 1)) as u32)
    }

    pub(crate) const fn with_group(self, group: GroupId) -> Self {
        Self(self.0 & !((GROUP_LIMIT as u64 - 1) << GROUP) | (group.0 as u64) << GROUP)
    }
}

/// The state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub(crate) u64);

impl State {
    /// Backed by swap.
    pub(crate) const ANON: u64 = 1;
    /// Recently used: on an active list, or on its way there.
    pub(crate) const ACTIVE: u64 = 1 << 1;
    /// Was in use when it was evicted, or has been used more often than can be counted.
    pub(crate) const WORKINGSET: u64 = 1 << 2;
    /// Being written.
    pub(crate) const WRITEBACK: u64 = 1 << 3;
    /// To be reclaimed as soon as it has been written.
    pub(crate) const RECLAIM: u64 = 1 << 4;
    /// Must stay.
    pub(crate) const UNEVICTABLE: u64 = 1 << 5;
    /// Has a copy on swap.
    pub(crate) const SWAPPED: u64 = 1 << 6;
    const REFS: u64 = 7;
    /// All bits of the count.
    pub(crate) const REFS_MASK: u64 = 7 << Self::REFS;
    /// The count goes no further.
    pub(crate) const REFS_MAX: u64 = 4;
    const KEY: u64 = 16;

    pub(crate) const fn new(flags: u64, key: u64) -> Self {
        Self(flags | key << Self::KEY)
    }

    pub(crate) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// How often it was referenced through descriptors.
    pub(crate) const fn refs(self) -> u64 {
        self.0 >> Self::REFS & 7
    }

    pub(crate) const fn with_refs(self, refs: u64) -> Self {
        Self(self.0 & !Self::REFS_MASK | refs << Self::REFS)
    }

    pub(crate) const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    pub(crate) const fn key(self) -> u64 {
        self.0 >> Self::KEY
    }

    pub(crate) const fn kind(self) -> PageKind {
        if self.has(Self::ANON) { PageKind::Anon } else { PageKind::File }
    }
}
