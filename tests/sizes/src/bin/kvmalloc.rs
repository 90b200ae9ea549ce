//! kvmalloc with kmalloc, the object caches and the areas that it stands on.
#![cfg_attr(bare_metal, no_std, no_main)]

#[cfg(bare_metal)]
mod both {
    //! The two allocators as one environment.

    use kmem_gfp::PlainContext;
    use kmem_kmalloc::Kmalloc;
    use kmem_kvmalloc::KvmallocEnv;
    use kmem_sizes::{MACHINE, Machine};
    use kmem_sync::{NoReaders, SingleCpu};
    use kmem_vmalloc::Vmalloc;

    /// kmalloc and vmalloc.
    pub(crate) struct Both {
        pub(crate) objects: Kmalloc<'static, &'static Machine>,
        pub(crate) areas: &'static Vmalloc<&'static Machine>,
    }

    // SAFETY: the window of the areas lies beside the direct map; nothing of it is run.
    unsafe impl KvmallocEnv for Both {
        type Cpu = SingleCpu;
        type Objects = Kmalloc<'static, &'static Machine>;
        type Areas = Vmalloc<&'static Machine>;
        type Context = PlainContext;
        type Grace = NoReaders;
        fn cpu(&self) -> &SingleCpu {
            &MACHINE.cpu
        }
        fn objects(&self) -> &Self::Objects {
            &self.objects
        }
        fn areas(&self) -> &Self::Areas {
            self.areas
        }
        fn context(&self) -> &PlainContext {
            &PlainContext
        }
        fn grace(&self) -> &NoReaders {
            &MACHINE.readers
        }
    }
}

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_gfp::Gfp;
        use kmem_kmalloc::{Kmalloc, KmallocConfig};
        use kmem_kvmalloc::Kvmalloc;
        use kmem_sizes::{MACHINE, Machine};
        use kmem_slab::Slabs;
        use kmem_vmalloc::Vmalloc;

        static SLABS: Slabs<&'static Machine> = Slabs::new(&MACHINE);
        static AREAS: Vmalloc<&'static Machine> = Vmalloc::new(&MACHINE);
        let _ = black_box(SLABS.init());
        // SAFETY: never run.
        let _ = black_box(unsafe { AREAS.init(black_box(0x1000_0000..0x2000_0000)) });
        if let Ok(objects) = Kmalloc::new(&SLABS, KmallocConfig::default()) {
            let kvmalloc = Kvmalloc::new(both::Both { objects, areas: &AREAS });
            if let Ok(memory) = kvmalloc.kvmalloc(black_box(10_000), black_box(Gfp::KERNEL)) {
                // SAFETY: never run.
                let _ = black_box(unsafe { kvmalloc.kvfree(memory.as_ptr()) });
            }
        }
    }
}
