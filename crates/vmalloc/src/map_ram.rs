//! `vm_map_ram`: short-lived mappings of few pages, carved out of blocks of the CPU's node.
//!
//! ```text
//!   Block  ┌ used ─┬ dirty ─┬ used ──┬ free ─────────────────┐   1024 pages, aligned to its size, an area of its own
//!          └───────┴────────┴────────┴───────────────────────┘
//!                                     ▲ carved from here on; what was given back is dirty and not reused
//! ```
//!
//! Unmapping makes pages dirty; translations for them may linger. A block whose pages are all dirty goes, as a whole, the
//! way of every freed area: through a purge and its flush. So does, under pressure, a block in which only dirty and free
//! pages are left.
//!
//! **Locking:** the list and everything in its blocks are under the node's `ram` lock; mapping and unmapping happen outside
//! of it, on pages that are marked used until they are unmapped.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId, PAGE_SHIFT, PAGE_SIZE, Pfn};

use crate::address_space::AddressSpace;
use crate::alloc::Kind;
use crate::area::Area;
use crate::meta::{alloc_block_on, free_block, order_of};
use crate::purge::{Mode, Union};
use crate::tree::Wanted;
use crate::vmalloc::{Shared, Vmalloc};
use crate::{Granule, Prot, VfreeError, VmFlags, VmallocEnv, VmallocError};

/// The most pages that a block serves at once.
pub const RAM_PAGES_MAX: usize = 64;
const BLOCK_PAGES_MAX: u64 = 1024;
const WORDS: usize = (BLOCK_PAGES_MAX / 64) as usize;

/// Pages of a block: a sixteenth of each CPU's share of the window, a power of two between 128 and 1024.
pub(crate) fn block_pages(nr_pages: u64, nr_cpus: u32) -> u64 {
    let share = nr_pages / u64::from(nr_cpus.next_power_of_two()) / 16;
    (1 << share.max(1).ilog2()).clamp(128, BLOCK_PAGES_MAX)
}

/// # Invariants
/// 1. `area` is the block's own area, busy until the block is taken off its list.
/// 2. Pages below `carved` are used, in transit to dirty, or dirty; `used` and `starts` say which are used, and where
///    mappings start. `dirty` counts dirty pages.
/// 3. `next` and `previous` are neighbours in the list of the node that owns the block.
struct Block {
    next: *mut Block,
    previous: *mut Block,
    area: NonNull<Area>,
    page: u64,
    pages: u64,
    carved: u64,
    dirty: u64,
    /// Dirty pages that no flush has covered lie inside.
    unflushed: Union,
    used: [u64; WORDS],
    starts: [u64; WORDS],
}

fn bit(words: &[u64; WORDS], i: u64) -> bool {
    words.get((i / 64) as usize).is_some_and(|word| word >> (i % 64) & 1 != 0)
}

fn set_bits(words: &mut [u64; WORDS], from: u64, nr: u64, on: bool) {
    for i in from..from + nr {
        if let Some(word) = words.get_mut((i / 64) as usize) {
            let mask = 1 << (i % 64);
            *word = if on { *word | mask } else { *word & !mask };
        }
    }
}

impl Block {
    fn free(&self) -> u64 {
        self.pages - self.carved
    }

    /// How many pages were mapped at once from page `i` of the block on; 0 if no mapping starts there.
    fn mapped_at(&self, i: u64) -> u64 {
        if !bit(&self.starts, i) {
            return 0;
        }
        let rest = (i + 1..self.pages).take_while(|&i| bit(&self.used, i) && !bit(&self.starts, i));
        1 + rest.count() as u64
    }
}

/// A node's blocks: those with free pages in front.
///
/// # Invariants
/// Following `next` from `head` visits live blocks, `tail` last, which belong to this list.
#[derive(Debug)]
pub(crate) struct RamBlocks {
    head: *mut Block,
    tail: *mut Block,
}

// SAFETY: owns its blocks; nothing is tied to a thread.
unsafe impl Send for RamBlocks {}

impl RamBlocks {
    pub(crate) const fn new() -> Self {
        Self { head: core::ptr::null_mut(), tail: core::ptr::null_mut() }
    }

    fn push_front(&mut self, block: NonNull<Block>) {
        let raw = block.as_ptr();
        // SAFETY: the block is live and on no list; neighbours are live (type invariant).
        unsafe {
            (*raw).previous = core::ptr::null_mut();
            (*raw).next = self.head;
            if self.head.is_null() { self.tail = raw } else { (*self.head).previous = raw }
        }
        self.head = raw;
    }

    fn push_back(&mut self, block: NonNull<Block>) {
        let raw = block.as_ptr();
        // SAFETY: the block is live and on no list; neighbours are live (type invariant).
        unsafe {
            (*raw).next = core::ptr::null_mut();
            (*raw).previous = self.tail;
            if self.tail.is_null() { self.head = raw } else { (*self.tail).next = raw }
        }
        self.tail = raw;
    }

