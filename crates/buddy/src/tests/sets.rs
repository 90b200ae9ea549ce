//! Per-CPU page sets.

use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateType, NodeId, Pfn, ZoneKind};

use super::rig::{Env, Rig, cached, o, range, run_on};
use crate::{MemoryMap, Region, Zone};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

fn normal(rig: &Rig) -> &Zone {
    rig.zone(NodeId(0), ZoneKind::Normal).unwrap()
}

fn cached_pages(rig: &Rig) -> u64 {
    rig.zone_stats(normal(rig)).cached_pages
}

#[test]
fn a_page_freed_is_the_next_one_allocated() {
    let rig = Rig::small(64 * 512);
    for order in [0, 1, 2, 3, 9] {
        let first = rig.get(Gfp::KERNEL, order).unwrap();
        let second = rig.get(Gfp::KERNEL, order).unwrap();
        rig.put(first, order);
        rig.put(second, order);
        // B-78: last in, first out.
        assert_eq!(rig.get(Gfp::KERNEL, order), Some(second));
        assert_eq!(rig.get(Gfp::KERNEL, order), Some(first));
    }
}

#[test]
fn pages_in_a_set_are_not_free() {
    let rig = Rig::small(64 * 512);
    let before = normal(&rig).free_pages();
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    let cached = cached_pages(&rig);
    assert!(cached > 0);
    assert_eq!(normal(&rig).free_pages() + cached + 1, before);
    rig.put(pfn, 0);
    assert_eq!(cached_pages(&rig), cached + 1);
    assert_eq!(rig.all_free(), before);
    assert_eq!(cached_pages(&rig), 0);
}

#[test]
fn orders_that_a_small_set_does_not_cache_go_straight_to_the_bitmaps() {
    let rig = Rig::small(64 * 512);
    for order in [4, 5, 6, 7, 8, 10] {
        let before = normal(&rig).free_pages();
        let pfn = rig.get(Gfp::KERNEL, order).unwrap();
        // B-69
        assert_eq!(normal(&rig).free_pages(), before - (1 << order));
        rig.put(pfn, order);
        assert_eq!(normal(&rig).free_pages(), before);
    }
}

#[test]
fn large_sets_keep_a_few_blocks_of_the_middle_orders() {
    let rig = Rig::small(512 * 512);
    let all = normal(&rig).free_pages();
    for order in 4..=8 {
        let blocks: Vec<Pfn> = (0..40).map(|_| rig.get(Gfp::KERNEL, order).unwrap()).collect();
        let mut most = 0;
        for &pfn in &blocks {
            rig.put(pfn, order);
            most = most.max(cached_pages(&rig));
        }
        // B-69: at most 24 of them, and the one freed last is the next.
        assert!(cached_pages(&rig) >= 1 << order && most <= 24 << order, "{order}: {most}");
        let before = normal(&rig).free_pages();
        assert_eq!(rig.get(Gfp::KERNEL, order), blocks.last().copied());
        assert_eq!(normal(&rig).free_pages(), before, "out of the set");
        rig.put(blocks[39], order);
        assert_eq!(rig.all_free(), all);
    }
}

#[test]
fn mixed_orders_through_large_sets_share_no_frame_and_lose_none() {
    const FRAMES: u64 = 512 * 512;
    for rig in [Rig::small(FRAMES), Rig::checked(FRAMES)] {
        let mut held: Vec<(Pfn, u32)> = Vec::new();
        let mut owned = std::vec![false; FRAMES as usize];
        let (mut random, mut filled) = (0x9e37_79b9_7f4a_7c15_u64, 0);
        let frames = |pfn: Pfn, order: u32| pfn.0 as usize..pfn.0 as usize + (1 << order);
        for turn in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = (random >> 33) as usize;
            // From time to time all the way down, so that every stack runs full.
            if filled < FRAMES * 8 / 10 && turn % 4_000 < 3_000 {
                let (order, gfp) = (dice as u32 % 11, [Gfp::KERNEL, Gfp::HIGHUSER_MOVABLE][dice / 11 % 2]);
                let pfn = rig.get(gfp | ANY, order).unwrap();
                for frame in frames(pfn, order) {
                    assert!(!core::mem::replace(&mut owned[frame], true), "frame {frame} twice");
                }
                held.push((pfn, order));
                filled += 1 << order;
            } else if !held.is_empty() {
                let (pfn, order) = held.swap_remove(dice % held.len());
                owned[frames(pfn, order)].fill(false);
                rig.put(pfn, order);
                filled -= 1 << order;
            }
        }
        let stats = rig.zone_stats(normal(&rig));
        assert_eq!(stats.allocated_pages - stats.freed_pages, filled);
        assert_eq!(normal(&rig).free_pages() + stats.cached_pages + filled, FRAMES);
        for (pfn, order) in held {
            rig.put(pfn, order);
        }
        assert_eq!(rig.all_free(), FRAMES);
        assert_eq!(rig.event(crate::Event::BadFree), 0);
    }
}

