//! A size class: its zspages, sorted by fullness, and a stack of free handles.
//!
//! ```text
//! current ─▶ zspage that stores go to          source ─▶ zspage that compaction empties
//! lists   avail  0 1 2 ... 10                   by fullness group; some slot can be used at once
//!         full   11
//!         grow   12 + group                     every frame there is full; stores need another frame
//! ```
//! Everything in [`State`] is under the class's lock. Lists are doubly linked by zspage numbers, the newest first.

use kmem_sync::IrqLock;

use crate::geometry::{NR_GROUPS, Shape};
use crate::zspage::{Inner, Layout, NONE};

/// The first list of zspages that need a frame.
pub(crate) const GROW: usize = NR_GROUPS;
/// The list of full zspages.
pub(crate) const FULL: usize = NR_GROUPS - 1;
pub(crate) const NR_LISTS: usize = 2 * NR_GROUPS;
/// The "list" of the zspage that stores go to.
pub(crate) const CURRENT: u8 = 30;
/// The "list" of the zspage that compaction empties.
pub(crate) const SOURCE: u8 = 31;
/// Lists whose zspages have a slot that can be used at once.
const AVAIL_LISTS: u32 = (1 << FULL) - 1;
/// Lists whose zspages could have one more frame.
const GROW_LISTS: u32 = ((1 << FULL) - 1) << GROW;

/// # Invariants
/// A zspage of the class is exactly one of: `current`, `source`, on the list that its `list` says.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) current: u32,
    pub(crate) source: u32,
    pub(crate) free_handles: u32,
    pub(crate) nr_free_handles: u32,
    /// Objects, those whose free is pending not included.
    pub(crate) objects: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Slots with an owner: objects and pending frees.
    pub(crate) inuse: u64,
    /// Free slots whose frames are there.
    pub(crate) avail: u64,
    pub(crate) frames: u64,
    pub(crate) zspages: u64,
    /// A bit for each list with a zspage.
    pub(crate) nonempty: u32,
    pub(crate) heads: [u32; NR_LISTS],
}

impl State {
    const fn new() -> Self {
        Self {
            current: NONE,
            source: NONE,
            free_handles: NONE,
            nr_free_handles: 0,
            objects: 0,
            bytes: 0,
            inuse: 0,
            avail: 0,
            frames: 0,
            zspages: 0,
            nonempty: 0,
            heads: [NONE; NR_LISTS],
        }
    }

    pub(crate) fn head(&self, list: usize) -> u32 {
        self.heads.get(list).copied().unwrap_or(NONE)
    }

    pub(crate) fn set_head(&mut self, list: usize, zspage: u32) {
        if let Some(head) = self.heads.get_mut(list) {
            *head = zspage;
            if zspage == NONE {
                self.nonempty &= !(1 << list);
            } else {
                self.nonempty |= 1 << list;
            }
        }
    }

    /// The fullest zspage with a slot that can be used at once.
    pub(crate) fn fullest_avail(&self) -> Option<u32> {
        let lists = self.nonempty & AVAIL_LISTS;
        if lists == 0 { None } else { Some(self.head(lists.ilog2() as usize)) }
    }

    /// The fullest zspage that could have one more frame.
    pub(crate) fn fullest_growable(&self) -> Option<u32> {
        let lists = self.nonempty & GROW_LISTS;
        if lists == 0 { None } else { Some(self.head(lists.ilog2() as usize)) }
    }

    /// The emptiest zspage that has objects and is not full.
    pub(crate) fn emptiest(&self) -> Option<u32> {
        let some = |lists: u32| if lists == 0 { u32::MAX } else { lists.trailing_zeros() };
        let avail = some(self.nonempty & AVAIL_LISTS & !1);
        let grow = some((self.nonempty & GROW_LISTS) >> (GROW + 1) << 1);
        if avail == u32::MAX && grow == u32::MAX {
            None
        } else if avail <= grow {
            Some(self.head(avail as usize))
        } else {
            Some(self.head(GROW + grow as usize))
        }
    }
}

/// The list that a zspage belongs on.
#[inline(always)]
pub(crate) fn list_of(inner: &Inner, shape: &Shape, magic: u32) -> usize {
    // `magic` is 10/slots in 16 bits after the point, rounded up: exact for up to 128 slots.
    let inuse = inner.inuse as usize;
    let group = if inuse == 0 {
        0
    } else if inuse >= shape.slots() {
        return FULL;
    } else {
        ((inuse as u32 * magic) >> 16) as usize + 1
    };
    if inner.nr_avail == 0 { GROW + group } else { group }
}

/// A size class. On cache lines of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Class {
    pub(crate) shape: Shape,
    pub(crate) index: u8,
    /// The bucket of its records, see [`Meta`](crate::meta::Meta).
    pub(crate) bucket: u8,
    pub(crate) group_magic: u32,
    pub(crate) lock: IrqLock<State>,
}

impl Class {
    pub(crate) fn new(shape: Shape, index: u8, verify: bool) -> Self {
        Self {
            shape,
            index,
            bucket: crate::meta::bucket_of(Layout::new(shape, verify).size),
            group_magic: (10 * 65536_u32).div_ceil(shape.slots() as u32),
            lock: IrqLock::new(State::new()),
        }
    }
}
