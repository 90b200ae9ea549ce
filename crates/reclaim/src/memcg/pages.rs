//! Who paid for which page: a word per frame (A-02, A-03).
//!
//! ```text
//! frame       first  +1   +2   +3   +4
//! payer word  │ g  │ 0  │ 0  │ 0  │ h  │      only a block's first frame has a payer; 4 bytes a frame
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, Order, Pfn};
use kmem_sync::atomic::{AtomicU32, Ordering};

use crate::memcg::{Memcg, MemcgEnv, OverLimit, Payer};

/// The payers of a span of frames, in memory that the caller gives.
///
/// Only the holder of a block writes its words.
///
/// # Invariants
/// `words` points to `nr_frames` initialised words that live as long as this value.
#[derive(Debug)]
pub struct PagePayers {
    words: NonNull<AtomicU32>,
    first: Pfn,
    nr_frames: u64,
}

// SAFETY: shared access to atomics only.
unsafe impl Sync for PagePayers {}
// SAFETY: as above.
unsafe impl Send for PagePayers {}

impl PagePayers {
    /// The memory for `nr_frames` frames; `None` on overflow.
    pub fn layout(nr_frames: u64) -> Option<Layout> {
        Layout::array::<AtomicU32>(usize::try_from(nr_frames).ok()?).ok()
    }

    /// No payers of no frames: nothing is ever stored, every free is a compare and a branch.
    pub const fn empty() -> Self {
        Self { words: NonNull::dangling(), first: Pfn(0), nr_frames: 0 }
    }

    /// Payers of `nr_frames` frames from `first` on: nobody. O(frames).
    ///
    /// # Safety
    /// `memory` has [`layout(nr_frames)`](Self::layout) and is the result's alone for as long as that is used.
    pub unsafe fn new(memory: NonNull<u8>, first: Pfn, nr_frames: u64) -> Self {
        let words = memory.cast::<AtomicU32>();
        for index in 0..nr_frames as usize {
            // SAFETY: inside the memory that the caller gave, aligned by its layout.
            unsafe { words.add(index).write(AtomicU32::new(0)) };
        }
        // INVARIANT: all words have just been written.
        Self { words, first, nr_frames }
    }

    #[inline(always)]
    fn word(&self, pfn: Pfn) -> Option<&AtomicU32> {
        let index = pfn.0.wrapping_sub(self.first.0);
        if index >= self.nr_frames {
            return None;
        }
        // SAFETY: below `nr_frames` (type invariant).
        Some(unsafe { self.words.add(index as usize).as_ref() })
    }

    /// Who paid for the block that starts at `pfn`. Any context; one load.
    #[inline]
    pub fn get(&self, pfn: Pfn) -> Option<Payer> {
        Payer::from_raw(self.word(pfn)?.load(Ordering::Relaxed))
    }

    /// Stores who paid for the block that starts at `pfn`; `false` if the span does not have that frame. The caller holds
    /// the block.
    #[inline]
    pub fn set(&self, pfn: Pfn, payer: Payer) -> bool {
        let Some(word) = self.word(pfn) else { return false };
        word.store(payer.to_raw(), Ordering::Relaxed);
        true
    }

    /// Takes the payer of the block that starts at `pfn`. The caller holds the block.
    #[inline]
    pub fn take(&self, pfn: Pfn) -> Option<Payer> {
        let word = self.word(pfn)?;
        let payer = Payer::from_raw(word.load(Ordering::Relaxed));
        if payer.is_some() {
            word.store(0, Ordering::Relaxed);
        }
        payer
    }

    /// A block of `order` is now blocks of `parts`: each gets the payer, so that each uncharges itself (A-03). A payer's
    /// references count pages, so there is nothing else to do. The caller holds the block.
    pub fn split(&self, pfn: Pfn, order: Order, parts: Order) {
        let Some(payer) = self.get(pfn) else { return };
        for start in (0..order.nr_pages() as u64).step_by(parts.nr_pages()) {
            self.set(Pfn(pfn.0.wrapping_add(start)), payer);
        }
    }

    /// Charges a block that has just been allocated with `gfp` to whoever pays for it and stores the payer (A-02). Without
    /// [`Gfp::ACCOUNT`] nothing happens. Contexts as `gfp` says.
    ///
    /// # Errors
    /// [`OverLimit`]: the block is to be freed again, without a report (A-10).
    #[inline]
    pub fn charge<E: MemcgEnv>(&self, memcg: &Memcg<E>, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), OverLimit> {
        if !gfp.contains(Gfp::ACCOUNT) {
            return Ok(());
        }
        if let Some(payer) = memcg.charge_page(gfp, order)?
            && !self.set(pfn, payer)
        {
            // Nowhere to remember it: the page stays uncharged.
            memcg.uncharge(payer, order.nr_pages() as u64);
        }
        Ok(())
    }

    /// Uncharges a block that is about to be freed. Any context; one load for a block that nobody paid for.
    #[inline]
    pub fn uncharge<E: MemcgEnv>(&self, memcg: &Memcg<E>, pfn: Pfn, order: Order) {
        if let Some(payer) = self.take(pfn) {
            memcg.uncharge(payer, order.nr_pages() as u64);
        }
    }
}
