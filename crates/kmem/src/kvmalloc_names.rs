//! The names of kvmalloc on [`Kmem`], and [`EitherSide`]: the machine as kvmalloc sees it.

use core::fmt;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId, PAGE_SIZE};
use kmem_kmalloc::Kmalloc;
use kmem_kvmalloc::{KvBlock, KvfreeError, Kvmalloc, KvmallocEnv, KvmallocError, KvreallocError};
use kmem_slab::RcuHead;
use kmem_vmalloc::Vmalloc;

use crate::{Kmem, ObjectSide, Platform, VirtualSide};

/// The platform, kmalloc and vmalloc as kvmalloc sees them.
pub struct EitherSide<P: Platform> {
    platform: &'static P,
    kmalloc: &'static Kmalloc<'static, ObjectSide<P>>,
    vmalloc: &'static Vmalloc<VirtualSide<P>>,
    cpu: P::Cpu,
}

impl<P: Platform> EitherSide<P> {
    pub(crate) fn new(
        platform: &'static P,
        kmalloc: &'static Kmalloc<'static, ObjectSide<P>>,
        vmalloc: &'static Vmalloc<VirtualSide<P>>,
    ) -> Self {
        Self { platform, kmalloc, vmalloc, cpu: *platform.cpu() }
    }
}

impl<P: Platform> fmt::Debug for EitherSide<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EitherSide").finish_non_exhaustive()
    }
}

// SAFETY: the direct map, where kmalloc's blocks are, and the window are different addresses, and areas are mapped where code
// that uses the machine can access them (promises 3 and 4 of `KmemCell::init`).
unsafe impl<P: Platform> KvmallocEnv for EitherSide<P> {
    type Cpu = P::Cpu;
    type Objects = Kmalloc<'static, ObjectSide<P>>;
    type Areas = Vmalloc<VirtualSide<P>>;
    type Context = P::Context;
    type Grace = P::Grace;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        &self.cpu
    }
    #[inline(always)]
    fn objects(&self) -> &Self::Objects {
        self.kmalloc
    }
    #[inline(always)]
    fn areas(&self) -> &Self::Areas {
        self.vmalloc
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    #[inline(always)]
    fn grace(&self) -> &P::Grace {
        self.platform.grace()
    }
}

macro_rules! forward {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Errors
            /// Those of [`Kvmalloc::kvmalloc`]; an overflowing product fails as well.
            #[inline]
            #[track_caller]
            pub fn $name(&self, $($arg: $ty),*) -> Result<$ret, KvmallocError> {
                self.kvmalloc.$name($($arg),*)
            }
        )*
    };
}

macro_rules! forward_unsafe {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            #[inline]
            #[track_caller]
            pub unsafe fn $name(&self, $($arg: $ty),*) -> $ret {
                // SAFETY: the caller's promise is the same.
                unsafe { self.kvmalloc.$name($($arg),*) }
            }
        )*
    };
}

