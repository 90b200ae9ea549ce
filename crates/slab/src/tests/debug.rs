//! Debug options: what they notice, what they say, what they repair.

use core::ptr::NonNull;
use std::format;
use std::vec::Vec;

use kmem_gfp::Gfp;

use super::{destroy, family, family_with, give, take, with_flags};
use crate::slab::Slab;
use crate::{
    CacheArgs, DebugOptions, KmemCache, ObjectError, POISON_END, POISON_FREE, RED_ACTIVE, RED_INACTIVE, SlabConfig,
    SlabEnv, SlabFlags, TrackKind,
};

const ALL: SlabFlags = SlabFlags::DEBUG_DEFAULT;

unsafe fn poke(object: NonNull<u8>, offset: isize, byte: u8) {
    // SAFETY: the test's own memory, deliberately out of bounds.
    unsafe { object.as_ptr().offset(offset).write(byte) };
}

fn peek(object: NonNull<u8>, offset: isize) -> u8 {
    // SAFETY: the test's own memory.
    unsafe { object.as_ptr().offset(offset).read() }
}

#[test]
fn the_option_string_has_the_references_syntax() {
    // DB-01, DB-02, SL-17, SL-18
    let flags = |text, name| DebugOptions::parse(text).for_cache(name, SlabFlags::empty()).flags;
    let (f, z, p, u) = (SlabFlags::CONSISTENCY_CHECKS, SlabFlags::RED_ZONE, SlabFlags::POISON, SlabFlags::STORE_USER);
    assert_eq!(flags("", "x"), SlabFlags::empty());
    assert_eq!(flags("fz", "x"), f | z);
    assert_eq!(flags(",x", "x"), ALL, "no letters mean FZPU");
    assert_eq!(flags(",x", "y"), SlabFlags::empty(), "only named blocks leave the rest alone");
    assert_eq!(flags("P;FZ,kmalloc-*,dentry", "kmalloc-64"), f | z);
    assert_eq!(flags("P;FZ,kmalloc-*,dentry", "dentry"), f | z);
    assert_eq!(flags("P;FZ,kmalloc-*,dentry", "inode"), p);
    assert_eq!(flags("F;Z;P", "x"), p, "the last block without names");
    assert_eq!(flags("F,x;Z,x", "x"), f, "the first block that names it");
    assert_eq!(flags("FZPU;-,x", "x"), SlabFlags::empty());
    assert_eq!(flags("TA", "x"), SlabFlags::TRACE | SlabFlags::FAILSLAB);
    let odd = DebugOptions::parse("F?!O");
    assert!(odd.unknown_letters().eq("?!".chars()));
    let odd = odd.for_cache("x", SlabFlags::empty());
    assert_eq!((odd.flags, odd.not_if_larger), (f, true), "the rest counts");
    assert_eq!(DebugOptions::parse("FU").for_cache("x", SlabFlags::NOLEAKTRACE).flags, f);
    assert_eq!(DebugOptions::parse("FU").for_cache("x", SlabFlags::NO_USER_FLAGS).flags, SlabFlags::empty());
    assert_eq!(DebugOptions::parse("U").for_cache("x", SlabFlags::empty()).flags, u);
}

#[test]
fn options_reach_the_caches_they_name() {
    // DB-01, SL-19
    let slabs = family_with(1, SlabConfig { debug: "FZ,checked;PUO,page", ..SlabConfig::DEFAULT });
    let checked = slabs.create("checked", 64, &CacheArgs::default()).unwrap();
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    let page = slabs.create("page", 4096, &CacheArgs::default()).unwrap();
    assert_eq!(checked.flags(), SlabFlags::CONSISTENCY_CHECKS | SlabFlags::RED_ZONE);
    assert!(checked.is_debug() && checked.sheaf_capacity() == 0);
    assert!(!plain.is_debug() && !core::ptr::eq(plain, checked));
    assert_eq!(page.flags(), SlabFlags::empty(), "O: its smallest order would rise");
}

