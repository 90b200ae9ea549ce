//! The page allocator alone: blocks, exact counts, bulk, set-up.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use core::ptr::NonNull;
        use kmem_buddy::{Buddy, MemoryMap, Region, Unmapped};
        use kmem_gfp::{ExactPages, Gfp, Order, PageAllocator, Pfn, PfnRange};
        use kmem_sync::SingleCpu;

        // SAFETY: one CPU without interrupts.
        static PAGES: Buddy<Unmapped<SingleCpu>> = Buddy::new(Unmapped(unsafe { SingleCpu::new() }));
        let map = MemoryMap {
            regions: &[Region::new(PfnRange::new(Pfn(0x100), black_box(Pfn(0x4100))))],
            ..MemoryMap::default()
        };
        let _ = black_box(PAGES.metadata_layout(&map));
        // SAFETY: never run.
        unsafe {
            let _ = black_box(PAGES.init(&map, black_box(NonNull::dangling())));
            let gfp = black_box(Gfp::KERNEL);
            if let Ok(pfn) = PAGES.alloc_pages(gfp, black_box(Order::ZERO), None) {
                let _ = black_box(PageAllocator::free_pages(&PAGES, pfn, black_box(Order::ZERO)));
            }
            if let Ok(range) = PAGES.alloc_pages_exact(gfp, black_box(3), None) {
                let _ = black_box(ExactPages::free_range(&PAGES, range));
            }
            let mut many = [None; 16];
            PAGES.alloc_pages_bulk(gfp, None, &mut many);
            let _ = black_box(PAGES.free_pages_bulk(&mut many));
        }
    }
}
