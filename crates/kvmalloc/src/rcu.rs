//! Frees that wait for readers: of anything that [`kvfree`](Kvmalloc::kvfree) takes.
//!
//! ```text
//! kvfree_rcu(kmalloc's, a cache's)  ─▶ kmalloc's own way
//! kvfree_rcu(vmalloc's)             ─▶ queue, oldest first:  first ─▶ Link ─▶ Link ─▶ last
//!                                      a Link is the RCU head in the area's first page, or the start of a Note
//! ```
//!
//! No memory is needed to queue an area: its RCU head, which readers do not look at, holds the link and the grace period
//! after which it may go. The area is the one that the link lies in. An area without a head is noted in an object of kmalloc.
//! Collecting happens inside later frees of areas, on demand ([`Kvmalloc::reap`]) and at the barrier.
//!
//! **Locking:** `queue` protects its ends and every link that is reached from them.

use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, Gfp, PAGE_SIZE};
use kmem_kmalloc::{ObjectAllocator, RCU_HEAD_REACH, RcuHead};
use kmem_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use kmem_sync::{Cpu, Grace, GracePeriod, IrqLock, const_fn};
use kmem_vmalloc::{VfreeError, VirtAllocator};

use crate::{KvfreeError, Kvmalloc, KvmallocEnv};

/// `kvfree_rcu!(allocator, pointer, Type, field)`: [`Kvmalloc::kvfree_rcu`] for memory that starts with a `Type` whose `field`
/// is its [`RcuHead`]. That the head lies within [`RCU_HEAD_REACH`](kmem_kmalloc::RCU_HEAD_REACH) is checked when it is
/// compiled.
///
/// `allocator` is anything with a method `kvfree_rcu`, `pointer` a `NonNull<Type>`. To be used inside an unsafe block, under
/// the promises of that method.
///
/// ```
/// use core::ptr::NonNull;
/// use kmem_kvmalloc::{KvfreeError, Kvmalloc, KvmallocEnv, RcuHead, kvfree_rcu};
///
/// #[repr(C)]
/// struct Table {
///     rcu: RcuHead,
///     entries: [u64; 10_000],
/// }
///
/// /// # Safety
/// /// Only readers that are running now use the table any more.
/// unsafe fn retire<E: KvmallocEnv>(kvmalloc: &Kvmalloc<E>, table: NonNull<Table>) -> Result<(), KvfreeError> {
///     // SAFETY: the caller's promise; `rcu` is no part of what readers look at.
///     unsafe { kvfree_rcu!(kvmalloc, table, Table, rcu) }
/// }
/// ```
#[macro_export]
macro_rules! kvfree_rcu {
    ($allocator:expr, $pointer:expr, $type:ty, $field:ident) => {{
        const { assert!(::core::mem::offset_of!($type, $field) < 4096) };
        let _: fn(&$type) -> &$crate::RcuHead = |object| &object.$field;
        let memory: ::core::ptr::NonNull<$type> = $pointer;
        let head = memory.cast::<u8>().add(::core::mem::offset_of!($type, $field)).cast();
        $allocator.kvfree_rcu(memory.as_ptr().cast(), head)
    }};
}

/// What is written over an RCU head while its area waits.
#[repr(C)]
#[derive(Debug)]
struct Link {
    next: *mut Link,
    grace: Grace,
}

/// An area without a head that waits; in an object of kmalloc.
#[repr(C)]
#[derive(Debug)]
struct Note {
    link: Link,
    memory: *mut u8,
}

const _: () = assert!(size_of::<Link>() <= size_of::<RcuHead>() && align_of::<Link>() <= align_of::<RcuHead>());

/// Oldest and newest link; both null if nothing waits.
///
/// # Invariants
/// Following `next` from `first` visits initialised links that belong to the queue, `last` last.
#[derive(Debug)]
struct Queue {
    first: *mut Link,
    last: *mut Link,
}

// SAFETY: owns its links; nothing is tied to a thread.
unsafe impl Send for Queue {}

