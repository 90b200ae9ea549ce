//! [`Mempool`]: a reserve of elements that makes allocation certain for whoever can wait for one to come back.
//!
//! ```text
//! alloc   source, gently ─▶ reserve (last in, first out) ─▶ source, with the caller's flags ─▶ wait for a free
//! free    reserve, while below its minimum ─▶ source
//! ```

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp};
use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicU32, Ordering};

use crate::backend::Locking;
use crate::inject::Injector;
use crate::{FaultInjection, KmemCache, SlabEnv, Slabs};

/// Where a pool's elements come from.
///
/// # Safety
/// [`alloc`](Self::alloc) returns memory that belongs to the caller alone until it goes back to [`free`](Self::free).
pub unsafe trait ElementSource {
    /// A new element.
    ///
    /// # Errors
    /// [`AllocError`] if the flags allow none.
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError>;

    /// Takes an element back.
    ///
    /// # Safety
    /// It came from the same source, and nobody uses it any more.
    unsafe fn free(&self, element: NonNull<u8>);
}

/// Elements from an object cache (`mempool_create_slab_pool`). The cache must have no constructor: elements in the
/// reserve are not constructed anew.
#[doc(alias("mempool_create_slab_pool", "mempool_alloc_slab"))]
#[derive(Debug)]
pub struct CacheElements<'s, E: SlabEnv> {
    /// The family.
    pub slabs: &'s Slabs<E>,
    /// The cache.
    pub cache: &'s KmemCache,
}

// SAFETY: objects of a cache belong to whoever allocated them.
unsafe impl<E: SlabEnv> ElementSource for CacheElements<'_, E> {
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.slabs.alloc(self.cache, gfp)
    }
    unsafe fn free(&self, element: NonNull<u8>) {
        // SAFETY: given up by the caller.
        let freed = unsafe { self.slabs.free(self.cache, element) };
        debug_assert!(freed.is_ok() || self.cache.is_debug(), "{freed:?}");
    }
}

/// The reserve.
///
/// # Invariants
/// The first `len` of the `capacity` places at `places` hold elements that belong to the pool; `len <= capacity`.
#[derive(Debug)]
struct Reserve {
    places: NonNull<*mut u8>,
    capacity: usize,
    len: usize,
    min_nr: usize,
}

// SAFETY: the elements belong to the reserve; nothing is tied to a thread.
unsafe impl Send for Reserve {}

impl Reserve {
    fn pop(&mut self) -> Option<NonNull<u8>> {
        let at = self.len.checked_sub(1)?;
        self.len = at;
        // SAFETY: below the old `len` (type invariant).
        NonNull::new(unsafe { self.places.add(at).read() })
    }

    /// Takes an element in if the reserve is short (an empty one always is); gives it back otherwise.
    fn push(&mut self, element: NonNull<u8>) -> Option<NonNull<u8>> {
        if self.len >= self.min_nr.max(1) || self.len >= self.capacity {
            return Some(element);
        }
        // SAFETY: below `capacity` (type invariant).
        unsafe { self.places.add(self.len).write(element.as_ptr()) };
        self.len += 1;
        None
    }
}

/// A pool of elements with a reserve. Dropping it frees the reserve; elements still out are their owners' loss.
#[doc(alias = "mempool_t")]
pub struct Mempool<'s, E: SlabEnv, S: ElementSource> {
    slabs: &'s Slabs<E>,
    source: S,
    reserve: IrqLock<Reserve>,
    /// Elements in the reserve, read without the lock.
    available: AtomicU32,
    faults: Injector,
    bulk_faults: Injector,
}

const fn bytes(capacity: usize) -> usize {
    capacity.saturating_mul(size_of::<*mut u8>())
}

impl<'s, E: SlabEnv, S: ElementSource> Mempool<'s, E, S> {
    /// A pool that keeps `min_nr` elements (at least one) in reserve, all allocated here. The reserve's array comes from
    /// `slabs`. May sleep if `gfp` allows.
    ///
    /// # Errors
    /// [`AllocError`] if the array or one of the elements cannot be had; nothing is kept then.
    #[doc(alias("mempool_create", "mempool_init"))]
    pub fn new(slabs: &'s Slabs<E>, min_nr: usize, source: S, gfp: Gfp) -> Result<Self, AllocError> {
        let capacity = min_nr.max(1);
        let places = slabs.meta_alloc(bytes(capacity), gfp, Locking::Wait)?.cast();
        let pool = Self {
            slabs,
            source,
            reserve: IrqLock::new(Reserve { places, capacity, len: 0, min_nr }),
            available: AtomicU32::new(0),
            faults: Injector::new(slabs.env.entropy()),
            bulk_faults: Injector::new(slabs.env.entropy()),
        };
        for _ in 0..capacity {
            let element = pool.source.alloc(gfp)?;
            pool.put(element);
        }
        Ok(pool)
    }