    fn remove(&mut self, block: NonNull<Block>) {
        let raw = block.as_ptr();
        // SAFETY: the block is on this list; neighbours are live (type invariant).
        unsafe {
            let (previous, next) = ((*raw).previous, (*raw).next);
            if previous.is_null() {
                self.head = next
            } else {
                (*previous).next = next
            }
            if next.is_null() { self.tail = previous } else { (*next).previous = previous }
        }
    }

    /// Carves `room` pages, of which `nr` are to be used, out of the first block that has them.
    fn carve(&mut self, room: u64, nr: u64) -> Option<u64> {
        let mut at = self.head;
        while let Some(mut block) = NonNull::new(at) {
            // SAFETY: listed blocks are live (type invariant), and the list is borrowed alone.
            let this = unsafe { block.as_mut() };
            if this.free() == 0 {
                return None;
            }
            if this.free() >= room {
                let from = this.carved;
                this.carved += room;
                set_bits(&mut this.used, from, nr, true);
                set_bits(&mut this.starts, from, 1, true);
                let page = this.page + from;
                if this.free() == 0 {
                    self.remove(block);
                    self.push_back(block);
                }
                return Some(page);
            }
            at = this.next;
        }
        None
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Maps up to a few frames for a short while: the cheapest mapping there is. Up to [`RAM_PAGES_MAX`] pages come out of a
    /// block of the CPU's node; more get an area of their own. End it with [`vm_unmap_ram`](Self::vm_unmap_ram) and the
    /// same count. `node` is where the memory for a new block's own description is taken, if that can be had there; mappings
    /// of all nodes share the block of the CPU. Task context; sleeps.
    ///
    /// # Safety
    /// The frames are the caller's to map for as long as the mapping lives.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[track_caller]
    pub unsafe fn vm_map_ram(&self, frames: &[Pfn], node: Option<NodeId>) -> Result<NonNull<u8>, VmallocError> {
        let shared = self.shared()?;
        let gfp = Gfp::KERNEL;
        self.check_context(gfp)?;
        let nr_pages = frames.len() as u64;
        if nr_pages == 0 {
            return Err(VmallocError::ZeroSize);
        }
        let room = nr_pages.next_power_of_two();
        if frames.len() > RAM_PAGES_MAX || room > shared.ram_block_pages {
            return self.map_ram_area(shared, frames, Location::caller());
        }
        let page = loop {
            let here = self.local_node();
            if let Some(page) = shared.node(here).ram.with(self.env.cpu(), |ram| ram.carve(room, nr_pages)) {
                break page;
            }
            self.add_block(shared, here, gfp, node, Location::caller())?;
        };
        let address = shared.address(page);
        // SAFETY: carved for us, and nothing is mapped there: pages of a block are carved once.
        let mapped = unsafe { self.map_frames(address, frames, Prot::KERNEL, Granule::BASE, gfp) };
        if let Err(source) = mapped {
            let gave_up = self.unmap_from_block(shared, page, nr_pages);
            debug_assert!(gave_up.is_ok());
            return Err(VmallocError::NotMapped { nr_pages, source });
        }
        self.pointer(address)
    }

    /// Ends a mapping of [`vm_map_ram`](Self::vm_map_ram). The pages may be reachable through lingering translations until
    /// [`vm_unmap_aliases`](Self::vm_unmap_aliases). Task context; may sleep.
    ///
    /// # Safety
    /// Nobody uses the mapping any more.
    ///
    /// # Errors
    /// [`VfreeError::WrongCount`] if `nr_pages` is not the count that was mapped at `mapping`; else a [`VfreeError`]
    /// that says what is there. Nothing has changed.
    pub unsafe fn vm_unmap_ram(&self, mapping: *mut u8, nr_pages: usize) -> Result<(), VfreeError> {
        let shared = self.shared_to_free()?;
        self.task_or()?;
        let address = mapping.addr();
        let page = shared.page_of(address).ok_or(VfreeError::Foreign(address))?;
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(VfreeError::Misaligned(address));
        }
        let area = self.area_at(shared, page).ok_or(VfreeError::NoArea(address))?;
        let pinned = area.pin(page).ok_or(VfreeError::AlreadyFree(address))?;
        let (flags, pages, start) = (pinned.with(|body| body.flags), pinned.pages(), pinned.page());
        drop(pinned);
        if flags.contains(VmFlags::RAM_BLOCK) {
            return self.unmap_from_block(shared, page, nr_pages as u64);
        }
        if !flags.contains(VmFlags::RAM) {
            return Err(VfreeError::WrongKind { address, flags });
        }
        if pages != nr_pages as u64 || page != start {
            return Err(VfreeError::WrongCount { address, given: nr_pages as u64 });
        }
        let area = self.claim(shared, address, VmFlags::RAM, VmFlags::RAM_BLOCK)?;
        self.finish_free(shared, area);
        Ok(())
    }

