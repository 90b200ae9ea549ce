//! The shared bookkeeping behind one lock: free map, index, unused descriptors, spare blocks.
//!
//! Reserving a range needs memory now and then: nodes of the map and the index, descriptors. It is never asked for under
//! the lock. [`Tree::reserve`] counts what it will want; if the stock does not suffice it says so, the caller stocks up
//! outside the lock and tries again. What was stocked stays for the next one.

use core::ptr::NonNull;

use kmem_gfp::Order;

use crate::area::{Area, Owned, State};
use crate::free_map::{self, FreeMap};
use crate::index::{self, Index};
use crate::meta::{Spares, max_order, order_of};

/// The order of a block for nodes of the map or the index.
pub(crate) const NODE_ORDER: Order =
    max_order(order_of::<[u8; free_map::NODE_SIZE]>(), order_of::<[u8; index::NODE_SIZE]>());
/// The order of a block of descriptors.
pub(crate) const SLAB_ORDER: Order = order_of::<[Area; 8]>();
const SLAB_AREAS: usize = (SLAB_ORDER.size_bytes() / size_of::<Area>()) - 1;

/// A block of descriptors; the place of the first one holds the link.
#[repr(C)]
struct Slab {
    next: Option<NonNull<Slab>>,
}

/// A range to be found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Pages, guard included.
    pub(crate) pages: u64,
    /// Alignment in pages, a power of two.
    pub(crate) align: u64,
    /// The first page to look at, and the one behind the last.
    pub(crate) lo: u64,
    pub(crate) hi: u64,
}

/// Why a range was not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// No free run is long enough.
    Space,
    /// So many blocks for nodes are needed.
    Nodes(usize),
    /// Descriptors are needed.
    Areas,
}

/// # Invariants
/// 1. Descriptors linked from `unused` are `Unused` and owned by this list.
/// 2. A page is taken in `map` exactly if it is set in `index`, but for ranges between the two steps of one call.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) map: FreeMap,
    pub(crate) index: Index,
    /// The window's first page counted from address 0: what alignment refers to.
    base_page: u64,
    spares: Spares,
    unused: Option<NonNull<Area>>,
    nr_unused: usize,
    slabs: Option<NonNull<Slab>>,
    nr_blocks: u64,
    /// Of these, blocks of descriptors.
    nr_slabs: u64,
}

// SAFETY: owns what it points to; nothing is tied to a thread.
unsafe impl Send for Tree {}

impl Tree {
    /// Blocks of [`NODE_ORDER`] that [`new`](Self::new) wants for a window of `nr_pages`.
    pub(crate) const fn blocks_for(nr_pages: u64) -> usize {
        // The root and one way down for each of the window's end and its neighbour, and the index's root.
        2 + 2 * (FreeMap::height_for(nr_pages) as usize + 1)
    }

    /// A tree over a free window. `None` if `spares` has fewer than [`blocks_for`](Self::blocks_for) blocks.
    pub(crate) fn new(base_page: u64, nr_pages: u64, mut spares: Spares) -> Result<Self, Spares> {
        let nr_blocks = spares.len() as u64;
        if spares.len() < Self::blocks_for(nr_pages) {
            return Err(spares);
        }
        let (Some(map), Some(index)) = (FreeMap::new(nr_pages, &mut spares), Index::new(nr_pages, &mut spares)) else {
            return Err(spares);
        };
        Ok(Self { map, index, base_page, spares, unused: None, nr_unused: 0, slabs: None, nr_blocks, nr_slabs: 0 })
    }

    /// Blocks of nodes and of descriptors.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// Pages of these blocks.
    pub(crate) fn metadata_pages(&self) -> u64 {
        let nodes = self.nr_blocks.saturating_sub(self.nr_slabs);
        nodes * NODE_ORDER.nr_pages() as u64 + self.nr_slabs * SLAB_ORDER.nr_pages() as u64
    }

    /// Adds a block of [`NODE_ORDER`].
    ///
    /// # Safety
    /// The block is the caller's and unused.
    pub(crate) unsafe fn stock_node(&mut self, block: NonNull<u8>) {
        self.nr_blocks += 1;
        // SAFETY: the caller's promise; blocks are pages.
        unsafe { self.spares.push(block) };
    }

