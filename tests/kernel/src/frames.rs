//! [`Frames`]: the frame table over the identity map. Step 4 of a port.
//!
//! Frame `n` is mapped at address `n * 4096`. Its words are the `n`-th of an array that `memory` carves and maps a second time at
//! an address that the compiler knows, in the topmost 2 GiB, so that a lookup is a shift, a comparison, a multiplication
//! and one load.

use core::ptr::NonNull;

use kmem_gfp::{FrameTable, FrameWords, PAGE_SHIFT, Pfn};
use kmem_sync::atomic::{AtomicU64, Ordering};

/// Where the words are mapped.
pub(crate) const WORDS: usize = 0xffff_ffff_8000_0000;
/// The most frames whose words fit there: 256 GiB of memory.
pub(crate) const MOST_FRAMES: u64 = 256 << 18;

static NR_FRAMES: AtomicU64 = AtomicU64::new(0);

/// The frame table. No state of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames;

/// Says for how many frames there are words.
///
/// # Safety
/// As many zeroed words are mapped at [`WORDS`], for good and used through this table alone; every frame that an allocator
/// hands out is mapped at its own address. Once, before the first lookup.
pub(crate) unsafe fn init(nr: u64) {
    NR_FRAMES.store(nr, Ordering::Release);
}

#[inline(always)]
fn covers(pfn: u64) -> bool {
    pfn < NR_FRAMES.load(Ordering::Relaxed)
}

/// The words of a frame.
///
/// # Safety
/// The table covers it.
#[inline(always)]
unsafe fn words_of<'a>(pfn: u64) -> &'a FrameWords {
    let words = core::ptr::with_exposed_provenance::<FrameWords>(WORDS);
    // SAFETY: inside the array (promise of `init`).
    unsafe { &*words.add(pfn as usize) }
}

// SAFETY: (1) the index is the frame's number; (2), (3) by the promise of `init`, and the map is one to one.
unsafe impl FrameTable for Frames {
    #[inline(always)]
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        // SAFETY: just looked.
        covers(pfn.0).then(|| unsafe { words_of(pfn.0) })
    }

    #[inline(always)]
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        if !covers(pfn.0) {
            return None;
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut((pfn.0 as usize) << PAGE_SHIFT))
    }

    #[inline(always)]
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let pfn = (address >> PAGE_SHIFT) as u64;
        covers(pfn).then_some(Pfn(pfn))
    }

    #[inline(always)]
    fn lookup(&self, address: usize) -> Option<(Pfn, &FrameWords)> {
        let pfn = self.frame_of(address)?;
        // SAFETY: just looked.
        Some((pfn, unsafe { words_of(pfn.0) }))
    }
}
