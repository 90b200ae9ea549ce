//! [`HostedAlloc`]: the global heap as `#[global_allocator]`.
//!
//! ```text
//! alloc     layout ─▶ small class ─▶ this thread's row ─▶ slot ─▶ pop        else by CACHES[class] ─▶ SLABS.alloc
//! dealloc   layout ─▶ small class ─▶ this thread's row ─▶ slot ─▶ push       else by CACHES[class] ─▶ SLABS.free_known
//! ```
//!
//! A thread without a CPU, or before the heap is up, has a row in which every sheaf is empty and full at once.

use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use kmem_slab::KmemCache;

use super::class::{CLASSES, SMALL_CLASSES, class_of, small_class};
use super::cpu::HeapCpu;
use super::env::{MEDIUM, SLABS};
use super::large::{self, GFP};
use super::{limit, row, start};

/// The cache of each class; null until the heap is ready.
static CACHES: [AtomicPtr<KmemCache>; CLASSES] = [const { AtomicPtr::new(ptr::null_mut()) }; CLASSES];

/// Enters the cache of a class.
pub(super) fn publish(class: usize, cache: &'static KmemCache) {
    if let Some(entry) = CACHES.get(class) {
        // Release pairs with the acquire in `cache`: who finds a cache finds the heap as well.
        entry.store(ptr::from_ref(cache).cast_mut(), Ordering::Release);
    }
}

#[inline(always)]
fn cache(class: usize) -> Option<&'static KmemCache> {
    // SAFETY: null, or a cache that is never destroyed.
    CACHES.get(class).and_then(|entry| unsafe { entry.load(Ordering::Acquire).as_ref() })
}