#[test]
fn under_pressure_blocks_of_the_middle_orders_are_not_kept() {
    let rig = Rig::small(512 * 512);
    let all = normal(&rig).free_pages();
    let mut blocks = Vec::new();
    let pressed = || normal(&rig).pressed.load(Ordering::Relaxed);
    while !pressed() {
        while !pressed() {
            blocks.push(rig.get(Gfp::KERNEL, 8).unwrap());
        }
        // What the sets held may be enough to go on.
        rig.drain_all_pages();
    }
    let before = normal(&rig).free_pages();
    let pfn = rig.get(Gfp::KERNEL, 5).unwrap();
    assert_eq!(normal(&rig).free_pages(), before - 32, "one, and none to spare");
    rig.put(pfn, 5);
    assert_eq!(normal(&rig).free_pages(), before);
    for pfn in blocks {
        rig.put(pfn, 8);
    }
    assert_eq!(rig.all_free(), all);
}

#[test]
fn a_full_set_gives_back_a_part_in_one_go() {
    let rig = Rig::small(256 * 512);
    let pages: Vec<Pfn> = (0..60_000).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    let mut most = 0;
    for &pfn in &pages {
        rig.put(pfn, 0);
        most = most.max(cached_pages(&rig));
    }
    // B-79: it never grows beyond its limit (and the room it has).
    let room = normal(&rig).managed_pages() / 8;
    assert!(most > 0 && most <= room, "{most} of {room}");
    assert_eq!(rig.all_free(), 256 * 512);
}

#[test]
fn sets_adapt_upwards_while_cpus_allocate() {
    let rig = Rig::small(256 * 512);
    let state = rig.state().unwrap();
    let set = state.sets_of(normal(&rig)).next().unwrap();
    let high = || set.high.load(Ordering::Relaxed);
    let before = high();
    let pages: Vec<Pfn> = (0..20_000).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    // B-77, B-76
    assert!(high() > before);
    assert!(set.alloc_factor.load(Ordering::Relaxed) > 0);
    assert!(high() <= set.high_max.load(Ordering::Relaxed));
    // B-78: frees halve the growth.
    for pfn in pages {
        rig.put(pfn, 0);
    }
    assert_eq!(set.alloc_factor.load(Ordering::Relaxed), 0);
    // B-83: the tick lets it shrink again.
    let grown = high();
    for _ in 0..100 {
        rig.decay_page_sets();
    }
    assert!(high() < grown && high() >= set.high_min.load(Ordering::Relaxed));
}

#[test]
fn a_fixed_fraction_turns_adapting_off() {
    let rig = Rig::small(256 * 512);
    rig.set_percpu_pagelist_high_fraction(64).unwrap();
    let state = rig.state().unwrap();
    let set = state.sets_of(normal(&rig)).next().unwrap();
    // B-74, B-77
    for _ in 0..10_000 {
        rig.get(Gfp::KERNEL, 0).unwrap();
    }
    assert_eq!(set.high.load(Ordering::Relaxed), 256 * 512 / 64);
    assert_eq!(set.high_min.load(Ordering::Relaxed), set.high_max.load(Ordering::Relaxed));
}

