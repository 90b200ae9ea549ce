//! Memory straight from the system: regions for allocators that need real addresses, and what the process holds.

use std::{
    alloc::{GlobalAlloc, Layout},
    ptr::NonNull,
};

/// An anonymous mapping that costs nothing until it is touched.
pub(crate) struct Region {
    map: NonNull<u8>,
    map_bytes: usize,
    start: usize,
    bytes: usize,
}

// SAFETY: the region is plain memory; whoever hands out parts of it decides who touches them.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` yields only addresses.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` at an address that is a multiple of `align` (a power of two).
    pub(crate) fn new(bytes: usize, align: usize) -> Option<Self> {
        let map_bytes = bytes.checked_add(align)?;
        // SAFETY: a fresh private mapping, chosen by the system.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return None;
        }
        let map = NonNull::new(map.cast::<u8>())?;
        let start = map.as_ptr().expose_provenance().next_multiple_of(align.max(1));
        Some(Self { map, map_bytes, start, bytes })
    }

    /// The first address.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// The usable length.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`, which nobody uses any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

/// Blocks mapped one by one: the system memory under allocators that bring no source of their own.
#[derive(Debug)]
pub(crate) struct MappedBlocks;

// SAFETY: every block is a mapping of its own, aligned to the page, or to less than asked for only by returning null.
unsafe impl GlobalAlloc for MappedBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Region::new(layout.size(), 0) {
            Some(region) if layout.align() <= 4096 => {
                let address = region.map.as_ptr();
                std::mem::forget(region);
                address
            }
            _ => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` is a whole mapping of `layout.size()` bytes made by `alloc`, given up by the caller.
        unsafe { libc::munmap(block.cast(), layout.size()) };
    }
}

/// Bytes of memory that this process alone has written and the system keeps for it.
pub(crate) fn dirty_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let kib = |name: &str| -> u64 {
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
            .sum()
    };
    Some((kib("Private_Dirty:") + kib("Shared_Dirty:")) * 1024)
}

/// Keeps the system from backing this process with huge pages, whose rounding would drown the figures.
pub(crate) fn forbid_huge_pages() {
    // SAFETY: takes plain numbers, changes only how later faults are served.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}
