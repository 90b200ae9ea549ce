//! Object caches alone, over a page source of a few lines.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_gfp::Gfp;
        use kmem_sizes::{MACHINE, Machine};
        use kmem_slab::{CacheArgs, Slabs};

        static SLABS: Slabs<&'static Machine> = Slabs::new(&MACHINE);
        let _ = black_box(SLABS.init());
        if let Ok(cache) = SLABS.create("points", black_box(96), &CacheArgs::default()) {
            if let Ok(object) = SLABS.alloc(cache, black_box(Gfp::KERNEL)) {
                // SAFETY: never run.
                let _ = black_box(unsafe { SLABS.free(cache, black_box(object)) });
            }
            // SAFETY: never run.
            let _ = black_box(unsafe { SLABS.destroy(cache) }.is_ok());
        }
    }
}
