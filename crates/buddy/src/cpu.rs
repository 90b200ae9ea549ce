//! A CPU's part of the allocator: where its requests go, and its page sets of all zones.
//!
//! ```text
//! CpuBlock   routes[gfp & 31] ─▶ Stack (order 0, order 9) of the preferred zone and type
//!            span ─▶ lists[pageblock] ─▶ Stack (order 0) that a freed page goes to
//! ```

use core::ptr::NonNull;

use kmem_gfp::{MigrateType, NodeId, Order, Pfn};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kmem_sync::{CpuId, LocalLock};

use crate::arena::Arena;
use crate::line::FRAMES_SHIFT;
use crate::pcp::{HUGE, NEVER, Stack, ZoneSet, stack_index};
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
/// 1. `span_*` are written inside full sections only, and name a span whose lists live as long as the allocator.
/// 2. `routes` point to stacks of this block.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct CpuBlock {
    /// Number of the first pageblock of the span used last, and how many it has.
    span_first: AtomicU64,
    span_len: AtomicU64,
    /// Its pageblocks' entries in `Arena::lists`.
    span_lists: AtomicPtr<AtomicU32>,
    pub(crate) lock: LocalLock,
    pub(crate) cpu: CpuId,
    pub(crate) node: NodeId,
    nr_sets: u32,
    /// By the low five bits of a `Gfp`: where a page comes from, for order 0 and for order 9.
    routes: [[AtomicPtr<Stack>; 32]; 2],
}

// SAFETY: atomics, and entries that are reached only inside sections.
unsafe impl Sync for CpuBlock {}

impl CpuBlock {
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
        // SAFETY: written just above; a map that passed its check has memory and so at least one set.
        let never = unsafe { &raw mut (*sets.as_ptr()).stacks[NEVER] };
        // SAFETY: inside the memory.
        unsafe {
            block.write(Self {
                span_first: AtomicU64::new(0),
                span_len: AtomicU64::new(0),
                span_lists: AtomicPtr::new(core::ptr::null_mut()),
                lock: LocalLock::new(),
                cpu,
                node,
                nr_sets: nr_sets as u32,
                routes: core::array::from_fn(|_| core::array::from_fn(|_| AtomicPtr::new(never))),
            });
        }
        block
    }

    /// The stack that serves an order-0 request.
    #[inline(always)]
    pub(crate) fn route(&self, bits: u32) -> &Stack {
        let stack = self.routes[0][(bits & 31) as usize].load(Ordering::Relaxed);
        // SAFETY: invariant 2.
        unsafe { &*stack }
    }

    /// The stack that serves a request of a cached order; `None` for other orders and for contradicting flags.
    #[inline(always)]
    pub(crate) fn route_for(&self, bits: u32, order: Order) -> Option<&Stack> {
        let stack = match order.get() {
            0 => return Some(self.route(bits)),
            9 => self.routes[1][(bits & 31) as usize].load(Ordering::Relaxed),
            order @ 1..=8 => {
                let stack = self.routes[0][(bits & 31) as usize].load(Ordering::Relaxed);
                if self.column_of(stack)? >= 3 {
                    return None;
                }
                stack.wrapping_add(order as usize * 3)
            }
            _ => return None,
        };
        // SAFETY: invariant 2; of the first three stacks of a set, the ones that many further on are in it as well.
        Some(unsafe { &*stack })
    }

    /// A stack's place in its set.
    #[inline(always)]
    fn column_of(&self, stack: *const Stack) -> Option<usize> {
        let first = core::ptr::from_ref(self).addr() + size_of::<Self>();
        Some(stack.addr().checked_sub(first)? % size_of::<ZoneSet>() / size_of::<Stack>())
    }

    /// Routes requests of these flags.
    pub(crate) fn set_route(&self, bits: usize, zone: Option<(&Zone, MigrateType)>) {
        let stack = |order: Order| {
            let (zone, migratetype) = zone?;
            self.zone_set(zone)?.stacks.get(stack_index(order, migratetype)?)
        };
        // SAFETY: there is at least one set (see `write`).
        let never = unsafe { &self.sets().as_ref().stacks[NEVER] };
        for (routes, order) in self.routes.iter().zip([Order::ZERO, Order::PAGEBLOCK]) {
            if let Some(route) = routes.get(bits) {
                route.store(core::ptr::from_ref(stack(order).unwrap_or(never)).cast_mut(), Ordering::Relaxed);
            }
        }
    }

    /// The order-0 stack that takes a page of this frame's pageblock, if that lies in the span used last.
    #[inline(always)]
    pub(crate) fn list(&self, pfn: Pfn) -> Option<&Stack> {
        let block = (pfn.0 >> FRAMES_SHIFT).wrapping_sub(self.span_first.load(Ordering::Relaxed));
        if block >= self.span_len.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: inside the span (invariant 1).
        let list = unsafe { &*self.span_lists.load(Ordering::Relaxed).add(block as usize) }.load(Ordering::Relaxed);
        // SAFETY: lists hold offsets of stacks in a CPU's block (`Zone::list_of`).
        Some(unsafe { NonNull::from(self).byte_add(list as usize).cast::<Stack>().as_ref() })
    }

    /// As [`list`](Self::list), for any cached order.
    #[inline(always)]
    pub(crate) fn list_for(&self, pfn: Pfn, order: Order) -> Option<&Stack> {
        let stack = core::ptr::from_ref(self.list(pfn)?);
        let column = self.column_of(stack)?;
        let ahead = match order.get() {
            _ if column >= 3 => return None,
            order @ 0..=8 => order as usize * 3,
            9 => HUGE + usize::from(column != 1) - column,
            _ => return None,
        };
        // SAFETY: in the set of which `stack` is one of the first three.
        Some(unsafe { &*stack.add(ahead) })
    }

    /// Makes the span that holds `pfn` the one that is looked at first. Inside a full section.
    pub(crate) fn remember(&self, arena: &Arena, pfn: Pfn) {
        if let Some(span) = arena.span_of(pfn)
            && let Some(lists) = arena.lists.get(span.index..span.index + span.len)
        {
            self.span_first.store(span.first, Ordering::Relaxed);
            self.span_len.store(span.len as u64, Ordering::Relaxed);
            self.span_lists.store(lists.as_ptr().cast_mut(), Ordering::Relaxed);
        }
    }

    /// Begins with the largest span.
    pub(crate) fn remember_largest(&self, arena: &Arena) {
        if let Some(span) = arena.spans.iter().max_by_key(|span| span.len) {
            self.remember(arena, Pfn(span.first << FRAMES_SHIFT));
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
