//! [`Frames`]: the frame table over the identity map. Step 4 of a port.
//!
//! Frame `n` is mapped at address `n * 4096`; its words are the `n`-th of an array that `memory` carves. The array's place is
//! in a static, so that a lookup is a shift, a comparison and a multiplication.

use core::ptr::NonNull;

use kmem_gfp::{FrameTable, FrameWords, PAGE_SHIFT, Pfn};
use kmem_sync::atomic::{AtomicPtr, AtomicU64, Ordering};

static WORDS: AtomicPtr<FrameWords> = AtomicPtr::new(core::ptr::null_mut());
static NR_FRAMES: AtomicU64 = AtomicU64::new(0);

/// The frame table. No state of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames;

/// Says where the words are, for frames `0..nr`.
///
/// # Safety
/// `words` points to as many zeroed words as frames, used through this table alone for good; every frame that an
/// allocator hands out is mapped at its own address. Once, before the first lookup.
pub(crate) unsafe fn init(words: NonNull<FrameWords>, nr: u64) {
    WORDS.store(words.as_ptr(), Ordering::Relaxed);
    NR_FRAMES.store(nr, Ordering::Release);
}

// SAFETY: (1) the index is the frame's number; (2), (3) by the promise of `init`, and the map is one to one.
unsafe impl FrameTable for Frames {
    #[inline(always)]
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        if pfn.0 >= NR_FRAMES.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: inside the array (promise of `init`).
        Some(unsafe { &*WORDS.load(Ordering::Relaxed).add(pfn.0 as usize) })
    }

    #[inline(always)]
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        if pfn.0 >= NR_FRAMES.load(Ordering::Relaxed) {
            return None;
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut((pfn.0 as usize) << PAGE_SHIFT))
    }

    #[inline(always)]
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let pfn = (address >> PAGE_SHIFT) as u64;
        if pfn >= NR_FRAMES.load(Ordering::Relaxed) { None } else { Some(Pfn(pfn)) }
    }
}
