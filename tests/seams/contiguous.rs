//! Contiguous areas over the real page allocator, with tenants who have real contents.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kmem::cma::{CmaError, CmaStats};
use kmem::{AreaSpec, DmaDevice, Gfp, Kmem, MigrateType, Order, PAGE_SIZE, Pfn, PfnRange};

use crate::estate::{Estate, HOME, boot, census, enter, is_pinned, leave, pin};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn moved(kmem: &Kmem<Estate>) -> u64 {
    kmem.platform().tenants.moves.load(Ordering::Relaxed)
}

fn fill_area(kmem: &Kmem<Estate>, area: PfnRange, name: &mut u64) {
    // Lent pages come last once they are less than half of what is free, so all memory is filled and the rest leaves again.
    while enter(kmem, *name).is_some() {
        *name += 1;
    }
    let homes: BTreeSet<Pfn> = census(kmem).into_values().collect();
    assert!(area.iter().all(|pfn| homes.contains(&pfn)), "the area is full");
}

/// Tenants outside of an area leave until so many pages are free there.
fn make_room(kmem: &Kmem<Estate>, area: PfnRange, pages: u64) {
    let mut from = Pfn(0);
    for _ in 0..pages {
        let homes = if from < area.start { from } else { Pfn(from.0.max(area.end.0)) };
        if leave(kmem, homes).is_none() {
            break;
        }
        from = Pfn(homes.0 + 1);
    }
}

#[test]
fn sixty_four_mib_are_had_from_an_area_full_of_movable_pages_every_time() {
    let kmem = boot(512, &[]);
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("big", 256 << 8)).unwrap();
    let frames = area.ranges().next().unwrap();
    let mut name = 1;
    fill_area(kmem, frames, &mut name);
    make_room(kmem, frames, 80 << 8);
    let population = census(kmem);
    let mut dice = Dice(7);
    let (mut tries, mut free) = (0, 0);
    for round in 0..8_u64 {
        let before = moved(kmem);
        let pages = kmem.cma_alloc(area, 64 << 8, dice.roll(10) as u32).unwrap();
        tries += 1;
        free += (64 << 8) - (moved(kmem) - before).min(64 << 8);
        assert_eq!(pages.range().len(), 64 << 8);
        assert!(census(kmem).values().all(|pfn| !pages.range().contains(*pfn)));
        drop(pages);
        // Tenants come back into the area.
        for i in 0..(64 << 8) {
            if enter(kmem, name + i).is_none() {
                break;
            }
        }
        for _ in 0..(64 << 8) {
            leave(kmem, Pfn(frames.start.0.saturating_sub(dice.roll(1 << 14)) + dice.roll(2) * (256 << 8)));
        }
        name += 64 << 8;
        assert_eq!(area.stats().available_pages, 256 << 8, "round {round}");
    }
    assert!(!population.is_empty());
    let stats = area.stats();
    assert_eq!((stats.alloc_success, stats.alloc_fail, stats.busy_places), (tries, 0, 0));
    println!("{tries} buffers of 64 MiB: {} pages moved, {free} were free", moved(kmem));
}

