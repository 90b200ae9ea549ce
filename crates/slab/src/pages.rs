//! Slabs come and go: asking the page source, cutting the block into slots, giving the block back.

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, FrameTable, Gfp, Order, PageAllocator, Pfn};
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::debug;
use crate::error::no_memory;
use crate::node::{Node, linkable};
use crate::slab::{Slab, SlabState, owner_word};
use crate::{KmemCache, SlabEnv, SlabFlags, Slabs};

/// The flags of a slab request that reach the page source.
const PASSED: Gfp = Gfp::RECLAIM_MASK.union(Gfp::CONSTRAINT_MASK).union(Gfp::WRITE);

impl<E: SlabEnv> Slabs<E> {
    /// Makes a new slab near `node`, fills `out` with its first objects, and lists the slab with what is left.
    /// Returns how many places of `out` are filled, at least one.
    pub(crate) fn new_slab(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: usize,
        out: &mut [*mut u8],
        how: Locking,
    ) -> Result<usize, AllocError> {
        if gfp.contains(Gfp::ZERO)
            && cache.ctor.is_some()
            && self.core().is_some_and(|core| !core.warned_zero.swap(true, Ordering::Relaxed))
        {
            self.env
                .context()
                .report(format_args!("cache {}: zeroed allocations undo what its constructor does", cache.name()));
        }
        let held = cache.node(node).map_or(0, |node| node.nr_pages.load(Ordering::Relaxed));
        let (pfn, order) = self.slab_pages(cache, gfp, node, held, how)?;
        let frames = self.env.frames();
        let on = self.env.pages().node_of(pfn).index();
        let (Some(slab), Some(home), true) = (Slab::at(frames, pfn), cache.node(on), linkable(pfn)) else {
            self.return_pages(pfn, order);
            return Err(no_memory(gfp));
        };
        let total = crate::order::objects(order, cache.layout.stride);
        let mut state = SlabState::new(total, order);
        let taken = self.cut(cache, &slab, total, &mut state, out);
        if cache.flags.contains(SlabFlags::INTERNAL) {
            self.count_metadata(order.nr_pages() as i64);
        } else {
            self.count_slab(cache, order.nr_pages() as i64);
        }
        home.nr_slabs.fetch_add(1, Ordering::Relaxed);
        home.nr_pages.fetch_add(order.nr_pages() as u64, Ordering::Relaxed);
        home.nr_objects.fetch_add(total as u64, Ordering::Relaxed);
        slab.claim(frames, owner_word(cache, on), state.listed(!state.is_full()));
        let listed = home.with(self.env.cpu(), how, |slabs| {
            if state.is_full() {
                slabs.full.push_head(frames, &slab);
            } else {
                slabs.partial.push_head(frames, &slab);
                slabs.nr_empty += u32::from(state.inuse() == 0);
            }
        });
        if listed.is_none() {
            // Nobody has seen it, so there are no readers to wait for either.
            self.destroy_slab(cache, home, &slab);
            return Err(no_memory(gfp));
        }
        Ok(taken)
    }

    /// Gets a block: the preferred order without pressure, then the smallest with the caller's own flags.
    fn slab_pages(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: usize,
        held: u64,
        how: Locking,
    ) -> Result<(Pfn, Order), AllocError> {
        let bad = gfp.intersection(Gfp::SLAB_BUG_MASK);
        if !bad.is_empty() {
            self.env.context().report(format_args!(
                "Unexpected gfp: {bad}. Fixing up to gfp: {}. Fix your code!",
                gfp.difference(Gfp::SLAB_BUG_MASK)
            ));
        }
        let pages = self.env.pages();
        let flags = gfp.intersection(PASSED) | cache.page_flags;
        let near = Some(kmem_gfp::NodeId(node as u32));
        let minimum = cache.orders.minimum;
        let first = cache.orders.for_size(held);
        if how == Locking::Try {
            let flags = flags | Gfp::NOWARN;
            return match pages.alloc_pages_nolock(flags, first, near) {
                Err(_) if first > minimum => pages.alloc_pages_nolock(flags, minimum, near).map(|pfn| (pfn, minimum)),
                result => result.map(|pfn| (pfn, first)),
            };
        }
        let mut gentle = (flags | Gfp::NOWARN | Gfp::NORETRY).difference(Gfp::NOFAIL);
        if flags.allows_blocking() && first > minimum {
            gentle = (gentle | Gfp::NOMEMALLOC).difference(Gfp::RECLAIM);
        }
        if let Ok(pfn) = pages.alloc_pages(gentle, first, near) {
            return Ok((pfn, first));
        }
        match pages.alloc_pages(flags, minimum, near) {
            Ok(pfn) => Ok((pfn, minimum)),
            Err(AllocError::NoMemory { order, .. }) => Err(AllocError::NoMemory { order, gfp }),
            Err(error) => Err(error),
        }
    }