/// # kvmalloc
impl<P: Platform> Kmem<P> {
    /// At least `size_bytes` bytes: from kmalloc, or if that fails and more than a page is asked for, from vmalloc.
    ///
    /// # Errors
    /// Those of [`Kvmalloc::kvmalloc`].
    #[inline(always)]
    #[track_caller]
    pub fn kvmalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        // As kvmalloc does it, but by the short way to the caches.
        if size_bytes <= PAGE_SIZE {
            return Ok(self.kmalloc(size_bytes, gfp)?);
        }
        self.kvmalloc.kvmalloc(size_bytes, gfp)
    }

    /// As [`kvmalloc`](Self::kvmalloc), zeroed.
    ///
    /// # Errors
    /// Those of [`Kvmalloc::kvmalloc`].
    #[inline(always)]
    #[track_caller]
    pub fn kvzalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc(size_bytes, gfp.union(Gfp::ZERO))
    }

    /// Gives back what kvmalloc, kmalloc, a cache or vmalloc gave; null does nothing. Any context but NMI.
    ///
    /// # Safety
    /// As for [`Kvmalloc::kvfree`].
    ///
    /// # Errors
    /// A [`KvfreeError`] that says what the address is instead; nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn kvfree(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        if self.vmalloc.is_vmalloc_addr(ptr) {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.kvmalloc.kvfree(ptr) };
        }
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { self.kfree(ptr) }?)
    }

    forward! {
        /// As [`kvmalloc`](Self::kvmalloc), preferably on `node`.
        fn kvmalloc_node(size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> NonNull<u8>;
        /// As [`kvzalloc`](Self::kvzalloc), preferably on `node`.
        fn kvzalloc_node(size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> NonNull<u8>;
        /// As [`kvmalloc_node`](Self::kvmalloc_node), aligned to `align`, which may be more than a page.
        fn kvmalloc_node_align(size_bytes: usize, align: usize, gfp: Gfp, node: Option<NodeId>) -> NonNull<u8>;
        /// Room for `count` elements of `size_bytes` each.
        fn kvmalloc_array(count: usize, size_bytes: usize, gfp: Gfp) -> NonNull<u8>;
        /// As [`kvmalloc_array`](Self::kvmalloc_array), zeroed.
        fn kvcalloc(count: usize, size_bytes: usize, gfp: Gfp) -> NonNull<u8>;
        /// As [`kvmalloc_array`](Self::kvmalloc_array), preferably on `node`.
        fn kvmalloc_array_node(count: usize, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> NonNull<u8>;
        /// As [`kvcalloc`](Self::kvcalloc), preferably on `node`.
        fn kvcalloc_node(count: usize, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> NonNull<u8>;
        /// Owned memory, freed on drop.
        fn block(size_bytes: usize, gfp: Gfp) -> KvBlock<'_, EitherSide<P>>;
    }

    forward_unsafe! {
        /// Another size, keeping the contents: what kmalloc cannot grow becomes vmalloc memory. Zero bytes free it.
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvrealloc`].
        ///
        /// # Errors
        /// [`KvreallocError`]; the old memory is unchanged and valid.
        fn kvrealloc(ptr: *mut u8, new_bytes: usize, gfp: Gfp) -> Result<Option<NonNull<u8>>, KvreallocError>;
        /// As [`kvrealloc`](Self::kvrealloc) for an array.
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvrealloc`].
        ///
        /// # Errors
        /// [`KvreallocError`]; the old memory is unchanged and valid.
        fn kvrealloc_array(ptr: *mut u8, count: usize, size_bytes: usize, gfp: Gfp) -> Result<Option<NonNull<u8>>, KvreallocError>;
        /// As [`kvfree`](Self::kvfree); never sleeps.
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvfree`].
        ///
        /// # Errors
        /// A [`KvfreeError`]; nothing has changed.
        fn kvfree_atomic(ptr: *mut u8) -> Result<(), KvfreeError>;
        /// As [`kvfree`](Self::kvfree), zeroing the first `len` bytes first.
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvfree_sensitive`].
        ///
        /// # Errors
        /// A [`KvfreeError`]; nothing has changed.
        fn kvfree_sensitive(ptr: *mut u8, len: usize) -> Result<(), KvfreeError>;
        /// As [`kvfree`](Self::kvfree), after every reader now running has finished. Also as the macro
        /// [`kvfree_rcu!`](crate::kvfree_rcu).
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvfree_rcu`].
        ///
        /// # Errors
        /// A [`KvfreeError`]; nothing has changed.
        fn kvfree_rcu(ptr: *mut u8, head: NonNull<RcuHead>) -> Result<(), KvfreeError>;
        /// As [`kvfree_rcu`](Self::kvfree_rcu) without a head, where sleeping is allowed.
        ///
        /// # Safety
        /// As for [`Kvmalloc::kvfree_rcu_mightsleep`].
        ///
        /// # Errors
        /// A [`KvfreeError`]; nothing has changed.
        fn kvfree_rcu_mightsleep(ptr: *mut u8) -> Result<(), KvfreeError>;
    }

    /// Waits until everything freed through RCU before is free, [`kfree_rcu`](Self::kfree_rcu) included.
    pub fn kvfree_rcu_barrier(&self) {
        self.kvmalloc.kvfree_rcu_barrier();
    }

    /// kvmalloc.
    #[inline(always)]
    pub fn kvmalloc_layer(&self) -> &Kvmalloc<EitherSide<P>> {
        &self.kvmalloc
    }
}
