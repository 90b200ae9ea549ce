//! Compressed objects alone, over a page source of a few lines.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_gfp::Gfp;
        use kmem_sizes::MACHINE;
        use kmem_zsmalloc::{Config, Pool};

        if let Ok(pool) = Pool::new(&MACHINE, Config::new(), Gfp::KERNEL) {
            if let Ok(handle) = pool.store(black_box(&[1; 600]), Gfp::NOIO) {
                let mut buffer = [0; 4096];
                let _ = black_box(pool.read(handle, &mut buffer).is_ok());
                let _ = black_box(pool.free(handle));
            }
            black_box(pool.compact());
        }
    }
}