    /// Cuts a fresh block into slots: prepares every object, hands the first ones to `out`, chains the others, if there are any.
    fn cut(
        &self,
        cache: &KmemCache,
        slab: &Slab<'_>,
        total: usize,
        state: &mut SlabState,
        out: &mut [*mut u8],
    ) -> usize {
        if cache.ctor.is_some() || cache.flags.intersects(SlabFlags::DEBUG) {
            self.prepare(cache, slab, total, state.order());
        }
        let table = cache.shuffled();
        let start = if table.len() > 1 { cache.random() as usize % table.len() } else { 0 };
        let (behind, ahead) = table.split_at(start.min(table.len()));
        let mut order = ahead.iter().chain(behind).map(|&index| index as usize).filter(|&index| index < total);
        let mut plain = 0..if table.is_empty() { total } else { 0 };
        let mut next = || if table.is_empty() { plain.next() } else { order.next() };
        let mut taken = 0;
        for place in out.iter_mut() {
            let Some(index) = next() else { break };
            *place = slab.object(cache, index).as_ptr();
            taken += 1;
        }
        let mut head = None;
        if taken < total
            && let Some(first) = next()
        {
            head = Some(first);
            let mut tail = slab.object(cache, first);
            while let Some(index) = next() {
                let object = slab.object(cache, index);
                // SAFETY: both objects are free and ours.
                unsafe { cache.set_next(tail, object.as_ptr()) };
                tail = object;
            }
            // SAFETY: free and ours.
            unsafe { cache.set_next(tail, core::ptr::null_mut()) };
        }
        *state = state.with(head, taken);
        taken
    }

    /// Paints a new slab's objects as their cache's checks want to find them, and constructs them.
    #[cold]
    fn prepare(&self, cache: &KmemCache, slab: &Slab<'_>, total: usize, order: Order) {
        debug::init_slab(cache, slab, order);
        for index in 0..total {
            let object = slab.object(cache, index);
            debug::init_object(cache, object);
            if let Some(ctor) = cache.ctor {
                // SAFETY: the object is ours, of the cache's size and alignment.
                unsafe { ctor(object) };
            }
        }
    }

    /// Gives up an empty slab that is on no list: at once, or after a grace period in typesafe caches.
    /// The last thing it does to the cache is to count the slab out.
    pub(crate) fn release_slab(&self, cache: &KmemCache, node: &Node, slab: &Slab<'_>) {
        cache.assert_alive();
        if cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU) {
            self.pend_slab(cache, slab);
        } else {
            self.destroy_slab(cache, node, slab);
        }
    }

    /// Gives an empty slab's pages back.
    pub(crate) fn destroy_slab(&self, cache: &KmemCache, node: &Node, slab: &Slab<'_>) {
        let state = slab.state();
        let order = state.order();
        debug::check_slab_padding(self, cache, slab, order);
        self.drop_payers(cache, slab, state.total());
        slab.disclaim(self.env.frames(), order);
        if cache.flags.contains(SlabFlags::INTERNAL) {
            self.count_metadata(-(order.nr_pages() as i64));
        } else {
            self.count_slab(cache, -(order.nr_pages() as i64));
        }
        node.nr_pages.fetch_sub(order.nr_pages() as u64, Ordering::Relaxed);
        node.nr_objects.fetch_sub(state.total() as u64, Ordering::Relaxed);
        self.return_pages(slab.pfn, order);
        cache.assert_alive();
        // Release pairs with the acquire in `destroy`: whoever sees no slabs left sees that nobody works on one.
        node.nr_slabs.fetch_sub(1, Ordering::Release);
    }

    /// Returns a block that we took to the page source.
    pub(crate) fn return_pages(&self, pfn: Pfn, order: Order) {
        // SAFETY: the block came from the same source with this order, and nothing uses it any more.
        if let Err(error) = unsafe { self.env.pages().free_pages(pfn, order) } {
            self.env.context().report(format_args!("BUG slab: the page source refused {pfn} {order}: {error}"));
        }
    }

    /// One report for an allocation that failed, at most one a second for each cache.
    #[cold]
    pub(crate) fn report_out_of_memory(&self, cache: &KmemCache, gfp: Gfp, node: usize) {
        if gfp.contains(Gfp::NOWARN) {
            return;
        }
        let context = self.env.context();
        let now = context.now_ms();
        let last = cache.last_report_ms.load(Ordering::Relaxed);
        if last != 0 && now != 0 && now.wrapping_sub(last) < 1000 {
            return;
        }
        cache.last_report_ms.store(now.max(1), Ordering::Relaxed);
        context.report(format_args!("SLUB: Unable to allocate memory on node {node}, gfp={:#x}({gfp})", gfp.bits()));
        context.report(format_args!(
            "  cache: {}, object size: {}, buffer size: {}, default order: {}, min order: {}",
            cache.name(),
            cache.object_size(),
            cache.stride(),
            cache.orders.preferred.get(),
            cache.orders.minimum.get()
        ));
        for (id, node) in cache.nodes().enumerate() {
            let free = self.count_free(node, Locking::Try).unwrap_or(0);
            context.report(format_args!(
                "  node {id}: slabs: {}, objs: {}, free: {free}",
                node.nr_slabs.load(Ordering::Relaxed),
                node.nr_objects.load(Ordering::Relaxed)
            ));
        }
    }

    /// Free slots on the node's partial slabs; long lists are sampled at both ends and scaled.
    pub(crate) fn count_free(&self, node: &Node, how: Locking) -> Option<u64> {
        const SAMPLE: usize = 5_000;
        let frames = self.env.frames();
        node.with(self.env.cpu(), how, |slabs| {
            let len = slabs.partial.len as u64;
            let free = |slab: Slab<'_>| slab.state().free() as u64;
            if len <= 2 * SAMPLE as u64 {
                return slabs.partial.iter(frames).map(free).sum();
            }
            let front: u64 = slabs.partial.iter(frames).take(SAMPLE).map(free).sum();
            let back: u64 = slabs.partial.iter_back(frames).take(SAMPLE).map(free).sum();
            (front + back).saturating_mul(len) / (2 * SAMPLE as u64)
        })
    }
}

/// Where a frame is mapped, for metadata blocks.
pub(crate) fn mapped<E: SlabEnv>(slabs: &Slabs<E>, pfn: Pfn) -> Option<NonNull<u8>> {
    slabs.env.frames().address_of(pfn)
}
