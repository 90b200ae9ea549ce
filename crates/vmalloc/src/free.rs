//! `vfree` and `vunmap`: claim, unmap, give frames back, leave the range to the next purge.
//!
//! In interrupts only the claim happens; the rest is left to [`Vmalloc::run_deferred`], through a lock-free list of the
//! CPU's node. Nothing is written to the freed memory for that.

use kmem_gfp::{AllocContext, Order, PAGE_SHIFT, PAGE_SIZE, PageAllocator, TaskFlags};

use crate::address_space::{AddressSpace, CpuSet};
use crate::area::{Owned, State};
use crate::env::Work;
use crate::node::Node;
use crate::vmalloc::{Once, Shared, Vmalloc};
use crate::{VfreeError, VmFlags, VmallocEnv};

/// What ends by other calls than `vfree`.
const NOT_FOR_VFREE: VmFlags = VmFlags::RAM.union(VmFlags::RAM_BLOCK).union(VmFlags::PERCPU);

impl<E: VmallocEnv> Vmalloc<E> {
    /// Frees what any of the `vmalloc` forms gave, or unmaps what `vmap` gave (and frees its frames if they were given
    /// with [`VmFlags::MAP_PUT_PAGES`]). Null is fine. An address inside the area will do, if it is page-aligned.
    ///
    /// Contexts: any but NMI. In interrupts the work is put off ([`Work::Free`]). Finding the area takes one load per level
    /// of the index, however many areas there are.
    ///
    /// # Safety
    /// Nobody uses the memory any more.
    ///
    /// # Errors
    /// A [`VfreeError`] for an address that is not that of an area in use; nothing has changed.
    #[inline]
    pub unsafe fn vfree(&self, memory: *mut u8) -> Result<(), VfreeError> {
        if memory.is_null() {
            return Ok(());
        }
        let shared = self.shared_to_free()?;
        let task = self.env.context().task_flags();
        if task.contains(TaskFlags::IN_NMI) {
            return Err(VfreeError::BadContext(task));
        }
        let area = self.claim(shared, memory.addr(), VmFlags::empty(), NOT_FOR_VFREE)?;
        if task.intersects(TaskFlags::IN_INTERRUPT) {
            self.defer(shared, area);
            return Ok(());
        }
        let here = shared.node(self.local_node());
        if !here.deferred.is_empty() {
            self.run_deferred();
        }
        self.finish_free_here(shared, here, area);
        Ok(())
    }

    /// [`vfree`](Self::vfree) that always leaves the work to somebody else. Any context but NMI; never sleeps.
    ///
    /// # Safety
    /// As for [`vfree`](Self::vfree).
    ///
    /// # Errors
    /// Those of [`vfree`](Self::vfree).
    pub unsafe fn vfree_atomic(&self, memory: *mut u8) -> Result<(), VfreeError> {
        if memory.is_null() {
            return Ok(());
        }
        let shared = self.shared_to_free()?;
        let task = self.env.context().task_flags();
        if task.contains(TaskFlags::IN_NMI) {
            return Err(VfreeError::BadContext(task));
        }
        let area = self.claim(shared, memory.addr(), VmFlags::empty(), NOT_FOR_VFREE)?;
        self.defer(shared, area);
        Ok(())
    }

    /// Unmaps what [`vmap`](Self::vmap) mapped; the frames stay the caller's. Refuses memory that `vmalloc` gave, whose
    /// frames would be lost. Task context.
    ///
    /// # Safety
    /// Nobody uses the mapping any more.
    ///
    /// # Errors
    /// A [`VfreeError`]; nothing has changed.
    pub unsafe fn vunmap(&self, mapping: *mut u8) -> Result<(), VfreeError> {
        if mapping.is_null() {
            return Ok(());
        }
        let shared = self.shared_to_free()?;
        self.task_or()?;
        let area = self.claim(
            shared,
            mapping.addr(),
            VmFlags::empty(),
            NOT_FOR_VFREE.union(VmFlags::ALLOC).union(VmFlags::MAP_PUT_PAGES),
        )?;
        self.finish_free(shared, area);
        Ok(())
    }

