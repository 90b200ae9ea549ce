//! Frees that wait for readers.
//!
//! ```text
//! kfree_rcu(object of a cache)  ─▶ the CPU's rcu sheaf of its cache (slab)
//! kfree_rcu(large block)        ─▶ queue, oldest first:  head ─▶ frame ─▶ frame ─▶ tail
//!                                  frame words: state = grace period, links = next frame + 1
//! ```
//!
//! No memory is needed to queue a block: the words of its first frame hold the link and the grace period after which it
//! may go. Because blocks queue in the order of their snapshots, the collector stops at the first that is not ready.
//! Collecting happens inside later frees, on demand ([`Kmalloc::reap`]) and at the barrier.
//!
//! **Locking:** `queue` protects head, tail and the `state` and `links` words of queued frames.

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, FrameTable, Pfn};
use kmem_slab::{ObjectError, RcuHead, SlabEnv};
use kmem_sync::atomic::{AtomicBool, Ordering};
use kmem_sync::{Grace, GracePeriod, IrqLock, const_fn};

use crate::{KfreeError, Kmalloc, is_zero_or_null, large};

/// How far into a block its RCU head may lie, in bytes.
pub const RCU_HEAD_REACH: usize = 4096;

/// `kfree_rcu!(allocator, pointer, Type, field)`: [`Kmalloc::kfree_rcu`] for a block that holds a `Type` whose `field` is
/// its [`RcuHead`]. That the head lies within [`RCU_HEAD_REACH`] is checked when it is compiled.
///
/// `allocator` is anything with a method `kfree_rcu`, `pointer` a `NonNull<Type>`. To be used inside an unsafe block, under
/// the promises of that method.
///
/// ```
/// use core::ptr::NonNull;
/// use kmem_kmalloc::{KfreeError, Kmalloc, kfree_rcu};
/// use kmem_slab::{ObjectError, RcuHead, SlabEnv};
///
/// struct Route {
///     target: u32,
///     rcu: RcuHead,
/// }
///
/// /// # Safety
/// /// Only readers that are running now use the route any more.
/// unsafe fn retire<E: SlabEnv>(kmalloc: &Kmalloc<'_, E>, route: NonNull<Route>) -> Result<(), KfreeError> {
///     // SAFETY: the caller's promise; `rcu` is no part of what readers look at.
///     unsafe { kfree_rcu!(kmalloc, route, Route, rcu) }
/// }
/// ```
///
/// A head too far inside does not compile:
///
/// ```compile_fail
/// # use core::ptr::NonNull;
/// # use kmem_kmalloc::{RcuHead, kfree_rcu};
/// #[repr(C)]
/// struct Far {
///     bytes: [u8; 4096],
///     rcu: RcuHead,
/// }
///
/// struct Taker;
/// impl Taker {
///     unsafe fn kfree_rcu(&self, _: *mut u8, _: NonNull<RcuHead>) {}
/// }
/// unsafe { kfree_rcu!(Taker, NonNull::<Far>::dangling(), Far, rcu) };
/// ```
#[macro_export]
macro_rules! kfree_rcu {
    ($allocator:expr, $pointer:expr, $type:ty, $field:ident) => {{
        const { assert!(::core::mem::offset_of!($type, $field) < $crate::RCU_HEAD_REACH) };
        let _: fn(&$type) -> &$crate::RcuHead = |object| &object.$field;
        let block: ::core::ptr::NonNull<$type> = $pointer;
        let head = block.cast::<u8>().add(::core::mem::offset_of!($type, $field)).cast();
        $allocator.kfree_rcu(block.as_ptr().cast(), head)
    }};
}

/// Large blocks that wait for their grace period.
#[derive(Debug)]
pub(crate) struct LargeRcu {
    queue: IrqLock<Queue>,
    /// Whether the queue may hold something; a hint that saves the lock.
    pending: AtomicBool,
}

/// Oldest and newest block queued.
#[derive(Debug)]
struct Queue {
    head: Option<Pfn>,
    tail: Option<Pfn>,
}

impl LargeRcu {
    const_fn! {
        /// An empty queue.
        pub(crate) fn new() -> Self {
            Self { queue: IrqLock::new(Queue { head: None, tail: None }), pending: AtomicBool::new(false) }
        }
    }
}

const fn link_to(next: Option<Pfn>) -> u64 {
    match next {
        Some(pfn) => pfn.0.wrapping_add(1),
        None => 0,
    }
}