#[test]
fn lent_pages_serve_movable_requests_alone_and_first_while_they_are_the_larger_half() {
    // M-11, M-12, B-22
    let kmem = boot(64, &[]);
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("half", 40 << 8)).unwrap();
    let frames = area.ranges().next().unwrap();
    kmem.pages().drain_all_pages();
    let mut name = 0;
    let mut placed = |kmem: &Kmem<Estate>, pages: u64| {
        let mut inside = 0;
        for _ in 0..pages {
            name += 1;
            inside += u64::from(frames.contains(enter(kmem, name).unwrap()));
        }
        inside
    };
    assert!(placed(kmem, 4000) > 3900, "40 of 64 MiB are lent: those first");
    // Then by turns, for the halves are equal.
    let unmovable = kmem.alloc_page(Gfp::KERNEL).unwrap();
    assert!(!frames.contains(unmovable));
    let mut held = Vec::new();
    while let Ok(pfn) = kmem.alloc_page(Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN) {
        assert!(!frames.contains(pfn), "not for requests that do not move");
        held.push(pfn);
    }
    assert!(area.stats().available_pages == 40 << 8 && placed(kmem, 1000) == 1000, "but for those that do");
    for gfp in [Gfp::USER, Gfp::KERNEL | Gfp::RECLAIMABLE, Gfp::HIGHUSER] {
        assert!(kmem.alloc_page(gfp | Gfp::NORETRY | Gfp::NOWARN).is_err(), "{gfp}");
    }
    for pfn in held {
        // SAFETY: ours, freed once.
        unsafe { kmem.free_page(pfn) }.unwrap();
    }
    // MOVABLE without HIGHMEM will do.
    let movable = kmem.alloc_page(Gfp::USER | Gfp::MOVABLE).unwrap();
    // SAFETY: ours, freed once.
    unsafe {
        kmem.free_page(movable).unwrap();
        kmem.free_page(unmovable).unwrap();
    }
    assert_eq!(kmem.pages().pageblock_type(frames.start), Some(MigrateType::Cma), "types stay");
}

#[test]
fn a_request_fails_only_without_a_place_on_the_real_page_allocator() {
    // M-14, M-15, M-16, M-19
    for seed in 0..3 {
        let mut dice = Dice(seed);
        let kmem = boot(32, &[]);
        let order_per_bit = seed as u32 * 2;
        let spec = AreaSpec::new("a", 8 << 8).granularity(order_per_bit);
        let area = kmem.cma_declare_contiguous(&spec).unwrap();
        let frames = area.ranges().next().unwrap();
        let mut name = 0;
        let mut held = Vec::new();
        let mut stuck = Vec::new();
        for _ in 0..120 {
            match dice.roll(10) {
                0..=3 => {
                    for _ in 0..dice.roll(200) {
                        name += 1;
                        // Room for what has to move is kept.
                        if kmem.pages().free_page_count() > 9 << 8 {
                            enter(kmem, name);
                        }
                    }
                }
                4 => {
                    for _ in 0..dice.roll(200) {
                        leave(kmem, Pfn(frames.start.0 + dice.roll(2 * frames.len()) - dice.roll(frames.len())));
                    }
                }
                5 => match dice.roll(3) {
                    0 => drop(pin(kmem, None)),
                    _ => drop(pin(kmem, Some(Pfn(frames.start.0 + dice.roll(frames.len()))))),
                },
                6 if kmem.pages().free_page_count() > 10 << 8 => {
                    if let Ok(pfn) = kmem.alloc_page(Gfp::KERNEL | Gfp::NOWARN) {
                        assert!(!frames.contains(pfn), "nothing unmovable ever lands in an area");
                        stuck.push(pfn);
                    }
                }
                7 if !held.is_empty() => drop(held.swap_remove(dice.roll(held.len() as u64) as usize)),
                _ => {
                    let nr = 1 + dice.roll(700);
                    let align_order = dice.roll(10) as u32;
                    let before = census(kmem);
                    let bit = 1 << order_per_bit;
                    let size = u64::next_multiple_of(nr, bit);
                    let in_use: Vec<PfnRange> = held.iter().map(kmem::CmaPages::range).collect();
                    let place = frames.iter().find(|start| {
                        start.0.is_multiple_of(bit.max(1 << align_order))
                            && start.0 + size <= frames.end.0
                            && (start.0..start.0 + size).all(|pfn| {
                                !is_pinned(kmem, Pfn(pfn)) && !in_use.iter().any(|range| range.contains(Pfn(pfn)))
                            })
                    });
                    match (area.try_alloc(nr, align_order), place) {
                        (Ok(pages), Some(start)) => {
                            assert_eq!(pages.range().start, start);
                            held.push(pages);
                        }
                        (Err(CmaError::NoRoom { .. }), None) => {}
                        (got, place) => panic!("{got:?} instead of {place:?}: {}", kmem.buddyinfo()),
                    }
                    let after = census(kmem);
                    assert!(before.keys().eq(after.keys()));
                    assert!(held.iter().all(|pages| after.values().all(|&pfn| !pages.range().contains(pfn))));
                }
            }
        }
        held.clear();
        let stats: CmaStats = area.stats();
        assert_eq!((stats.available_pages, stats.used_pages, stats.max_chunk_pages), (8 << 8, 0, 8 << 8));
        pin(kmem, None);
        drop(area.alloc(8 << 8, 0).unwrap());
        census(kmem);
    }
}

