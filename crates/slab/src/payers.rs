//! Who paid for which object: a word for each object of a slab, found by the slab's frame.
//!
//! ```text
//! PayerTree ─▶ node ─▶ ... ─▶ node ─▶ payers of the slab      │ u32 │ u32 │ ... one for each slot
//!              by digits of the slab's first frame number     zero: nobody paid
//! ```
//!
//! A node is a page of pointers, and both nodes and vectors are put in place by compare-and-swap: the loser takes its own
//! copy back and uses the winner's. Nodes stay as long as the family, so a look takes no lock; a vector goes when its slab
//! does, which has no object in use then, so nobody looks at it.

use core::num::NonZeroU32;
use core::ptr::{self, NonNull};

use kmem_gfp::{PAGE_SIZE, Pfn};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// What a node consists of: a pointer to the next node, or to a vector.
pub(crate) type Place = AtomicPtr<u8>;

/// Binary digits of a frame number that one node resolves: as many as fill a page.
const DIGIT_BITS: u32 = (PAGE_SIZE / size_of::<Place>()).ilog2();
/// Nodes on the way to a vector. Slabs' frame numbers have 32 bits, as their list links do.
pub(crate) const LEVELS: u32 = u32::BITS.div_ceil(DIGIT_BITS);
/// Bytes of a node.
pub(crate) const NODE_BYTES: usize = size_of::<Place>() << DIGIT_BITS;

/// From slabs to their payers.
///
/// # Invariants
/// A place above the last level is null or points to a node that lives as long as the tree; one on the last level is null or
/// points to the vector of the slab that starts at its frame, with a word for each of the slab's slots.
pub(crate) struct PayerTree {
    root: Place,
}

/// The payers of one slab.
#[derive(Clone, Copy)]
pub(crate) struct Payers(NonNull<AtomicU32>);

impl Payers {
    /// Bytes of a vector for a slab of `total` slots.
    pub(crate) const fn size_bytes(total: usize) -> usize {
        total.saturating_mul(size_of::<AtomicU32>())
    }

    /// Makes `memory` a vector in which nobody has paid.
    ///
    /// # Safety
    /// `memory` has [`size_bytes(total)`](Self::size_bytes) bytes, aligned to 8, the caller's alone.
    pub(crate) unsafe fn init(memory: NonNull<u8>, total: usize) {
        let words = memory.cast::<AtomicU32>();
        for index in 0..total {
            // SAFETY: below `total`.
            unsafe { words.add(index).write(AtomicU32::new(0)) };
        }
    }

    /// The word of slot `index`.
    ///
    /// # Safety
    /// `index` is below the slab's total, and an object of the slab is in use for `'a`.
    #[inline(always)]
    unsafe fn word<'a>(self, index: usize) -> &'a AtomicU32 {
        // SAFETY: the caller's promise: the vector lives while an object is in use, and has that many words.
        unsafe { self.0.add(index).as_ref() }
    }

    /// Notes who paid for the object in slot `index`.
    ///
    /// # Safety
    /// The caller holds that object, which is one of the slab's.
    #[inline(always)]
    pub(crate) unsafe fn set(self, index: usize, payer: NonZeroU32) {
        // Relaxed: the word goes wherever the object goes.
        // SAFETY: the caller's object is in use.
        unsafe { self.word(index) }.store(payer.get(), Ordering::Relaxed);
    }

    /// Who paid for the object in slot `index`.
    ///
    /// # Safety
    /// As for [`set`](Self::set).
    #[inline(always)]
    pub(crate) unsafe fn get(self, index: usize) -> Option<NonZeroU32> {
        // SAFETY: the caller's object is in use.
        NonZeroU32::new(unsafe { self.word(index) }.load(Ordering::Relaxed))
    }

    /// As [`get`](Self::get), and nobody from here on.
    ///
    /// # Safety
    /// As for [`set`](Self::set).
    #[inline(always)]
    pub(crate) unsafe fn take(self, index: usize) -> Option<NonZeroU32> {
        // SAFETY: the caller's object is in use.
        let word = unsafe { self.word(index) };
        let payer = NonZeroU32::new(word.load(Ordering::Relaxed));
        if payer.is_some() {
            word.store(0, Ordering::Relaxed);
        }
        payer
    }
}

