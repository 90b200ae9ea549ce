//! [`MmReclaimer`]: what the page allocator calls when it is short, before and after there is an [`Mm`].

use core::ptr;

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, NodeId, OomOutcome, Order, Pfn, ReclaimRequest, Reclaimer, ZoneKind,
};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use kmem_sync::const_fn;

use super::mm::Mm;
use super::platform::ReclaimPlatform;

/// The reclaimer of a platform with reclaim: nobody at first, then the [`Mm`] that is installed.
///
/// # Invariants
/// `mm` is null or points to an `Mm` that lives for good.
#[derive(Debug)]
pub struct MmReclaimer<P: ReclaimPlatform> {
    mm: AtomicPtr<Mm<P>>,
    /// Whether pages may have payers.
    charges: AtomicBool,
}

impl<P: ReclaimPlatform> Default for MmReclaimer<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: ReclaimPlatform> MmReclaimer<P> {
    const_fn! {
        /// Nobody reclaims.
        pub fn new() -> Self {
            Self { mm: AtomicPtr::new(ptr::null_mut()), charges: AtomicBool::new(false) }
        }
    }

    /// From here on `mm` reclaims.
    pub fn install(&self, mm: &'static Mm<P>) {
        // Release pairs with the acquire in `get`.
        self.mm.store(ptr::from_ref(mm).cast_mut(), Ordering::Release);
        self.charges.store(mm.has_groups(), Ordering::Release);
    }

    /// Who reclaims, if anybody does. A load.
    #[inline(always)]
    pub fn get(&self) -> Option<&'static Mm<P>> {
        // SAFETY: type invariant.
        unsafe { self.mm.load(Ordering::Acquire).as_ref() }
    }

    /// For [`Platform::uncharge`](crate::Platform::uncharge): a load and a branch on a machine without groups.
    #[inline(always)]
    pub fn uncharge(&self, pfn: Pfn, order: Order) {
        if self.charges.load(Ordering::Relaxed) {
            self.uncharge_block(pfn, order);
        }
    }

    #[cold]
    #[inline(never)]
    fn uncharge_block(&self, pfn: Pfn, order: Order) {
        if let Some(mm) = self.get() {
            mm.uncharge_pages(pfn, order);
        }
    }
}

impl<P: ReclaimPlatform> Reclaimer for MmReclaimer<P> {
    fn can_reclaim(&self) -> bool {
        self.get().is_some()
    }
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        if let Some(mm) = self.get() {
            mm.engine.wake_background(node, request);
        }
    }
    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        self.get().map_or(0, |mm| mm.engine.reclaim(context, request))
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.get().map_or(CompactOutcome::Skipped, |mm| mm.engine.compact(context, request, priority))
    }
    fn can_compact(&self) -> bool {
        self.get().is_some_and(|mm| mm.engine.can_compact())
    }
    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.get().map_or(0, |mm| mm.engine.reclaimable_pages(node, zone))
    }
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        self.get().map_or(OomOutcome::NoVictim, |mm| mm.engine.out_of_memory(context, request))
    }
}
