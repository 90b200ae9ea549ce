//! How areas come to be: places, errors, activation, memory handed out before.

use std::string::ToString;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, Pfn};

use super::toy::{Frame, Toy, books, memory, range};
use crate::{AreaSpec, Cma, CmaArea, CmaError, DeclareError, MAX_RANGES, Place, layout};

pub(crate) fn declare<'c, 't>(
    cma: &'c Cma<&'t Toy>,
    spec: &AreaSpec<'_>,
) -> Result<CmaArea<'c, &'t Toy>, DeclareError> {
    let books = layout(spec).map_or(core::ptr::NonNull::dangling(), memory);
    // SAFETY: as asked for, ours, for good; with a bad specification nothing is written.
    unsafe { cma.declare(spec, books) }
}

fn multi<'c, 't>(cma: &'c Cma<&'t Toy>, spec: &AreaSpec<'_>) -> Result<CmaArea<'c, &'t Toy>, DeclareError> {
    // SAFETY: as asked for, ours, for good.
    unsafe { cma.declare_multi(spec, books(spec)) }
}

const fn within(base: u64, limit: u64) -> Place {
    Place::Within { base: Pfn(base), limit: Some(Pfn(limit)) }
}

#[test]
fn an_area_has_a_name_a_size_and_a_place() {
    // M-01, M-25
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let area = declare(&cma, &AreaSpec::new("camera", 1000)).unwrap();
    assert_eq!((area.name(), area.nr_pages(), area.order_per_bit()), ("camera", 1024, 0));
    let nameless = declare(&cma, &AreaSpec::new("", 1)).unwrap();
    assert_eq!(nameless.name(), "cma1");
    assert_eq!(cma.area("camera"), Some(area));
    let base = area.base().unwrap();
    assert_eq!(cma.area_of(Pfn(base.0 + 1023)), Some(area));
    assert_eq!(cma.area_of(Pfn(0)), None);
    assert_eq!(area.ranges().collect::<Vec<_>>(), [range(base.0, base.0 + 1024)]);
    let mut seen = 0;
    let found = cma.for_each(|area| {
        seen += 1;
        (area.name() == "camera").then_some(7)
    });
    assert_eq!((found, seen), (Some(7), 1), "stops at the first answer");
    let long = "x".repeat(64);
    assert_eq!(layout(&AreaSpec::new(&long, 1)), Err(DeclareError::NameTooLong { len: 64 }));
    assert_eq!(declare(&cma, &AreaSpec::new(&long[1..], 1)).unwrap().name(), &long[1..]);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    // M-03, M-05, M-06
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let at = |pfn| Place::Fixed(Pfn(pfn));
    let refused = |spec: AreaSpec<'_>| declare(&cma, &spec).unwrap_err();
    assert_eq!(refused(AreaSpec::new("a", 0)), DeclareError::Empty);
    assert_eq!(refused(AreaSpec::new("a", 512).align(1536)), DeclareError::BadAlign { align_pages: 1536 });
    assert_eq!(refused(AreaSpec::new("a", 512).granularity(40)), DeclareError::BadGranularity { order_per_bit: 40 });
    let misaligned = |start, end| DeclareError::Misaligned { range: range(start, end), align_pages: 512 };
    assert_eq!(refused(AreaSpec::new("a", 512).place(at(100))), misaligned(100, 612), "a base");
    assert_eq!(refused(AreaSpec::new("a", 500).place(at(512))), misaligned(512, 1012), "a size");
    let bits = DeclareError::Misaligned { range: range(512, 1024), align_pages: 1024 };
    assert_eq!(refused(AreaSpec::new("a", 512).granularity(10).place(at(512))), bits, "a bit of 4 MiB");
    let beyond = DeclareError::BeyondLimit { range: range(3584, 4608), limit: Pfn(4096) };
    assert_eq!(refused(AreaSpec::new("a", 1024).place(at(3584))), beyond);
    toy.put(700, Frame::Stuck);
    assert_eq!(refused(AreaSpec::new("a", 1024).place(at(0))), DeclareError::Taken(Pfn(700)));
    assert_eq!(refused(AreaSpec::new("a", 8 * 512)), DeclareError::NoMemory { nr_pages: 4096 });
    assert_eq!(refused(AreaSpec::new("a", u64::MAX)), DeclareError::NoMemory { nr_pages: u64::MAX });
    assert_eq!(refused(AreaSpec::new("a", 512).place(within(0, 500))), DeclareError::NoMemory { nr_pages: 512 });
    assert_eq!((cma.nr_areas(), toy.count(|frame| frame == Frame::Taken)), (0, 0));
    let zones = Toy { zone_border: 1024, ..Toy::new(4) };
    let cma = Cma::new(&zones);
    let crossing = declare(&cma, &AreaSpec::new("a", 1024).place(at(512))).unwrap_err();
    assert_eq!(crossing, DeclareError::Taken(Pfn(1024)), "a range lies in one zone");
    assert_eq!(crossing.to_string(), "pfn 0x400 cannot be given to an area");
}

