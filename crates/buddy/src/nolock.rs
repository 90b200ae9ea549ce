//! Requests from any context, NMI included.
//!
//! Nothing here waits for anything: the per-CPU set is only tried, and the bitmaps are lock-free. So a free needs no
//! deferral either: the pages are free when the call returns.

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::verdict::nolock::{self, Conditions};
use kmem_gfp::{AllocError, FreeError, Gfp, NodeId, Order, Pfn};

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::pcp::is_kernel_cached;

impl<E: BuddyEnv> Buddy<E> {
    /// Allocates in any context: takes no lock, never reclaims, wakes nobody, looks at the min mark, makes one pass. The
    /// memory is zeroed. Of the flags only [`Gfp::ACCOUNT`] may be given.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] for shortage and contention alike, and wherever such requests are refused outright: orders
    /// other than 0..=3 and 9, interrupts on a real-time kernel, a failed charge.
    /// [`AllocError::BadFlags`] for any other flag.
    #[doc(alias = "try_alloc_pages")]
    pub fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let asked = gfp;
        let gfp = nolock::request(gfp).map_err(|_| AllocError::BadFlags(asked))?;
        let failed = AllocError::NoMemory { order, gfp: asked };
        let state = self.state().filter(|_| self.is_ready()).ok_or(AllocError::NotReady)?;
        let conditions = Conditions {
            realtime_kernel: self.options().realtime_kernel,
            // There are no locks to be empty.
            empty_locks: false,
            order_is_cached: is_kernel_cached(order),
            initialised: true,
        };
        let request = self.request(state, gfp, order, node)?;
        if conditions.refusal(request.task).is_some() {
            return Err(failed);
        }
        let pfn = self.pass(state, &request, AllocFlags::NOLOCK).ok_or(failed)?;
        self.prepare(state, &request, pfn).map_err(|_| failed)
    }

    /// Takes a block back in any context. The same as [`free_pages`](Self::free_pages), which never waits either.
    ///
    /// # Errors
    /// Those of [`free_pages`](Self::free_pages).
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages).
    pub unsafe fn free_pages_nolock(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_pages(pfn, order) }
    }
}
