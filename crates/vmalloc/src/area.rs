//! The descriptor of an area and the protocol of its state word.
//!
//! ```text
//!             ┌ page ────────────────┬ readers ──────┬ state ┐
//!   state     │ 36 bits              │ 24 bits       │ 4     │
//!             └──────────────────────┴───────────────┴───────┘
//!
//!   Unused ─▶ Building ─▶ Busy ─▶ Claimed ─▶ Lazy ─▶ Pooled ─▶ Building ...
//!     ▲                    ▲ │ pin, unpin      │        │
//!     │                    │ └──(resize)─▶ Claimed      │        Lazy, Pooled: the range is still set in the index
//!     └────────────────────┴──────────────────┴─────────┘        back to Unused: the range is free
//! ```
//!
//! Whoever frees an area *claims* it: one compare-and-swap from "busy, starts at this page, no readers" to "claimed". The
//! first page is part of the word, so a descriptor that has been recycled for another range cannot be claimed by mistake,
//! and of two calls that free one address only one succeeds. Readers *pin*: the count in the word goes up, and whoever has
//! claimed the area waits until it is zero before he takes anything away.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use kmem_sync::{Cpu, UnsafeCell};

use crate::runs::RunList;
use crate::{Granule, Prot, VmFlags};

const STATE_MASK: u64 = 0xf;
const READER: u64 = 1 << 4;
const READERS: u64 = ((1 << 24) - 1) << 4;
const PAGE_SHIFT_IN_WORD: u32 = 28;
/// Pages that a window can have at most: 2^36 (256 TiB).
pub(crate) const MAX_WINDOW_PAGES: u64 = 1 << (64 - PAGE_SHIFT_IN_WORD);

/// Where an area stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The descriptor stands for nothing.
    Unused = 0,
    /// The range is reserved; the area is being filled. Invisible.
    Building = 1,
    /// In use.
    Busy = 2,
    /// One caller is freeing or resizing it.
    Claimed = 3,
    /// Unmapped; its translations may linger until the next purge.
    Lazy = 4,
    /// Unmapped and flushed; waits in a pool for a request of its size.
    Pooled = 5,
}

const fn word(page: u64, state: State) -> u64 {
    (page << PAGE_SHIFT_IN_WORD) | state as u64
}

fn state_of(word: u64) -> State {
    match word & STATE_MASK {
        1 => State::Building,
        2 => State::Busy,
        3 => State::Claimed,
        4 => State::Lazy,
        5 => State::Pooled,
        _ => State::Unused,
    }
}

/// What an area holds. Written by its one owner, read under a pin.
#[derive(Debug)]
pub(crate) struct Body {
    /// The frames that the area owns, in address order.
    pub(crate) runs: RunList,
    /// Bytes asked for.
    pub(crate) requested: usize,
    /// Pages that are mapped.
    pub(crate) mapped: u64,
    /// Who made the area.
    pub(crate) caller: &'static Location<'static>,
    /// The physical address that an I/O area maps.
    pub(crate) phys: u64,
    /// The block that `vm_map_ram` carves, for [`VmFlags::RAM_BLOCK`].
    pub(crate) block: *mut u8,
    pub(crate) flags: VmFlags,
    pub(crate) prot: Prot,
    /// The largest granule that it may be mapped with.
    pub(crate) granule: Granule,
}

impl Body {
    fn new() -> Self {
        Self {
            runs: RunList::new(),
            requested: 0,
            mapped: 0,
            caller: Location::caller(),
            phys: 0,
            block: core::ptr::null_mut(),
            flags: VmFlags::empty(),
            prot: Prot::KERNEL,
            granule: Granule::BASE,
        }
    }
}

/// One area's descriptor. Never freed before the window is.
///
/// # Invariants
/// 1. Of the states other than `Busy` and `Unused`, each has one owner: the [`Owned`] value, or the list that the
///    descriptor is on. Only the owner changes the state, and only a claim leaves `Busy`.
/// 2. `body` is written only by the owner, and in `Claimed` only once the readers are gone; it is read by the owner and by
///    readers that pinned while `Busy`.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Area {
    state: AtomicU64,
    /// The next descriptor of the list that this one is on.
    link: AtomicPtr<Area>,
    /// Pages of the range, guard included.
    pages: AtomicU64,
    /// The pool that the range returns to.
    node: AtomicU64,
    body: UnsafeCell<Body>,
}

// SAFETY: `body` is shared as invariant 2 says, which the state word enforces; raw pointers in it are owned by the area.
unsafe impl Sync for Area {}
// SAFETY: nothing is tied to a thread.
unsafe impl Send for Area {}

