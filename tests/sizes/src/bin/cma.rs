//! Memory for devices alone: coherent blocks, small ones, streaming maps, over a page source of a few lines.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_cma::{Dma, DmaDevice, DmaPool, PoolSpec};
        use kmem_gfp::Gfp;
        use kmem_sizes::MACHINE;

        let dma = Dma::new(&MACHINE);
        let card = DmaDevice::with_bits(black_box(32));
        let _ = black_box(dma.alloc_coherent(&card, black_box(8192), Gfp::KERNEL).is_ok());
        if let Ok(pool) = DmaPool::new(&dma, &card, &PoolSpec::new("commands", 48).align(64)) {
            let _ = black_box(pool.alloc(Gfp::ATOMIC).is_ok());
        }
        let mut packet = [0_u8; 1500];
        if let Ok(mapping) = dma.map_from_device(&card, black_box(&mut packet), Gfp::ATOMIC) {
            black_box(mapping.unmap().len());
        }
    }
}
