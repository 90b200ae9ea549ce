//! A machine of one CPU whose page source hands out frames in order: small enough not to show in the figures.

use core::ptr::NonNull;

use kmem_gfp::{
    AllocError, BulkPages, ExactPages, FlatFrameTable, FreeError, Gfp, NodeId, Order, PageAllocator, Pfn, PfnRange,
    PlainContext,
};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{NoReaders, SingleCpu};

/// Where the frames are mapped.
pub const BASE: usize = 1 << 30;
/// How many frames there are.
pub const NR_FRAMES: u64 = 1 << 14;

/// The parts that the crates ask for.
#[derive(Debug)]
pub struct Machine {
    next: AtomicU64,
    /// One CPU.
    pub cpu: SingleCpu,
    /// Readers of nothing.
    pub readers: NoReaders,
    /// The words at [`BASE`] as well; nothing of this is run.
    pub frames: FlatFrameTable,
}

// SAFETY: one CPU.
unsafe impl Sync for Machine {}

/// The machine.
pub static MACHINE: Machine = Machine {
    next: AtomicU64::new(0),
    // SAFETY: one CPU without interrupts.
    cpu: unsafe { SingleCpu::new() },
    // SAFETY: one thread, which reads nothing behind anybody's back.
    readers: unsafe { NoReaders::new() },
    // SAFETY: the images are linked, not run.
    frames: unsafe {
        FlatFrameTable::new(
            NonNull::without_provenance(core::num::NonZeroUsize::new(BASE).unwrap()),
            BASE,
            Pfn(0),
            NR_FRAMES,
        )
    },
};

// SAFETY: every frame is handed out once.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _: Option<NodeId>) -> Result<Pfn, AllocError> {
        let nr = order.nr_pages() as u64;
        let first = self.next.load(Ordering::Relaxed).next_multiple_of(nr);
        if first + nr > NR_FRAMES {
            return Err(AllocError::NoMemory { order, gfp });
        }
        self.next.store(first + nr, Ordering::Relaxed);
        Ok(Pfn(first))
    }
    unsafe fn free_pages(&self, _: Pfn, _: Order) -> Result<(), FreeError> {
        Ok(())
    }
}

// SAFETY: as above.
unsafe impl BulkPages for Machine {
    fn alloc_pages_bulk(&self, _: Gfp, _: Option<NodeId>, _: &mut [Option<Pfn>]) -> usize {
        0
    }
    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        pages.fill(None);
        Ok(())
    }
}

// SAFETY: as above.
unsafe impl ExactPages for Machine {
    fn alloc_pages_exact(&self, gfp: Gfp, nr_pages: usize, node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        let order = Order::for_size(nr_pages << 12).unwrap_or(Order::MAX);
        let first = self.alloc_pages(gfp, order, node)?;
        Ok(PfnRange::new(first, Pfn(first.0 + nr_pages as u64)))
    }
    fn alloc_pages_at(&self, gfp: Gfp, _: Pfn, order: Order) -> Result<(), AllocError> {
        Err(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_range(&self, _: PfnRange) -> Result<(), FreeError> {
        Ok(())
    }
}

impl Machine {
    /// The context of every request.
    pub const CONTEXT: PlainContext = PlainContext;
}

/// The parts that every environment trait of the crates names alike.
macro_rules! environment {
    ($trait:path { $($more:tt)* }) => {
        impl $trait for Machine {
            type Cpu = SingleCpu;
            type Pages = Self;
            type Frames = FlatFrameTable;
            type Context = PlainContext;
            fn cpu(&self) -> &SingleCpu {
                &self.cpu
            }
            fn pages(&self) -> &Self {
                self
            }
            fn frames(&self) -> &FlatFrameTable {
                &self.frames
            }
            fn context(&self) -> &PlainContext {
                &Self::CONTEXT
            }
            $($more)*
        }
    };
}

environment!(kmem_slab::SlabEnv {
    type Grace = NoReaders;
    fn grace(&self) -> &NoReaders {
        &self.readers
    }
});
environment!(kmem_vmalloc::VmallocEnv {
    type Space = kmem_vmalloc::NoMapping;
    fn space(&self) -> &kmem_vmalloc::NoMapping {
        &kmem_vmalloc::NoMapping
    }
});
environment!(kmem_zsmalloc::ZsEnv {});
environment!(kmem_cma::DmaEnv {
    type Contiguous = kmem_cma::NoContiguous;
    fn contiguous(&self) -> &kmem_cma::NoContiguous {
        &kmem_cma::NoContiguous
    }
    unsafe fn zero_frames(&self, _: PfnRange) {}
});
