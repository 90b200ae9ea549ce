//! The names of compressed objects on [`Kmem`], and how their frames are found by whoever moves frames.
//!
//! ```text
//! frame's owner word ──tag Zsmalloc──▶ ZsPools ──the word──▶ Home ─▶ Pool          isolate, migrate, put back
//!                                        │ head ─▶ Home ─▶ Home     in blocks of kmalloc, one a pool
//!                                        └ lock     held for a walk of the list, and while a pool is asked for the first time
//! ```
//! A frame's words name its pool by a number that two live pools never share. Whoever has isolated a frame holds its pool:
//! [`ZsPool`] waits on drop until all isolations have ended.

use core::fmt;
use core::ops::Deref;
use core::ptr;

use kmem_gfp::{AllocContext, FrameTable, Gfp, MigrateError, MovableOwner, NodeId, OwnerTag, Pfn};
use kmem_kmalloc::KBox;
use kmem_sync::SpinLock;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use kmem_zsmalloc::{
    AccessError, Config, CreateError, Handle, NotEmpty, PartsGuard, Pool, PoolStats, ReadGuard, StoreError, ZsEnv,
};

use crate::{Kmem, ObjectSide, Platform};

impl<P: Platform> ZsEnv for ObjectSide<P> {
    type Cpu = P::Cpu;
    type Pages = crate::PageSource<P>;
    type Frames = P::Frames;
    type Context = P::Context;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        kmem_slab::SlabEnv::cpu(self)
    }
    #[inline(always)]
    fn pages(&self) -> &Self::Pages {
        kmem_slab::SlabEnv::pages(self)
    }
    #[inline(always)]
    fn frames(&self) -> &P::Frames {
        kmem_slab::SlabEnv::frames(self)
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        kmem_slab::SlabEnv::context(self)
    }
}

/// A pool where movers find it.
struct Home<P: Platform> {
    pool: Pool<ObjectSide<P>>,
    /// The owner word of its frames; 0 until the first of them is isolated.
    word: AtomicU64,
    /// Frames that are isolated, and calls on their behalf. Goes up under the lock of the list only.
    movers: AtomicU64,
    /// Nothing more is isolated. Changed under the lock.
    is_ending: AtomicBool,
    /// Changed and followed under the lock.
    next: AtomicPtr<Home<P>>,
}

/// The pools of a machine.
///
/// # Invariants
/// The list behind `head` consists of homes in blocks that [`ZsPool`]s own; one is taken off it before its block is freed,
/// and only when it has no movers.
pub(crate) struct ZsPools<P: Platform> {
    platform: &'static P,
    head: SpinLock<AtomicPtr<Home<P>>>,
}

// SAFETY: the pointer leads to homes, which are shared by reference only: a `Pool` whose environment is `Sync` (the parts of
// a platform are) and atomics.
unsafe impl<P: Platform> Sync for ZsPools<P> {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl<P: Platform> Send for ZsPools<P> {}

impl<P: Platform> ZsPools<P> {
    pub(crate) fn new(platform: &'static P) -> Self {
        Self { platform, head: SpinLock::new(AtomicPtr::new(ptr::null_mut())) }
    }

    /// Whether a frame's words say that it belongs to some pool. Metadata frames do, too; they are not isolated.
    #[inline]
    pub(crate) fn may_own(&self, pfn: Pfn) -> bool {
        self.word_of(pfn) & OwnerTag::MASK == OwnerTag::Zsmalloc as u64
    }

    fn word_of(&self, pfn: Pfn) -> u64 {
        self.platform.frames().words(pfn).map_or(0, |words| words.owner.load(Ordering::Relaxed))
    }

    /// Runs `f` on each home with the lock held, until it returns something.
    fn walk<R>(&self, mut f: impl FnMut(&AtomicPtr<Home<P>>, &Home<P>) -> Option<R>) -> Option<R> {
        self.head.with(self.platform.cpu(), |head| {
            let mut link: &AtomicPtr<Home<P>> = head;
            loop {
                // SAFETY: a home on the list is live (type invariant), and nobody takes it off while we hold the lock.
                let home = unsafe { link.load(Ordering::Relaxed).as_ref() }?;
                if let Some(found) = f(link, home) {
                    return Some(found);
                }
                link = &home.next;
            }
        })
    }