const fn linked(link: u64) -> Option<Pfn> {
    match link.checked_sub(1) {
        Some(pfn) => Some(Pfn(pfn)),
        None => None,
    }
}

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// Frees the block at `ptr` once every reader that runs now has finished: anything that kmalloc or a cache gave.
    /// Null and [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR) do nothing. Any context but NMI; never sleeps, never allocates.
    ///
    /// `head` is a place inside the block that readers do not look at; it lies within the first
    /// [`RCU_HEAD_REACH`] bytes.
    ///
    /// # Safety
    /// The caller owns the block, and nobody but readers that are running now uses it any more; `head` lies inside it.
    ///
    /// # Errors
    /// Those of [`kfree`](Self::kfree), as far as they can be seen at once; nothing has changed.
    #[doc(alias = "kvfree_rcu")]
    pub unsafe fn kfree_rcu(&self, ptr: *mut u8, head: NonNull<RcuHead>) -> Result<(), KfreeError> {
        let address = ptr.addr();
        let Some(block) = NonNull::new(ptr).filter(|_| !is_zero_or_null(address)) else { return Ok(()) };
        debug_assert!(head.addr().get().wrapping_sub(address) < RCU_HEAD_REACH, "the RCU head is not in the block");
        // SAFETY: the caller's promise is the same.
        match unsafe { self.slabs.free_rcu(block, head) } {
            Ok(()) => Ok(()),
            // SAFETY: the caller's promise is the same.
            Err(error) => unsafe { self.kfree_rcu_other(address, error) },
        }
    }

    /// What the caches would not take: a large block, or an error.
    ///
    /// # Safety
    /// As for [`kfree_rcu`](Self::kfree_rcu).
    #[cold]
    #[inline(never)]
    unsafe fn kfree_rcu_other(&self, address: usize, error: ObjectError) -> Result<(), KfreeError> {
        if self.is_large(address) {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.queue_large(address) };
        }
        Err(self.explain(address, error))
    }

    /// As [`kfree_rcu`](Self::kfree_rcu) for a block without a head. Only where sleeping is allowed: without memory to note
    /// the block, it waits for the readers here.
    ///
    /// # Safety
    /// As for [`kfree_rcu`](Self::kfree_rcu).
    ///
    /// # Errors
    /// Those of [`kfree`](Self::kfree).
    #[doc(alias = "kvfree_rcu_mightsleep")]
    pub unsafe fn kfree_rcu_mightsleep(&self, ptr: *mut u8) -> Result<(), KfreeError> {
        let address = ptr.addr();
        let Some(block) = NonNull::new(ptr).filter(|_| !is_zero_or_null(address)) else { return Ok(()) };
        debug_assert!(
            self.slabs.env().context().task_flags().may_sleep(),
            "kfree_rcu_mightsleep where sleeping is forbidden"
        );
        if self.is_large(address) {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.queue_large(address) };
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.slabs.free_rcu_mightsleep(block) }.map_err(|error| self.explain(address, error))
    }

    /// Waits until everything given to [`kfree_rcu`](Self::kfree_rcu) before has been freed. May sleep.
    #[doc(alias("kvfree_rcu_barrier", "rcu_barrier"))]
    pub fn kfree_rcu_barrier(&self) {
        self.slabs.rcu_barrier();
        if self.large_rcu.pending.load(Ordering::Acquire) {
            self.slabs.env().grace().synchronize();
            self.reap();
        }
    }

    /// Frees the large blocks whose grace period has passed, and returns how many. Any context but NMI. A platform may
    /// call it from its timer; large frees call it too.
    pub fn reap(&self) -> usize {
        if !self.large_rcu.pending.load(Ordering::Acquire) {
            return 0;
        }
        let mut freed = 0;
        while let Some(first) = self.pop_ready() {
            let Some(words) = self.slabs.env().frames().words(first) else { continue };
            // SAFETY: popped from the queue, so it is ours alone, and its readers have finished.
            if let Ok(order) = unsafe { large::free_queued(self.slabs.env().pages(), words, first) } {
                self.count_large(-(order.nr_pages() as i64));
                freed += 1;
            }
        }
        freed
    }

    fn pop_ready(&self) -> Option<Pfn> {
        let env = self.slabs.env();
        self.large_rcu.queue.with(env.cpu(), |queue| {
            let Some(first) = queue.head else {
                self.large_rcu.pending.store(false, Ordering::Relaxed);
                return None;
            };
            let words = env.frames().words(first)?;
            if !env.grace().has_passed(Grace(words.state.load(Ordering::Relaxed))) {
                return None;
            }
            queue.head = linked(words.links.load(Ordering::Relaxed));
            if queue.head.is_none() {
                queue.tail = None;
            }
            words.state.store(0, Ordering::Relaxed);
            words.links.store(0, Ordering::Relaxed);
            Some(first)
        })
    }

    /// # Safety
    /// As for [`kfree_rcu`](Self::kfree_rcu).
    unsafe fn queue_large(&self, address: usize) -> Result<(), KfreeError> {
        let env = self.slabs.env();
        let Some((pfn, words)) = env.frames().lookup(address) else {
            return Err(KfreeError::NotMemory { address });
        };
        large::mark_queued(words, pfn, address)?;
        let grace = env.grace().snapshot();
        self.large_rcu.queue.with(env.cpu(), |queue| {
            words.state.store(grace.0, Ordering::Relaxed);
            words.links.store(0, Ordering::Relaxed);
            match queue.tail.and_then(|tail| env.frames().words(tail)) {
                Some(tail) => tail.links.store(link_to(Some(pfn)), Ordering::Relaxed),
                None => queue.head = Some(pfn),
            }
            queue.tail = Some(pfn);
            self.large_rcu.pending.store(true, Ordering::Release);
        });
        self.reap();
        Ok(())
    }
}