#[test]
fn a_place_is_found_above_4_gib_from_below_and_else_as_high_as_possible() {
    // M-06
    let border = 1 << 20;
    let toy = Toy::at(border - 2048, 8);
    let cma = Cma::new(&toy);
    toy.put(border + 5, Frame::Stuck);
    let base = |spec: AreaSpec<'_>| declare(&cma, &spec).map(|area| area.base().unwrap().0 as i64 - border as i64);
    assert_eq!(base(AreaSpec::new("a", 512)), Ok(512));
    assert_eq!(base(AreaSpec::new("b", 512).place(within(0, border))), Ok(-512));
    assert_eq!(base(AreaSpec::new("c", 1024)), Ok(1024));
    assert_eq!(base(AreaSpec::new("d", 1024)), Ok(-1536), "nothing is left above");
    assert!(base(AreaSpec::new("f", 512).place(within(border - 100, border + 1000))).is_err(), "base up, limit down");
    let fresh = Toy::at(border - 2048, 8);
    let cma = Cma::new(&fresh);
    let aligned = declare(&cma, &AreaSpec::new("e", 512).align(2048).place(within(0, border))).unwrap();
    assert_eq!((aligned.base(), aligned.nr_pages()), (Some(Pfn(border - 2048)), 2048), "the size is rounded, too");
}

#[test]
fn an_area_is_put_together_of_ranges_if_there_is_no_one_place() {
    // M-01, M-08
    let toy = Toy::new(16);
    for pfn in [512 * 2, 512 * 5, 512 * 10] {
        toy.put(pfn, Frame::Stuck);
    }
    let cma = Cma::new(&toy);
    let one = multi(&cma, &AreaSpec::new("one", 512 * 5)).unwrap();
    assert_eq!(one.ranges().len(), 1, "one place is better");
    assert!(declare(&cma, &AreaSpec::new("no", 512 * 6)).is_err());
    let two = multi(&cma, &AreaSpec::new("two", 512 * 6)).unwrap();
    let ranges: Vec<_> = two.ranges().collect();
    assert!(ranges.len() > 1 && ranges.is_sorted_by_key(|range| range.start));
    assert_eq!(two.nr_pages(), 512 * 6);
    assert_eq!(two.base(), None, "several ranges have no base");
    let before = toy.count(|frame| frame == Frame::Taken);
    let spec = AreaSpec::new("much", 512 * 12);
    assert_eq!(multi(&cma, &spec).unwrap_err(), DeclareError::NoMemory { nr_pages: 512 * 12 });
    assert_eq!(toy.count(|frame| frame == Frame::Taken), before, "all or nothing");
    // More pieces than ranges.
    let scattered = Toy::new(40);
    (0..20).for_each(|i| scattered.put(i * 1024, Frame::Stuck));
    let cma = Cma::new(&scattered);
    assert!(multi(&cma, &AreaSpec::new("nine", 512 * 9)).is_err());
    assert_eq!(scattered.count(|frame| frame == Frame::Taken), 0);
    assert_eq!(multi(&cma, &AreaSpec::new("eight", 512 * 8)).unwrap().ranges().len(), MAX_RANGES);
}

#[test]
fn reserved_memory_becomes_an_area_or_ordinary_memory() {
    // M-07
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    (512..1536).for_each(|pfn| toy.put(pfn, Frame::Reserved));
    (2048..2560).for_each(|pfn| toy.put(pfn, Frame::Reserved));
    let spec = AreaSpec::new("boot", 4096);
    let init = |ranges: &[_]| {
        // SAFETY: large enough for any of these, ours; nobody uses reserved frames here.
        unsafe { cma.init_reserved(&spec, ranges, books(&spec)) }
    };
    assert_eq!(init(&[]).unwrap_err(), DeclareError::Empty);
    assert_eq!(init(&[range(512, 512)]).unwrap_err(), DeclareError::Empty);
    let misaligned = DeclareError::Misaligned { range: range(512, 1000), align_pages: 512 };
    assert_eq!(init(&[range(512, 1000)]).unwrap_err(), misaligned);
    let many = [range(512, 1024); MAX_RANGES + 1];
    assert_eq!(init(&many).unwrap_err(), DeclareError::TooManyRanges { nr: MAX_RANGES + 1 });
    let strange = init(&[range(2048, 2560), range(3072, 3584)]).unwrap_err();
    assert_eq!(strange, DeclareError::NotReserved(range(3072, 3584)));
    assert_eq!(toy.frame(2048), Frame::Free, "what was reserved of it is ordinary");
    let area = init(&[range(512, 1536)]).unwrap();
    assert!(area.activate());
    assert_eq!((area.nr_pages(), area.base()), (1024, Some(Pfn(512))));
    assert!(area.alloc(1024, 0).is_ok());
}

