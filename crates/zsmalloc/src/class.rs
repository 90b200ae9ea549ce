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
use crate::zspage::{Header, Inner, Layout, NONE};

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
    /// The source's slots from here on hold nothing that can be moved.
    pub(crate) source_end: u8,
    pub(crate) free_handles: u32,
    pub(crate) nr_free_handles: u32,
    /// The current zspage's header; null if there is none, and in verifying pools.
    pub(crate) current_header: *const Header,
    /// Slots with an owner: objects and pending frees.
    pub(crate) inuse: u64,
    /// Of those, objects that have been freed while a reader was inside.
    pub(crate) pending: u64,
    /// Bytes of the objects.
    pub(crate) bytes: u64,
    pub(crate) frames: u64,
    pub(crate) zspages: u64,
    /// A bit for each list with a zspage.
    pub(crate) nonempty: u32,
    pub(crate) heads: [u32; NR_LISTS],
}

// SAFETY: the header's memory belongs to the pool, not to a thread.
unsafe impl Send for State {}

impl State {
    /// Objects stored.
    pub(crate) fn objects(&self) -> u64 {
        self.inuse.saturating_sub(self.pending)
    }

    const fn new() -> Self {
        Self {
            current: NONE,
            source: NONE,
            source_end: u8::MAX,
            free_handles: NONE,
            nr_free_handles: 0,
            current_header: core::ptr::null(),
            inuse: 0,
            pending: 0,
            bytes: 0,
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

/// The list that a zspage belongs on. With a slot that can be used at once, by the share of such slots that are in use, in
/// tenths; else by the share of all slots.
#[inline(always)]
pub(crate) fn list_of(inner: &Inner, shape: &Shape) -> usize {
    let (inuse, avail) = (u32::from(inner.inuse), u32::from(inner.nr_avail));
    if avail != 0 {
        if inuse == 0 { 0 } else { (10 * inuse / (inuse + avail)) as usize + 1 }
    } else if inuse as usize >= shape.slots() {
        FULL
    } else {
        GROW + shape.group(inuse as usize)
    }
}

/// A size class. On cache lines of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Class {
    pub(crate) shape: Shape,
    pub(crate) index: u8,
    /// The bucket of its records, see [`Meta`](crate::meta::Meta).
    pub(crate) bucket: u8,
    /// Where a record's frame words are.
    pub(crate) frames_at: u16,
    pub(crate) lock: IrqLock<State>,
}

impl Class {
    pub(crate) fn new(shape: Shape, index: u8, verify: bool) -> Self {
        Self {
            shape,
            index,
            bucket: crate::meta::bucket_of(Layout::new(shape, verify).size),
            frames_at: Layout::new(shape, verify).frames as u16,
            lock: IrqLock::new(State::new()),
        }
    }
}