    fn add(&self, home: &Home<P>) {
        self.head.with(self.platform.cpu(), |head| {
            home.next.store(head.load(Ordering::Relaxed), Ordering::Relaxed);
            head.store(ptr::from_ref(home).cast_mut(), Ordering::Relaxed);
        });
    }

    /// Takes a home off the list, once nobody moves frames of its pool.
    fn remove(&self, home: &Home<P>) {
        self.head.with(self.platform.cpu(), |_| home.is_ending.store(true, Ordering::Relaxed));
        // Acquire pairs with the release of the last mover.
        while home.movers.load(Ordering::Acquire) != 0 {
            self.platform.context().yield_now();
        }
        let _ = self.walk(|link, other| {
            ptr::eq(other, home).then(|| link.store(home.next.load(Ordering::Relaxed), Ordering::Relaxed))
        });
    }

    /// Runs `f` on the pool that has isolated `pfn`.
    fn with_isolated<R>(&self, pfn: Pfn, f: impl FnOnce(&Home<P>) -> R) -> Option<R> {
        let word = self.word_of(pfn);
        let home = self.walk(|_, home| (home.word.load(Ordering::Relaxed) == word).then(|| ptr::from_ref(home)))?;
        // SAFETY: the home has a mover, who is calling and has not ended the isolation yet, so it stays (type invariant).
        Some(f(unsafe { &*home }))
    }

    /// Ends the hold that an isolated frame has on its pool.
    fn release(home: &Home<P>) {
        // Release pairs with the acquire in `remove`.
        home.movers.fetch_sub(1, Ordering::Release);
    }
}

impl<P: Platform> fmt::Debug for ZsPools<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZsPools").finish_non_exhaustive()
    }
}

// SAFETY: each call goes to the pool that the frame belongs to, which keeps the promises: `isolate` asks the pool itself,
// and an isolated frame's owner word, which the others go by, is its pool's until the isolation ends.
unsafe impl<P: Platform> MovableOwner for ZsPools<P> {
    fn isolate(&self, pfn: Pfn) -> bool {
        let word = self.word_of(pfn);
        let home = self.walk(|_, home| {
            let known = home.word.load(Ordering::Relaxed);
            if home.is_ending.load(Ordering::Relaxed) || (known != 0 && known != word) {
                return None;
            }
            if known == 0 {
                // Once in a pool's life: whether the word is its own, it alone can tell.
                if !home.pool.isolate(pfn) {
                    return None;
                }
                home.word.store(self.word_of(pfn), Ordering::Relaxed);
            }
            home.movers.fetch_add(1, Ordering::Relaxed);
            Some((ptr::from_ref(home), known == 0))
        });
        let Some((home, done)) = home else { return false };
        // SAFETY: it has a mover, us (type invariant).
        let home = unsafe { &*home };
        let isolated = done || home.pool.isolate(pfn);
        if !isolated {
            Self::release(home);
        }
        isolated
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        let moved = self.with_isolated(source, |home| {
            let moved = home.pool.migrate(source, target);
            if moved.is_ok() {
                Self::release(home);
            }
            moved
        });
        moved.unwrap_or(Err(MigrateError::Permanent(source)))
    }

    fn put_back(&self, pfn: Pfn) {
        self.with_isolated(pfn, |home| {
            home.pool.put_back(pfn);
            Self::release(home);
        });
    }
}

/// A pool of compressed objects on a machine: a [`Pool`] whose frames compaction and contiguous allocations can move.
///
/// Dropping it frees everything in it, once nobody is about to move one of its frames any more.
#[must_use = "dropped, the pool is destroyed"]
pub struct ZsPool<P: Platform> {
    pools: &'static ZsPools<P>,
    home: KBox<'static, Home<P>, ObjectSide<P>>,
}

impl<P: Platform> fmt::Debug for ZsPool<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.home.pool.fmt(f)
    }
}

impl<P: Platform> Deref for ZsPool<P> {
    type Target = Pool<ObjectSide<P>>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.home.pool
    }
}

impl<P: Platform> Drop for ZsPool<P> {
    fn drop(&mut self) {
        self.pools.remove(&self.home);
    }
}

