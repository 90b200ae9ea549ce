//! [`Cache<T>`] and [`CacheBox<T>`]: caches of one type, and owned objects in them.

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp};

use crate::{CacheArgs, CreateError, KmemCache, SlabEnv, Slabs};

/// A cache of `T`s, destroyed on drop.
///
/// Dropping it may sleep. If boxes have been leaked, the cache is leaked with them.
pub struct Cache<'s, T, E: SlabEnv> {
    slabs: &'s Slabs<E>,
    raw: &'s KmemCache,
    holds: PhantomData<fn() -> T>,
}

impl<'s, T, E: SlabEnv> Cache<'s, T, E> {
    /// A cache of `T`s, perhaps shared with another of the same size.
    ///
    /// # Errors
    /// Those of [`Slabs::create`].
    pub fn new(slabs: &'s Slabs<E>, name: &str) -> Result<Self, CreateError> {
        Self::with_args(slabs, name, &CacheArgs::default())
    }

    /// A cache of `T`s with the given arguments; the alignment is at least `T`'s.
    ///
    /// # Errors
    /// Those of [`Slabs::create`].
    pub fn with_args(slabs: &'s Slabs<E>, name: &str, args: &CacheArgs) -> Result<Self, CreateError> {
        let args = CacheArgs { align: args.align.max(align_of::<T>()), ..*args };
        let raw = slabs.create(name, size_of::<T>().max(1), &args)?;
        Ok(Self { slabs, raw, holds: PhantomData })
    }

    /// The cache beneath.
    pub fn raw(&self) -> &'s KmemCache {
        self.raw
    }

    /// The family.
    pub fn slabs(&self) -> &'s Slabs<E> {
        self.slabs
    }

    /// Moves `value` into a new object. The value is dropped on failure; [`alloc_with`](Self::alloc_with) makes it only
    /// when there is room.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc`].
    #[inline(always)]
    #[track_caller]
    pub fn alloc(&self, value: T, gfp: Gfp) -> Result<CacheBox<'_, T, E>, AllocError> {
        self.alloc_with(gfp, || value)
    }

    /// Makes a value in a new object.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc`].
    #[inline(always)]
    #[track_caller]
    pub fn alloc_with(&self, gfp: Gfp, make: impl FnOnce() -> T) -> Result<CacheBox<'_, T, E>, AllocError> {
        let object = self.slabs.alloc(self.raw, gfp.difference(Gfp::ZERO))?.cast::<T>();
        // SAFETY: an object of the cache is large enough for `T`, aligned for it, and ours.
        unsafe { object.write(make()) };
        // INVARIANT: just allocated and written.
        Ok(CacheBox { object, cache: self })
    }

    /// A new object without a value: as its constructor, or the one before, left it; zeroed with [`Gfp::ZERO`].
    ///
    /// # Errors
    /// Those of [`Slabs::alloc`].
    #[inline]
    #[track_caller]
    pub fn alloc_uninit(&self, gfp: Gfp) -> Result<UninitBox<'_, T, E>, AllocError> {
        let object = self.slabs.alloc(self.raw, gfp)?.cast();
        // INVARIANT: just allocated.
        Ok(UninitBox { object, cache: self })
    }
}

impl<T, E: SlabEnv> Drop for Cache<'_, T, E> {
    fn drop(&mut self) {
        // SAFETY: boxes borrow this value, so those that are left have been leaked, and then nothing is destroyed.
        let _leaked = unsafe { self.slabs.destroy(self.raw) };
    }
}

impl<T, E: SlabEnv> fmt::Debug for Cache<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(self.raw).finish()
    }
}

/// An owned `T` in a [`Cache`]; dropped and freed on drop.
///
/// # Invariants
/// `object` is an object in use of `cache` that holds a `T`, and belongs to this value.
#[must_use = "dropping the box frees the object"]
pub struct CacheBox<'c, T, E: SlabEnv> {
    object: NonNull<T>,
    cache: &'c Cache<'c, T, E>,
}

// SAFETY: owns a `T`; the family is shared.
unsafe impl<T: Send, E: SlabEnv> Send for CacheBox<'_, T, E> where Slabs<E>: Sync {}
// SAFETY: gives out `&T` only.
unsafe impl<T: Sync, E: SlabEnv> Sync for CacheBox<'_, T, E> where Slabs<E>: Sync {}