impl PayerTree {
    kmem_sync::const_fn! {
        /// A tree without nodes.
        pub(crate) fn new() -> Self {
            Self { root: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// The vector of the slab that starts at `pfn`.
    #[inline]
    pub(crate) fn find(&self, pfn: Pfn) -> Option<Payers> {
        let mut place = &self.root;
        for level in (0..LEVELS).rev() {
            // SAFETY: a place above the last level.
            place = unsafe { below(place, level, pfn)? };
        }
        // Acquire pairs with the release of `install`.
        NonNull::new(place.load(Ordering::Acquire)).map(|vector| Payers(vector.cast()))
    }

    /// Where the vector of the slab that starts at `pfn` belongs. Missing nodes are made of what `alloc` gives, [`NODE_BYTES`]
    /// bytes each; `free` takes back what was not needed. `None` if `alloc` fails.
    pub(crate) fn reach(
        &self,
        pfn: Pfn,
        mut alloc: impl FnMut() -> Option<NonNull<u8>>,
        mut free: impl FnMut(NonNull<u8>),
    ) -> Option<&Place> {
        let mut place = &self.root;
        for level in (0..LEVELS).rev() {
            if place.load(Ordering::Acquire).is_null() {
                let node = alloc()?;
                for digit in 0..1_usize << DIGIT_BITS {
                    // SAFETY: `alloc` gave a node's bytes, ours.
                    unsafe { node.cast::<Place>().add(digit).write(AtomicPtr::new(ptr::null_mut())) };
                }
                if install(place, node).is_err() {
                    free(node);
                }
            }
            // SAFETY: a place above the last level.
            place = unsafe { below(place, level, pfn)? };
        }
        Some(place)
    }

    /// Takes the vector of the slab that starts at `pfn` away.
    pub(crate) fn remove(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let mut place = &self.root;
        for level in (0..LEVELS).rev() {
            // SAFETY: a place above the last level.
            place = unsafe { below(place, level, pfn)? };
        }
        // A slab without objects in use has one owner.
        let vector = NonNull::new(place.load(Ordering::Acquire))?;
        place.store(ptr::null_mut(), Ordering::Release);
        Some(vector)
    }

    /// Gives every node to `free`. No vector is left, and nobody looks for one.
    pub(crate) fn clear(&self, mut free: impl FnMut(NonNull<u8>)) {
        let root = self.root.swap(ptr::null_mut(), Ordering::AcqRel);
        if let Some(root) = NonNull::new(root) {
            // SAFETY: taken off the tree, in which nobody looks.
            unsafe { clear_node(root, LEVELS - 1, &mut free) };
        }
    }
}

/// Gives a node that resolves the digit `level` and everything below it to `free`.
///
/// # Safety
/// Nobody else refers to the node.
unsafe fn clear_node(node: NonNull<u8>, level: u32, free: &mut impl FnMut(NonNull<u8>)) {
    if level > 0 {
        for digit in 0..1_usize << DIGIT_BITS {
            // SAFETY: a node has that many places.
            let place = unsafe { node.cast::<Place>().add(digit).as_ref() };
            if let Some(child) = NonNull::new(place.load(Ordering::Acquire)) {
                // SAFETY: reached by this node only.
                unsafe { clear_node(child, level - 1, free) };
            }
        }
    }
    free(node);
}

/// Puts what `memory` holds into an empty place.
///
/// # Errors
/// The place is taken; `memory` is the caller's as before.
pub(crate) fn install(place: &Place, memory: NonNull<u8>) -> Result<(), Payers> {
    // Release pairs with the acquire of every look: what is found is initialised.
    match place.compare_exchange(ptr::null_mut(), memory.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(winner) => Err(Payers(NonNull::new(winner).unwrap_or(memory).cast())),
    }
}

/// A vector just [`install`]ed.
pub(crate) fn installed(memory: NonNull<u8>) -> Payers {
    Payers(memory.cast())
}

/// The place for `pfn` in the node that `place` points to, if there is one, which resolves the digit `level`.
///
/// # Safety
/// `place` is on level `level + 1` of a tree that lives for `'a`.
#[inline(always)]
unsafe fn below<'a>(place: &Place, level: u32, pfn: Pfn) -> Option<&'a Place> {
    // Acquire pairs with the release of `install`.
    let node = NonNull::new(place.load(Ordering::Acquire))?.cast::<Place>();
    let digit = (pfn.0 >> (level * DIGIT_BITS)) as usize & ((1 << DIGIT_BITS) - 1);
    // SAFETY: not a place of the last level, so a node (invariant of `PayerTree`), which has that many places.
    Some(unsafe { node.add(digit).as_ref() })
}
