//! Views.

use std::string::String;

use kmem_gfp::Gfp;

use super::{BARE, family, family_with, give, take, with_flags};
use crate::cache::CacheName;
use crate::{CacheArgs, SLABINFO_HEADER, SlabFlags, SlabInfo};

/// A real kernel's file.
const SAMPLE: &str = include_str!("slabinfo.txt");

#[test]
fn slabinfo_is_the_kernels_byte_for_byte() {
    // DB-12: each row of a real file is taken apart and printed again.
    let mut printed = String::from(SLABINFO_HEADER);
    for line in SAMPLE.lines().skip(2) {
        let mut fields = line.split_whitespace().filter(|field| !matches!(*field, ":" | "tunables" | "slabdata"));
        let name = CacheName::new(fields.next().unwrap());
        let mut number = || fields.next().unwrap().parse::<u64>().unwrap();
        let info = SlabInfo {
            name,
            active_objs: number(),
            num_objs: number(),
            stride: number() as usize,
            objs_per_slab: number() as usize,
            pages_per_slab: number() as usize,
            num_slabs: {
                assert_eq!([number(), number(), number()], [0, 0, 0]);
                let active = number();
                assert_eq!(number(), active);
                active
            },
        };
        printed += &std::format!("{info}\n");
    }
    assert_eq!(printed, SAMPLE);
}

#[test]
fn slabinfo_counts_parked_objects_as_active() {
    // DB-12, DB-13
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    slabs.create("alias", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 100);
    give(&slabs, cache, objects);
    let info = slabs.slab_info(cache);
    assert!(info.active_objs >= 100 && info.num_objs >= 100);
    assert_eq!(info.num_slabs, info.num_objs / 64);
    let mut text = String::new();
    slabs.slabinfo(&mut text).unwrap();
    assert!(text.starts_with(SLABINFO_HEADER));
    assert_eq!(text.lines().count(), 3, "aliases do not appear, nor do internal caches: {text}");
    slabs.shrink(cache);
    assert_eq!(slabs.slab_info(cache).num_objs, 0);
}

#[test]
fn every_number_of_a_cache_can_be_read() {
    // DB-14
    let slabs = family_with(1, BARE);
    let args = CacheArgs {
        usersize: 10,
        ..with_flags(SlabFlags::HWCACHE_ALIGN | SlabFlags::RECLAIM_ACCOUNT | SlabFlags::TYPESAFE_BY_RCU)
    };
    let cache = slabs.create("things", 500, &args).unwrap();
    let objects = take(&slabs, cache, 10);
    let stats = slabs.cache_stats(cache);
    assert_eq!((stats.object_size, stats.stride, stats.align, stats.usersize), (500, 512, 64, 10));
    assert_eq!(
        (stats.slabs, stats.partial, stats.total_objects, stats.objects, stats.objects_partial),
        (2, 1, 16, 10, 2)
    );
    assert_eq!((stats.order, stats.objs_per_slab, stats.aliases, stats.has_ctor), (0, 8, 0, false));
    assert_eq!(stats.remote_node_defrag_ratio, 100);
    assert!(!slabs.set_remote_node_defrag_ratio(cache, 101));
    assert!(slabs.set_remote_node_defrag_ratio(cache, 40));
    assert_eq!(slabs.cache_stats(cache).remote_node_defrag_ratio, 40);
    give(&slabs, cache, objects);
}

#[test]
fn objects_can_be_found_from_the_inside() {
    // DB-19
    let slabs = family(1);
    let cache = slabs.create("things", 200, &with_flags(SlabFlags::STORE_USER)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: inside the object.
    let found = slabs.object_of(unsafe { object.add(123) }).unwrap();
    assert_eq!((found.start, found.offset, found.cache.name()), (object, 123, "things"));
    let track = slabs.track_of(object, crate::TrackKind::Alloc).unwrap();
    assert!(track.location.unwrap().file().ends_with("info.rs"));
    assert!(slabs.track_of(object, crate::TrackKind::Free).unwrap().location.is_none());
    let mut local = 0_u64;
    assert!(slabs.object_of(core::ptr::NonNull::from(&mut local).cast()).is_none());
    give(&slabs, cache, [object]);
}