    /// Adds a block of [`SLAB_ORDER`] as descriptors.
    ///
    /// # Safety
    /// The block is the caller's and unused.
    pub(crate) unsafe fn stock_areas(&mut self, block: NonNull<u8>) {
        self.nr_blocks += 1;
        self.nr_slabs += 1;
        let slab = block.cast::<Slab>();
        // SAFETY: the caller's promise; a block is larger than a link.
        unsafe { slab.write(Slab { next: self.slabs }) };
        self.slabs = Some(slab);
        for i in 1..=SLAB_AREAS {
            // SAFETY: place `i` lies inside the block, whose size is a multiple of the descriptor's alignment.
            let area = unsafe { block.cast::<Area>().add(i) };
            // SAFETY: as above.
            unsafe { area.write(Area::new()) };
            // SAFETY: made above, on no list.
            self.put_unused(unsafe { Owned::from_list(area) });
        }
    }

    pub(crate) fn nr_spare_nodes(&self) -> usize {
        self.spares.len()
    }

    fn put_unused(&mut self, area: Owned) {
        let area = area.into_list();
        // SAFETY: owned, so it lives.
        unsafe { area.as_ref() }.set_link(self.unused);
        self.unused = Some(area);
        self.nr_unused += 1;
    }

    fn pop_unused(&mut self) -> Option<Owned> {
        let area = self.unused?;
        // SAFETY: listed (invariant 1).
        self.unused = unsafe { area.as_ref() }.link();
        self.nr_unused -= 1;
        // SAFETY: taken off the list above.
        Some(unsafe { Owned::from_list(area) })
    }

    /// Reserves the lowest range that fits.
    pub(crate) fn reserve(&mut self, wanted: Wanted) -> Result<Owned, Lack> {
        let page = self.find(wanted).ok_or(Lack::Space)?;
        self.reserve_at(page, wanted.pages)
    }

    /// Reserves a given range, which is free.
    pub(crate) fn reserve_at(&mut self, page: u64, pages: u64) -> Result<Owned, Lack> {
        let end = page + pages;
        let missing = self.map.missing(page, end) + self.index.missing(page, end);
        if missing > self.spares.len() {
            return Err(Lack::Nodes(missing));
        }
        let mut area = self.pop_unused().ok_or(Lack::Areas)?;
        area.assign(page, pages);
        self.map.take(page, end, &mut self.spares);
        let area = area.into_list();
        self.index.set(page, end, area, &mut self.spares);
        // SAFETY: still ours alone: in `Building` nobody claims or pins it.
        Ok(unsafe { Owned::from_list(area) })
    }

    /// The lowest aligned place for a range. For an alignment above a page a run must be long enough wherever it starts,
    /// except when the bounds leave exactly one place.
    pub(crate) fn find(&self, wanted: Wanted) -> Option<u64> {
        let Wanted { pages, align, lo, hi } = wanted;
        let room = hi.checked_sub(lo)?;
        let need = if align <= 1 || room == pages { pages } else { pages.checked_add(align - 1)? };
        let start = self.map.first_fit(lo, hi, need)?;
        let at = (self.base_page + start).checked_next_multiple_of(align.max(1))? - self.base_page;
        (at + pages <= start + need).then_some(at)
    }

    /// Frees a range that was reserved, and its descriptor. The body is empty.
    pub(crate) fn release(&mut self, mut area: Owned) {
        let (page, pages) = (area.page(), area.pages());
        self.index.clear(page, page + pages);
        area.set_state(State::Unused);
        self.map.free(page, page + pages);
        self.put_unused(area);
    }

    /// Hands every block to `release` with its order.
    ///
    /// # Safety
    /// Nobody uses the tree, the index or a descriptor any more.
    pub(crate) unsafe fn dismantle(&mut self, mut release: impl FnMut(NonNull<u8>, Order)) {
        let mut slab = self.slabs.take();
        while let Some(block) = slab {
            // SAFETY: a block of descriptors that holds its link in front.
            slab = unsafe { block.as_ref() }.next;
            release(block.cast(), SLAB_ORDER);
        }
        let mut node = |block| release(block, NODE_ORDER);
        // SAFETY: the caller's promise.
        unsafe { self.index.dismantle(&mut node) };
        // SAFETY: the caller's promise.
        unsafe { self.map.dismantle(&mut node) };
        while let Some(block) = self.spares.pop() {
            node(block);
        }
    }
}
