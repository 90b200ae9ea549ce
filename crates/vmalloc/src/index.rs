//! From any address to its area: a radix tree over page numbers that is read without a lock.
//!
//! ```text
//!   root ─▶ [512] ─▶ ... ─▶ [512] ─▶ area         each entry: a table, or (low bit set) an area or nothing
//!              └─▶ area, if it covers all that the entry stands for
//! ```
//!
//! Every page of an area, its guard page included, leads to its descriptor; parts that an entry covers as a whole take one
//! entry. A lookup is one load per level. Entries stay set while a freed range waits for its purge or in a pool, so the
//! common pair of alloc and free writes nothing here.
//!
//! **Locking:** writers hold the tree's lock. Readers hold nothing: tables are never freed before the window is, and what
//! a reader finds is checked against the descriptor's own state.

use core::ptr::NonNull;

use kmem_sync::atomic::{AtomicPtr, Ordering};

use crate::area::Area;
use crate::meta::Spares;

const BITS: u32 = 9;
const FAN: usize = 1 << BITS;
/// Marks an entry that leads to an area, or nowhere: one bit tells whether a lookup goes on.
const AREA: usize = 1;
/// The entry that leads nowhere.
const NOWHERE: *mut u8 = core::ptr::without_provenance_mut(AREA);

#[repr(C)]
struct Table {
    entries: [AtomicPtr<u8>; FAN],
}

/// What a block for a node of this tree must hold.
pub(crate) const NODE_SIZE: usize = size_of::<Table>();

/// The tree. Page numbers count from the window's first page.
///
/// # Invariants
/// 1. `root` is a table whose entries stand for `1 << shift` pages each; a table below an entry of `1 << s` pages has
///    entries of `1 << (s - 9)`; entries of one page lead to areas only.
/// 2. An entry without the area bit points to a table that lives as long as the index.
/// 3. An entry with the area bit is [`NOWHERE`] or points to a descriptor that lives as long as the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index {
    root: NonNull<Table>,
    shift: u32,
}

// SAFETY: shared access is to atomics only, and what they lead to lives as long as the index.
unsafe impl Sync for Index {}
// SAFETY: as above.
unsafe impl Send for Index {}

impl Index {
    /// An empty index over `nr_pages`; takes one node.
    pub(crate) fn new(nr_pages: u64, spares: &mut Spares) -> Option<Self> {
        let mut shift = 0;
        while (FAN as u64) << shift < nr_pages {
            shift += BITS;
        }
        // INVARIANT: an empty table (1, 2, 3).
        Some(Self { root: new_table(spares)?, shift })
    }

    /// The area that `page` belongs to, whatever its state. Any context, no lock, one load per level.
    #[inline]
    pub(crate) fn lookup(&self, page: u64) -> Option<NonNull<Area>> {
        let mut table = self.root;
        let mut shift = self.shift;
        loop {
            // SAFETY: a table (1, 2).
            let entry =
                unsafe { table.as_ref() }.entries[page.wrapping_shr(shift) as usize % FAN].load(Ordering::Acquire);
            if entry.addr() & AREA != 0 {
                return area_of(entry);
            }
            // SAFETY: a table (2).
            table = unsafe { NonNull::new_unchecked(entry.cast()) };
            // Below entries of one page there are no tables (1): it never wraps.
            shift = shift.wrapping_sub(BITS);
        }
    }

    /// The first page at or after `page` and below `end` that leads to an area, and that area.
    pub(crate) fn next(&self, mut page: u64, end: u64) -> Option<(u64, NonNull<Area>)> {
        while page < end {
            let mut table = self.root;
            let mut shift = self.shift;
            loop {
                // SAFETY: a table (1, 2).
                let entry = unsafe { table.as_ref() }.entries[(page >> shift) as usize % FAN].load(Ordering::Acquire);
                if entry.addr() & AREA == 0 {
                    // SAFETY: a table (2).
                    table = unsafe { NonNull::new_unchecked(entry.cast()) };
                    shift = shift.saturating_sub(BITS);
                    continue;
                }
                match area_of(entry) {
                    Some(area) => return Some((page, area)),
                    None => {
                        page = ((page >> shift) + 1) << shift;
                        break;
                    }
                }
            }
        }
        None
    }

    /// Nodes that [`set`](Self::set) of the range will want from the spares. Under the lock.
    pub(crate) fn missing(&self, lo: u64, hi: u64) -> usize {
        missing(Some(self.root), self.shift, 0, lo, hi)
    }