#[test]
fn one_cpu_freeing_what_another_allocates_keeps_little() {
    let rig = Rig::with_cpus(256 * 512, 2);
    let state = rig.state().unwrap();
    let set = state.sets_of(normal(&rig)).nth(1).unwrap();
    set.high.store(set.high_max.load(Ordering::Relaxed), Ordering::Relaxed);
    let high = set.high.load(Ordering::Relaxed);
    let blocks: Vec<Pfn> = (0..3000).map(|_| rig.get(Gfp::KERNEL, 3).unwrap()).collect();
    run_on(Some(1));
    for pfn in blocks {
        rig.put(pfn, 3);
    }
    // B-82
    assert!(set.high.load(Ordering::Relaxed) < high);
    // B-85: with a large share of the cache it waits for a batch first; the flag follows the environment.
    rig.env().cache_pages.store(1 << 20, Ordering::Relaxed);
    let pfn = rig.get(Gfp::KERNEL, 3).unwrap();
    rig.put(pfn, 3);
    run_on(Some(0));
    assert_eq!(rig.all_free(), 256 * 512);
}

#[test]
fn a_zone_short_of_memory_keeps_no_pages_in_sets() {
    let rig = Rig::small(64 * 512);
    let taken: Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    let free = normal(&rig).free_pages();
    for &pfn in &taken[..2000] {
        rig.put(pfn, 0);
    }
    // B-64, B-81: below the high mark each free returns pages.
    assert!(normal(&rig).free_pages() > free + 1500, "{}", normal(&rig).free_pages());
    let state = rig.state().unwrap();
    let set = state.sets_of(normal(&rig)).next().unwrap();
    let cached = set.pages();
    // ... and under reclaim it keeps four batches at most (one free must notice it first).
    rig.env().busy_nodes.store(1, Ordering::Relaxed);
    for &pfn in &taken[2000..2400] {
        rig.put(pfn, 0);
    }
    assert!(set.pages() <= cached.max(4 * u64::from(set.batch.load(Ordering::Relaxed)) + 64));
    for &pfn in &taken[2400..] {
        rig.put(pfn, 0);
    }
    assert_eq!(rig.all_free(), 64 * 512);
}

#[test]
fn disabled_sets_hold_nothing_until_enabled() {
    let rig = Rig::small(64 * 512);
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    // B-84
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    assert_eq!(cached_pages(&rig), 0);
    rig.put(pfn, 0);
    assert_eq!(normal(&rig).free_pages(), 64 * 512);
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    assert_eq!(cached_pages(&rig), 0);
    rig.put(pfn, 0);
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, true);
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    assert!(cached_pages(&rig) > 0);
    rig.put(pfn, 0);
    // A drain that is already running makes a second one do nothing.
    rig.state().unwrap().draining.store(true, Ordering::Relaxed);
    assert!(!rig.drain_all_pages());
    rig.state().unwrap().draining.store(false, Ordering::Relaxed);
    assert!(rig.drain_all_pages());
}

#[test]
fn while_an_injector_is_armed_no_request_gets_by_it() {
    let rig = Rig::small(64 * 512);
    let all = rig.all_free();
    let pages: Vec<Pfn> = (0..100).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    for &pfn in &pages {
        rig.put(pfn, 0);
    }
    let ready = || rig.pop_cached(Gfp::KERNEL, o(0)).map(|pfn| rig.put(pfn, 0)).is_some();
    assert!(ready());
    rig.set_injecting(true);
    assert!(!ready(), "the fast path finds nothing");
    // The set itself still serves, by the way that asks.
    let free = normal(&rig).free_pages();
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    assert_eq!(normal(&rig).free_pages(), free);
    rig.put(pfn, 0);
    // A drain opens nothing.
    rig.drain_all_pages();
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    rig.put(pfn, 0);
    assert!(!ready());
    rig.set_injecting(false);
    assert!(ready());
    assert_eq!(rig.all_free(), all);
}

#[test]
fn an_interrupt_inside_a_section_goes_past_the_set() {
    let rig = Rig::small(64 * 512);
    let page = rig.get(Gfp::KERNEL, 0).unwrap();
    let before = rig.all_free();
    // B-86: never waits; B-33 is about a lock that does not exist here.
    let inner = rig.section(|_| {
        let pfn = rig.get(Gfp::ATOMIC, 0).unwrap();
        let nmi = rig.alloc_pages_nolock(Gfp::empty(), o(0), None).unwrap();
        rig.put(page, 0);
        (pfn, nmi)
    });
    let (pfn, nmi) = inner.unwrap();
    assert_eq!(cached_pages(&rig), 0);
    rig.put(pfn, 0);
    rig.put(nmi, 0);
    assert_eq!(rig.all_free(), before + 1);
}

