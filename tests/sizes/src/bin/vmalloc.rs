//! Virtually contiguous areas alone, over a page source and page tables of a few lines.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_sizes::{MACHINE, Machine};
        use kmem_vmalloc::Vmalloc;

        static VMALLOC: Vmalloc<&'static Machine> = Vmalloc::new(&MACHINE);
        // SAFETY: never run.
        unsafe {
            let _ = black_box(VMALLOC.init(black_box(0x1000_0000..0x2000_0000)));
            if let Ok(memory) = VMALLOC.vmalloc(black_box(10_000)) {
                let _ = black_box(VMALLOC.vfree(memory.as_ptr()));
            }
        }
    }
}