/// # Compressed objects
impl<P: Platform> Kmem<P> {
    /// Creates a pool of objects of 1 to 4096 bytes. Some ten frames for its tables, and a block of kmalloc. Contexts: any that
    /// `gfp` allows.
    ///
    /// # Errors
    /// [`CreateError`](kmem_zsmalloc::CreateError); nothing is left allocated.
    pub fn zs_create_pool(&'static self, config: Config, gfp: Gfp) -> Result<ZsPool<P>, CreateError> {
        let pool = Pool::new(ObjectSide::new(&self.platform, &self.pages), config, gfp)?;
        let home = Home {
            pool,
            word: AtomicU64::new(0),
            movers: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
        };
        let home = KBox::new(&self.kmalloc, home, gfp.addressable())?;
        // INVARIANT: `ZsPool` takes it off the list before the block goes.
        self.zs_pools.add(&home);
        Ok(ZsPool { pools: &self.zs_pools, home })
    }

    /// Destroys a pool that holds no object. May sleep.
    ///
    /// # Errors
    /// The pool itself and how many objects are left.
    pub fn zs_destroy_pool(&self, pool: ZsPool<P>) -> Result<(), (ZsPool<P>, NotEmpty)> {
        let objects = pool.nr_objects();
        if objects == 0 { Ok(()) } else { Err((pool, NotEmpty { objects })) }
    }

    /// Stores a copy of `data`; `MOVABLE` in `gfp` lets the frames lie where they may have to move.
    ///
    /// # Errors
    /// Those of [`Pool::store`].
    #[inline]
    pub fn zs_malloc(&self, pool: &ZsPool<P>, data: &[u8], gfp: Gfp) -> Result<Handle, StoreError> {
        pool.store(data, gfp)
    }

    /// As [`zs_malloc`](Self::zs_malloc), with new frames preferably on `node`.
    ///
    /// # Errors
    /// Those of [`Pool::store_on`].
    #[inline]
    pub fn zs_malloc_node(
        &self,
        pool: &ZsPool<P>,
        data: &[u8],
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Handle, StoreError> {
        pool.store_on(data, gfp, node)
    }

    /// Frees an object.
    ///
    /// # Errors
    /// Those of [`Pool::free`]: a handle that was freed, or belongs to another pool.
    #[inline]
    pub fn zs_free(&self, pool: &ZsPool<P>, handle: Handle) -> Result<(), AccessError> {
        pool.free(handle)
    }

    /// An object's bytes: its own if it lies in one frame, else a copy in `buffer`.
    ///
    /// # Errors
    /// Those of [`Pool::read`].
    #[doc(alias = "zs_obj_read_begin")]
    #[inline]
    pub fn zs_obj_read<'a>(
        &self,
        pool: &'a ZsPool<P>,
        handle: Handle,
        buffer: &'a mut [u8],
    ) -> Result<ReadGuard<'a, ObjectSide<P>>, AccessError> {
        pool.read(handle, buffer)
    }

    /// An object's own bytes in one piece or two.
    ///
    /// # Errors
    /// Those of [`Pool::read_parts`].
    #[doc(alias = "zs_obj_read_sg_begin")]
    #[inline]
    pub fn zs_obj_read_parts<'a>(
        &self,
        pool: &'a ZsPool<P>,
        handle: Handle,
    ) -> Result<PartsGuard<'a, ObjectSide<P>>, AccessError> {
        pool.read_parts(handle)
    }

    /// Overwrites an object with bytes of the same size class.
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[inline]
    pub fn zs_obj_write(&self, pool: &ZsPool<P>, handle: Handle, data: &[u8]) -> Result<(), AccessError> {
        pool.write(handle, data)
    }

    /// Moves objects together; how many frames that gave back.
    #[inline]
    pub fn zs_compact(&self, pool: &ZsPool<P>) -> u64 {
        pool.compact()
    }

    /// Frames that hold the pool's objects.
    #[inline]
    pub fn zs_get_total_pages(&self, pool: &ZsPool<P>) -> u64 {
        pool.total_pages()
    }

    /// What a pool holds.
    pub fn zs_pool_stats(&self, pool: &ZsPool<P>) -> PoolStats {
        pool.stats()
    }

    /// Objects of at least this many bytes have a frame to themselves.
    pub fn zs_huge_class_size(&self, pool: &ZsPool<P>) -> usize {
        pool.huge_class_size()
    }
}
