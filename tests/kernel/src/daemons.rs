//! kswapd and kcompactd, and reclaim behind them: [`start`]. Step 13 of a port.
//!
//! ```text
//! shortage ─▶ KernelReclaim ─▶ Mm ─┬─ the request reclaims or compacts by itself
//!                                  └─ wakes kswapd ─▶ frees pages up to the high marks ─▶ wakes kcompactd for large blocks
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem::buddy::Kcompactd;
use kmem::cma::{AreaSpec, Place};
use kmem::{Gfp, MmConfig, NodeId, Order, Pfn, PfnRange, ZoneKind};
use kmem_sync::atomic::{AtomicPtr, Ordering};

use crate::memory::GIVEN;
use crate::page_cache;
use crate::platform::kmem;
use crate::reclaim::MM;
use crate::thread::{self, Thread};
use crate::{sched, sleep};

/// The only node.
const NODE: NodeId = NodeId(0);
/// Pages of the area that devices get contiguous memory from.
const AREA_PAGES: u64 = 2048;
/// Devices with 32 address bits reach frames below this.
const DEVICES_END: Pfn = Pfn(1 << 20);

static COMPACTION: Kcompactd = Kcompactd::new(NODE);
static KCOMPACTD: AtomicPtr<Thread> = AtomicPtr::new(core::ptr::null_mut());

/// Sets reclaim up in memory from the page allocator, starts the two threads, and lends a contiguous area to movable pages.
///
/// # Panics
/// Without memory for it, which boot has.
pub(crate) fn start() {
    page_cache::init();
    let end = GIVEN.get().into_iter().flat_map(|given| given.regions()).map(|region| region.range.end).max();
    let frames = PfnRange::new(Pfn(0), end.unwrap_or(Pfn(0)));
    let config = MmConfig { groups: 1, frames, compaction: true };
    // SAFETY: memory of that layout, taken for good; called once.
    let mm = unsafe { kmem::Mm::set_up(kmem(), config, memory) }.expect("memory for reclaim");
    MM.install(mm);
    let _ = thread::spawn("kswapd", None, move || mm.engine().kswapd_run(NODE, || false)).into_raw();
    let compactor = thread::spawn("kcompactd", None, || {
        loop {
            sleep::until(kmem().kcompactd_poll(&COMPACTION, sched::now_ms()));
        }
    });
    KCOMPACTD.store(compactor.into_raw(), Ordering::Release);
    let place = Place::Within { base: Pfn(0), limit: Some(DEVICES_END) };
    kmem()
        .cma_declare_contiguous(&AreaSpec::new("devices", AREA_PAGES).place(place).for_dma())
        .expect("memory for an area");
}

/// Zeroed memory for good.
fn memory(layout: Layout) -> Option<NonNull<u8>> {
    if layout.size() == 0 {
        return Some(layout.dangling_ptr());
    }
    // Whole blocks are aligned to their size.
    let order = Order::for_size(layout.size().max(layout.align()))?;
    let page = kmem().alloc_pages(Gfp::KERNEL | Gfp::ZERO, order).ok()?;
    kmem().page_address(page)
}

/// Asks kcompactd for blocks of `order` in zones up to `ceiling`. Any context but NMI.
pub(crate) fn wake_compaction(order: Order, ceiling: ZoneKind) {
    COMPACTION.wake(order, ceiling);
    let thread = KCOMPACTD.load(Ordering::Acquire);
    if !thread.is_null() {
        // SAFETY: it never ends.
        unsafe { sched::unpark(thread) };
    }
}
