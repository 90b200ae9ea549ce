//! kmalloc with the object caches that it stands on.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use core::ptr::null_mut;
        use kmem_gfp::Gfp;
        use kmem_kmalloc::{Kmalloc, KmallocConfig};
        use kmem_sizes::{MACHINE, Machine};
        use kmem_slab::Slabs;

        static SLABS: Slabs<&'static Machine> = Slabs::new(&MACHINE);
        let _ = black_box(SLABS.init());
        if let Ok(kmalloc) = Kmalloc::new(&SLABS, KmallocConfig::default()) {
            let block = kmalloc.kmalloc(black_box(100), black_box(Gfp::KERNEL)).map_or(null_mut(), |block| block.as_ptr());
            // SAFETY: never run.
            unsafe {
                let _ = black_box(kmalloc.krealloc(block, black_box(200), Gfp::KERNEL));
                let _ = black_box(kmalloc.kfree(black_box(block)));
            }
        }
    }
}
