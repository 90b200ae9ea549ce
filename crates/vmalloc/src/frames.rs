//! Frames for an area: the largest blocks that fit, then many at once, then one by one. And giving them back.

use kmem_gfp::{AllocContext, AllocError, BulkPages, ExactPages, Gfp, NodeId, Order, PageAllocator, Pfn, TaskFlags};

use crate::runs::RunList;
use crate::vmalloc::Vmalloc;
use crate::{Granule, Run, VmallocEnv};

/// The most frames asked for in one bulk request.
const BULK: usize = 100;
/// The most frames given back in one bulk request.
const BULK_FREE: usize = 32;

/// Why not all frames were had; those that were are in the list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Short {
    Memory(AllocError),
    Killed,
}

impl From<AllocError> for Short {
    fn from(error: AllocError) -> Self {
        Self::Memory(error)
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Adds `nr_pages` frames to `runs`.
    #[inline]
    pub(crate) fn gather(
        &self,
        runs: &mut RunList,
        nr_pages: u64,
        gfp: Gfp,
        node: Option<NodeId>,
        granule: Granule,
    ) -> Result<(), Short> {
        let gfp = if gfp.intersects(Gfp::DMA.union(Gfp::DMA32)) { gfp } else { gfp | Gfp::HIGHMEM };
        if nr_pages == 1 {
            return self.one(runs, gfp, node);
        }
        self.gather_many(runs, nr_pages, gfp, node, granule)
    }

    #[inline]
    fn one(&self, runs: &mut RunList, gfp: Gfp, node: Option<NodeId>) -> Result<(), Short> {
        let pfn = self.env.pages().alloc_pages(gfp, Order::ZERO, node)?;
        self.keep(runs, gfp, pfn, Order::ZERO)
    }

    /// Puts a block on the list, or gives it back if the list cannot grow.
    #[inline]
    fn keep(&self, runs: &mut RunList, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), Short> {
        let pushed = match Run::new(pfn, order.nr_pages() as u64) {
            Some(run) => runs.push(&self.env, gfp, run),
            None => Err(AllocError::NoMemory { order, gfp }),
        };
        pushed.map_err(|error| {
            // SAFETY: just handed out to us, in no list and not used.
            let freed = unsafe { self.env.pages().free_pages(pfn, order) };
            self.check_freed(freed);
            Short::Memory(error)
        })
    }

    #[inline(never)]
    fn gather_many(
        &self,
        runs: &mut RunList,
        nr_pages: u64,
        gfp: Gfp,
        node: Option<NodeId>,
        granule: Granule,
    ) -> Result<(), Short> {
        let mut left = nr_pages;
        if granule > Granule::BASE {
            return self.gather_huge(runs, left, gfp, node, granule);
        }
        // Large blocks are worth a look, not work.
        let easily = gfp.difference(Gfp::DIRECT_RECLAIM.union(Gfp::NOFAIL)) | Gfp::NOWARN;
        let mut order = order_below(left);
        while order > Order::ZERO {
            match self.env.pages().alloc_pages(easily, order, node) {
                Ok(pfn) => {
                    self.keep(runs, gfp, pfn, order)?;
                    left -= order.nr_pages() as u64;
                    order = order.min(order_below(left));
                }
                Err(_) => order = smaller(order),
            }
            if left == 0 {
                return Ok(());
            }
        }
        while left > 0 {
            let mut pages = [None; BULK];
            let Some(slots) = pages.get_mut(..left.min(BULK as u64) as usize) else { break };
            let got = self.env.pages().alloc_pages_bulk(gfp.difference(Gfp::NOFAIL), node, slots).min(slots.len());
            left -= self.keep_bulk(runs, gfp, slots)?;
            if got < slots.len() {
                break;
            }
        }
        while left > 0 {
            if !gfp.contains(Gfp::NOFAIL) && self.env.context().task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                return Err(Short::Killed);
            }
            self.one(runs, gfp, node)?;
            left -= 1;
        }
        Ok(())
    }

