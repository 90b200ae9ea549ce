//! A CPU's part of the allocator: where its requests go, and its page sets of all zones.
//!
//! ```text
//! CpuBlock   routes[gfp & 31] ─▶ Stack (order 0) of the preferred zone and type; orders 1..=9 lie behind it
//!            span ─▶ lists[pageblock] ─▶ Stack (order 0) that a freed page goes to; orders 1..=9 lie behind it
//!            never ─▶ stacks that take and give nothing: of isolated pageblocks, and of flags that contradict
//! ```

use core::ptr::NonNull;

use kmem_gfp::{MigrateType, NodeId, Order, Pfn};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kmem_sync::{CpuId, LocalLock, UnsafeCell};

use crate::arena::Arena;
use crate::line::FRAMES_SHIFT;
use crate::pcp::{ORDERS, Stack, ZoneSet, stack_index};
use crate::zone::Zone;

/// One CPU's part: what its fast paths look at, and behind it its zone sets.
///
/// ```text
/// CpuBlock │ ZoneSet 0 │ ZoneSet 1 │ ...        `Zone::list_of` counts bytes from the block's start
/// ```
///
/// A *section* is the context that holds `lock`. Full sections look for a revoker; fast sections do not, and touch only
/// stacks that are open: whoever revokes closes the stacks behind the revocation and waits once more.
///
/// # Invariants
/// 1. `span` is used inside sections only (or before anybody else comes), and names a span whose lists live as long as the
///    allocator.
/// 2. `routes` point to the first of [`ORDERS`] stacks of this block; so do the entries of `Arena::lists`, counted in bytes
///    from the block's start.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct CpuBlock {
    /// The span used last.
    span: UnsafeCell<Known>,
    pub(crate) lock: LocalLock,
    pub(crate) cpu: CpuId,
    pub(crate) node: NodeId,
    nr_sets: u32,
    /// By the low five bits of a `Gfp`: where a page comes from.
    routes: [AtomicPtr<Stack>; 32],
    /// Stacks that stay closed.
    never: [Stack; ORDERS],
}

/// A span of pageblocks.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Number of the first pageblock, and how many it has.
    first: u64,
    len: u64,
    /// Its pageblocks' entries in `Arena::lists`.
    lists: *const AtomicU32,
}

// SAFETY: atomics, and a span and entries that are reached only inside sections.
unsafe impl Sync for CpuBlock {}

impl CpuBlock {
    /// Where the stacks that stay closed lie, in bytes from the block's start.
    pub(crate) const NEVER: usize = core::mem::offset_of!(Self, never);

    /// Bytes of a block with its sets.
    pub(crate) const fn size(nr_sets: usize) -> usize {
        size_of::<Self>() + nr_sets * size_of::<ZoneSet>()
    }

    /// Writes a block whose requests are all routed to a stack without anything.
    ///
    /// # Safety
    /// `memory` has room for [`size`](Self::size) bytes, aligned for `CpuBlock`, is nobody else's, and stays the block's for
    /// as long as it is used.
    pub(crate) unsafe fn write(memory: NonNull<u8>, cpu: CpuId, node: NodeId, nr_sets: usize) -> NonNull<Self> {
        let block = memory.cast::<Self>();
        // SAFETY: the sets lie behind the block, in the same memory.
        let sets = unsafe { block.add(1) }.cast::<ZoneSet>();
        for i in 0..nr_sets {
            // SAFETY: as above.
            unsafe { sets.add(i).write(ZoneSet::new()) };
        }
        // SAFETY: inside the memory; only the address is taken.
        let never = unsafe { &raw mut (*block.as_ptr()).never }.cast::<Stack>();
        // SAFETY: inside the memory.
        unsafe {
            block.write(Self {
                span: UnsafeCell::new(Known { first: 0, len: 0, lists: core::ptr::null() }),
                lock: LocalLock::new(),
                cpu,
                node,
                nr_sets: nr_sets as u32,
                routes: core::array::from_fn(|_| AtomicPtr::new(never)),
                never: core::array::from_fn(|_| Stack::new()),
            });
        }
        block
    }

