//! Views and reports: counts by node, sampled lists, call sites, the shape of a report, all damage of one object.

use core::ptr::NonNull;
use std::collections::HashMap;
use std::format;
use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId};

use super::env::{TestEnv, run_on};
use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, ObjectError, SharedId, SlabConfig, SlabFlags, Slabs, TrackKind};

/// Overwrites a byte of an object's slot.
fn damage(object: NonNull<u8>, offset: isize) {
    // SAFETY: deliberate damage inside the test's own slab.
    unsafe { object.as_ptr().offset(offset).write(0x12) };
}

#[test]
fn counts_can_be_had_by_node() {
    // DB-14
    let slabs = Slabs::with_config(TestEnv::with_nodes(2, 1024, 2), SlabConfig { max_order: 0, ..BARE });
    slabs.init().unwrap();
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    run_on(Some(0));
    let first = take(&slabs, cache, 10);
    run_on(Some(1));
    let second = take(&slabs, cache, 3);
    run_on(Some(0));
    let on = |node| slabs.node_stats(cache, NodeId(node)).unwrap();
    assert_eq!(
        (on(0).slabs, on(0).total_objects, on(0).objects, on(0).partial, on(0).objects_partial),
        (2, 16, 10, 1, 2)
    );
    assert_eq!(
        (on(1).slabs, on(1).total_objects, on(1).objects, on(1).partial, on(1).objects_partial),
        (1, 8, 3, 1, 3)
    );
    assert_eq!((on(0).pages, on(1).pages), (2, 1));
    assert_eq!(slabs.node_stats(cache, NodeId(2)), None);
    let all = slabs.cache_stats(cache);
    assert_eq!((all.slabs, all.pages, all.total_objects, all.objects, all.partial), (3, 3, 24, 13, 2));
    give(&slabs, cache, first.into_iter().chain(second));
    destroy(&slabs, cache);
}

#[test]
fn a_shared_cache_is_named_by_what_it_shares() {
    // DB-14
    let slabs = family(1);
    let id = |size, flags| {
        let cache = slabs.create(&format!("c{size}"), size, &with_flags(flags)).unwrap();
        format!("{}", SharedId(cache))
    };
    assert_eq!(id(64, SlabFlags::empty()), ":0000064");
    assert_eq!(id(192, SlabFlags::CACHE_DMA), ":d-0000192");
    assert_eq!(id(256, SlabFlags::CACHE_DMA32 | SlabFlags::RECLAIM_ACCOUNT), ":Da-0000256");
    assert_eq!(id(320, SlabFlags::ACCOUNT), ":A-0000320");
}

#[test]
fn long_lists_are_sampled_at_both_ends() {
    // DB-13
    const SLABS: usize = 10_100;
    let slabs = Slabs::with_config(TestEnv::new(1, SLABS + 300), SlabConfig { max_order: 0, ..BARE });
    slabs.init().unwrap();
    let cache = slabs.create("things", 2048, &CacheArgs::default()).unwrap();
    cache.set_min_partial(u32::MAX);
    let objects = take(&slabs, cache, 2 * SLABS);
    let (mut kept, mut freed) = (Vec::new(), Vec::new());
    for pair in objects.chunks(2) {
        kept.push(pair[0]);
        freed.push(pair[1]);
    }
    give(&slabs, cache, freed);
    let info = slabs.slab_info(cache);
    assert_eq!(slabs.cache_stats(cache).partial, SLABS as u64);
    assert_eq!((info.num_objs, info.active_objs), (2 * SLABS as u64, SLABS as u64), "every slab is alike");
    // Another slab in the middle of the list is not seen; one more object at an end counts for more than itself.
    give(&slabs, cache, [kept.swap_remove(SLABS / 2)]);
    assert_eq!(slabs.slab_info(cache).active_objs, SLABS as u64, "the middle is guessed");
    let ends = [kept.swap_remove(SLABS - 20), kept.swap_remove(20)];
    give(&slabs, cache, ends);
    let guess = SLABS as u64 - 2 * SLABS as u64 / 10_000;
    assert_eq!(slabs.slab_info(cache).active_objs, guess, "both ends are looked at, and scaled");
    give(&slabs, cache, kept);
    destroy(&slabs, cache);
}