#[test]
fn an_area_hands_out_nothing_until_it_is_active_and_lends_from_then_on() {
    // M-09, M-11, M-13
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = declare(&cma, &AreaSpec::new("a", 1024)).unwrap();
    assert_eq!(area.alloc(1, 0).unwrap_err(), CmaError::Inactive);
    assert_eq!(area.stats().alloc_fail, 0, "no counter");
    assert!(toy.context.reports.lock().unwrap().is_empty(), "no message");
    assert_eq!(toy.count(|frame| frame == Frame::Free), 1024, "nobody else has it either");
    assert!(cma.activate_all() && area.is_active() && area.activate());
    assert_eq!(toy.count(|frame| frame == Frame::Free), 2048);
    let base = area.base().unwrap().0;
    assert_eq!(toy.fill(0), 2048, "movable requests have all of it");
    assert!((base..base + 1024).all(|pfn| matches!(toy.frame(pfn), Frame::Tenant(_))));
}

#[test]
fn an_area_that_is_not_wanted_gives_its_memory_back() {
    // M-09
    let toy = Toy::new(4);
    let cma = Cma::new(&toy);
    let area = declare(&cma, &AreaSpec::new("a", 1024)).unwrap();
    let kept = area.reserve_early(10).unwrap();
    assert!(!area.activate_unless(|| true));
    assert_eq!((area.nr_pages(), area.is_active(), area.activate()), (0, false, false));
    assert_eq!(area.alloc(1, 0).unwrap_err(), CmaError::Inactive);
    assert_eq!(toy.count(|frame| frame == Frame::Taken), 512, "what was handed out early stays out");
    assert!(kept.iter().all(|pfn| toy.frame(pfn.0) == Frame::Taken));
    assert!((0..1536).all(|hint| toy.alloc(None, hint).is_some()), "for anybody");
    assert!(!cma.activate_all());
}

#[test]
fn memory_is_handed_out_early_from_below_for_good() {
    // M-10
    let toy = Toy::new(8);
    let cma = Cma::new(&toy);
    let area = declare(&cma, &AreaSpec::new("a", 2048).granularity(2)).unwrap();
    let base = area.base().unwrap().0;
    assert_eq!(area.reserve_early(0), None);
    assert_eq!(area.reserve_early(3), Some(range(base, base + 512)), "whole pageblocks");
    assert_eq!(area.reserve_early(600), Some(range(base + 512, base + 1536)));
    assert_eq!(area.reserve_early(600), None);
    assert_eq!(area.stats().available_pages, 512);
    assert!(area.activate());
    assert_eq!(area.reserve_early(1), None, "too late");
    let rest = area.alloc(512, 0).unwrap();
    assert_eq!(rest.range(), range(base + 1536, base + 2048));
    assert!(area.alloc(1, 0).is_err());
    // SAFETY: never used.
    let undone = unsafe { area.release(range(base, base + 512)) };
    assert_eq!(undone, Err(crate::ReleaseError::NotAllocated(Pfn(base))), "no way to undo");
}

#[test]
fn other_errors_of_the_page_allocator_come_through() {
    let toy = Toy::new(4);
    toy.state.lock().unwrap().interrupted = true;
    let cma = Cma::new(&toy);
    let interrupted = DeclareError::Source(AllocError::Interrupted);
    assert_eq!(declare(&cma, &AreaSpec::new("a", 512)).unwrap_err(), interrupted);
    assert_eq!(declare(&cma, &AreaSpec::new("a", 512).place(Place::Fixed(Pfn(0)))).unwrap_err(), interrupted);
    toy.state.lock().unwrap().interrupted = false;
    let area = declare(&cma, &AreaSpec::new("a", 512)).unwrap();
    area.activate();
    toy.state.lock().unwrap().interrupted = true;
    assert_eq!(area.alloc_raw(1, 0, Gfp::KERNEL), Err(CmaError::Source(AllocError::Interrupted)));
}
