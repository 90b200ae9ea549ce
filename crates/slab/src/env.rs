//! What object caches need from the machine below them.
//!
//! ```text
//! Slabs<E> ──▶ E: SlabEnv ─┬─ cpu()      which CPU, pin, interrupts            kmem_sync::Cpu
//!                          ├─ pages()    blocks of frames for slabs            kmem_gfp::PageAllocator
//!                          ├─ frames()   address ◀──▶ frame, three words each  kmem_gfp::FrameTable
//!                          ├─ context()  may it sleep, local node, reports     kmem_gfp::AllocContext
//!                          ├─ grace()    polled grace periods                  kmem_sync::GracePeriod
//!                          └─ charge_object(), uncharge_object()                 who pays, if anybody does
//! ```

use core::num::NonZeroU32;

use kmem_gfp::{AllocContext, AllocError, FrameTable, Gfp, PageAllocator};
use kmem_sync::{Cpu, GracePeriod};

/// The five parts that a [`Slabs`](crate::Slabs) is built over, who pays for objects, and a source of entropy.
///
/// Usually a zero-sized type or a reference to the structure that holds the parts; every method is called on hot paths
/// and should inline to a field access.
///
/// Each method returns the same part every time.
pub trait SlabEnv {
    /// The machine's CPUs.
    type Cpu: Cpu;
    /// Where slabs come from.
    type Pages: PageAllocator;
    /// Owner words and direct-map addresses of the frames that [`Pages`](Self::Pages) hands out.
    type Frames: FrameTable;
    /// The running context.
    type Context: AllocContext;
    /// Grace periods for typesafe caches and RCU frees.
    type Grace: GracePeriod;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The page source.
    fn pages(&self) -> &Self::Pages;
    /// The frame table.
    fn frames(&self) -> &Self::Frames;
    /// The running context.
    fn context(&self) -> &Self::Context;
    /// Grace periods.
    fn grace(&self) -> &Self::Grace;

    /// Whether objects are charged. `false` takes everything about payers out of every path, and the two methods below are
    /// never called.
    const ACCOUNTS: bool = false;

    /// Charges an object of `size_bytes` to whoever pays for what the running context allocates, and says who: the word comes
    /// back in [`uncharge_object`](Self::uncharge_object). `Ok(None)`: nobody pays. `reclaimable` says that the cache is one of
    /// objects that a shrinker can free. Contexts as `gfp` says; no lock is held.
    ///
    /// # Errors
    /// An [`AllocError`], [`OverLimit`](AllocError::OverLimit) as a rule, which the request fails with. Never with
    /// [`Gfp::NOFAIL`].
    #[inline(always)]
    fn charge_object(&self, gfp: Gfp, size_bytes: usize, reclaimable: bool) -> Result<Option<NonZeroU32>, AllocError> {
        let _ = (gfp, size_bytes, reclaimable);
        Ok(None)
    }

    /// Gives back what [`charge_object`](Self::charge_object) charged. Any context, inside a CPU's local section too: it does not
    /// call these caches.
    #[inline(always)]
    fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        let _ = (payer, size_bytes, reclaimable);
    }

    /// A number that an attacker cannot guess: it seeds the secrets of freelists and their random order. The default is
    /// a constant, which keeps runs repeatable and hardens nothing.
    fn entropy(&self) -> u64 {
        0x9e37_79b9_7f4a_7c15
    }
}

impl<E: SlabEnv + ?Sized> SlabEnv for &E {
    type Cpu = E::Cpu;
    type Pages = E::Pages;
    type Frames = E::Frames;
    type Context = E::Context;
    type Grace = E::Grace;

    const ACCOUNTS: bool = E::ACCOUNTS;

    #[inline(always)]
    fn charge_object(&self, gfp: Gfp, size_bytes: usize, reclaimable: bool) -> Result<Option<NonZeroU32>, AllocError> {
        (**self).charge_object(gfp, size_bytes, reclaimable)
    }
    #[inline(always)]
    fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        (**self).uncharge_object(payer, size_bytes, reclaimable);
    }
    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn pages(&self) -> &Self::Pages {
        (**self).pages()
    }
    #[inline(always)]
    fn frames(&self) -> &Self::Frames {
        (**self).frames()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    #[inline(always)]
    fn grace(&self) -> &Self::Grace {
        (**self).grace()
    }
    fn entropy(&self) -> u64 {
        (**self).entropy()
    }
}
