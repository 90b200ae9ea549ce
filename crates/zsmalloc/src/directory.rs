//! A growing array of metadata frames: from a frame's index to its address in a few loads.
//!
//! ```text
//! top (inline) ──▶ middle frame ──▶ leaf frame ──▶ data frame
//!                             near ──▶ the first of them
//! ```
//! What the first leaf covers (512 data frames) is found through `near` in two loads.
//! It only grows while the pool lives, so readers take no lock: an address is published by the length.

use core::ptr::{self, NonNull};

use kmem_gfp::PAGE_SIZE;
use kmem_sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// The largest power of two not above `n`.
pub(crate) const fn floor_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

/// How many atomics of this size a frame is made to hold. A model checker's are larger than a word, and few are enough for it.
pub(crate) const fn per_frame(size: usize) -> usize {
    if size == 8 { PAGE_SIZE / 8 } else { 8 }
}

type Pointer = AtomicPtr<u8>;

const FAN_OUT: usize = per_frame(size_of::<Pointer>());
const SHIFT: u32 = FAN_OUT.trailing_zeros();
const TOP: usize = if size_of::<Pointer>() == 8 { 32 } else { 2 };

/// # Invariants
/// 1. Every index below `len` leads through nodes (frames of [`FAN_OUT`] initialised pointers) to a data frame.
/// 2. Nodes and data frames stay until [`take_apart`](Self::take_apart).
#[derive(Debug)]
pub(crate) struct Directory {
    /// Data frames that the first leaf leads to, and that leaf.
    near_len: AtomicU32,
    len: AtomicU32,
    near: Pointer,
    top: [Pointer; TOP],
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self {
            near_len: AtomicU32::new(0),
            len: AtomicU32::new(0),
            near: Pointer::new(ptr::null_mut()),
            top: core::array::from_fn(|_| Pointer::new(ptr::null_mut())),
        }
    }

    /// How many data frames there are.
    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// The data frame with this index, if there is one.
    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> Option<NonNull<u8>> {
        // Acquire pairs with the release in `push`.
        if index >= self.near_len.load(Ordering::Acquire) {
            return self.get_far(index);
        }
        let leaf = self.near.load(Ordering::Relaxed).cast::<Pointer>();
        // SAFETY: `near_len` is at most `FAN_OUT`, and `near` is the first leaf since before it was above zero; every
        // index below leads to a data frame (invariant 1).
        Some(unsafe { NonNull::new_unchecked((*leaf.add(index as usize)).load(Ordering::Relaxed)) })
    }

    #[cold]
    fn get_far(&self, index: u32) -> Option<NonNull<u8>> {
        // Acquire pairs with the release in `push`: the nodes up to the length are seen.
        if index >= self.len.load(Ordering::Acquire) {
            return None;
        }
        let index = index as usize;
        let middle = self.top.get(index >> (2 * SHIFT))?.load(Ordering::Relaxed);
        // SAFETY: below `len`, so `middle` is a node (invariant 1).
        let leaf = unsafe { node(middle, index >> SHIFT) }.load(Ordering::Relaxed);
        // SAFETY: as above, one level down.
        NonNull::new(unsafe { node(leaf, index) }.load(Ordering::Relaxed))
    }

    /// How many node frames the next [`push`](Self::push) needs; `None` if the directory is full.
    pub(crate) fn nodes_needed(&self) -> Option<usize> {
        let len = self.len() as usize;
        if len >= TOP << (2 * SHIFT) {
            return None;
        }
        Some(usize::from(len.is_multiple_of(FAN_OUT)) + usize::from(len.is_multiple_of(FAN_OUT * FAN_OUT)))
    }

    /// Appends a data frame and returns its index; `None` if `spare` gives fewer node frames than needed.
    ///
    /// # Safety
    /// Calls exclude one another; `data` and what `spare` gives are frames that belong to the directory from here on.
    pub(crate) unsafe fn push(&self, data: NonNull<u8>, mut spare: impl FnMut() -> Option<NonNull<u8>>) -> Option<u32> {
        let len = self.len();
        let index = len as usize;
        let top = self.top.get(index >> (2 * SHIFT))?;
        if index.is_multiple_of(FAN_OUT * FAN_OUT) && top.load(Ordering::Relaxed).is_null() {
            // SAFETY: a frame of ours.
            top.store(unsafe { new_node(spare()?) }, Ordering::Relaxed);
        }
        // SAFETY: made above or by an earlier push (invariant 1).
        let leaf = unsafe { node(top.load(Ordering::Relaxed), index >> SHIFT) };
        if index.is_multiple_of(FAN_OUT) && leaf.load(Ordering::Relaxed).is_null() {
            // SAFETY: a frame of ours.
            leaf.store(unsafe { new_node(spare()?) }, Ordering::Relaxed);
        }
        // SAFETY: as above.
        unsafe { node(leaf.load(Ordering::Relaxed), index) }.store(data.as_ptr(), Ordering::Relaxed);
        // INVARIANT: the way to `index` has been laid. Release pairs with the acquire in `get`.
        self.len.store(len + 1, Ordering::Release);
        if index < FAN_OUT {
            self.near.store(leaf.load(Ordering::Relaxed), Ordering::Relaxed);
            self.near_len.store(len + 1, Ordering::Release);
        }
        Some(len)
    }

    /// Calls `free` for every frame, nodes included, and leaves the directory empty.
    ///
    /// # Safety
    /// Nobody uses the directory or its frames meanwhile.
    pub(crate) unsafe fn take_apart(&mut self, mut free: impl FnMut(NonNull<u8>)) {
        for top in &self.top {
            let Some(middle) = NonNull::new(top.swap(ptr::null_mut(), Ordering::Relaxed)) else { continue };
            for i in 0..FAN_OUT {
                // SAFETY: a node (invariant 1).
                let leaf = unsafe { node(middle.as_ptr(), i) }.load(Ordering::Relaxed);
                let Some(leaf) = NonNull::new(leaf) else { continue };
                for j in 0..FAN_OUT {
                    // SAFETY: a node (invariant 1).
                    let data = unsafe { node(leaf.as_ptr(), j) }.load(Ordering::Relaxed);
                    if let Some(data) = NonNull::new(data) {
                        free(data);
                    }
                }
                free(leaf);
            }
            free(middle);
        }
        self.len.store(0, Ordering::Relaxed);
        self.near_len.store(0, Ordering::Relaxed);
    }
}

/// Makes a node out of a frame.
///
/// # Safety
/// `frame` is a frame that the caller owns.
unsafe fn new_node(frame: NonNull<u8>) -> *mut u8 {
    let pointers = frame.cast::<Pointer>();
    for i in 0..FAN_OUT {
        // SAFETY: `FAN_OUT` pointers fit in a frame.
        unsafe { pointers.add(i).write(Pointer::new(ptr::null_mut())) };
    }
    frame.as_ptr()
}

/// The pointer with this index, modulo the fan-out.
///
/// # Safety
/// `frame` is a node.
#[inline(always)]
unsafe fn node<'a>(frame: *mut u8, index: usize) -> &'a Pointer {
    // SAFETY: a node holds `FAN_OUT` initialised pointers.
    unsafe { &*frame.cast::<Pointer>().add(index & (FAN_OUT - 1)) }
}
