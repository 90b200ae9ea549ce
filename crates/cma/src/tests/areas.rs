//! Handing out and taking back.

use std::string::ToString;
use std::vec::Vec;

use kmem_gfp::{FreeError, Gfp, Order, Pfn, TaskFlags};

use super::declare::declare;
use super::toy::{Frame, Toy, range};
use crate::{AreaSpec, Cma, CmaArea, CmaError, CmaPages, Contiguous, Place, ReleaseError};

/// An active area of `nr_blocks` pageblocks at frame `base`.
fn area<'c, 't>(cma: &'c Cma<&'t Toy>, base: u64, nr_blocks: u64, order_per_bit: u32) -> CmaArea<'c, &'t Toy> {
    let spec = AreaSpec::new("a", nr_blocks * 512).place(Place::Fixed(Pfn(base))).granularity(order_per_bit);
    let area = declare(cma, &spec).unwrap();
    assert!(area.activate());
    area
}

#[test]
fn whatever_moves_is_moved_and_released_pages_serve_again() {
    // M-11, M-14, M-18, M-19
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 1, 0);
    for name in 0..512 {
        assert_eq!(toy.alloc(Some(name), 1024 + name), Some(1024 + name));
    }
    let pages = area.alloc(512, 0).unwrap();
    assert_eq!(pages.range(), range(1024, 1536));
    assert_eq!((toy.tenants().len(), toy.state.lock().unwrap().moves), (512, 512));
    assert!(toy.tenants().values().all(|pfn| !(1024..1536).contains(pfn)));
    assert_eq!(area.alloc(1, 0).unwrap_err(), CmaError::NoRoom { nr_pages: 1, busy: None });
    drop(pages);
    assert_eq!(toy.alloc(Some(1000), 1024), Some(1024), "lent again");
    assert_eq!(area.stats().available_pages, 512);
}

#[test]
fn pages_are_aligned_by_their_number_not_by_their_place_in_the_area() {
    // M-04
    let toy = Toy::at(512, 8);
    let cma = Cma::new(&toy);
    let area = area(&cma, 512, 7, 0);
    for (align_order, nr_pages, first) in [(0, 1, 512), (10, 1, 1024), (11, 3, 2048), (3, 8, 520), (0, 7, 513)] {
        assert_eq!(area.alloc(nr_pages, align_order).unwrap().into_raw().start, Pfn(first));
    }
    assert!(area.alloc(1, 12).is_err());
    let bad = CmaError::BadRequest { nr_pages: 1, align_order: 60 };
    assert_eq!(area.alloc(1, 60).unwrap_err(), bad);
}

#[test]
fn a_bit_is_the_least_that_is_handed_out_and_taken_back() {
    // M-02, M-04, M-20, M-21
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 1, 3);
    let pages = area.alloc(9, 0).unwrap();
    assert_eq!(pages.range(), range(1024, 1040), "two bits");
    assert_eq!(toy.count(|frame| frame == Frame::Taken), 16, "of which no page serves anybody else");
    assert_eq!((area.stats().available_pages, area.stats().used_pages), (496, 16));
    let raw = pages.into_raw();
    let half = range(1024, 1033);
    // SAFETY: ours, unused.
    let refused = unsafe { area.release(half) };
    assert_eq!(refused, Err(ReleaseError::PartialBit { range: half, pages_per_bit: 8 }));
    assert_eq!(toy.count(|frame| frame == Frame::Taken), 16, "nothing has changed");
    // SAFETY: ours, unused; a bit at a time.
    unsafe {
        area.release(range(1032, 1040)).unwrap();
        area.release(range(1024, 1032)).unwrap();
    }
    assert_eq!(area.stats().available_pages, 512);
    assert_eq!(raw.len(), 16);
    // The rest of a bit goes with what a device's buffer was cut from.
    let cut = area.take(9, 0).unwrap();
    assert_eq!(cut.len(), 9);
    // SAFETY: ours, unused.
    unsafe { area.give(cut) }.unwrap();
    assert_eq!((area.stats().available_pages, toy.count(|frame| frame == Frame::Taken)), (512, 0));
}

