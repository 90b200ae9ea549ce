//! Getting a range of addresses: from the CPU's pool, else from the tree, else after a purge, else with the notifier's help.

use kmem_gfp::{AllocContext, AllocError, Gfp, PAGE_SHIFT};

use crate::area::{Owned, State};
use crate::meta::{alloc_block, meta_gfp};
use crate::node::POOL_PAGES;
use crate::purge::Mode;
use crate::tree::{Lack, NODE_ORDER, SLAB_ORDER, Wanted};
use crate::vmalloc::{Shared, Vmalloc};
use crate::{VmallocEnv, VmallocError};

/// Nodes that are stocked beyond what is needed at once are bounded by this.
const STOCK_ROUNDS: usize = 64;

impl<E: VmallocEnv> Vmalloc<E> {
    /// Reserves a range for an area of `wanted.pages`. The result is in `Building` with an empty body. Task context; may
    /// sleep if `gfp` may.
    ///
    /// # Errors
    /// `NoSpace`, or `NoMemory` for bookkeeping.
    #[inline]
    pub(crate) fn reserve(&self, shared: &Shared, wanted: Wanted, gfp: Gfp) -> Result<Owned, VmallocError> {
        let whole = wanted.lo == 0 && wanted.hi == shared.nr_pages;
        if whole && wanted.pages <= POOL_PAGES as u64 {
            let node = shared.node(self.local_node());
            let base_page = (shared.base >> PAGE_SHIFT) as u64;
            let suits = |page| (base_page + page) & (wanted.align - 1) == 0;
            if let Some(mut area) = node.pools.with(self.env.cpu(), |pools| pools.pop(wanted.pages, suits)) {
                node.count_pool_hit();
                area.set_state(State::Building);
                return Ok(area);
            }
        }
        self.reserve_from_tree(shared, wanted, gfp)
    }

    #[cold]
    #[inline(never)]
    fn reserve_from_tree(&self, shared: &Shared, wanted: Wanted, gfp: Gfp) -> Result<Owned, VmallocError> {
        let mut purged = false;
        loop {
            match self.reserve_stocked(shared, gfp, |tree| tree.reserve(wanted)) {
                Ok(area) => return Ok(area),
                Err(Shortage::Memory(source)) => {
                    if !self.waits_for(gfp) {
                        return Err(VmallocError::NoMemory { nr_pages: wanted.pages, source });
                    }
                    self.env.context().yield_now();
                }
                Err(Shortage::Space) => {
                    if !gfp.allows_blocking() {
                        return Err(VmallocError::NoSpace { nr_pages: wanted.pages });
                    }
                    if !purged {
                        purged = true;
                        self.run_deferred();
                        self.purge_in_mode(shared, Mode::Exhausted);
                    } else if self.env.notifier().address_space_exhausted(wanted.pages) == 0 {
                        if !self.waits_for(gfp) {
                            if gfp.reports_failure() {
                                self.report(format_args!(
                                    "vmalloc: no {} pages of address space are left, mode {gfp}",
                                    wanted.pages
                                ));
                            }
                            return Err(VmallocError::NoSpace { nr_pages: wanted.pages });
                        }
                        self.env.context().yield_now();
                        self.purge_in_mode(shared, Mode::Exhausted);
                    } else {
                        self.run_deferred();
                        self.purge_in_mode(shared, Mode::Exhausted);
                    }
                }
            }
        }
    }

    /// Whether a request waits as long as it takes.
    pub(crate) fn waits_for(&self, gfp: Gfp) -> bool {
        gfp.contains(Gfp::NOFAIL) && gfp.allows_blocking()
    }

    /// Runs `f` under the tree's lock, stocking up on nodes and descriptors outside of it as often as `f` lacks some.
    pub(crate) fn reserve_stocked<R>(
        &self,
        shared: &Shared,
        gfp: Gfp,
        mut f: impl FnMut(&mut crate::tree::Tree) -> Result<R, Lack>,
    ) -> Result<R, Shortage> {
        let cpu = self.env.cpu();
        for _ in 0..STOCK_ROUNDS {
            match shared.tree.with(cpu, &mut f) {
                Ok(done) => return Ok(done),
                Err(Lack::Space) => return Err(Shortage::Space),
                Err(Lack::Areas) => {
                    let block = alloc_block(&self.env, meta_gfp(gfp), SLAB_ORDER).map_err(Shortage::Memory)?;
                    // SAFETY: a fresh block of that order.
                    shared.tree.with(cpu, |tree| unsafe { tree.stock_areas(block) });
                }
                Err(Lack::Nodes(nr)) => {
                    while shared.tree.with(cpu, |tree| tree.nr_spare_nodes()) < nr {
                        let block = alloc_block(&self.env, meta_gfp(gfp), NODE_ORDER).map_err(Shortage::Memory)?;
                        // SAFETY: a fresh block of that order.
                        shared.tree.with(cpu, |tree| unsafe { tree.stock_node(block) });
                    }
                }
            }
        }
        // Others have used up what was stocked, every time: as good as no memory.
        Err(Shortage::Memory(AllocError::NoMemory { order: NODE_ORDER, gfp }))
    }

    /// Gives a range back that was reserved and never mapped.
    pub(crate) fn unreserve(&self, shared: &Shared, area: Owned) {
        shared.tree.with(self.env.cpu(), |tree| tree.release(area));
    }
}

/// Why [`Vmalloc::reserve_stocked`] came to nothing.
#[derive(Debug)]
pub(crate) enum Shortage {
    Space,
    Memory(AllocError),
}
