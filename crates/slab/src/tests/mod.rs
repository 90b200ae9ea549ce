//! Tests of the crate, on a machine made of host memory.

mod env;
mod ledger;

#[cfg(not(loom))]
mod account;
#[cfg(not(loom))]
mod basic;
#[cfg(not(loom))]
mod bulk;
#[cfg(not(loom))]
mod contracts;
#[cfg(not(loom))]
mod create;
#[cfg(not(loom))]
mod debug;
#[cfg(not(loom))]
mod destroy;
#[cfg(not(loom))]
mod failure;
#[cfg(not(loom))]
mod faults;
#[cfg(not(loom))]
mod geometry;
#[cfg(not(loom))]
mod info;
#[cfg(not(loom))]
mod inject;
#[cfg(loom)]
mod loom;
#[cfg(loom)]
mod loom_account;
#[cfg(loom)]
mod loom_walk;
#[cfg(not(loom))]
mod mempool;
#[cfg(not(loom))]
mod nodes;
#[cfg(not(loom))]
mod nolock;
#[cfg(not(loom))]
mod property;
#[cfg(not(loom))]
mod rcu;
#[cfg(not(loom))]
mod readers;
#[cfg(not(loom))]
mod reserves;
#[cfg(not(loom))]
mod sheaves;
#[cfg(not(loom))]
mod slabs;
#[cfg(not(loom))]
mod stress;
#[cfg(not(loom))]
mod typed;
#[cfg(not(loom))]
mod usercopy;
#[cfg(not(loom))]
mod views;

use core::ptr::NonNull;
use std::vec::Vec;

use kmem_gfp::Gfp;

use crate::{CacheArgs, KmemCache, SlabConfig, SlabFlags, Slabs};
use env::TestEnv;

/// A family on a machine with `nr_cpus` CPUs and one node.
pub(crate) fn family(nr_cpus: u32) -> Slabs<TestEnv> {
    family_with(nr_cpus, SlabConfig::DEFAULT)
}

/// The same with other tunables.
pub(crate) fn family_with(nr_cpus: u32, config: SlabConfig) -> Slabs<TestEnv> {
    let slabs = Slabs::with_config(TestEnv::new(nr_cpus, 2048), config);
    slabs.init().unwrap();
    slabs
}

/// Tunables without sheaves: every call goes to the slabs.
pub(crate) const BARE: SlabConfig =
    SlabConfig { max_sheaf_capacity: 0, grow_orders: false, randomize: false, ..SlabConfig::DEFAULT };

pub(crate) fn with_flags(flags: SlabFlags) -> CacheArgs {
    CacheArgs::with_flags(flags)
}

/// `count` objects.
pub(crate) fn take(slabs: &Slabs<TestEnv>, cache: &KmemCache, count: usize) -> Vec<NonNull<u8>> {
    (0..count).map(|_| slabs.alloc(cache, Gfp::KERNEL).unwrap()).collect()
}

/// Frees them all, in order.
pub(crate) fn give(slabs: &Slabs<TestEnv>, cache: &KmemCache, objects: impl IntoIterator<Item = NonNull<u8>>) {
    for object in objects {
        // SAFETY: tests own what they give.
        unsafe { slabs.free(cache, object).unwrap() };
    }
}

/// Destroys a cache whose objects are all free.
pub(crate) fn destroy(slabs: &Slabs<TestEnv>, cache: &KmemCache) {
    // SAFETY: the test does not use the cache any more.
    unsafe { slabs.destroy(cache).unwrap() };
}