#[test]
fn a_place_that_cannot_be_emptied_is_passed_over_with_every_place_that_holds_the_frame_in_the_way() {
    // M-15, M-16
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 4, 0);
    // Somebody who was movable and is pinned: the area itself never had such a tenant.
    for pfn in [1024 + 700, 1024 + 1500] {
        toy.put(pfn, Frame::Stuck);
    }
    let pages = area.alloc(600, 0).unwrap();
    assert_eq!(pages.range().start, Pfn(1024));
    drop(pages);
    let pages = area.alloc(790, 0).unwrap();
    assert_eq!(pages.range().start, Pfn(1024 + 701));
    assert_eq!(area.stats().busy_places, 1, "one failed attempt, not 701");
    assert_eq!(area.stats().available_pages, 2048 - 790);
    drop(pages);
    let none = area.alloc(800, 0).unwrap_err();
    assert_eq!(none, CmaError::NoRoom { nr_pages: 800, busy: Some(Pfn(1024 + 1500)) });
}

#[test]
fn the_next_range_is_tried_when_one_is_exhausted_but_not_without_memory() {
    // M-15
    let toy = Toy::new(8);
    toy.put(1536, Frame::Stuck);
    toy.put(3072, Frame::Stuck);
    let cma = Cma::new(&toy);
    let spec = AreaSpec::new("a", 512 * 5);
    // SAFETY: as asked for, ours, for good.
    let area = unsafe { cma.declare_multi(&spec, super::toy::books(&spec)) }.unwrap();
    assert!(area.activate() && area.ranges().len() > 1);
    let first = area.ranges().next().unwrap();
    toy.put(first.start.0 + 700, Frame::Stuck);
    let pages = area.alloc(1000, 0).unwrap();
    assert!(!first.contains(pages.range().start), "{first} has no such place");
    drop(pages);
    toy.fill(0);
    let takes = toy.state.lock().unwrap().takes;
    let starved = area.alloc(1, 0).unwrap_err();
    assert!(matches!(starved, CmaError::Source(kmem_gfp::AllocError::NoMemory { .. })), "{starved}");
    assert_eq!(toy.state.lock().unwrap().takes, takes + 1, "the same everywhere");
    assert_eq!(area.stats().used_pages, 0);
}

#[test]
fn a_compound_block_is_aligned_to_its_size_and_asked_for_silently() {
    // M-18, M-24
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 2, 0);
    let _one = area.alloc(1, 0).unwrap();
    let block = area.alloc_compound(Order::new(5).unwrap()).unwrap();
    assert_eq!(block.range(), range(1056, 1088));
    assert!(area.alloc_compound(Order::MAX).is_err());
    assert!(toy.context.reports.lock().unwrap().is_empty());
    let coarse = Toy::new(4);
    let cma = Cma::new(&coarse);
    let area = self::area(&cma, 1024, 2, 4);
    let small = CmaError::BadRequest { nr_pages: 4, align_order: 2 };
    assert_eq!(area.alloc_compound(Order::new(2).unwrap()).unwrap_err(), small, "less than a bit");
}

#[test]
fn what_is_not_an_allocation_of_the_area_is_not_taken_back() {
    // M-19
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 2, 0);
    let pages = area.alloc(100, 0).unwrap();
    for foreign in [range(0, 1), range(1000, 1030), range(2040, 2060), range(1024, 1024), range(5000, 5001)] {
        // SAFETY: refused.
        assert_eq!(unsafe { area.release(foreign) }, Err(ReleaseError::Foreign(foreign)));
    }
    // SAFETY: refused.
    let beyond = unsafe { area.release(range(1024, 1125)) };
    assert_eq!(beyond, Err(ReleaseError::NotAllocated(Pfn(1124))));
    assert_eq!(toy.count(|frame| frame == Frame::Taken), 100);
    // A page that its holder has given elsewhere: the whole release is refused, where the reference would free the rest.
    toy.put(1050, Frame::Tenant(1));
    // SAFETY: refused.
    let strange = unsafe { area.release(pages.range()) };
    assert_eq!(strange, Err(ReleaseError::Free(FreeError::AlreadyFree(Pfn(1050)))));
    assert_eq!((area.stats().used_pages, toy.count(|frame| frame == Frame::Taken)), (100, 99));
    toy.put(1050, Frame::Taken);
    let raw = pages.into_raw();
    // SAFETY: ours.
    let again = unsafe { CmaPages::from_raw(area, raw) };
    drop(again);
    // SAFETY: refused.
    let twice = unsafe { area.release(raw) };
    assert_eq!(twice, Err(ReleaseError::NotAllocated(Pfn(1024))));
}

