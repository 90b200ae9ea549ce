//! [`Kvmalloc`]: kmalloc first, vmalloc if that fails.

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp, NodeId, PAGE_SIZE};
use kmem_kmalloc::ObjectAllocator;
use kmem_sync::atomic::{AtomicBool, Ordering};
use kmem_sync::const_fn;
use kmem_vmalloc::VirtAllocator;

use crate::plan::{KVMALLOC_FALLBACK_MAX, object_gfp, object_size};
use crate::rcu::AreaRcu;
use crate::{KvmallocEnv, KvmallocError};

/// Memory of any size by address alone, physically contiguous where that is easy.
///
/// `const`-constructible; every method takes `&self` from any CPU. Holds no memory but what waits for readers after
/// [`kvfree_rcu`](Self::kvfree_rcu): call [`kvfree_rcu_barrier`](Self::kvfree_rcu_barrier) before it goes.
#[derive(Debug)]
pub struct Kvmalloc<E: KvmallocEnv> {
    pub(crate) env: E,
    pub(crate) rcu: AreaRcu,
    warned_too_large: AtomicBool,
}

impl<E: KvmallocEnv> Kvmalloc<E> {
    const_fn! {
        /// Over the allocators of `env`.
        pub fn new(env: E) -> Self {
            Self { env, rcu: AreaRcu::new(), warned_too_large: AtomicBool::new(false) }
        }
    }

    /// The environment.
    #[inline(always)]
    pub fn env(&self) -> &E {
        &self.env
    }

    /// Whether an address lies in vmalloc's window. Any context.
    #[inline(always)]
    pub fn is_vmalloc_addr(&self, address: *const u8) -> bool {
        self.env.areas().owns(address)
    }

    /// At least `size_bytes` bytes: from kmalloc, or if that fails and more than a page is asked for, from vmalloc. Zero
    /// bytes give [`ZERO_SIZE_PTR`](kmem_kmalloc::ZERO_SIZE_PTR). Freed with [`kvfree`](Self::kvfree).
    ///
    /// The memory is aligned to the largest power of two that divides `size_bytes`, up to a page. With
    /// [`Gfp::NOFAIL`] it is there, unless it is too large to ever be.
    ///
    /// Contexts: those that `gfp` permits for kmalloc; outside of tasks vmalloc is no help. A comparison more than kmalloc up
    /// to a page, a few flag operations above.
    ///
    /// # Errors
    /// [`KvmallocError::Kmalloc`] up to a page, [`KvmallocError::Neither`] above, [`KvmallocError::TooLarge`] above
    /// [`KVMALLOC_FALLBACK_MAX`]. Nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub fn kvmalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        match self.env.objects().alloc_local(size_bytes, object_gfp(size_bytes, gfp)) {
            Ok(block) => Ok(block),
            Err(error) => self.fall_back(size_bytes, size_bytes, 1, gfp, None, error),
        }
    }

    /// As [`kvmalloc`](Self::kvmalloc), preferably on `node`, aligned to `align`, which may be more than a page.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc); [`AllocError::BadAlign`] if `align` is no power of two.
    #[inline]
    #[track_caller]
    pub fn kvmalloc_node_align(
        &self,
        size_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KvmallocError> {
        let object_bytes = object_size(size_bytes, align)?;
        let gfp_try = object_gfp(object_bytes, gfp);
        let block = match node {
            None => self.env.objects().alloc_local(object_bytes, gfp_try),
            Some(_) => self.env.objects().alloc(object_bytes, gfp_try, node),
        };
        block.or_else(|error| self.fall_back(size_bytes, object_bytes, align, gfp, node, error))
    }

    /// What there is when kmalloc has said no.
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(crate) fn fall_back(
        &self,
        size_bytes: usize,
        object_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
        kmalloc: AllocError,
    ) -> Result<NonNull<u8>, KvmallocError> {
        if object_bytes <= PAGE_SIZE {
            return Err(kmalloc.into());
        }
        if size_bytes > KVMALLOC_FALLBACK_MAX {
            if gfp.reports_failure() && !self.warned_too_large.swap(true, Ordering::Relaxed) {
                self.env
                    .context()
                    .report(format_args!("kvmalloc: {size_bytes} bytes are more than can be, mode {gfp}"));
            }
            return Err(KvmallocError::TooLarge { size_bytes });
        }
        let area = self.env.areas().alloc(size_bytes, align, gfp, node, gfp.allows_blocking());
        area.map_err(|vmalloc| KvmallocError::Neither { size_bytes, kmalloc, vmalloc })
    }
}