    fn map_ram_area(
        &self,
        shared: &Shared,
        frames: &[Pfn],
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, VmallocError> {
        let size = frames.len().checked_mul(PAGE_SIZE).ok_or_else(Self::overflow)?;
        let pages = self.check_size(shared, size)?;
        let wanted = Wanted { pages, align: 1, lo: 0, hi: shared.nr_pages };
        let mut area = self.new_area(shared, wanted, ram_kind(VmFlags::RAM, pages, caller), Gfp::KERNEL)?;
        let address = shared.address(area.page());
        let mapped = area.body(|body| {
            // SAFETY: a range of ours in which nothing is mapped.
            unsafe { self.map_frames(address, frames, body.prot, Granule::BASE, Gfp::KERNEL) }
        });
        if let Err(source) = mapped {
            self.undo_mapped(shared, area);
            return Err(VmallocError::NotMapped { nr_pages: pages, source });
        }
        area.publish();
        self.pointer(address)
    }

    /// Adds a fresh block to a node.
    fn add_block(
        &self,
        shared: &Shared,
        node: usize,
        gfp: Gfp,
        hint: Option<NodeId>,
        caller: &'static Location<'static>,
    ) -> Result<(), VmallocError> {
        let pages = shared.ram_block_pages;
        let wanted = Wanted { pages, align: pages, lo: 0, hi: shared.nr_pages };
        let memory = alloc_block_on(&self.env, gfp, order_of::<Block>(), hint)
            .map_err(|source| Self::no_memory(pages, source))?
            .cast::<Block>();
        let kind = ram_kind(VmFlags::RAM | VmFlags::RAM_BLOCK, pages, caller);
        let mut area = match self.new_area(shared, wanted, kind, gfp) {
            Ok(area) => area,
            Err(error) => {
                // SAFETY: allocated above, unused.
                unsafe { free_block(&self.env, memory.cast(), order_of::<Block>()) };
                return Err(error);
            }
        };
        area.set_node(node);
        area.body(|body| body.block = memory.as_ptr().cast());
        let block = Block {
            next: core::ptr::null_mut(),
            previous: core::ptr::null_mut(),
            area: NonNull::from(area.area()),
            page: area.page(),
            pages,
            carved: 0,
            dirty: 0,
            unflushed: Union::EMPTY,
            used: [0; WORDS],
            starts: [0; WORDS],
        };
        // SAFETY: a fresh block of that size.
        unsafe { memory.write(block) };
        area.publish();
        shared.node(node).ram.with(self.env.cpu(), |ram| ram.push_front(memory));
        Ok(())
    }

    /// Unmaps a mapping in a block, and takes the block off if that was its last page.
    fn unmap_from_block(&self, shared: &Shared, page: u64, nr_pages: u64) -> Result<(), VfreeError> {
        let address = shared.address(page);
        let wrong = VfreeError::WrongCount { address, given: nr_pages };
        let gone = VfreeError::AlreadyFree(address);
        let area = self.area_at(shared, page).ok_or(gone)?;
        let pinned = area.pin(page).ok_or(gone)?;
        let (node, raw) = (area.node_number(), block_of(&pinned));
        let mut block = raw.ok_or(gone)?;
        let ram = &shared.node(node).ram;
        // The pin keeps the block: whoever takes it off its list claims its area and waits.
        ram.with(self.env.cpu(), |_| {
            // SAFETY: pinned, and under the lock of the node that owns it.
            let this = unsafe { block.as_mut() };
            let i = page - this.page;
            match this.mapped_at(i) {
                0 => Err(if bit(&this.used, i) { wrong } else { gone }),
                mapped if mapped != nr_pages => Err(wrong),
                _ => {
                    set_bits(&mut this.used, i, nr_pages, false);
                    set_bits(&mut this.starts, i, 1, false);
                    Ok(())
                }
            }
        })?;
        // SAFETY: ours since the bits were taken; nobody uses it, as the caller has promised.
        unsafe { self.env.space().unmap(address, (nr_pages as usize) << PAGE_SHIFT) };
        let all_dirty = ram.with(self.env.cpu(), |ram| {
            // SAFETY: as above.
            let this = unsafe { block.as_mut() };
            this.unflushed.add(page, page + nr_pages);
            this.dirty += nr_pages.next_power_of_two();
            let all_dirty = this.dirty == this.pages;
            if all_dirty {
                ram.remove(block);
            }
            all_dirty
        });
        if all_dirty {
            let claimed = pinned.claim();
            debug_assert!(claimed.is_some(), "only whoever takes the block off its list claims its area");
            if let Some(area) = claimed {
                self.give_up_block(shared, block, area);
            }
        }
        Ok(())
    }

    /// Ends a block that is off its list. Its range goes the way of freed areas.
    fn give_up_block(&self, shared: &Shared, block: NonNull<Block>, mut area: crate::area::Owned) {
        area.area().wait_for_readers(self.env.cpu());
        area.body(|body| body.block = core::ptr::null_mut());
        // SAFETY: off its list, and its last readers are gone.
        unsafe { free_block(&self.env, block.cast(), order_of::<Block>()) };
        self.retire(shared, area);
    }

    /// The blocks' part in a purge: dirty pages join the flush, and blocks with nothing but dirty and free pages are given
    /// up; in an ordinary purge only if less than a quarter is free. Under the purge's lock, before lazy lists are taken.
    pub(crate) fn collect_ram_blocks(&self, shared: &Shared, mode: Mode, union: &mut Union) {
        for node in shared.nodes() {
            loop {
                let given_up = node.ram.with(self.env.cpu(), |ram| {
                    let mut at = ram.head;
                    while let Some(mut block) = NonNull::new(at) {
                        // SAFETY: listed blocks are live (invariant of `RamBlocks`), under the lock.
                        let this = unsafe { block.as_mut() };
                        let fragmented = this.dirty > 0 && this.free() + this.dirty == this.pages;
                        if fragmented && (mode == Mode::Exhausted || this.free() < this.pages / 4) {
                            ram.remove(block);
                            return Some((block, this.area, this.page));
                        }
                        if this.unflushed.lo < this.unflushed.hi {
                            union.add(this.unflushed.lo, this.unflushed.hi);
                            this.unflushed = Union::EMPTY;
                        }
                        at = this.next;
                    }
                    None
                });
                let Some((block, area, page)) = given_up else { break };
                // SAFETY: descriptors live as long as the window.
                let pinned = unsafe { area.as_ref() }.pin(page);
                let claimed = pinned.and_then(crate::area::Pinned::claim);
                debug_assert!(claimed.is_some(), "only whoever takes the block off its list claims its area");
                if let Some(area) = claimed {
                    area.area().wait_for_readers(self.env.cpu());
                    self.give_up_block_quietly(shared, block, area);
                }
            }
        }
    }

    /// [`give_up_block`](Self::give_up_block) inside a purge, which must not start another one.
    fn give_up_block_quietly(&self, shared: &Shared, block: NonNull<Block>, mut area: crate::area::Owned) {
        area.body(|body| body.block = core::ptr::null_mut());
        // SAFETY: off its list, and its last readers are gone.
        unsafe { free_block(&self.env, block.cast(), order_of::<Block>()) };
        self.retire_quietly(shared, area);
    }

    /// Copies one page's worth of a block, if it is mapped. `true` if it was.
    pub(crate) fn read_block(
        &self,
        shared: &Shared,
        pinned: &crate::area::Pinned<'_>,
        node: usize,
        page: u64,
        copy: impl FnOnce(),
    ) -> bool {
        let Some(block) = block_of(pinned) else { return false };
        shared.node(node).ram.with(self.env.cpu(), |_| {
            // SAFETY: pinned, and under the lock of the node that owns it.
            let this = unsafe { block.as_ref() };
            // Used pages are unmapped only after their bits are gone, which takes this lock; pages that are being mapped
            // are used already, so the page table is asked as well.
            let mapped =
                bit(&this.used, page - this.page) && self.env.space().translate(shared.address(page)).is_some();
            if mapped {
                copy();
            }
            mapped
        })
    }
}

/// The block of an area that is one.
fn block_of(pinned: &crate::area::Pinned<'_>) -> Option<NonNull<Block>> {
    pinned.with(|body| if body.flags.contains(VmFlags::RAM_BLOCK) { NonNull::new(body.block.cast()) } else { None })
}

fn ram_kind(flags: VmFlags, pages: u64, caller: &'static Location<'static>) -> Kind {
    Kind {
        flags,
        prot: Prot::KERNEL,
        granule: Granule::BASE,
        requested: (pages as usize) << PAGE_SHIFT,
        mapped: if flags.contains(VmFlags::RAM_BLOCK) { 0 } else { pages },
        phys: 0,
        caller,
    }
}

/// Gives the memory of all blocks back when the window goes.
pub(crate) fn drop_blocks<E: VmallocEnv>(env: &E, shared: &Shared) {
    for node in shared.nodes() {
        let mut at = node.ram.with(env.cpu(), |ram| core::mem::replace(ram, RamBlocks::new())).head;
        while let Some(block) = NonNull::new(at) {
            // SAFETY: listed blocks are live, and the list is ours.
            at = unsafe { block.as_ref() }.next;
            // SAFETY: as above; nobody uses the window any more.
            unsafe { free_block(env, block.cast(), order_of::<Block>()) };
        }
    }
}