    fn with<R>(&self, f: impl FnOnce(&mut Reserve) -> R) -> R {
        self.reserve.with(self.slabs.env.cpu(), |reserve| {
            let result = f(reserve);
            self.available.store(reserve.len as u32, Ordering::Relaxed);
            result
        })
    }

    /// Puts an element into the reserve, or back to the source.
    fn put(&self, element: NonNull<u8>) {
        if let Some(extra) = self.with(|reserve| reserve.push(element)) {
            // SAFETY: from the source, and ours.
            unsafe { self.source.free(extra) };
        }
    }

    /// Elements in the reserve.
    pub fn available(&self) -> usize {
        self.available.load(Ordering::Relaxed) as usize
    }

    /// Elements that the reserve is kept at.
    pub fn min_nr(&self) -> usize {
        self.with(|reserve| reserve.min_nr)
    }

    fn flags(gfp: Gfp) -> Result<Gfp, AllocError> {
        if gfp.contains(Gfp::ZERO) {
            return Err(AllocError::BadFlags(Gfp::ZERO));
        }
        Ok(gfp | Gfp::NOMEMALLOC | Gfp::NORETRY | Gfp::NOWARN)
    }

    /// An element. With [`Gfp::DIRECT_RECLAIM`] this cannot fail: it waits until someone frees one.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] for callers that may not sleep; [`AllocError::BadFlags`] for [`Gfp::ZERO`], which
    /// elements of the reserve cannot honour.
    #[doc(alias = "mempool_alloc")]
    pub fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        let flags = Self::flags(gfp)?;
        let mut attempt = flags.difference(Gfp::DIRECT_RECLAIM | Gfp::IO);
        let mut injected = self.faults.is_armed() && self.faults.fires(self.slabs.env.cpu());
        loop {
            let failure = match core::mem::replace(&mut injected, false) {
                true => AllocError::Injected,
                false => match self.source.alloc(attempt) {
                    Ok(element) => return Ok(element),
                    Err(error) => error,
                },
            };
            if let Some(element) = self.with(Reserve::pop) {
                return Ok(element);
            }
            if attempt != flags {
                attempt = flags;
                continue;
            }
            if !gfp.allows_blocking() {
                return Err(failure);
            }
            self.slabs.env.context().yield_now();
        }
    }

    /// An element that frees itself.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    pub fn alloc_box(&self, gfp: Gfp) -> Result<PoolBox<'_, 's, E, S>, AllocError> {
        Ok(PoolBox { element: self.alloc(gfp)?, pool: self })
    }

    /// An element of the reserve, if it has one. Never sleeps; any context but NMI.
    #[doc(alias = "mempool_alloc_preallocated")]
    pub fn alloc_preallocated(&self) -> Option<NonNull<u8>> {
        self.with(Reserve::pop)
    }

    /// Takes an element back: into the reserve while that is short, else to the source.
    ///
    /// # Safety
    /// It came from this pool (or its source), and nobody uses it any more.
    #[doc(alias = "mempool_free")]
    pub unsafe fn free(&self, element: NonNull<u8>) {
        if self.available() >= self.with_min() {
            // SAFETY: the caller's promise.
            unsafe { self.source.free(element) };
        } else {
            self.put(element);
        }
    }

    fn with_min(&self) -> usize {
        self.with(|reserve| reserve.min_nr.max(1))
    }

    /// Fills every `None` place. Waits if it must: `gfp` has to allow sleeping. The reserve helps only if it can supply
    /// all that is missing.
    ///
    /// # Errors
    /// [`AllocError::BadFlags`] for [`Gfp::ZERO`] or flags that forbid sleeping; [`AllocError::TooLarge`] for more than
    /// the pool's minimum, which waiting might never supply. Nothing has changed then.
    #[doc(alias = "mempool_alloc_bulk")]
    pub fn alloc_bulk(&self, gfp: Gfp, elements: &mut [Option<NonNull<u8>>]) -> Result<(), AllocError> {
        let flags = Self::flags(gfp)?;
        if !gfp.allows_blocking() {
            return Err(AllocError::BadFlags(gfp));
        }
        if elements.len() > self.min_nr() {
            return Err(AllocError::TooLarge { size_bytes: elements.len() });
        }
        let mut skip = self.bulk_faults.is_armed() && self.bulk_faults.fires(self.slabs.env.cpu());
        let mut attempt = flags.difference(Gfp::DIRECT_RECLAIM | Gfp::IO);
        loop {
            if !skip {
                for place in elements.iter_mut().filter(|place| place.is_none()) {
                    match self.source.alloc(attempt) {
                        Ok(element) => *place = Some(element),
                        Err(_) => break,
                    }
                }
            }
            skip = false;
            let missing = elements.iter().filter(|place| place.is_none()).count();
            let done = self.with(|reserve| {
                if reserve.len < missing {
                    return false;
                }
                for place in elements.iter_mut().filter(|place| place.is_none()) {
                    *place = reserve.pop();
                }
                true
            });
            if done {
                return Ok(());
            }
            if attempt == flags {
                self.slabs.env.context().yield_now();
            }
            attempt = flags;
        }
    }

    /// Offers elements to the reserve; returns how many leading ones it took. The rest stay the caller's.
    ///
    /// # Safety
    /// As for [`free`](Self::free), for each element.
    #[doc(alias = "mempool_free_bulk")]
    pub unsafe fn free_bulk(&self, elements: &[NonNull<u8>]) -> usize {
        self.with(|reserve| elements.iter().take_while(|element| reserve.push(**element).is_none()).count())
    }

    /// Changes the reserve's minimum. Shrinking frees extras at once; growing fills what it can and is content with
    /// less. May sleep.
    ///
    /// # Errors
    /// [`AllocError`] if a larger array cannot be had, or for a minimum of 0; nothing has changed then.
    #[doc(alias = "mempool_resize")]
    pub fn resize(&self, min_nr: usize, gfp: Gfp) -> Result<(), AllocError> {
        if min_nr == 0 {
            return Err(AllocError::TooLarge { size_bytes: 0 });
        }
        let old = self.with(|reserve| reserve.capacity);
        if min_nr > old {
            let places = self.slabs.meta_alloc(bytes(min_nr), gfp, Locking::Wait)?.cast::<*mut u8>();
            let (unused, size) = self.with(|reserve| {
                if reserve.capacity >= min_nr {
                    return (places, bytes(min_nr));
                }
                // SAFETY: both arrays hold at least `len` places and do not overlap.
                unsafe { places.copy_from_nonoverlapping(reserve.places, reserve.len) };
                let unused = core::mem::replace(&mut reserve.places, places);
                (unused, bytes(core::mem::replace(&mut reserve.capacity, min_nr)))
            });
            // SAFETY: nobody uses the array any more.
            unsafe { self.slabs.meta_free(unused.cast(), size, Locking::Wait) };
        }
        self.with(|reserve| reserve.min_nr = min_nr);
        while let Some(extra) = self.with(|reserve| if reserve.len > min_nr { reserve.pop() } else { None }) {
            // SAFETY: ours.
            unsafe { self.source.free(extra) };
        }
        while self.available() < min_nr {
            let Ok(element) = self.source.alloc(gfp) else { break };
            self.put(element);
        }
        Ok(())
    }

    /// Sets when [`alloc`](Self::alloc) passes its source over at first (`fail_mempool_alloc`).
    pub fn set_fault_injection(&self, rule: FaultInjection) {
        self.faults.set(self.slabs.env.cpu(), rule);
    }

    /// Sets when [`alloc_bulk`](Self::alloc_bulk) passes its source over at first (`fail_mempool_alloc_bulk`).
    pub fn set_bulk_fault_injection(&self, rule: FaultInjection) {
        self.bulk_faults.set(self.slabs.env.cpu(), rule);
    }
}

