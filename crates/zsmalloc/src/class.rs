//! A size class: its zspages, sorted by fullness.
//!
//! ```text
//! current ─▶ zspage that stores go to          source ─▶ zspage that compaction empties
//! lists   avail  0 1 2 ... 10                   by fullness group; some slot can be used at once
//!         full   11
//!         grow   12 + group                     every frame there is full; stores need another frame
//! ```
//! Lists are doubly linked by zspage numbers, the newest first. A class has a [`State`] for each CPU that has used it
//! ([`Local`]) and a shared one under the class's lock, for contexts without a CPU and for what compaction has packed.
//! A zspage belongs to one of them.

use core::ptr;

use kmem_sync::atomic::{AtomicU32, AtomicU64};
use kmem_sync::{IrqLock, LocalCounter, UnsafeCell};

use crate::geometry::{NR_GROUPS, Shape};
use crate::handle::Entry;
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
pub(crate) const AVAIL_LISTS: u32 = (1 << FULL) - 1;
/// Lists whose zspages could have one more frame.
pub(crate) const GROW_LISTS: u32 = ((1 << FULL) - 1) << GROW;

/// A stack of free handles, linked through their entries.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) head: u32,
    pub(crate) nr: u32,
}

impl Handles {
    pub(crate) const fn new() -> Self {
        Self { head: NONE, nr: 0 }
    }
}

/// A slot that has just become free, kept as it is for the next store: its handle is not on the stack, its bit not in
/// `avail`, and it counts as in use. It lies in one frame, and there is another object on that frame.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Hot {
    /// The entry of its handle; null if there is no such slot.
    pub(crate) entry: *const AtomicU64,
    /// The next object's handle and entry; the latter without a length.
    pub(crate) handle: u64,
    pub(crate) life: Entry,
    /// Its first byte.
    pub(crate) bytes: *mut u8,
    /// Of its zspage.
    pub(crate) header: *const Header,
}

impl Hot {
    pub(crate) const fn none() -> Self {
        Self { entry: ptr::null(), handle: 0, life: Entry(0), bytes: ptr::null_mut(), header: ptr::null() }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.entry.is_null()
    }
}

/// What a state holds, in numbers that anybody may read. Written inside its section.
///
/// Sums over a class's states are exact. `bytes` and `pending` of one state are not: they are counted where it happens, and
/// zspages change hands with their objects.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counts {
    /// Slots with an owner: objects and pending frees.
    pub(crate) inuse: LocalCounter,
    /// Bytes of the objects.
    pub(crate) bytes: LocalCounter,
    pub(crate) frames: LocalCounter,
    pub(crate) zspages: LocalCounter,
    /// Of the slots with an owner, those whose object has been freed while a reader was inside.
    pub(crate) pending: LocalCounter,
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            inuse: LocalCounter::new(),
            bytes: LocalCounter::new(),
            frames: LocalCounter::new(),
            zspages: LocalCounter::new(),
            pending: LocalCounter::new(),
        }
    }
}

/// # Invariants
/// A zspage of the state is exactly one of: `current`, `source`, on the list that its `list` says. `quiet` is `NONE`, or
/// `current`, and then `current_header` is its header.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct State {
    /// The current zspage's header; null if there is none, and in verifying pools.
    pub(crate) current_header: *const Header,
    pub(crate) hot: Hot,
    /// Of the class: bytes of a slot, and where a record's frame words are.
    pub(crate) size: u32,
    pub(crate) frames_at: u32,
    pub(crate) current: u32,
    /// The current zspage, if it has a header here and a free of its objects has nothing else to do.
    pub(crate) quiet: u32,
    pub(crate) source: u32,
    /// The source's slots from here on hold nothing that can be moved.
    pub(crate) source_end: u8,
    /// A bit for each list with a zspage.
    pub(crate) nonempty: u32,
    pub(crate) heads: [u32; NR_LISTS],
}

// SAFETY: what the pointers lead to belongs to the pool, not to a thread.
unsafe impl Send for State {}

impl State {
    fn new(shape: Shape, frames_at: u16) -> Self {
        Self {
            current_header: ptr::null(),
            hot: Hot::none(),
            quiet: NONE,
            size: shape.size() as u32,
            frames_at: frames_at.into(),
            current: NONE,
            source: NONE,
            source_end: u8::MAX,
            nonempty: 0,
            heads: [NONE; NR_LISTS],
        }
    }

    #[inline(always)]
    pub(crate) fn head(&self, list: usize) -> u32 {
        self.heads.get(list).copied().unwrap_or(NONE)
    }

    #[inline(always)]
    pub(crate) fn set_head(&mut self, list: usize, zspage: u32) {
        if let Some(head) = self.heads.get_mut(list) {
            *head = zspage;
            let bit = 1 << list;
            self.nonempty = if zspage == NONE { self.nonempty & !bit } else { self.nonempty | bit };
        }
    }

    /// The first zspage of the highest of some lists.
    #[inline(always)]
    pub(crate) fn highest(&self, lists: u32) -> Option<u32> {
        let lists = self.nonempty & lists;
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
    let (inuse, avail) = (u32::from(inner.inuse), inner.nr_avail());
    if avail != 0 {
        if inuse == 0 { 0 } else { (10 * inuse / (inuse + avail)) as usize + 1 }
    } else if inuse as usize >= shape.slots() {
        FULL
    } else {
        GROW + shape.group(inuse as usize)
    }
}

/// A CPU's part of a class. On cache lines of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Local {
    pub(crate) counts: Counts,
    /// Reached inside the CPU's section only.
    pub(crate) state: UnsafeCell<State>,
}

impl Local {
    pub(crate) fn new(class: &Class) -> Self {
        Self { counts: Counts::new(), state: UnsafeCell::new(State::new(class.shape, class.frames_at)) }
    }
}

/// What a class's lock protects.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) state: State,
    pub(crate) handles: Handles,
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
    /// The shared state's `nonempty`, to look at without the lock.
    pub(crate) hint: AtomicU32,
    pub(crate) counts: Counts,
    pub(crate) lock: IrqLock<Home>,
}

impl Class {
    pub(crate) fn new(shape: Shape, index: u8, verify: bool) -> Self {
        let layout = Layout::new(shape, verify);
        let frames_at = layout.frames as u16;
        Self {
            shape,
            index,
            bucket: crate::meta::bucket_of(layout.size),
            frames_at,
            hint: AtomicU32::new(0),
            counts: Counts::new(),
            lock: IrqLock::new(Home { state: State::new(shape, frames_at), handles: Handles::new() }),
        }
    }
}