#[test]
fn a_thread_without_a_cpu_goes_past_the_sets() {
    let rig = Rig::small(64 * 512);
    run_on(None);
    // B-71: as if there were none.
    let pages: Vec<Pfn> = (0..100).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    assert_eq!(cached_pages(&rig), 0);
    assert_eq!(normal(&rig).free_pages(), 64 * 512 - 100);
    for pfn in pages {
        rig.put(pfn, 0);
    }
    run_on(Some(0));
    assert_eq!(normal(&rig).free_pages(), 64 * 512);
    assert_eq!(rig.zone_stats(normal(&rig)).allocated_pages, 100);
    assert_eq!(rig.zone_stats(normal(&rig)).freed_pages, 100);
}

#[test]
fn before_init_nothing_works_and_nothing_breaks() {
    let buddy = crate::Buddy::new(Env::new(1));
    // B-75: without memory there are no sets either.
    assert_eq!(buddy.alloc_pages(Gfp::KERNEL, o(0), None), Err(kmem_gfp::AllocError::NotReady));
    // SAFETY: frames of tests have no memory.
    assert_eq!(unsafe { buddy.free_pages(Pfn(1), o(0)) }, Err(kmem_gfp::FreeError::Foreign(Pfn(1))));
    assert!(!buddy.drain_all_pages());
    assert_eq!(buddy.free_page_count(), 0);
}

#[test]
fn drains_give_back_the_coldest_first() {
    let rig = Rig::small(64 * 512);
    let pages: Vec<Pfn> = (0..40).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    rig.drain_all_pages();
    for &pfn in &pages {
        rig.put(pfn, 0);
    }
    let state = rig.state().unwrap();
    rig.section(|block| {
        let set = block.zone_set(normal(&rig)).unwrap();
        let held = set.len(0);
        // B-80
        rig.drain_pages(state, normal(&rig), set, 0, held as u64 - 1);
        assert_eq!(set.len(0), 1);
    });
    assert_eq!(rig.get(Gfp::KERNEL, 0), pages.last().copied());
}

#[test]
fn a_remote_nodes_pages_expire_after_three_ticks() {
    let regions = [Region::new(range(0, 64 * 512)), Region::new(range(64 * 512, 128 * 512)).on_node(NodeId(1))];
    let rig = Rig::build(Env::new(1), cached(), &MemoryMap { regions: &regions, ..MemoryMap::default() });
    let remote = rig.zone(NodeId(1), ZoneKind::Normal).unwrap();
    let pfn = rig.alloc_pages(Gfp::KERNEL, o(0), Some(NodeId(1))).unwrap();
    rig.put(pfn, 0);
    let held = |rig: &Rig| rig.zone_stats(remote).cached_pages;
    assert!(held(&rig) > 0);
    // B-83
    rig.decay_page_sets();
    rig.decay_page_sets();
    assert!(held(&rig) > 0);
    rig.decay_page_sets();
    assert_eq!(held(&rig), 0);
}

#[test]
fn a_double_free_is_found_when_the_page_leaves_the_set() {
    let rig = Rig::small(64 * 512);
    let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
    let block = rig.get(Gfp::KERNEL, 2).unwrap();
    rig.drain_all_pages();
    let free = rig.free_page_count();
    rig.put(pfn, 0);
    rig.put(pfn, 0);
    // The block of order 2, as a single page.
    rig.put(block, 0);
    rig.drain_all_pages();
    // B-20: the bad ones are not reused, and reported.
    assert_eq!(rig.free_page_count(), free + 1);
    assert_eq!(rig.event(crate::Event::BadFree), 2);
    assert!(rig.env().context.reports.lock().unwrap().iter().any(|line| line.contains("BUG: bad page state")));
    rig.put(block, 2);
    assert_eq!(rig.all_free(), 64 * 512);
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::Unmovable));
}