    /// Blocks of one granule or more only.
    fn gather_huge(
        &self,
        runs: &mut RunList,
        nr_pages: u64,
        gfp: Gfp,
        node: Option<NodeId>,
        granule: Granule,
    ) -> Result<(), Short> {
        let Some(order) = Order::new(granule.order()) else {
            return Err(Short::Memory(AllocError::TooLarge { size_bytes: granule.size_bytes() }));
        };
        let gfp = gfp.difference(Gfp::NOFAIL) | Gfp::NOWARN;
        let mut left = nr_pages;
        while left > 0 {
            let pfn = self.env.pages().alloc_pages(gfp, order, node)?;
            self.keep(runs, gfp, pfn, order)?;
            left = left.saturating_sub(order.nr_pages() as u64);
        }
        Ok(())
    }

    /// Moves the filled slots to the list; returns how many. On failure the rest is given back.
    fn keep_bulk(&self, runs: &mut RunList, gfp: Gfp, slots: &mut [Option<Pfn>]) -> Result<u64, Short> {
        let mut kept = 0;
        for i in 0..slots.len() {
            let Some(pfn) = slots.get_mut(i).and_then(Option::take) else { continue };
            if let Err(short) = self.keep(runs, gfp, pfn, Order::ZERO) {
                // SAFETY: just handed out to us, in no list and not used.
                let freed = unsafe { self.env.pages().free_pages_bulk(slots) };
                self.check_freed(freed);
                return Err(short);
            }
            kept += 1;
        }
        Ok(kept)
    }

    /// Gives all frames of a list back.
    ///
    /// # Safety
    /// The frames are ours and nothing uses them any more.
    #[inline]
    pub(crate) unsafe fn free_frames(&self, runs: &mut RunList) {
        runs.pop_all(&self.env, |group| {
            if let [run] = group {
                // SAFETY: the caller's promise.
                unsafe { self.free_run(*run) };
            } else {
                // SAFETY: the caller's promise.
                unsafe { self.free_group(group) };
            }
        });
    }

    /// Gives one run back.
    ///
    /// # Safety
    /// As for [`free_frames`](Self::free_frames).
    #[inline]
    pub(crate) unsafe fn free_run(&self, run: Run) {
        let freed = if run.nr_pages() == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.env.pages().free_pages(run.first(), Order::ZERO) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.env.pages().free_range(run.range()) }
        };
        self.check_freed(freed);
    }

    /// # Safety
    /// As for [`free_frames`](Self::free_frames).
    unsafe fn free_group(&self, group: &[Run]) {
        let mut singles = [None; BULK_FREE];
        let mut nr = 0;
        for &run in group {
            if run.nr_pages() > 1 {
                // SAFETY: the caller's promise.
                unsafe { self.free_run(run) };
                continue;
            }
            if let Some(slot) = singles.get_mut(nr) {
                *slot = Some(run.first());
                nr += 1;
            }
            if nr == BULK_FREE {
                // SAFETY: the caller's promise.
                let freed = unsafe { self.env.pages().free_pages_bulk(&mut singles) };
                self.check_freed(freed);
                nr = 0;
            }
        }
        if let Some(rest) = singles.get_mut(..nr)
            && nr > 0
        {
            // SAFETY: the caller's promise.
            let freed = unsafe { self.env.pages().free_pages_bulk(rest) };
            self.check_freed(freed);
        }
    }

    #[inline]
    pub(crate) fn check_freed(&self, freed: Result<(), kmem_gfp::FreeError>) {
        if let Err(error) = freed {
            self.report(format_args!("vmalloc: the page source refuses a frame: {error}"));
        }
    }
}

/// The largest order whose block does not exceed `nr_pages`.
fn order_below(nr_pages: u64) -> Order {
    Order::new(nr_pages.max(1).ilog2()).unwrap_or(Order::MAX)
}

fn smaller(order: Order) -> Order {
    Order::new(order.get().saturating_sub(1)).unwrap_or(Order::ZERO)
}
