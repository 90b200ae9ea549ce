//! [`Machine`]: this kernel as a [`Platform`], and the one `static` that holds its allocators. Step 6 of a port.

use core::ops::Range;

use kmem::gfp::{Gfp, Order, PAGE_SIZE, PfnRange};
use kmem::reclaim::lru::{OwnerId, PageOwner};
use kmem::{Kmem, KmemCell, NodeId, Pfn, Platform, ReclaimPlatform, ZoneKind};
use kmem_gfp::{MovableOwner, ReclaimRequest};
use kmem_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kmem_vmalloc::Work;

use crate::context::KernelContext;
use crate::cpu::KernelCpu;
use crate::frames::Frames;
use crate::grace::SchedulerGrace;
use crate::page_table::{KernelSpace, WINDOW};
use crate::reclaim::{KernelReclaim, MM};
use crate::sleep::KernelPark;
use crate::{daemons, page_cache, vm};

/// The machine. Every part is a type without state, so each question is a register, a static or an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine;

/// The allocators.
pub(crate) static KMEM: KmemCell<Machine> = KmemCell::new();

/// The allocators, which are there from `memory::init` on.
///
/// # Panics
/// Before that.
#[inline(always)]
pub(crate) fn kmem() -> &'static Kmem<Machine> {
    match KMEM.get() {
        Some(kmem) => kmem,
        None => no_memory_yet(),
    }
}

#[cold]
fn no_memory_yet() -> ! {
    // PANIC: the order of `start` is wrong.
    panic!("memory before `memory::init`")
}

/// Counts down to the page request that is to fail; zero: none.
static FAIL_IN: AtomicU64 = AtomicU64::new(0);

/// Whether the page allocator's fast paths have been closed so that every request asks.
static ARMED: AtomicBool = AtomicBool::new(false);

/// Lets the `n`-th page request from here on fail; zero: none.
pub(crate) fn fail_page_request(n: u64) {
    FAIL_IN.store(n, Ordering::Relaxed);
    let armed = n != 0;
    if ARMED.swap(armed, Ordering::Relaxed) != armed {
        kmem().pages().set_injecting(armed);
    }
}

/// Whether a failure that was asked for has not come about yet.
pub(crate) fn page_failure_pending() -> bool {
    FAIL_IN.load(Ordering::Relaxed) != 0
}

#[cold]
fn fails_now() -> bool {
    FAIL_IN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) == Ok(1)
}

impl Platform for Machine {
    type Cpu = KernelCpu;
    type Context = KernelContext;
    type Grace = SchedulerGrace;
    type Reclaimer = KernelReclaim;
    type Frames = Frames;
    type Space = KernelSpace;

    #[inline(always)]
    fn cpu(&self) -> &KernelCpu {
        &KernelCpu
    }
    #[inline(always)]
    fn context(&self) -> &KernelContext {
        &KernelContext
    }
    #[inline(always)]
    fn grace(&self) -> &SchedulerGrace {
        &SchedulerGrace
    }
    #[inline(always)]
    fn reclaimer(&self) -> &KernelReclaim {
        &KernelReclaim
    }
    #[inline(always)]
    fn frames(&self) -> &Frames {
        &Frames
    }
    #[inline(always)]
    fn space(&self) -> &KernelSpace {
        &KernelSpace
    }
    fn vmalloc_window(&self) -> Option<Range<usize>> {
        Some(WINDOW)
    }
    fn schedule_vmalloc(&self, work: Work) -> bool {
        vm::schedule(work)
    }

    #[inline]
    unsafe fn zero_frames(&self, range: PfnRange) {
        let to = (range.start.0 as usize) * PAGE_SIZE;
        let words = (range.len() as usize) * (PAGE_SIZE / 8);
        // SAFETY: the caller owns the frames, and each is mapped at its own address.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rdi") to => _, inout("rcx") words => _, in("rax") 0_u64, options(nostack, preserves_flags),
            );
        }
    }

    fn background_running(&self, node: NodeId) -> bool {
        MM.get().is_some_and(|mm| mm.background_running(node))
    }
    fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        MM.get().is_some_and(|mm| mm.reclaim_node(node, request))
    }
    fn high_mark_restored(&self, node: NodeId) {
        if let Some(mm) = MM.get() {
            mm.high_mark_restored(node);
        }
    }
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        MM.get()?.movable_owner(pfn)
    }
    fn reclaim_counter(&self, node: NodeId, name: &str) -> Option<u64> {
        MM.get()?.node_counter(node, name)
    }
    fn reclaim_event(&self, name: &str) -> Option<u64> {
        MM.get()?.event(name)
    }

    const INJECTS_ANYWHERE: bool = false;

    #[inline(always)]
    fn inject_failure(&self, _gfp: Gfp, _order: Order) -> bool {
        FAIL_IN.load(Ordering::Relaxed) != 0 && fails_now()
    }
}

impl ReclaimPlatform for Machine {
    type Park = KernelPark;

    fn park(&self) -> &KernelPark {
        &KernelPark
    }
    fn page_owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        page_cache::owner(id).map(|owner| owner as &dyn PageOwner)
    }
    fn wake_compaction(&self, _node: NodeId, order: Order, ceiling: ZoneKind) {
        daemons::wake_compaction(order, ceiling);
    }
}
