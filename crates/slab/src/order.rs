//! How many pages a slab has. Pure arithmetic.
//!
//! The preferred order is the reference's: the first that holds enough objects and wastes little. A cache that is still
//! small may get smaller slabs, but only such as waste no larger a part of themselves than the preferred ones do, so
//! that growing costs no memory.

use kmem_gfp::{Order, PAGE_SIZE};

use crate::{CreateError, SlabConfig};

/// Objects in a slab at most: their count has 15 bits.
pub(crate) const MAX_OBJECTS: usize = 32767;

/// The orders of a cache's slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabOrders {
    /// Tried first.
    pub(crate) preferred: Order,
    /// The smallest that holds one object: tried when the preferred one is not to be had.
    pub(crate) minimum: Order,
    /// Bit `k` is set if order `k`, below the preferred one, wastes no larger part of a slab.
    pub(crate) dense: u16,
}

/// Objects of `stride` bytes in a block of `order`.
pub(crate) const fn objects(order: Order, stride: usize) -> usize {
    let count = order.size_bytes() / stride;
    if count > MAX_OBJECTS { MAX_OBJECTS } else { count }
}

/// The number of objects a slab should hold at least on a machine with `nr_cpus` CPUs.
pub(crate) const fn min_objects(nr_cpus: u32) -> usize {
    4 * (u32::BITS - nr_cpus.leading_zeros() + 1) as usize
}

fn order_for(bytes: usize) -> u32 {
    let pages = bytes.div_ceil(PAGE_SIZE).max(1);
    usize::BITS - (pages - 1).leading_zeros()
}

fn preferred(stride: usize, nr_cpus: u32, config: &SlabConfig) -> Option<Order> {
    let top = Order::MAX.get();
    let min_order = config.min_order.min(top);
    let max_order = config.max_order.max(min_order).min(top);
    let wanted = if config.min_objects > 0 { config.min_objects as usize } else { min_objects(nr_cpus) };
    let fits = ((PAGE_SIZE << max_order) / stride).max(1);
    let wanted = wanted.min(fits);
    let start = order_for(wanted.saturating_mul(stride)).max(min_order);
    if (PAGE_SIZE << start.min(top)) / stride > MAX_OBJECTS {
        return Order::new(order_for(stride.saturating_mul(MAX_OBJECTS)).saturating_sub(1));
    }
    let mut fraction = 16;
    while fraction > 1 {
        for order in start..=max_order {
            let slab = PAGE_SIZE << order;
            if slab % stride <= slab / fraction {
                return Order::new(order);
            }
        }
        fraction /= 2;
    }
    Order::new(order_for(stride))
}

impl SlabOrders {
    /// The orders for objects of `stride` bytes.
    pub(crate) fn new(stride: usize, nr_cpus: u32, config: &SlabConfig) -> Result<Self, CreateError> {
        let preferred = preferred(stride, nr_cpus, config).ok_or(CreateError::BadSize(stride))?;
        let minimum = Order::new(order_for(stride)).ok_or(CreateError::BadSize(stride))?;
        let mut dense = 0;
        if config.grow_orders {
            let waste = preferred.size_bytes() % stride;
            for order in minimum.get().max(config.min_order)..preferred.get() {
                let slab = PAGE_SIZE << order;
                if (slab % stride) << (preferred.get() - order) <= waste {
                    dense |= 1 << order;
                }
            }
        }
        Ok(Self { preferred, minimum: minimum.min(preferred), dense })
    }

    /// The order to try first for a node that holds `pages` slab pages of this cache: a new slab may add a quarter.
    pub(crate) fn for_size(&self, pages: u64) -> Order {
        let mut candidates = self.dense;
        let mut best = self.preferred;
        while candidates != 0 {
            let top = u16::BITS - 1 - candidates.leading_zeros();
            if (best.nr_pages() as u64).saturating_mul(4) <= pages {
                break;
            }
            match Order::new(top) {
                Some(order) => best = order,
                None => break,
            }
            candidates &= !(1 << top);
        }
        best
    }
}