    /// The stack that serves a request; one that gives nothing for contradicting flags.
    ///
    /// # Safety
    /// The order is below [`ORDERS`].
    #[inline(always)]
    pub(crate) unsafe fn route(&self, bits: u32, order: Order) -> &Stack {
        let stack = self.routes[(bits & 31) as usize].load(Ordering::Relaxed);
        // SAFETY: invariant 2, and the caller's promise.
        unsafe { &*stack.add(order.index()) }
    }

    /// Routes requests of these flags.
    pub(crate) fn set_route(&self, bits: usize, zone: Option<(&Zone, MigrateType)>) {
        let stack = zone.and_then(|(zone, migratetype)| {
            let first = stack_index(Order::ZERO, migratetype)?;
            self.zone_set(zone)?.stacks.get(first..first + ORDERS)
        });
        if let Some(route) = self.routes.get(bits) {
            route.store(stack.unwrap_or(&self.never).as_ptr().cast_mut(), Ordering::Relaxed);
        }
    }

    /// The stack that takes a block, by its first frame's pageblock, if that lies in the span used last.
    ///
    /// # Safety
    /// The caller is inside a section of this CPU; the order is below [`ORDERS`].
    #[inline(always)]
    pub(crate) unsafe fn list(&self, pfn: Pfn, order: Order) -> Option<&Stack> {
        // SAFETY: inside a section (invariant 1).
        let span = self.span.with(|span| unsafe { &*span });
        let block = (pfn.0 >> FRAMES_SHIFT).wrapping_sub(span.first);
        if block >= span.len {
            return None;
        }
        // SAFETY: inside the span (invariant 1).
        let list = unsafe { &*span.lists.add(block as usize) }.load(Ordering::Relaxed);
        // SAFETY: invariant 2, and the caller's promise.
        Some(unsafe { NonNull::from(self).byte_add(list as usize).cast::<Stack>().add(order.index()).as_ref() })
    }

    /// Makes the span that holds `pfn` the one that is looked at first.
    ///
    /// # Safety
    /// The caller is inside a full section of this CPU, or nobody else uses the block yet.
    pub(crate) unsafe fn remember(&self, arena: &Arena, pfn: Pfn) {
        if let Some(span) = arena.span_of(pfn)
            && let Some(lists) = arena.lists.get(span.index..span.index + span.len)
        {
            let known = Known { first: span.first, len: span.len as u64, lists: lists.as_ptr() };
            // SAFETY: inside a section (invariant 1, and the caller's promise).
            self.span.with_mut(|span| unsafe { *span = known });
        }
    }

    /// Begins with the largest span.
    ///
    /// # Safety
    /// As for [`remember`](Self::remember).
    pub(crate) unsafe fn remember_largest(&self, arena: &Arena) {
        if let Some(span) = arena.spans.iter().max_by_key(|span| span.len) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.remember(arena, Pfn(span.first << FRAMES_SHIFT)) };
        }
    }

    fn sets(&self) -> NonNull<ZoneSet> {
        // SAFETY: the sets lie behind the block, in the same memory (`write`).
        unsafe { NonNull::from(self).add(1) }.cast()
    }

    /// This CPU's set with a number.
    pub(crate) fn set(&self, set: usize) -> Option<&ZoneSet> {
        // SAFETY: below the number of sets that `write` wrote.
        (set < self.nr_sets as usize).then(|| unsafe { self.sets().add(set).as_ref() })
    }

    /// This CPU's set of a zone.
    pub(crate) fn zone_set(&self, zone: &Zone) -> Option<&ZoneSet> {
        self.set(zone.set?)
    }

    /// Closes all stacks to the fast paths.
    pub(crate) fn close(&self) {
        for set in (0..self.nr_sets as usize).filter_map(|i| self.set(i)) {
            set.set_open(false);
        }
    }
}
