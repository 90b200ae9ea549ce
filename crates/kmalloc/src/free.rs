//! Giving blocks back: `kfree` and its relatives, and what they say of an address that is no block.
//!
//! The fast path is one look at the frame's owner word: an object goes back to its cache. Everything else, including
//! null, is sorted out behind it.

use core::ptr::{self, NonNull};

use kmem_gfp::{FrameTable, OwnerTag};
use kmem_slab::{ObjectError, SlabEnv};
use kmem_sync::atomic::Ordering;

use crate::{KfreeError, Kmalloc, is_zero_or_null, large};

/// What became of a [`Kmalloc::kfree_bulk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refused} addresses were refused, the first because {first}")]
pub struct KfreeBulkError {
    /// How many addresses were refused; their blocks, if any, are as before. All others were freed.
    pub refused: usize,
    /// Why the first of them was.
    pub first: KfreeError,
}

/// How many objects of one cache go back at once.
const RUN: usize = 32;

/// Counts what was refused and keeps the first reason.
struct Refusals(Result<(), KfreeBulkError>);

impl Refusals {
    #[cold]
    fn add(&mut self, refused: usize, error: KfreeError) {
        match &mut self.0 {
            Ok(()) => self.0 = Err(KfreeBulkError { refused, first: error }),
            Err(failed) => failed.refused = failed.refused.saturating_add(refused),
        }
    }
}

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// Gives back what kmalloc or a cache gave. Null and [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR) do nothing.
    ///
    /// Contexts: any but NMI; never sleeps. Constant time when this CPU's sheaf has room.
    ///
    /// # Safety
    /// If a block starts at `ptr`, the caller owns it and nobody uses it any more.
    ///
    /// # Errors
    /// A [`KfreeError`] that says what `ptr` is instead; nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn kfree(&self, ptr: *mut u8) -> Result<(), KfreeError> {
        let Some(block) = NonNull::new(ptr) else { return Ok(()) };
        // SAFETY: the caller's promise is the same.
        match unsafe { self.slabs.free_any(block) } {
            Ok(()) => Ok(()),
            // SAFETY: the caller's promise is the same.
            Err(error) => unsafe { self.kfree_other(ptr, error) },
        }
    }

    /// Overwrites the whole block with zeroes, then gives it back: for keys and the like.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree).
    ///
    /// # Errors
    /// Those of [`kfree`](Self::kfree); an address that starts no block is not written to.
    #[doc(alias("kzfree", "kvfree_sensitive"))]
    pub unsafe fn kfree_sensitive(&self, ptr: *mut u8) -> Result<(), KfreeError> {
        if is_zero_or_null(ptr.addr()) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let size_bytes = unsafe { self.ksize(ptr)? };
        // SAFETY: `ksize` found a block of that many bytes in use at `ptr`, which the caller owns.
        unsafe { ptr.write_bytes(0, size_bytes) };
        // The stores must happen although nobody reads them.
        core::hint::black_box(ptr);
        // SAFETY: the caller's promise is the same.
        unsafe { self.kfree(ptr) }
    }

    /// Gives back many blocks; nulls and zero-size pointers among them do nothing. Objects of different caches and large
    /// blocks may be mixed; neighbours of one cache go back together, so sorting them by cache pays.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree), for each address.
    ///
    /// # Errors
    /// [`KfreeBulkError`] if some addresses were refused; all others have been freed.
    pub unsafe fn kfree_bulk(&self, blocks: &[*mut u8]) -> Result<(), KfreeBulkError> {
        let mut refusals = Refusals(Ok(()));
        let mut run = [None; RUN];
        let mut rest = blocks;
        while let Some((first, behind)) = rest.split_first() {
            let Some(cache) = NonNull::new(*first).and_then(|block| self.slabs.cache_of(block)) else {
                // SAFETY: the caller's promise for each address.
                if let Err(error) = unsafe { self.kfree(*first) } {
                    refusals.add(1, error);
                }
                rest = behind;
                continue;
            };
            let mut len = 0;
            for (place, block) in run.iter_mut().zip(rest) {
                let block = NonNull::new(*block);
                if !block.is_some_and(|block| self.slabs.cache_of(block).is_some_and(|other| ptr::eq(other, cache))) {
                    break;
                }
                *place = block;
                len += 1;
            }
            let together = run.get_mut(..len).unwrap_or_default();
            // SAFETY: objects of `cache`; the caller's promise for each address.
            if let Err(error) = unsafe { self.slabs.free_bulk(cache, together) } {
                refusals.add(error.refused, error.first.into());
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        refusals.0
    }

    /// What the caches would not take: nothing, a large block, or an error.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree).
    #[cold]
    #[inline(never)]
    unsafe fn kfree_other(&self, ptr: *mut u8, error: ObjectError) -> Result<(), KfreeError> {
        let address = ptr.addr();
        if is_zero_or_null(address) {
            return Ok(());
        }
        let env = self.slabs.env();
        if let Some((pfn, words)) = env.frames().lookup(address)
            && OwnerTag::of(words.owner.load(Ordering::Relaxed)) == OwnerTag::LargeKmalloc
        {
            // SAFETY: the caller's promise is the same.
            let order = unsafe { large::free(env.pages(), words, pfn, address)? };
            self.count_large(-(order.nr_pages() as i64));
            self.reap();
            return Ok(());
        }
        Err(self.explain(address, error))
    }

    /// Whether the frame of `address` starts a large block.
    pub(crate) fn is_large(&self, address: usize) -> bool {
        let words = self.slabs.env().frames().lookup(address).map(|(_, words)| words);
        words.is_some_and(|words| OwnerTag::of(words.owner.load(Ordering::Relaxed)) == OwnerTag::LargeKmalloc)
    }

    /// What `address` is, now that it is no block that can be freed and the caches say `error`.
    #[cold]
    pub(crate) fn explain(&self, address: usize, error: ObjectError) -> KfreeError {
        let frames = self.slabs.env().frames();
        let Some((pfn, words)) = frames.lookup(address) else { return KfreeError::NotMemory { address } };
        match OwnerTag::of(words.owner.load(Ordering::Relaxed)) {
            OwnerTag::Slab => error.into(),
            owner => {
                if let Some(block) = large::find(frames, address).filter(|block| block.start != address) {
                    return KfreeError::InsideBlock { address, start: block.start };
                }
                match owner {
                    OwnerTag::None | OwnerTag::LargeKmalloc | OwnerTag::LargeKmallocTail => {
                        KfreeError::NotAllocated { address, pfn }
                    }
                    owner => KfreeError::OtherOwner { address, pfn, owner },
                }
            }
        }
    }
}