/// Enters and leaves the section of the running CPU in every cache: an allocation does both.
pub(super) fn visit_every_section() {
    for class in 0..CLASSES {
        let family = if class < SMALL_CLASSES { &SLABS } else { &MEDIUM };
        if let Some(cache) = cache(class)
            && let Ok(object) = family.alloc(cache, GFP)
        {
            // SAFETY: ours, unused.
            let freed = unsafe { family.free(cache, object) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

/// The heap of an ordinary multi-threaded program on kmem.
///
/// ```
/// use kmem_hosted::HostedAlloc;
///
/// #[global_allocator]
/// static HEAP: HostedAlloc = HostedAlloc::new();
///
/// let words: Vec<String> = (0..1000).map(|n| format!("word {n}")).collect();
/// assert_eq!(words[999], "word 999");
/// ```
///
/// There is one heap in a process, made on first use; the settings of the value that is used first hold. Threads come and
/// go as they like; `fork`, `exec`, and freeing during thread exit work. Signal handlers must not allocate.
/// Shortage is a null pointer. `errno` is never changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostedAlloc {
    pub(super) ram_bytes: Option<u64>,
    pub(super) cpus: Option<u32>,
    pub(super) resident_limit: Option<u64>,
}

impl HostedAlloc {
    /// A heap as large as the host's memory, or as the environment variable `KMEM_HEAP_BYTES` says when it is set.
    pub const fn new() -> Self {
        Self { ram_bytes: None, cpus: None, resident_limit: None }
    }

    /// How much the program can have allocated at a time, in bytes, blocks above 4 MiB not counted. This much address
    /// space is reserved; memory is taken from the host when it is first touched.
    #[must_use]
    pub const fn ram_bytes(mut self, bytes: u64) -> Self {
        self.ram_bytes = Some(bytes);
        self
    }

    /// How many threads can work without touching shared structures; at most 256. The default is four for each
    /// CPU of the host, and 16 at the least. Further threads work as well, only slower.
    #[must_use]
    pub const fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Gives freed memory back to the host whenever more than `bytes` are resident. Looked at when large blocks
    /// (above 64 KiB) are freed.
    #[must_use]
    pub const fn resident_limit(mut self, bytes: u64) -> Self {
        self.resident_limit = Some(bytes);
        self
    }

    /// Gives free memory back to the host: at least `bytes`, or as much as there is. Returns how much it was, in bytes.
    /// Slow; other threads may allocate meanwhile.
    pub fn release_free(&self, bytes: u64) -> u64 {
        if start::ready() { limit::release(bytes) } else { 0 }
    }

    /// Bytes of the host's memory behind the heap at the moment, blocks above 4 MiB not counted. Slow: walks the host's
    /// page tables.
    pub fn resident_bytes(&self) -> u64 {
        if start::ready() { limit::resident_bytes() } else { 0 }
    }

    /// Writes the heap's caches as `/proc/slabinfo` would show them, largest class first; nothing before the first
    /// allocation.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn slabinfo(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if start::ready() {
            MEDIUM.slabinfo(out)?;
            SLABS.slabinfo(out)?;
        }
        Ok(())
    }

    /// The heap is not up, has none of this class, or has no memory left.
    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if !start::ensure(self) {
            return ptr::null_mut();
        }
        let attempt = || match class_of(layout) {
            Some(class) => {
                let family = if class < SMALL_CLASSES { &SLABS } else { &MEDIUM };
                let object = cache(class).and_then(|cache| family.alloc(cache, GFP).ok())?;
                if zeroed {
                    // SAFETY: objects of the class are at least as large as the layout.
                    unsafe { object.write_bytes(0, layout.size()) };
                }
                Some(object)
            }
            None => large::alloc(layout, zeroed),
        };
        limit::persist(attempt).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// From the running thread's sheaf of the layout's class.
    #[inline(always)]
    fn alloc_fast(&self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the row is the running thread's CPU's, or idle (`row`); the heap's caches are never destroyed.
        unsafe { row::slot(small_class(layout)?).alloc::<HeapCpu>() }
    }

    /// The thread's sheaf is full, the thread is no CPU yet, or the block is above the small classes.
    ///
    /// # Safety
    /// As for [`dealloc`](GlobalAlloc::dealloc).
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_slow(block: NonNull<u8>, layout: Layout) {
        let class = class_of(layout);
        match class.and_then(cache) {
            Some(cache) => {
                let family = if class < Some(SMALL_CLASSES) { &SLABS } else { &MEDIUM };
                // SAFETY: the caller gives the block up, which `alloc` took from the cache of its layout's class.
                let freed = unsafe { family.free_known(cache, block) };
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
            // SAFETY: likewise, from `large`.
            None => unsafe { large::free(block, layout) },
        }
    }
}

// SAFETY: blocks come from slabs and page blocks that are handed out to one owner at a time, are as large and as aligned
// as the layout says (`class_of`, `large`), and stay until given back. Nothing unwinds.
unsafe impl GlobalAlloc for HostedAlloc {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.alloc_fast(layout) {
            Some(object) => object.as_ptr(),
            None => self.alloc_slow(layout, false),
        }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.alloc_fast(layout) {
            Some(object) => {
                // SAFETY: objects of the class are at least as large as the layout.
                unsafe { object.write_bytes(0, layout.size()) };
                object.as_ptr()
            }
            None => self.alloc_slow(layout, true),
        }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: a block that `alloc` gave is not null.
        let block = unsafe { NonNull::new_unchecked(block) };
        // Debug builds look at each block's frame.
        if !cfg!(debug_assertions)
            && let Some(class) = small_class(layout)
        {
            // SAFETY: as in `alloc_fast`; the caller gives the block up, which `alloc` took from the cache of its class.
            if unsafe { row::slot(class).free_known::<HeapCpu>(block) } {
                return;
            }
        }
        // SAFETY: the caller's promise is the same.
        unsafe { Self::dealloc_slow(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else { return ptr::null_mut() };
        match (class_of(layout), class_of(new)) {
            (Some(old), Some(new)) if old == new => return block,
            (None, None) => {
                // SAFETY: the caller's block of this layout, above the classes as is the new one.
                let resized = NonNull::new(block).and_then(|block| unsafe { large::resize(block, layout, new) });
                if let Some(resized) = resized {
                    return resized.as_ptr();
                }
            }
            _ => {}
        }
        // SAFETY: a layout of the caller's alignment and nonzero size; both blocks hold the bytes copied and do not overlap.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}