    /// Makes `lo..hi` lead to `area`. Under the lock; the spares hold [`missing`](Self::missing) nodes at least.
    pub(crate) fn set(&self, lo: u64, hi: u64, area: NonNull<Area>, spares: &mut Spares) {
        let entry = area.as_ptr().cast::<u8>().map_addr(|address| address | AREA);
        write(self.root, self.shift, lo, hi, entry, spares);
    }

    /// Makes `lo..hi`, which was set as it is, lead nowhere. Under the lock.
    pub(crate) fn clear(&self, lo: u64, hi: u64) {
        write(self.root, self.shift, lo, hi, NOWHERE, &mut Spares::new());
    }

    /// Hands every node to `release`.
    ///
    /// # Safety
    /// Nobody uses any copy of the index any more.
    pub(crate) unsafe fn dismantle(self, release: &mut dyn FnMut(NonNull<u8>)) {
        dismantle(self.root, release);
    }
}

#[inline(always)]
fn area_of(entry: *mut u8) -> Option<NonNull<Area>> {
    NonNull::new(entry.map_addr(|address| address & !AREA).cast())
}

fn new_table(spares: &mut Spares) -> Option<NonNull<Table>> {
    let table = spares.pop()?.cast::<Table>();
    for i in 0..FAN {
        // SAFETY: spare blocks are unused, page-aligned and of `NODE_SIZE` at least; written by entry, not as one value,
        // because a table is as large as a whole stack frame may be.
        unsafe {
            let entry = (&raw mut (*table.as_ptr()).entries).cast::<AtomicPtr<u8>>().add(i);
            entry.write(AtomicPtr::new(NOWHERE));
        }
    }
    Some(table)
}

fn missing(table: Option<NonNull<Table>>, shift: u32, base: u64, lo: u64, hi: u64) -> usize {
    if shift == 0 {
        return 0;
    }
    let size = 1 << shift;
    let mut count = 0;
    let (first, last) = ((lo - base) / size, (hi - 1 - base) / size);
    for i in [first, last].iter().take(if first == last { 1 } else { 2 }) {
        let child_base = base + i * size;
        let (from, to) = (lo.max(child_base), hi.min(child_base + size));
        // SAFETY: a table (1, 2 of `Index`).
        let child = table.and_then(|table| below(unsafe { table.as_ref() }, *i as usize));
        if to - from == size && child.is_none() {
            continue;
        }
        count += usize::from(child.is_none()) + missing(child, shift - BITS, child_base, from, to);
    }
    count
}

/// The table below entry `i`, if there is one.
fn below(table: &Table, i: usize) -> Option<NonNull<Table>> {
    let entry = table.entries[i % FAN].load(Ordering::Relaxed);
    if entry.addr() & AREA != 0 { None } else { NonNull::new(entry.cast()) }
}

fn write(table: NonNull<Table>, shift: u32, lo: u64, hi: u64, value: *mut u8, spares: &mut Spares) {
    // SAFETY: a table (1, 2 of `Index`).
    let entries = unsafe { table.as_ref() };
    if shift == 0 {
        // Entries of one page: no tables below.
        for entry in entries.entries.get(lo as usize..hi as usize).unwrap_or(&[]) {
            // Release as below.
            entry.store(value, Ordering::Release);
        }
        return;
    }
    let size = 1_u64 << shift;
    for i in lo / size..=(hi - 1) / size {
        let base = i * size;
        let (from, to) = (lo.saturating_sub(base), (hi - base).min(size));
        let i = i as usize % FAN;
        match below(entries, i) {
            Some(child) => write(child, shift - BITS, from, to, value, spares),
            // Release pairs with the acquire in `lookup`: a reader that finds the area finds its fields.
            None if to - from == size => entries.entries[i].store(value, Ordering::Release),
            None => {
                // The caller has counted: a node is there. Without one those pages lead nowhere.
                let Some(child) = new_table(spares) else {
                    debug_assert!(false, "no spare node");
                    continue;
                };
                write(child, shift - BITS, from, to, value, spares);
                entries.entries[i].store(child.as_ptr().cast(), Ordering::Release);
            }
        }
    }
}

fn dismantle(table: NonNull<Table>, release: &mut dyn FnMut(NonNull<u8>)) {
    for i in 0..FAN {
        // SAFETY: a table (1, 2 of `Index`) that nobody else uses.
        if let Some(child) = below(unsafe { table.as_ref() }, i) {
            dismantle(child, release);
        }
    }
    release(table.cast());
}