/// Areas that wait for their grace period.
#[derive(Debug)]
pub(crate) struct AreaRcu {
    queue: IrqLock<Queue>,
    /// Whether the queue may hold something; a hint that saves the lock.
    pending: AtomicBool,
    /// How many links have left the queue whose areas are not free yet.
    freeing: AtomicUsize,
}

impl AreaRcu {
    const_fn! {
        /// An empty queue.
        pub(crate) fn new() -> Self {
            Self {
                queue: IrqLock::new(Queue { first: ptr::null_mut(), last: ptr::null_mut() }),
                pending: AtomicBool::new(false),
                freeing: AtomicUsize::new(0),
            }
        }
    }
}

/// Whether freeing may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    MaySleep,
    Atomic,
}

impl<E: KvmallocEnv> Kvmalloc<E> {
    /// Frees the memory at `ptr` once every reader that runs now has finished: anything that [`kvfree`](Self::kvfree) takes,
    /// by its start. Null and [`ZERO_SIZE_PTR`](kmem_kmalloc::ZERO_SIZE_PTR) do nothing. Any context but NMI; never sleeps,
    /// never allocates.
    ///
    /// `head` is a place inside the memory that readers do not look at; it lies within the first
    /// [`RCU_HEAD_REACH`](kmem_kmalloc::RCU_HEAD_REACH) bytes.
    ///
    /// # Safety
    /// The caller owns the memory, and nobody but readers that are running now uses it any more; `head` lies inside it.
    ///
    /// # Errors
    /// Those of [`kvfree`](Self::kvfree), as far as they can be seen at once; nothing has changed.
    #[doc(alias = "kfree_rcu")]
    pub unsafe fn kvfree_rcu(&self, ptr: *mut u8, head: NonNull<RcuHead>) -> Result<(), KvfreeError> {
        if !self.env.areas().owns(ptr) {
            // SAFETY: the caller's promise is the same.
            return Ok(unsafe { self.env.objects().free_rcu(ptr, head) }?);
        }
        self.find_area(ptr)?;
        debug_assert!(head.addr().get().wrapping_sub(ptr.addr()) < RCU_HEAD_REACH, "the RCU head is not in the memory");
        // SAFETY: in the caller's memory, where readers do not look, and large and aligned enough (checked above).
        unsafe { self.queue(head.cast()) };
        self.reap_as(How::Atomic);
        Ok(())
    }

    /// As [`kvfree_rcu`](Self::kvfree_rcu) for memory without a head. Only where sleeping is allowed: without memory to note
    /// it, it waits for the readers here.
    ///
    /// # Safety
    /// As for [`kvfree_rcu`](Self::kvfree_rcu).
    ///
    /// # Errors
    /// Those of [`kvfree`](Self::kvfree).
    pub unsafe fn kvfree_rcu_mightsleep(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        if !self.env.areas().owns(ptr) {
            // SAFETY: the caller's promise is the same.
            return Ok(unsafe { self.env.objects().free_rcu_mightsleep(ptr) }?);
        }
        self.find_area(ptr)?;
        debug_assert!(self.env.context().task_flags().may_sleep(), "kvfree_rcu_mightsleep where sleeping is forbidden");
        match self.env.objects().alloc_local(size_of::<Note>(), Gfp::NOWAIT) {
            Ok(object) => {
                let note = object.cast::<Note>();
                let link = Link { next: ptr::null_mut(), grace: Grace(0) };
                // SAFETY: a new object of that size, which is a multiple of its alignment.
                unsafe { note.write(Note { link, memory: ptr }) };
                // SAFETY: ours, and starts with a link.
                unsafe { self.queue(note.cast()) };
                self.reap_as(How::MaySleep);
                Ok(())
            }
            Err(_) => {
                self.env.grace().synchronize();
                // SAFETY: the caller's promise; the readers have finished.
                Ok(unsafe { self.env.areas().free(ptr) }?)
            }
        }
    }