impl<'c, T, E: SlabEnv> CacheBox<'c, T, E> {
    /// Moves the value out and frees the object.
    pub fn into_inner(this: Self) -> T {
        let this = core::mem::ManuallyDrop::new(this);
        // SAFETY: the object holds a `T` (type invariant), which is read out once.
        let value = unsafe { this.object.read() };
        free(this.cache, this.object);
        value
    }

    /// Gives up ownership: the caller frees the object by hand, or never.
    pub fn into_raw(this: Self) -> NonNull<T> {
        core::mem::ManuallyDrop::new(this).object
    }

    /// Takes ownership of an object.
    ///
    /// # Safety
    /// It came from [`into_raw`](Self::into_raw) of a box of the same cache, and the caller owns it.
    pub unsafe fn from_raw(cache: &'c Cache<'c, T, E>, object: NonNull<T>) -> Self {
        // INVARIANT: the caller's promise.
        Self { object, cache }
    }
}

#[inline(always)]
fn free<T, E: SlabEnv>(cache: &Cache<'_, T, E>, object: NonNull<T>) {
    // SAFETY: the callers own the object, which is one of this cache's by the type's invariant, and do not use it any more.
    let freed = unsafe { cache.slabs.free_known(cache.raw, object.cast()) };
    debug_assert!(freed.is_ok() || cache.raw.is_debug(), "{freed:?}");
}

impl<T, E: SlabEnv> Deref for CacheBox<'_, T, E> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the object holds a `T` (type invariant).
        unsafe { self.object.as_ref() }
    }
}

impl<T, E: SlabEnv> DerefMut for CacheBox<'_, T, E> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the object holds a `T` that is ours (type invariant).
        unsafe { self.object.as_mut() }
    }
}

impl<T, E: SlabEnv> Drop for CacheBox<'_, T, E> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the object holds a `T` (type invariant); it is dropped once.
        unsafe { self.object.drop_in_place() };
        free(self.cache, self.object);
    }
}

impl<T: fmt::Debug, E: SlabEnv> fmt::Debug for CacheBox<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// An owned object without a value; freed on drop.
///
/// # Invariants
/// `object` is an object in use of `cache` and belongs to this value.
#[must_use = "dropping the box frees the object"]
pub struct UninitBox<'c, T, E: SlabEnv> {
    object: NonNull<MaybeUninit<T>>,
    cache: &'c Cache<'c, T, E>,
}

// SAFETY: owns memory only; the family is shared.
unsafe impl<T: Send, E: SlabEnv> Send for UninitBox<'_, T, E> where Slabs<E>: Sync {}

impl<'c, T, E: SlabEnv> UninitBox<'c, T, E> {
    /// The memory.
    pub fn memory(&mut self) -> &mut MaybeUninit<T> {
        // SAFETY: the object is ours (type invariant).
        unsafe { self.object.as_mut() }
    }

    /// Writes a value into the object.
    pub fn write(self, value: T) -> CacheBox<'c, T, E> {
        let mut this = core::mem::ManuallyDrop::new(self);
        // SAFETY: the object is ours (type invariant).
        unsafe { this.object.as_mut() }.write(value);
        // INVARIANT: just written; ownership moves over.
        CacheBox { object: this.object.cast(), cache: this.cache }
    }

    /// Declares the object as it is to be a `T`.
    ///
    /// # Safety
    /// It holds a valid `T`: its constructor made one, or the caller wrote one.
    pub unsafe fn assume_init(self) -> CacheBox<'c, T, E> {
        let this = core::mem::ManuallyDrop::new(self);
        // INVARIANT: the caller's promise; ownership moves over.
        CacheBox { object: this.object.cast(), cache: this.cache }
    }
}

impl<T, E: SlabEnv> Drop for UninitBox<'_, T, E> {
    fn drop(&mut self) {
        free(self.cache, self.object.cast());
    }
}

impl<T, E: SlabEnv> fmt::Debug for UninitBox<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UninitBox").field(&self.object).finish()
    }
}