#[test]
fn call_sites_can_be_counted() {
    // DB-17
    let slabs = family(1);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::STORE_USER)).unwrap();
    let often: Vec<_> = (0..30).map(|_| slabs.alloc(cache, Gfp::KERNEL).unwrap()).collect();
    let rarely: Vec<_> = (0..4).map(|_| slabs.alloc(cache, Gfp::KERNEL).unwrap()).collect();
    let mut sites: HashMap<u32, usize> = HashMap::new();
    slabs.for_each_live_object(cache, |object| {
        let track = slabs.track_of(object, TrackKind::Alloc).unwrap();
        *sites.entry(track.location.unwrap().line()).or_default() += 1;
    });
    let mut counts: Vec<_> = sites.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [4, 30]);
    give(&slabs, cache, often.into_iter().chain(rarely));
    destroy(&slabs, cache);
}

#[test]
fn all_damage_of_one_object_is_reported_in_order_and_repaired() {
    // DB-06
    let slabs = family(1);
    let flags = SlabFlags::DEBUG_DEFAULT | SlabFlags::KMALLOC;
    let cache = slabs.create("things", 60, &with_flags(flags)).unwrap();
    let object = slabs.alloc_sized(cache, Gfp::KERNEL, 20).unwrap();
    let padding = cache.layout.meta_end as isize;
    for offset in [-8, -1, 60, 63, 20, 59, padding] {
        damage(object, offset);
    }
    let address = object.addr().get();
    // SAFETY: the object is ours; the call must notice the damage.
    assert_eq!(unsafe { slabs.free(cache, object) }, Err(ObjectError::Corrupted { address }));
    let lines = slabs.env().reports();
    let bugs: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("BUG things: ")).collect();
    assert_eq!(
        bugs[..4],
        [
            "Left Redzone overwritten",
            "Right Redzone overwritten",
            "kmalloc Redzone overwritten",
            "Object padding overwritten"
        ]
    );
    let ranges: Vec<_> = lines.iter().filter(|line| line.contains("First byte 0x12 instead of")).collect();
    assert_eq!(ranges.len(), 4, "{lines:#?}");
    let range = format!("{:#018x} - {:#018x} @offset=", address - 8, address - 1);
    assert!(ranges[0].starts_with(&range), "{}", ranges[0]);
    assert_eq!(lines.iter().filter(|line| line.starts_with("FIX things: Restoring ")).count(), 4);
    assert_eq!(lines.iter().filter(|line| line.starts_with("Slab 0x")).count(), 1, "the object is shown once");
    assert!(lines.iter().any(|line| *line == format!("FIX things: Object at {address:#x} not freed")));
    assert_eq!(slabs.validate(cache), Some(0), "everything is as it should be");
    give(&slabs, cache, [object]);
    // The same for a free object.
    let link = cache.layout.free_offset as isize;
    for offset in [5, 59, link] {
        damage(object, offset);
    }
    slabs.validate(cache);
    let lines = slabs.env().reports();
    let bugs: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("BUG things: ")).collect();
    assert_eq!(bugs[..3], ["Poison overwritten", "End Poison overwritten", "Freepointer corrupt"]);
}

#[test]
fn a_report_has_the_references_shape() {
    // DB-08
    let slabs = family(1);
    let cache = slabs.create("things", 40, &with_flags(SlabFlags::DEBUG_DEFAULT)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [object]);
    damage(object, 3);
    slabs.env().reports();
    slabs.validate(cache);
    let lines = slabs.env().reports();
    let starts = [
        "=============================================================================",
        "BUG things: Poison overwritten",
        "-----------------------------------------------------------------------------",
        "0x",
        "Allocated in ",
        "Freed in ",
        "Slab 0x",
        "Object 0x",
        "Redzone  0x",
        "Object   0x",
        "Object   0x",
        "Object   0x",
        "Redzone  0x",
        "Padding  0x",
        "FIX things: Restoring Poison",
    ];
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line} does not start with {start}");
    }
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for part in ["views.rs:", " age=0 ", " cpu=0 "] {
        assert!(lines[4].contains(part), "{}", lines[4]);
    }
    for part in [" objects=", " used=0 ", " fp=0x"] {
        assert!(lines[6].contains(part), "{}", lines[6]);
    }
    assert!(lines[7].contains("@offset=") && lines[7].contains("fp="), "{}", lines[7]);
    assert!(lines[9].contains("6b 6b 6b 12 6b") && lines[9].ends_with("kkk.kkkkkkkkkkkk"), "{}", lines[9]);
    assert!(lines[11].contains("6b 6b 6b 6b 6b 6b 6b a5"), "{}", lines[11]);
    destroy(&slabs, cache);
}