    /// Waits until everything given to [`kvfree_rcu`](Self::kvfree_rcu) before has been freed. May sleep.
    pub fn kvfree_rcu_barrier(&self) {
        self.env.objects().rcu_barrier();
        if self.rcu.pending.load(Ordering::Acquire) {
            self.env.grace().synchronize();
            self.reap_as(How::MaySleep);
        }
        // Acquire pairs with the release of whoever frees the last.
        while self.rcu.freeing.load(Ordering::Acquire) > 0 {
            self.env.cpu().relax();
            self.env.context().yield_now();
        }
    }

    /// Frees the vmalloc memory whose grace period has passed, and returns how many areas that were. Contexts: as for
    /// [`kvfree`](Self::kvfree). A platform may call it from its timer; frees of vmalloc memory call it too.
    pub fn reap(&self) -> usize {
        self.reap_as(How::MaySleep)
    }

    #[inline]
    fn reap_as(&self, how: How) -> usize {
        if !self.rcu.pending.load(Ordering::Acquire) {
            return 0;
        }
        self.reap_pending(how)
    }

    #[cold]
    #[inline(never)]
    fn reap_pending(&self, how: How) -> usize {
        let areas = self.env.areas();
        let mut freed = 0;
        while let Some(link) = self.pop_ready() {
            let memory = if areas.owns(link.as_ptr().cast()) {
                // The head lies in the first page of its area, which starts on a page.
                link.as_ptr().cast::<u8>().map_addr(|address| address & !(PAGE_SIZE - 1))
            } else {
                // SAFETY: what lies in no area is the link of a note.
                let Note { memory, .. } = unsafe { link.cast::<Note>().read() };
                // SAFETY: ours since it left the queue.
                let freed = unsafe { self.env.objects().free(link.as_ptr().cast()) };
                debug_assert!(freed.is_ok(), "{freed:?}");
                memory
            };
            // SAFETY: given up by its owner, once; its readers have finished. An address that was given twice is refused.
            let outcome = unsafe {
                match how {
                    How::MaySleep => areas.free(memory),
                    How::Atomic => areas.free_atomic(memory),
                }
            };
            self.rcu.freeing.fetch_sub(1, Ordering::Release);
            freed += usize::from(outcome.is_ok());
        }
        freed
    }

    /// Whether memory of vmalloc starts at an address of its window.
    fn find_area(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        match self.env.areas().sizes(ptr) {
            Some(_) => Ok(()),
            None => Err(VfreeError::NoArea(ptr.addr()).into()),
        }
    }

    /// Puts a link at the end of the queue, with the grace period that begins now.
    ///
    /// # Safety
    /// The link is valid for writes, aligned, and the queue's until it is popped.
    unsafe fn queue(&self, link: NonNull<Link>) {
        self.rcu.queue.with(self.env.cpu(), |queue| {
            // Inside the lock, so that the queue is in the order of its grace periods.
            let grace = self.env.grace().snapshot();
            // SAFETY: the caller's promise.
            unsafe { link.write(Link { next: ptr::null_mut(), grace }) };
            match NonNull::new(queue.last) {
                // SAFETY: a link of the queue (type invariant), under its lock.
                Some(last) => unsafe { (*last.as_ptr()).next = link.as_ptr() },
                None => queue.first = link.as_ptr(),
            }
            queue.last = link.as_ptr();
            self.rcu.pending.store(true, Ordering::Release);
        });
    }

    /// Takes the oldest link if its readers have finished. It counts as being freed from then on.
    fn pop_ready(&self) -> Option<NonNull<Link>> {
        self.rcu.queue.with(self.env.cpu(), |queue| {
            let Some(first) = NonNull::new(queue.first) else {
                self.rcu.pending.store(false, Ordering::Relaxed);
                return None;
            };
            // SAFETY: a link of the queue (type invariant), under its lock.
            let Link { next, grace } = unsafe { first.read() };
            if !self.env.grace().has_passed(grace) {
                return None;
            }
            queue.first = next;
            if next.is_null() {
                queue.last = ptr::null_mut();
            }
            self.rcu.freeing.fetch_add(1, Ordering::Relaxed);
            Some(first)
        })
    }
}