#[test]
fn every_failure_to_move_leaves_every_tenant_where_its_contents_are() {
    let mut failures = 0;
    for fail_at in (1..=512).step_by(37).chain([1, 2, 511, 512, 513]) {
        let kmem = boot(32, &[]);
        let area = kmem.cma_declare_contiguous(&AreaSpec::new("a", 4 << 8)).unwrap();
        let frames = area.ranges().next().unwrap();
        fill_area(kmem, frames, &mut 0);
        make_room(kmem, frames, 6 << 8);
        kmem.pages().drain_all_pages();
        let before = census(kmem);
        let free = kmem.pages().free_page_count();
        kmem.platform().tenants.fail_at.store(fail_at, Ordering::Relaxed);
        let pages = area.try_alloc(2 << 8, 0);
        let failed = kmem.platform().tenants.fail_at.load(Ordering::Relaxed) == 0;
        assert!(before.keys().eq(census(kmem).keys()));
        let pages = pages.expect("there is another place");
        assert!(census(kmem).values().all(|pfn| !pages.range().contains(*pfn)));
        drop(pages);
        pin(kmem, None);
        failures += u32::from(failed);
        kmem.pages().drain_all_pages();
        assert_eq!(kmem.pages().free_page_count(), free);
        assert_eq!(area.stats().used_pages, 0);
    }
    assert!(failures > 5, "most of them happened");
}

#[test]
fn memory_reserved_at_boot_becomes_an_area() {
    // M-07, M-09
    let range = PfnRange::new(Pfn(0x1800), Pfn(0x1c00));
    let kmem = boot(32, &[range]);
    let managed = kmem.pages().managed_pages();
    let spec = AreaSpec::new("boot", 1);
    // SAFETY: reserved for this.
    let area = unsafe { kmem.cma_init_reserved_mem(&spec, &[range]) }.unwrap();
    assert_eq!(kmem.pages().managed_pages(), managed + range.len());
    assert_eq!((area.base(), area.nr_pages()), (Some(range.start), range.len()));
    assert_eq!(kmem.pages().pageblock_type(range.start), Some(MigrateType::Cma));
    assert_eq!(area.alloc(0x400, 10).unwrap().range(), range);
    let raw = kmem.cma_alloc(area, 3, 0).unwrap().into_raw();
    // SAFETY: ours, unused.
    unsafe { kmem.cma_release(raw) }.unwrap();
    // SAFETY: refused.
    assert!(unsafe { kmem.cma_release(PfnRange::new(Pfn(0x1000), Pfn(0x1001))) }.is_err());
}

#[test]
fn an_area_for_devices_gives_what_the_page_allocator_cannot() {
    let kmem = boot(128, &[]);
    let device = DmaDevice::with_bits(32);
    let len = 12 << 20;
    assert!(kmem.dma_alloc_coherent(&device, len, Gfp::KERNEL).is_err(), "more than the largest block");
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("dma", 64 << 8).for_dma()).unwrap();
    for name in 0..12_000 {
        enter(kmem, name).unwrap();
    }
    let buffer = kmem.dma_alloc_coherent(&device, len, Gfp::KERNEL).unwrap();
    assert!(area.ranges().any(|range| range.contains(Pfn(buffer.bus_address() / PAGE_SIZE as u64))));
    let mut bytes = [1; 4096];
    assert!((0..len).step_by(4096).all(|at| buffer.read(at, &mut bytes) && bytes == [0; 4096]));
    drop(buffer);
    assert_eq!(area.stats().used_pages, 0);
    census(kmem);
    let block = kmem.alloc_pages(HOME, Order::ZERO).unwrap();
    // SAFETY: ours, freed once.
    unsafe { kmem.free_page(block) }.unwrap();
}