#[test]
fn bytes_before_an_object_are_shown_where_there_is_no_red_zone() {
    // DB-08
    let slabs = family_with(1, SlabConfig { randomize: false, ..SlabConfig::DEFAULT });
    let cache = slabs.create("things", 32, &with_flags(SlabFlags::POISON)).unwrap();
    let objects = take(&slabs, cache, 2);
    give(&slabs, cache, objects.iter().copied());
    damage(objects[1], 0);
    slabs.validate(cache);
    assert!(slabs.env().reported("Bytes b4 0x").is_some());
    destroy(&slabs, cache);
}

#[test]
fn a_cyclic_chain_is_dropped() {
    // DB-07
    let slabs = family(1);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::CONSISTENCY_CHECKS)).unwrap();
    let objects = take(&slabs, cache, 4);
    give(&slabs, cache, objects.iter().copied());
    // SAFETY: deliberate damage: the object freed first links to the one freed last.
    unsafe { cache.set_next(objects[0], objects[3].as_ptr()) };
    assert!(slabs.validate(cache).unwrap() > 0);
    assert!(slabs.env().reported("Freelist cycle detected").is_some());
    slabs.env().reports();
    assert_eq!(slabs.validate(cache), Some(0), "reported once");
    let fresh = take(&slabs, cache, 10);
    assert!(fresh.iter().all(|object| !objects.contains(object)), "what hung on it is not handed out");
    give(&slabs, cache, fresh);
}

#[test]
fn zeroing_families_leave_meaningful_contents_alone() {
    // DB-28
    let config = SlabConfig { init_on_alloc: true, init_on_free: true, ..SlabConfig::DEFAULT };
    let slabs = family_with(1, config);
    /// Fills an object with sevens.
    unsafe fn constructor(object: NonNull<u8>) {
        // SAFETY: the caches below have objects of 64 bytes.
        unsafe { object.write_bytes(7, 64) };
    }
    let bytes = |object: NonNull<u8>| {
        // SAFETY: objects of 64 bytes; the test owns them or reads its own freed ones.
        unsafe { object.cast::<[u8; 64]>().read() }
    };
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    let constructed = slabs.create("constructed", 64, &CacheArgs { ctor: Some(constructor), ..CacheArgs::default() });
    let constructed = constructed.unwrap();
    let typesafe = slabs.create("typesafe", 64, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    let poisoned = slabs.create("poisoned", 64, &with_flags(SlabFlags::POISON)).unwrap();
    for (cache, fresh, freed) in [(plain, Some(0), Some(0)), (constructed, Some(7), None), (typesafe, None, None)] {
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        if let Some(byte) = fresh {
            assert_eq!(bytes(object), [byte; 64], "{}", cache.name());
        }
        // SAFETY: ours.
        unsafe { object.write_bytes(0x55, 64) };
        give(&slabs, cache, [object]);
        assert_eq!(bytes(object), [freed.unwrap_or(0x55); 64], "{}", cache.name());
        let again = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        assert_eq!(again, object);
        assert_eq!(bytes(again), [freed.unwrap_or(0x55); 64], "{}", cache.name());
        give(&slabs, cache, [again]);
        let asked = slabs.zalloc(cache, Gfp::KERNEL).unwrap();
        assert_eq!(asked, object);
        let zeroed = cache.ctor.is_none();
        assert_eq!(bytes(asked) == [0; 64], zeroed, "{}: constructed objects are never zeroed", cache.name());
        give(&slabs, cache, [asked]);
    }
    let object = slabs.alloc(poisoned, Gfp::KERNEL).unwrap();
    assert_eq!(bytes(object)[..63], [0x6b; 63], "poison goes before zeroes");
    give(&slabs, poisoned, [object]);
    assert_eq!(bytes(object)[..63], [0x6b; 63]);
    let object = slabs.zalloc(poisoned, Gfp::KERNEL).unwrap();
    assert_eq!(bytes(object), [0; 64]);
    give(&slabs, poisoned, [object]);
}

#[test]
fn letters_that_mean_nothing_are_reported_once_and_skipped() {
    // DB-02
    let slabs = family_with(1, SlabConfig { debug: "fXz;Q?,things", ..SlabConfig::DEFAULT });
    let lines = slabs.env().reports();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, letter) in lines.iter().zip(["X", "Q", "?"]) {
        assert!(line.contains(&format!("'{letter}' unknown")), "{line}");
    }
    let other = slabs.create("others", 64, &CacheArgs::default()).unwrap();
    assert_eq!(other.flags(), SlabFlags::CONSISTENCY_CHECKS | SlabFlags::RED_ZONE);
    destroy(&slabs, other);
}