#[test]
fn free_and_used_objects_carry_their_marks() {
    // DB-03
    let slabs = family(1);
    let cache = slabs.create("things", 60, &with_flags(ALL)).unwrap();
    let objects = take(&slabs, cache, 2);
    for object in &objects {
        assert_eq!([peek(*object, -1), peek(*object, 60), peek(*object, 63)], [RED_ACTIVE; 3]);
        assert_eq!([peek(*object, 0), peek(*object, 58), peek(*object, 59)], [POISON_FREE, POISON_FREE, POISON_END]);
    }
    give(&slabs, cache, objects.iter().copied());
    for object in &objects {
        assert_eq!([peek(*object, -1), peek(*object, 60)], [RED_INACTIVE; 2]);
        assert_eq!([peek(*object, 0), peek(*object, 59)], [POISON_FREE, POISON_END]);
    }
    let typesafe = slabs.create("typesafe", 60, &with_flags(ALL | SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    let object = slabs.zalloc(typesafe, Gfp::KERNEL).unwrap();
    give(&slabs, typesafe, [object]);
    assert_eq!(peek(object, 0), 0, "typesafe objects are not poisoned");
}

fn checked(slabs: &crate::Slabs<super::env::TestEnv>, flags: SlabFlags) -> &KmemCache {
    slabs.create("things", 64, &with_flags(flags)).unwrap()
}

#[test]
fn each_kind_of_damage_is_reported_once_and_repaired() {
    // DB-06, DB-08, DB-09, TS-01, TS-03, TS-04
    let slabs = family(1);
    let cache = checked(&slabs, ALL);
    let objects = take(&slabs, cache, 4);
    give(&slabs, cache, objects[2..].iter().copied());
    let padding = cache.layout.meta_end as isize;
    for (object, offset, what) in [
        (objects[0], 64, "Right Redzone"),
        (objects[0], -3, "Left Redzone"),
        (objects[2], 0, "Poison"),
        (objects[2], 50, "Poison"),
        (objects[2], 63, "End Poison"),
        (objects[3], 64, "Right Redzone"),
        (objects[1], padding, "Object padding"),
    ] {
        let before = peek(object, offset);
        // SAFETY: deliberate damage.
        unsafe { poke(object, offset, 0x12) };
        slabs.env().reports();
        assert_eq!(slabs.validate(cache), Some(1), "{what}");
        let text = slabs.env().reports().join("\n");
        assert!(text.contains(&format!("BUG things: {what} overwritten")), "{text}");
        assert!(text.contains(&format!("First byte 0x12 instead of {before:#x}")), "{text}");
        assert!(text.contains("Allocated in") && text.contains("Slab 0x") && text.contains("Object 0x"), "{text}");
        assert!(text.contains(&format!("FIX things: Restoring {what}")), "{text}");
        assert_eq!(peek(object, offset), before);
        assert_eq!(slabs.validate(cache), Some(0), "repaired");
    }
    give(&slabs, cache, objects[..2].iter().copied());
    destroy(&slabs, cache);
}

#[test]
fn without_red_zones_the_alignment_padding_is_checked() {
    // DB-06
    let slabs = family(1);
    let cache = slabs.create("things", 60, &with_flags(SlabFlags::POISON)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: deliberate damage.
    unsafe { poke(object, 61, 0) };
    assert_eq!(slabs.validate(cache), Some(1));
    assert!(slabs.env().reported("Alignment padding overwritten").is_some());
    give(&slabs, cache, [object]);
}

#[test]
fn the_bytes_behind_the_last_object_are_checked() {
    // DB-06
    let slabs = family(1);
    let cache = slabs.create("things", 200, &with_flags(SlabFlags::POISON)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let (_, slab) = Slab::find(slabs.env().frames(), object).unwrap();
    let end = slab.state().total() * cache.stride();
    // SAFETY: deliberate damage inside the slab's block.
    unsafe { poke(slab.base, end as isize + 3, 0) };
    assert_eq!(slabs.validate(cache), Some(1));
    assert!(slabs.env().reported("Padding overwritten").is_some());
    assert_eq!(slabs.validate(cache), Some(0));
    give(&slabs, cache, [object]);
}

#[test]
fn requested_sizes_are_guarded_in_size_classes() {
    // DB-06, SL-21, SL-29, SL-80, KM-15, KM-22, TS-05
    let slabs = family(1);
    let cache = checked(&slabs, ALL | SlabFlags::KMALLOC);
    let object = slabs.alloc_sized(cache, Gfp::KERNEL, 18).unwrap();
    // SAFETY: ours.
    assert_eq!(unsafe { slabs.requested_size(object) }, Some(18));
    // SAFETY: deliberate damage.
    unsafe { poke(object, 18, 1) };
    assert_eq!(slabs.validate(cache), Some(1));
    assert!(slabs.env().reported("kmalloc Redzone overwritten").is_some());
    // SAFETY: ours.
    unsafe { slabs.set_requested_size(object, 30) };
    assert_eq!(peek(object, 30), RED_ACTIVE);
    assert_eq!(slabs.validate(cache), Some(0));
    // SAFETY: ours: asking takes the guard away.
    unsafe {
        assert_eq!(slabs.usable_size(object), Ok(64));
        object.write_bytes(0, 64);
    }
    assert_eq!(slabs.validate(cache), Some(0));
    give(&slabs, cache, [object]);
    let zeroed = slabs.alloc_sized(cache, Gfp::KERNEL | Gfp::ZERO, 18).unwrap();
    assert_eq!((peek(zeroed, 17), peek(zeroed, 18)), (0, RED_ACTIVE), "only what was asked for");
    give(&slabs, cache, [zeroed]);
}

#[test]
fn usable_sizes_leave_metadata_alone() {
    // KM-15
    let slabs = family(1);
    let usable = |flags: SlabFlags| {
        let cache = slabs.create(&format!("c{}", flags.bits()), 100, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        // SAFETY: ours.
        unsafe { slabs.usable_size(object).unwrap() }
    };
    assert_eq!(usable(SlabFlags::empty()), 104);
    assert_eq!(usable(SlabFlags::RED_ZONE), 100);
    assert_eq!(usable(SlabFlags::POISON), 100);
    assert_eq!(usable(SlabFlags::STORE_USER), 104);
    assert_eq!(usable(SlabFlags::TYPESAFE_BY_RCU), 104);
}

#[test]
fn checks_refuse_bad_frees_and_leak() {
    // DB-05, SL-85
    let slabs = family(1);
    let cache = checked(&slabs, ALL);
    let objects = take(&slabs, cache, 4);
    give(&slabs, cache, objects[..3].iter().copied());
    let address = objects[0].addr().get();
    // SAFETY: deliberately wrong; the calls must notice.
    unsafe {
        assert_eq!(slabs.free(cache, objects[0]), Err(ObjectError::DoubleFree { address }), "deep in the chain");
        assert!(slabs.env().reported("Object already free").is_some());
        assert!(slabs.env().reported("Freed in").unwrap().contains("tests/mod.rs"), "who freed it first");
        assert!(slabs.env().reported(&format!("Object at {address:#x} not freed")).is_some());
        let inside = objects[3].add(8);
        let inside_address = inside.addr().get();
        assert_eq!(slabs.free(cache, inside), Err(ObjectError::NotAnObject { address: inside_address }));
        poke(objects[3], 65, 0);
        let address = objects[3].addr().get();
        assert_eq!(slabs.free(cache, objects[3]), Err(ObjectError::Corrupted { address }));
    }
    assert_eq!(slabs.validate(cache), Some(0));
    let other = slabs.create("other", 64, &with_flags(ALL)).unwrap();
    // SAFETY: as above.
    assert!(matches!(unsafe { slabs.free(other, objects[3]) }, Err(ObjectError::WrongCache { .. })));
}

#[test]
fn checks_do_not_hand_out_damaged_objects() {
    // DB-04
    let slabs = family(1);
    let cache = checked(&slabs, ALL);
    let objects = take(&slabs, cache, 3);
    give(&slabs, cache, objects.iter().copied());
    // SAFETY: deliberate damage to the next object.
    unsafe { poke(objects[2], 5, 0) };
    let fresh = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert!(!objects.contains(&fresh), "from another slab");
    assert!(slabs.env().reported("Marking all objects used").is_some());
    let (_, slab) = Slab::find(slabs.env().frames(), objects[0]).unwrap();
    assert!(slab.state().is_frozen() && slab.state().inuse() == slab.state().total());
}

#[test]
fn walking_the_chain_finds_what_is_wrong_with_it() {
    // DB-07, TS-02
    let slabs = family(1);
    let cache = checked(&slabs, SlabFlags::CONSISTENCY_CHECKS | SlabFlags::POISON);
    let objects = take(&slabs, cache, 6);
    give(&slabs, cache, objects[..4].iter().copied());
    let link = cache.layout.free_offset as isize;
    let good = peek(objects[3], link);
    // SAFETY: deliberate damage.
    unsafe { poke(objects[3], link, !good) };
    slabs.env().reports();
    let found = slabs.validate(cache).unwrap();
    assert!(found >= 2, "a bad link, and the counts behind it: {found}");
    assert!(slabs.env().reported("Freepointer corrupt").is_some());
    assert!(slabs.env().reported("Object count adjusted").is_some());
    assert_eq!(slabs.validate(cache), Some(0), "what was behind the link is lost");
    // A cycle.
    let cache = slabs.create("cycle", 64, &with_flags(SlabFlags::CONSISTENCY_CHECKS)).unwrap();
    let objects = take(&slabs, cache, 6);
    give(&slabs, cache, objects[..4].iter().copied());
    // SAFETY: deliberate damage: the last one freed first links to the first.
    unsafe { cache.set_next(objects[0], objects[3].as_ptr()) };
    let fresh = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert!(slabs.env().reported("Freelist cycle detected").is_some());
    assert!(!objects.contains(&fresh));
    // A wrong count.
    let cache = slabs.create("count", 64, &with_flags(SlabFlags::CONSISTENCY_CHECKS)).unwrap();
    let objects = take(&slabs, cache, 6);
    give(&slabs, cache, objects[..4].iter().copied());
    let (_, slab) = Slab::find(slabs.env().frames(), objects[0]).unwrap();
    let state = slab.state();
    assert!(slab.swap_state(state, state.with(state.head(), state.inuse() + 1)));
    assert_eq!(slabs.validate(cache), Some(1));
    assert!(slabs.env().reported("Wrong number of free objects").is_some());
    assert_eq!(slabs.validate(cache), Some(0));
}

#[test]
fn users_are_remembered() {
    // DB-08, SL-17
    let slabs = family(2);
    let cache = checked(&slabs, SlabFlags::STORE_USER);
    slabs.env().context().now.store(77, core::sync::atomic::Ordering::Relaxed);
    super::env::run_on(Some(1));
    let line = line!() + 1;
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    super::env::run_on(Some(0));
    let track = slabs.track_of(object, TrackKind::Alloc).unwrap();
    let location = track.location.unwrap();
    assert_eq!((location.line(), track.cpu, track.when_ms), (line, 1, 77));
    assert!(location.file().ends_with("debug.rs"));
    give(&slabs, cache, [object]);
    assert!(slabs.track_of(object, TrackKind::Free).unwrap().location.unwrap().file().ends_with("mod.rs"));
}

#[test]
fn tracing_says_every_call() {
    // SL-19
    let slabs = family(1);
    let cache = checked(&slabs, SlabFlags::TRACE);
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [object]);
    assert!(slabs.env().reported(&format!("TRACE things alloc {:#018x}", object.addr())).is_some());
    assert!(slabs.env().reported(&format!("TRACE things free {:#018x}", object.addr())).is_some());
    assert_eq!(slabs.validate(cache), None, "nothing to validate");
}

#[test]
fn a_cache_without_options_has_nothing_to_validate() {
    // DB-09
    let slabs = family(1);
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    assert_eq!(slabs.validate(plain), None);
}

#[test]
fn debug_caches_serve_any_number_of_objects() {
    // SL-118
    let slabs = family(2);
    for flags in [ALL, ALL | SlabFlags::KMALLOC, SlabFlags::RED_ZONE, SlabFlags::POISON, SlabFlags::CONSISTENCY_CHECKS]
    {
        for size in [1, 8, 40, 64, 200, 3000] {
            let cache = slabs.create("things", size, &with_flags(flags)).unwrap();
            let mut objects: Vec<_> = take(&slabs, cache, 100);
            for object in &objects {
                // SAFETY: ours.
                unsafe { object.write_bytes(0x31, size) };
            }
            assert_eq!(slabs.validate(cache), Some(0), "{flags:?} {size}");
            give(&slabs, cache, objects.drain(..50));
            objects.extend(take(&slabs, cache, 20));
            give(&slabs, cache, objects);
            assert_eq!(slabs.validate(cache), Some(0));
            destroy(&slabs, cache);
        }
    }
    assert!(slabs.env().reports().is_empty());
}
