//! Nothing: what every image has.
#![cfg_attr(bare_metal, no_std, no_main)]

kmem_sizes::image! {
    fn body() {
        core::hint::black_box(&kmem_sizes::MACHINE);
    }
}
