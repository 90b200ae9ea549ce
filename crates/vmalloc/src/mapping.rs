//! Filling page tables: the scope that the caller's flags call for, tables from the page source, retries.

use kmem_gfp::{AllocContext, AllocError, CallerScope, Gfp, NoReclaimScope, Order, PageAllocator, Pfn};

use crate::address_space::{AddressSpace, MapError, TableSource};
use crate::area::Body;
use crate::runs::pages_of;
use crate::vmalloc::Vmalloc;
use crate::{Granule, Prot, Run, VmallocEnv};

/// Page tables from the page source. The flags are the kernel's own; the caller's reach it through the task's scope.
struct Tables<'e, E>(&'e E);

impl<E: VmallocEnv> TableSource for Tables<'_, E> {
    fn table(&mut self) -> Result<Pfn, AllocError> {
        self.0.pages().alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None)
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Runs `f` with a source of page tables.
    pub(crate) fn with_tables<R>(&self, f: impl FnOnce(&mut dyn TableSource) -> R) -> R {
        f(&mut Tables(&self.env))
    }

    /// Runs `f` so that what it allocates without flags of its own keeps to `gfp`: without reclaim if the caller must not
    /// block or wants to give up early, else without IO or FS if the caller's flags lack them.
    #[inline]
    pub(crate) fn in_scope<R>(&self, gfp: Gfp, f: impl FnOnce() -> R) -> R {
        let light = Gfp::NORETRY.union(Gfp::RETRY_MAYFAIL);
        if gfp.contains(Gfp::DIRECT_RECLAIM.union(Gfp::IO).union(Gfp::FS)) && !gfp.intersects(light) {
            return f();
        }
        let context = self.env.context();
        if !gfp.allows_blocking() || gfp.intersects(light) {
            return NoReclaimScope::run(context, f);
        }
        let _scope = CallerScope::enter(context, gfp);
        f()
    }

    /// Maps runs from `at` on. On failure some of them may be mapped.
    ///
    /// # Safety
    /// The range is the caller's and nothing is mapped there.
    #[inline]
    pub(crate) unsafe fn map_runs(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        largest: Granule,
        gfp: Gfp,
    ) -> Result<(), MapError> {
        self.in_scope(gfp, || {
            // SAFETY: the caller's promise.
            let mapped = unsafe { self.env.space().map(at, runs, prot, largest, &mut Tables(&self.env)) };
            match mapped {
                Err(MapError::NoTable(_)) if self.waits_for(gfp) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.map_runs_at_last(at, runs, prot, largest) }
                }
                mapped => mapped,
            }
        })
    }

    /// For callers that wait as long as it takes.
    ///
    /// # Safety
    /// As for [`map_runs`](Self::map_runs), but part of the range may be mapped.
    #[cold]
    #[inline(never)]
    unsafe fn map_runs_at_last(&self, at: usize, runs: &[Run], prot: Prot, largest: Granule) -> Result<(), MapError> {
        let size = (pages_of(runs) as usize) << kmem_gfp::PAGE_SHIFT;
        loop {
            self.env.context().yield_now();
            // SAFETY: the range is the caller's, and what is mapped of it nobody has used.
            unsafe { self.env.space().unmap(at, size) };
            // SAFETY: the caller's promise, and unmapped above.
            match unsafe { self.env.space().map(at, runs, prot, largest, &mut Tables(&self.env)) } {
                Err(MapError::NoTable(_)) => {}
                mapped => return mapped,
            }
        }
    }

    /// Maps all frames that a body owns.
    ///
    /// # Safety
    /// The `body.mapped` pages from `at` on are the caller's and nothing is mapped there.
    #[inline]
    pub(crate) unsafe fn map_body(&self, at: usize, body: &Body, gfp: Gfp) -> Result<(), MapError> {
        let mut end = body.mapped;
        body.runs.for_groups_from_end(|runs, _behind| {
            end = end.saturating_sub(pages_of(runs));
            let group_at = at + ((end as usize) << kmem_gfp::PAGE_SHIFT);
            // SAFETY: the group's pages are a part of the range.
            unsafe { self.map_runs(group_at, runs, body.prot, body.granule, gfp) }
        })
    }

    /// Maps frames given one by one, joining neighbours. On failure some of them may be mapped.
    ///
    /// # Safety
    /// As for [`map_runs`](Self::map_runs).
    pub(crate) unsafe fn map_frames(
        &self,
        at: usize,
        frames: &[Pfn],
        prot: Prot,
        largest: Granule,
        gfp: Gfp,
    ) -> Result<(), MapError> {
        const BATCH: usize = 64;
        let Some(nothing) = Run::new(Pfn(0), 1) else { return Ok(()) };
        let mut batch = [nothing; BATCH];
        let (mut nr, mut batch_at, mut next_at) = (0_usize, at, at);
        for &pfn in frames {
            let Some(run) = Run::new(pfn, 1) else { return Err(MapError::Refused { address: next_at }) };
            let joined = nr.checked_sub(1).and_then(|i| batch.get_mut(i)).is_some_and(|last| {
                let joined = last.joined(run);
                *last = joined.unwrap_or(*last);
                joined.is_some()
            });
            if !joined {
                if nr == BATCH {
                    // SAFETY: a part of the range.
                    unsafe { self.map_runs(batch_at, &batch, prot, largest, gfp) }?;
                    (nr, batch_at) = (0, next_at);
                }
                if let Some(slot) = batch.get_mut(nr) {
                    *slot = run;
                    nr += 1;
                }
            }
            next_at += kmem_gfp::PAGE_SIZE;
        }
        match batch.get(..nr) {
            // SAFETY: a part of the range.
            Some(rest) if nr > 0 => unsafe { self.map_runs(batch_at, rest, prot, largest, gfp) },
            _ => Ok(()),
        }
    }
}