impl Area {
    /// A descriptor that stands for nothing.
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU64::new(word(0, State::Unused)),
            link: AtomicPtr::new(core::ptr::null_mut()),
            pages: AtomicU64::new(0),
            node: AtomicU64::new(0),
            body: UnsafeCell::new(Body::new()),
        }
    }

    /// The state at the moment, and the first page.
    pub(crate) fn peek(&self) -> (State, u64) {
        let word = self.state.load(Ordering::Acquire);
        (state_of(word), word >> PAGE_SHIFT_IN_WORD)
    }

    /// Pages of the range, guard included.
    #[inline(always)]
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// The node that it was made on.
    #[inline(always)]
    pub(crate) fn node_number(&self) -> usize {
        self.node.load(Ordering::Relaxed) as usize
    }

    /// Claims the busy area that starts at `page` and has no readers. The common case of freeing: one instruction.
    #[inline(always)]
    pub(crate) fn claim_exact(&self, page: u64) -> Option<Owned> {
        // Acquire pairs with the release of `publish` and of the last `unpin`: everything done to the area comes first.
        self.state
            .compare_exchange(word(page, State::Busy), word(page, State::Claimed), Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        // INVARIANT: out of `Busy` by our swap, so we are the owner.
        Some(Owned(NonNull::from(self)))
    }

    /// Registers a reader of the busy area that `page` lies in.
    pub(crate) fn pin(&self, page: u64) -> Option<Pinned<'_>> {
        let mut current = self.state.load(Ordering::Relaxed);
        loop {
            if state_of(current) != State::Busy || current & READERS == READERS {
                return None;
            }
            // Acquire pairs with the release of `publish`.
            match self.state.compare_exchange(current, current + READER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => current = now,
            }
        }
        // INVARIANT: pinned while busy.
        let pinned = Pinned { area: self };
        // The descriptor may have been recycled for another range since the index was read.
        let offset = page.wrapping_sub(pinned.page());
        if offset < self.pages() { Some(pinned) } else { None }
    }

    /// Waits until no reader is left.
    pub(crate) fn wait_for_readers(&self, cpu: &impl Cpu) {
        // Acquire pairs with the release of `unpin`.
        while self.state.load(Ordering::Acquire) & READERS != 0 {
            cpu.relax();
        }
    }

    /// The next descriptor of the list that this one is on. For whoever owns the list.
    #[inline(always)]
    pub(crate) fn link(&self) -> Option<NonNull<Area>> {
        NonNull::new(self.link.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn set_link(&self, next: Option<NonNull<Area>>) {
        self.link.store(next.map_or(core::ptr::null_mut(), NonNull::as_ptr), Ordering::Relaxed);
    }
}

/// A reader's hold on a busy area: its body stays as it is.
#[derive(Debug)]
pub(crate) struct Pinned<'a> {
    area: &'a Area,
}

impl Pinned<'_> {
    pub(crate) fn page(&self) -> u64 {
        self.area.state.load(Ordering::Relaxed) >> PAGE_SHIFT_IN_WORD
    }

    /// Pages of the range, guard included.
    pub(crate) fn pages(&self) -> u64 {
        self.area.pages()
    }

    /// Looks at the body.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Body) -> R) -> R {
        // SAFETY: pinned while busy, so nobody writes it (invariant 2 of `Area`).
        self.area.body.with(|body| f(unsafe { &*body }))
    }

    /// Turns the reader into the owner; `None` if somebody else is that already.
    pub(crate) fn claim(self) -> Option<Owned> {
        let area = self.area;
        let mut current = area.state.load(Ordering::Relaxed);
        while state_of(current) == State::Busy {
            let claimed = (current & !STATE_MASK | State::Claimed as u64) - READER;
            match area.state.compare_exchange(current, claimed, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    core::mem::forget(self);
                    // INVARIANT: out of `Busy` by our swap, so we are the owner.
                    return Some(Owned(NonNull::from(area)));
                }
                Err(now) => current = now,
            }
        }
        None
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // Release pairs with the acquire of whoever claims and waits: our reads come before his writes.
        self.area.state.fetch_sub(READER, Ordering::Release);
    }
}

/// The one owner of an area that is not busy.
///
/// # Invariants
/// Points to a descriptor in a state other than `Busy`, of which this value is the owner (invariant 1 of [`Area`]), as long
/// as the window exists.
#[derive(Debug)]
#[must_use = "an owned area that is dropped is lost until the window goes"]
pub(crate) struct Owned(NonNull<Area>);

impl Owned {
    /// Takes over a descriptor from a list.
    ///
    /// # Safety
    /// The descriptor lives, is not busy, and the caller took it off the list that owned it (or made it).
    #[inline(always)]
    pub(crate) unsafe fn from_list(area: NonNull<Area>) -> Self {
        // INVARIANT: the caller's promise.
        Self(area)
    }

    /// Gives the descriptor to a list.
    #[inline(always)]
    pub(crate) fn into_list(self) -> NonNull<Area> {
        self.0
    }

    #[inline(always)]
    pub(crate) fn area(&self) -> &Area {
        // SAFETY: lives as long as the window (type invariant).
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn page(&self) -> u64 {
        self.area().state.load(Ordering::Relaxed) >> PAGE_SHIFT_IN_WORD
    }

    #[inline(always)]
    pub(crate) fn pages(&self) -> u64 {
        self.area().pages()
    }

    #[inline(always)]
    pub(crate) fn node(&self) -> usize {
        self.area().node_number()
    }

    /// Gives an unused descriptor a range.
    pub(crate) fn assign(&mut self, page: u64, pages: u64) {
        self.area().pages.store(pages, Ordering::Relaxed);
        self.area().state.store(word(page, State::Building), Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn set_node(&mut self, node: usize) {
        self.area().node.store(node as u64, Ordering::Relaxed);
    }

    /// Changes to another state that is not busy. In `Claimed`, the readers are gone.
    #[inline(always)]
    pub(crate) fn set_state(&mut self, state: State) {
        let page = self.page();
        self.area().state.store(word(page, state), Ordering::Release);
    }

    /// Works on the body. After a claim, only once [`Area::wait_for_readers`] has returned.
    #[inline(always)]
    pub(crate) fn body<R>(&mut self, f: impl FnOnce(&mut Body) -> R) -> R {
        // SAFETY: we are the owner and there are no readers (invariant 2 of `Area`).
        self.area().body.with_mut(|body| f(unsafe { &mut *body }))
    }

    /// [`publish`](Self::publish) for a caller who knows the first page.
    #[inline(always)]
    pub(crate) fn publish_at(self, page: u64) {
        self.area().state.store(word(page, State::Busy), Ordering::Release);
    }

    /// Makes the area busy: from here on it can be found and freed.
    #[inline(always)]
    pub(crate) fn publish(mut self) {
        // Release pairs with the acquire of `pin` and `claim_exact`.
        self.set_state(State::Busy);
    }
}
