//! Who pays for objects: what the object caches ask of a platform, answered by its memory cgroups.
//!
//! ```text
//! Slabs ─▶ ObjectSide ─▶ Platform::charge_object ─▶ MmReclaimer ─▶ Mm ─▶ Memcg    bytes, from the CPU's stock
//!                        default: nobody pays       before groups: nobody    └─▶ memory.stat: slab_reclaimable, slab_unreclaimable
//! ```
//!
//! The word that a cache keeps for each object is the group's number as [`Payer`] packs it.

use core::num::NonZeroU32;

use kmem_gfp::{AllocError, Gfp, Order};
use kmem_reclaim::memcg::{OBJECT_OVERHEAD_BYTES, Payer, Stat};

use crate::{Mm, MmReclaimer, ReclaimPlatform};

const fn statistic(reclaimable: bool) -> Stat {
    if reclaimable { Stat::SlabReclaimable } else { Stat::SlabUnreclaimable }
}

/// What an object of `size_bytes` adds to a group's statistics: what it is charged.
fn cost(size_bytes: usize) -> i64 {
    i64::try_from(size_bytes.saturating_add(OBJECT_OVERHEAD_BYTES)).unwrap_or(i64::MAX)
}

impl<P: ReclaimPlatform> Mm<P> {
    /// For [`Platform::charge_object`](crate::Platform::charge_object): charges an object to whoever pays for it. Contexts as
    /// `gfp` says.
    ///
    /// # Errors
    /// [`AllocError::OverLimit`] at a group's limit, after reclaim within it.
    #[inline]
    pub fn charge_object(
        &self,
        gfp: Gfp,
        size_bytes: usize,
        reclaimable: bool,
    ) -> Result<Option<NonZeroU32>, AllocError> {
        match self.groups().charge_object(gfp, size_bytes) {
            Ok(None) => Ok(None),
            Ok(Some(payer)) => {
                self.groups().account(payer.group(), statistic(reclaimable), cost(size_bytes));
                Ok(NonZeroU32::new(payer.to_raw()))
            }
            Err(_) => Err(AllocError::OverLimit { order: Order::ZERO, gfp }),
        }
    }

    /// For [`Platform::uncharge_object`](crate::Platform::uncharge_object). Any context.
    #[inline]
    pub fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        if let Some(payer) = Payer::from_raw(payer.get()) {
            // Before the charge goes: it keeps the group's number.
            self.groups().account(payer.group(), statistic(reclaimable), cost(size_bytes).saturating_neg());
            self.groups().uncharge_object(payer, size_bytes);
        }
    }
}

impl<P: ReclaimPlatform> MmReclaimer<P> {
    /// For [`Platform::charge_object`](crate::Platform::charge_object): [`Mm::charge_object`] once there are groups, nobody
    /// before.
    ///
    /// # Errors
    /// Those of [`Mm::charge_object`].
    #[inline]
    pub fn charge_object(
        &self,
        gfp: Gfp,
        size_bytes: usize,
        reclaimable: bool,
    ) -> Result<Option<NonZeroU32>, AllocError> {
        match self.get().filter(|mm| mm.has_groups()) {
            Some(mm) => mm.charge_object(gfp, size_bytes, reclaimable),
            None => Ok(None),
        }
    }

    /// For [`Platform::uncharge_object`](crate::Platform::uncharge_object). Any context.
    #[inline]
    pub fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        if let Some(mm) = self.get() {
            mm.uncharge_object(payer, size_bytes, reclaimable);
        }
    }
}