#[test]
fn requests_that_may_not_sleep_or_ask_for_nothing_are_refused_without_a_count() {
    // M-13
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 1, 0);
    assert_eq!(area.alloc(0, 0).unwrap_err(), CmaError::BadRequest { nr_pages: 0, align_order: 0 });
    toy.context.flags.store(TaskFlags::ATOMIC.bits(), std::sync::atomic::Ordering::Relaxed);
    assert_eq!(area.alloc(1, 0).unwrap_err(), CmaError::MustNotSleep);
    assert_eq!(area.stats().alloc_fail, 0);
    assert!(toy.context.reports.lock().unwrap().is_empty());
    toy.context.flags.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(area.alloc(513, 0).unwrap_err(), CmaError::NoRoom { nr_pages: 513, busy: None });
    assert_eq!((area.stats().alloc_fail, area.stats().alloc_pages_fail), (1, 513));
    assert_eq!(toy.state.lock().unwrap().takes, 1, "the declaration's: nothing was tried");
}

#[test]
fn a_failure_is_reported_with_the_free_runs_but_not_too_often() {
    // M-24
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 1, 0);
    let _a = area.alloc(100, 0).unwrap();
    let hole = area.alloc(50, 0).unwrap();
    let _b = area.alloc(10, 0).unwrap();
    drop(hole);
    assert!(area.try_alloc(500, 0).is_err());
    assert!(toy.context.reports.lock().unwrap().is_empty(), "silent on request");
    assert!(area.alloc(500, 0).is_err());
    let reports: Vec<_> = toy.context.reports.lock().unwrap().clone();
    assert_eq!(
        reports,
        [
            "cma: a: alloc failed: no room for 500 pages",
            "cma: number of available pages: 50@0x464 + 352@0x4a0 => 402 free of 512 total pages",
        ]
    );
    for _ in 0..100 {
        assert!(area.alloc(500, 0).is_err());
    }
    assert_eq!(toy.context.reports.lock().unwrap().len(), 20, "ten of two lines each");
    toy.context.now.store(5000, std::sync::atomic::Ordering::Relaxed);
    assert!(area.alloc(500, 0).is_err());
    assert_eq!(toy.context.reports.lock().unwrap().len(), 22);
}

#[test]
fn figures_and_files_tell_the_same() {
    // M-22, M-23
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = area(&cma, 1024, 1, 2);
    let a = area.alloc(100, 0).unwrap();
    let _b = area.alloc(12, 0).unwrap();
    assert!(area.try_alloc(600, 0).is_err());
    drop(a);
    let stats = area.stats();
    assert_eq!((stats.alloc_success, stats.alloc_fail), (2, 1));
    assert_eq!((stats.alloc_pages_success, stats.alloc_pages_fail, stats.release_pages_success), (112, 600, 100));
    assert_eq!((stats.total_pages, stats.available_pages, stats.used_pages), (512, 500, 12));
    assert_eq!(stats.max_chunk_pages, 400);
    let files = area.files().to_string();
    for line in [
        "/sys/kernel/mm/cma/a/alloc_pages_success\t112",
        "/sys/kernel/mm/cma/a/alloc_pages_fail\t600",
        "/sys/kernel/mm/cma/a/release_pages_success\t100",
        "/sys/kernel/mm/cma/a/total_pages\t512",
        "/sys/kernel/mm/cma/a/available_pages\t500",
        "cma/a/count\t512",
        "cma/a/order_per_bit\t2",
        "cma/a/used\t12",
        "cma/a/maxchunk\t400",
        "cma/a/ranges/0/base_pfn\t1024",
        "cma/a/ranges/0/bitmap\t234881024 0 0 0",
    ] {
        assert!(files.lines().any(|found| found == line), "{line} in\n{files}");
    }
}

#[test]
fn devices_memory_comes_from_the_areas_that_are_for_it() {
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let plain = area(&cma, 1024, 1, 0);
    assert_eq!(Contiguous::take(&cma, 1, 0), None);
    let spec = AreaSpec::new("dma", 512).place(Place::Fixed(Pfn(2048))).for_dma();
    let area = declare(&cma, &spec).unwrap();
    area.activate();
    let taken = Contiguous::take(&cma, 3, 0).unwrap();
    assert_eq!(taken, range(2048, 2051));
    // SAFETY: ours, unused.
    unsafe { Contiguous::give(&cma, taken) }.unwrap();
    // SAFETY: refused.
    assert_eq!(unsafe { Contiguous::give(&cma, range(0, 1)) }, Err(ReleaseError::Foreign(range(0, 1))));
    assert_eq!(plain.alloc_raw(1, 0, Gfp::KERNEL), Ok(range(1024, 1025)));
}
