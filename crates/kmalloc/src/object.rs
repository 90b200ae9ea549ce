//! Blocks by type: the size, the alignment and the partition come from `T`.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::{fmt, mem};

use kmem_gfp::size::{array_size, size_add};
use kmem_gfp::{AllocError, Gfp};
use kmem_slab::SlabEnv;

use crate::{Kmalloc, PartitionToken};

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// Room for a `T`, not initialised. Freed with [`kfree`](Self::kfree). A type without bytes gets
    /// [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR).
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    #[inline]
    #[track_caller]
    pub fn kmalloc_obj<T>(&self, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        Ok(self.kmalloc_partitioned(size_of::<T>(), gfp, PartitionToken::of_type::<T>())?.cast())
    }

    /// As [`kmalloc_obj`](Self::kmalloc_obj), zeroed.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    #[inline]
    #[track_caller]
    pub fn kzalloc_obj<T>(&self, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        self.kmalloc_obj(gfp.union(Gfp::ZERO))
    }

    /// Room for `count` values of `T`, not initialised.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kmalloc_objs<T>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        let size_bytes = array_size(count, size_of::<T>());
        Ok(self.kmalloc_partitioned(size_bytes, gfp, PartitionToken::of_type::<T>())?.cast())
    }

    /// As [`kmalloc_objs`](Self::kmalloc_objs), zeroed.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kzalloc_objs<T>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        self.kmalloc_objs(count, gfp.union(Gfp::ZERO))
    }

    /// Room for a `T` that `count` values of `U` follow, not initialised. `T` should be `#[repr(C)]` and end in a `[U; 0]`.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kmalloc_flex<T, U>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        let size_bytes = size_add(size_of::<T>(), array_size(count, size_of::<U>()));
        // A multiple of the alignment, so that the block is aligned for `T`; saturation stays saturated.
        let size_bytes = size_bytes.checked_next_multiple_of(align_of::<T>()).unwrap_or(usize::MAX);
        Ok(self.kmalloc_partitioned(size_bytes, gfp, PartitionToken::of_type::<T>())?.cast())
    }

    /// As [`kmalloc_flex`](Self::kmalloc_flex), zeroed.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kzalloc_flex<T, U>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, AllocError> {
        self.kmalloc_flex::<T, U>(count, gfp.union(Gfp::ZERO))
    }
}

/// A value in a block of its own; dropped and given back on drop.
///
/// # Invariants
/// 1. `value` points to an initialised `T` that nobody else owns.
/// 2. If `T` has bytes, `value` is the start of a block that `source` gave.
pub struct KBox<'k, T, E: SlabEnv> {
    value: NonNull<T>,
    source: &'k Kmalloc<'k, E>,
}

// SAFETY: owns its `T`; the allocator may be used from anywhere.
unsafe impl<T: Send, E: SlabEnv> Send for KBox<'_, T, E> where for<'a> Kmalloc<'a, E>: Sync {}
// SAFETY: shared access gives shared access to the `T`.
unsafe impl<T: Sync, E: SlabEnv> Sync for KBox<'_, T, E> where for<'a> Kmalloc<'a, E>: Sync {}

impl<'k, T, E: SlabEnv> KBox<'k, T, E> {
    /// Moves `value` into a new block. On failure `value` is dropped.
    ///
    /// # Errors
    /// Those of [`Kmalloc::kmalloc`].
    #[inline]
    #[track_caller]
    pub fn new(source: &'k Kmalloc<'k, E>, value: T, gfp: Gfp) -> Result<Self, AllocError> {
        let place = if size_of::<T>() == 0 { NonNull::dangling() } else { source.kmalloc_obj::<T>(gfp)? };
        // SAFETY: room for a `T`: a new block of its size (which is a multiple of its alignment, so kmalloc aligned the
        // block for it), or no bytes at an aligned address.
        unsafe { place.write(value) };
        // INVARIANT: (1) just written; (2) just allocated.
        Ok(Self { value: place, source })
    }

    /// Gives up ownership: the caller drops the value and frees the block.
    pub fn into_raw(self) -> NonNull<T> {
        mem::ManuallyDrop::new(self).value
    }

    /// Takes ownership of what [`into_raw`](Self::into_raw) gave.
    ///
    /// # Safety
    /// `value` came from `into_raw` of a box over `source`, and the caller owns it.
    pub unsafe fn from_raw(source: &'k Kmalloc<'k, E>, value: NonNull<T>) -> Self {
        // INVARIANT: the caller's promise.
        Self { value, source }
    }

    /// Moves the value out and gives the block back.
    pub fn into_inner(self) -> T {
        let this = mem::ManuallyDrop::new(self);
        // SAFETY: initialised (invariant 1), and never read again.
        let value = unsafe { this.value.read() };
        // SAFETY: the block is ours (2), and the value has left it.
        unsafe { this.free_block() };
        value
    }

    /// # Safety
    /// The value has been moved out or dropped; the box is not used again.
    unsafe fn free_block(&self) {
        if size_of::<T>() != 0 {
            // SAFETY: our block (invariant 2), without users by the caller's promise.
            let freed = unsafe { self.source.kfree(self.value.as_ptr().cast()) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

impl<T, E: SlabEnv> Drop for KBox<'_, T, E> {
    fn drop(&mut self) {
        // SAFETY: initialised and ours (invariant 1); this is its last use.
        unsafe { self.value.drop_in_place() };
        // SAFETY: dropped above; the box ends here.
        unsafe { self.free_block() };
    }
}

impl<T, E: SlabEnv> Deref for KBox<'_, T, E> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: initialised and ours (invariant 1).
        unsafe { self.value.as_ref() }
    }
}

impl<T, E: SlabEnv> DerefMut for KBox<'_, T, E> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: initialised and ours (invariant 1), borrowed mutably.
        unsafe { self.value.as_mut() }
    }
}

impl<T: fmt::Debug, E: SlabEnv> fmt::Debug for KBox<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
