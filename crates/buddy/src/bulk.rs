//! Many single pages in one call.

use kmem_gfp::alloc_flags::{AllocFlags, CpusetEntry};
use kmem_gfp::{FreeError, Gfp, NodeId, Order, Pfn, PfnRange, Watermark};

use crate::alloc::Request;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::state::State;
use crate::zone::{Zone, flag};

impl<E: BuddyEnv> Buddy<E> {
    /// Fills the `None` slots of `pages` in order with single pages and returns how many leading slots are filled; it may be
    /// fewer than asked. One zone near the node serves them, through this CPU's set; where that cannot be, one ordinary
    /// allocation is made instead. Contexts as for [`alloc_pages`](Self::alloc_pages).
    #[doc(alias = "alloc_pages_bulk_array")]
    pub fn alloc_pages_bulk(&self, gfp: Gfp, node: Option<NodeId>, pages: &mut [Option<Pfn>]) -> usize {
        let wanted = pages.iter().filter(|slot| slot.is_none()).count();
        let leading = |pages: &[Option<Pfn>]| pages.iter().take_while(|slot| slot.is_some()).count();
        if wanted > 1
            && !gfp.contains(Gfp::ACCOUNT)
            && (!gfp.may_be_injected() || !self.env().inject_failure(gfp, Order::ZERO))
            && let Some(state) = self.state().filter(|_| self.is_ready())
            && let Ok(request) = self.request(state, gfp, Order::ZERO, node)
            && let Some(zone) = self.bulk_zone(state, &request, wanted as u64)
            && self.fill(state, zone, &request, pages) > 0
        {
            return leading(pages);
        }
        if let Some(slot) = pages.iter_mut().find(|slot| slot.is_none()) {
            *slot = self.alloc_pages(gfp, Order::ZERO, node).ok();
        }
        leading(pages)
    }

    /// The zone to take many pages from: a near one that stays above its low mark by as many.
    fn bulk_zone<'s>(&self, state: &'s State, request: &Request, wanted: u64) -> Option<&'s Zone> {
        let preferred = self.allowed_zones(state, request).next()?;
        for zone in self.allowed_zones(state, request) {
            if self.options().cpusets && !self.env().node_allowed(zone.node, request.gfp) {
                continue;
            }
            if zone.node != preferred.node {
                return None;
            }
            let levels = zone.levels(Watermark::Low, request.ceiling);
            let flags = bulk_flags(request);
            let left = levels.usable(Order::ZERO, flags).saturating_sub(wanted);
            if left > zone.watermark(Watermark::Low).saturating_add(zone.lowmem_reserve(request.ceiling)) {
                return Some(zone);
            }
        }
        None
    }

    /// Fills slots from this CPU's set of a zone, in one section. Returns how many.
    fn fill(&self, state: &State, zone: &Zone, request: &Request, pages: &mut [Option<Pfn>]) -> usize {
        let Some(stack) = self.stack_for(zone, Order::ZERO, request.migratetype) else { return 0 };
        if zone.has_flag(flag::SETS_OFF) {
            return 0;
        }
        let flags = bulk_flags(request);
        let zero = (request.gfp.contains(Gfp::ZERO) || self.options().init_on_alloc) && !self.options().init_on_free;
        let filled = self.section(|sets| {
            let Some(set) = sets.zone_set(zone) else { return 0 };
            let mut filled = 0;
            for slot in pages.iter_mut().filter(|slot| slot.is_none()) {
                // SAFETY: inside the section of the set's CPU.
                let ready = set.stacks.get(stack).and_then(|stack| unsafe { stack.pop() });
                *slot = ready.or_else(|| self.take_cached(state, zone, set, stack, request, flags, sets));
                let Some(pfn) = *slot else { break };
                filled += 1;
                self.prepare_one(state, pfn, zero);
            }
            if zone.node != sets.node {
                set.numa_other.add(filled as i64);
            }
            filled
        });
        filled.unwrap_or(0)
    }
    #[inline(always)]
    fn prepare_one(&self, state: &State, pfn: Pfn, zero: bool) {
        self.mark_owned(state, pfn, true);
        if zero && let Some(range) = PfnRange::block(pfn, Order::ZERO) {
            // SAFETY: just taken, and not handed out yet.
            unsafe { self.env().zero_frames(range) };
        }
    }

    /// Takes back every page in `pages`, leaving `None`. Neighbouring frames are fastest in ascending order. Any context.
    ///
    /// # Errors
    /// The first page that is recognisably not allocated; it and those behind it stay in `pages`.
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages), for each page.
    #[doc(alias = "release_pages")]
    pub unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        if E::CHARGES {
            for &pfn in pages.iter().flatten() {
                self.env().uncharge(pfn, Order::ZERO);
            }
        }
        let mut rest = pages.iter_mut().filter(|slot| slot.is_some()).peekable();
        while rest.peek().is_some() {
            // As many as the set takes in one section.
            self.section(|sets| {
                while let Some(slot) = rest.peek_mut() {
                    let Some(pfn) = **slot else { return };
                    // SAFETY: inside the section of the set's CPU, whose stacks begin with order 0.
                    if !unsafe { sets.list(pfn, Order::ZERO).is_some_and(|list| list.push(pfn)) } {
                        return;
                    }
                    **slot = None;
                    rest.next();
                }
            });
            if let Some(slot) = rest.peek_mut()
                && let Some(pfn) = **slot
            {
                self.free_general(pfn, Order::ZERO)?;
                **slot = None;
                rest.next();
            }
        }
        Ok(())
    }
}

fn bulk_flags(request: &Request) -> AllocFlags {
    AllocFlags::fast_path(request.gfp, request.migratetype, CpusetEntry::Off, AllocFlags::empty())
}