impl<E: SlabEnv, S: ElementSource> Drop for Mempool<'_, E, S> {
    fn drop(&mut self) {
        while let Some(element) = self.with(Reserve::pop) {
            // SAFETY: ours.
            unsafe { self.source.free(element) };
        }
        let (places, capacity) = self.with(|reserve| (reserve.places, reserve.capacity));
        // SAFETY: the pool is going away.
        unsafe { self.slabs.meta_free(places.cast(), bytes(capacity), Locking::Wait) };
    }
}

impl<E: SlabEnv, S: ElementSource> fmt::Debug for Mempool<'_, E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mempool").field("available", &self.available()).finish_non_exhaustive()
    }
}

/// An owned element; goes back to its pool on drop.
///
/// # Invariants
/// `element` came from `pool` and belongs to this value.
#[must_use = "dropping the box gives the element back"]
pub struct PoolBox<'p, 's, E: SlabEnv, S: ElementSource> {
    element: NonNull<u8>,
    pool: &'p Mempool<'s, E, S>,
}

// SAFETY: owns memory only; the pool is shared.
unsafe impl<E: SlabEnv, S: ElementSource> Send for PoolBox<'_, '_, E, S>
where
    Slabs<E>: Sync,
    S: Sync,
{
}

impl<E: SlabEnv, S: ElementSource> PoolBox<'_, '_, E, S> {
    /// Gives up ownership.
    pub fn into_raw(self) -> NonNull<u8> {
        core::mem::ManuallyDrop::new(self).element
    }
}

impl<E: SlabEnv, S: ElementSource> Deref for PoolBox<'_, '_, E, S> {
    type Target = NonNull<u8>;
    fn deref(&self) -> &NonNull<u8> {
        &self.element
    }
}

impl<E: SlabEnv, S: ElementSource> Drop for PoolBox<'_, '_, E, S> {
    fn drop(&mut self) {
        // SAFETY: ours (type invariant), and its last use.
        unsafe { self.pool.free(self.element) };
    }
}

impl<E: SlabEnv, S: ElementSource> fmt::Debug for PoolBox<'_, '_, E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolBox").field(&self.element).finish()
    }
}