    /// Makes the caller the owner of the busy area that an address belongs to, if the area has all flags of `with` and none
    /// of `without`. Any context, no lock. After an interior address the caller must wait for readers.
    #[inline]
    pub(crate) fn claim(
        &self,
        shared: &Shared,
        address: usize,
        with: VmFlags,
        without: VmFlags,
    ) -> Result<Owned, VfreeError> {
        let Some(page) = shared.page_of(address) else {
            return Err(self.bad_free(shared, VfreeError::Foreign(address)));
        };
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(self.bad_free(shared, VfreeError::Misaligned(address)));
        }
        let Some(area) = self.area_at(shared, page) else {
            return Err(self.bad_free(shared, VfreeError::NoArea(address)));
        };
        let mut owned = match area.claim_exact(page) {
            Some(owned) => owned,
            None => self.claim_slowly(shared, page, address)?,
        };
        let flags = owned.body(|body| body.flags);
        if flags.intersects(without) || !flags.contains(with) {
            owned.publish();
            return Err(self.bad_free(shared, VfreeError::WrongKind { address, flags }));
        }
        Ok(owned)
    }

    /// Claims by an interior address, or past readers; says what is wrong otherwise.
    #[cold]
    #[inline(never)]
    fn claim_slowly(&self, shared: &Shared, page: u64, address: usize) -> Result<Owned, VfreeError> {
        let free_already = match self.area_at(shared, page) {
            None => VfreeError::NoArea(address),
            Some(area) => match area.pin(page) {
                Some(pinned) => match pinned.claim() {
                    Some(owned) => {
                        owned.area().wait_for_readers(self.env.cpu());
                        return Ok(owned);
                    }
                    None => VfreeError::AlreadyFree(address),
                },
                None => match area.peek().0 {
                    State::Claimed | State::Lazy | State::Pooled => VfreeError::AlreadyFree(address),
                    _ => VfreeError::NoArea(address),
                },
            },
        };
        Err(self.bad_free(shared, free_already))
    }

    /// Reports the first bad free, and hands the error on.
    #[cold]
    #[inline(never)]
    pub(crate) fn bad_free(&self, shared: &Shared, error: VfreeError) -> VfreeError {
        if shared.first_time(Once::BadFree) {
            self.report(format_args!("vfree: {error}"));
        }
        error
    }

    /// Leaves a claimed area to whoever may sleep. Any context but NMI.
    #[cold]
    #[inline(never)]
    fn defer(&self, shared: &Shared, area: Owned) {
        if shared.node(self.local_node()).deferred.push(area) {
            self.env.schedule(Work::Free);
        }
    }

    /// Finishes frees that were put off. What [`Work::Free`] asks for; calls that may sleep do their own CPU's by
    /// themselves. Task context; may sleep. Returns how many areas that were.
    #[cold]
    #[inline(never)]
    pub fn run_deferred(&self) -> usize {
        let Some(shared) = self.try_shared() else { return 0 };
        let mut areas = 0;
        for node in shared.nodes() {
            for area in node.deferred.take() {
                self.finish_free(shared, area);
                areas += 1;
            }
        }
        areas
    }

    /// Takes a claimed area apart. Its range goes to the lazy list.
    #[inline(never)]
    pub(crate) fn finish_free(&self, shared: &Shared, area: Owned) {
        self.finish_free_here(shared, shared.node(self.local_node()), area);
    }

    #[inline(always)]
    fn finish_free_here(&self, shared: &Shared, here: &Node, mut area: Owned) {
        let address = shared.address(area.page());
        let single = area.body(|body| {
            // An area that owns what it maps, and maps one page, has one run of one page.
            let plain = body.flags == VmFlags::ALLOC && body.mapped == 1;
            if plain { body.runs.take_single() } else { None }
        });
        if let Some(run) = single {
            // SAFETY: the range is ours; that nobody uses it is the promise of whoever freed it.
            unsafe { self.env.space().unmap(address, PAGE_SIZE) };
            // The sum over all nodes counts, so any of them will do.
            here.count_used(-1);
            // SAFETY: the area's frame, unmapped above, and used by nobody.
            let freed = unsafe { self.env.pages().free_pages(run.first(), Order::ZERO) };
            self.check_freed(freed);
        } else {
            self.take_apart(shared, address, &mut area);
        }
        if self.make_lazy(shared, here, area) > shared.lazy_limit {
            self.purge_is_due(shared);
        }
    }

    /// Unmaps whatever an area has mapped and gives back whatever it owns.
    #[inline(never)]
    fn take_apart(&self, shared: &Shared, address: usize, area: &mut Owned) {
        let pages = area.pages();
        let node = area.node();
        area.body(|body| {
            let mapped = if body.flags.contains(VmFlags::SPARSE) { pages } else { body.mapped };
            if mapped > 0 {
                // SAFETY: the range is ours; that nobody uses it is the promise of whoever freed it.
                unsafe { self.env.space().unmap(address, (mapped as usize) << PAGE_SHIFT) };
            }
            if body.flags.contains(VmFlags::FLUSH_RESET_PERMS) {
                self.reset_perms(address, pages, &body.runs);
            }
            if !body.runs.is_empty() {
                if body.flags.contains(VmFlags::ALLOC) {
                    shared.node(node).count_used(-(body.mapped as i64));
                }
                // SAFETY: the frames are the area's, unmapped above, and used by nobody.
                unsafe { self.free_frames(&mut body.runs) };
            }
        });
    }

    /// For areas whose frames had other permissions in the direct map: nobody may reach them by the old ones.
    #[cold]
    #[inline(never)]
    fn reset_perms(&self, address: usize, pages: u64, runs: &crate::runs::RunList) {
        let reset = runs.for_groups_from_end(|group, _| {
            self.env.space().reset_direct_map(group);
            Ok::<(), ()>(())
        });
        debug_assert!(reset.is_ok());
        self.env.space().flush(address..address + ((pages as usize) << PAGE_SHIFT), self.env.flush_cpus());
    }

    /// Flushes a range now, for callers that free frames out of an area that lives on.
    pub(crate) fn flush_now(&self, shared: &Shared, address: usize, size: usize) {
        let cpus: CpuSet<'_> = self.env.flush_cpus();
        self.env.space().flush(address..address + size, cpus);
        shared.flushes.fetch_add(1, kmem_sync::atomic::Ordering::Relaxed);
    }
}
