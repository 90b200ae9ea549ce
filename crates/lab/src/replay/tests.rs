//! The replay on the model, which can be made to err.

use super::*;
use crate::LabError;
use crate::model::{Fault, Model};
use crate::program::{CacheBook, Level};
use crate::trace::Input;

const SAMPLE: Input = Input::Bundled("sample", include_bytes!("../../data/sample/boot-20k.txt.zst"));

fn run(input: &Input, level: Level, order: Order, fault: Fault) -> Result<Outcome, LabError> {
    let model = Model::new(2, 40 << 20, fault).map_err(LabError::Target)?;
    let second = Model::new(2, 40 << 20, Fault::None).map_err(LabError::Target)?;
    replay(
        Plan { trace: input.open()?, level, order, book: CacheBook::default() },
        &model,
        Some(&second),
        |_| {},
        |_| {},
    )
}

fn text(text: &'static str) -> Input {
    Input::Bundled("test", text.as_bytes())
}

#[test]
fn a_sound_allocator_is_found_sound_at_every_level() {
    for (level, order) in [
        (Level::Objects, Order::Trace),
        (Level::Pages, Order::Trace),
        (Level::All, Order::Trace),
        (Level::All, Order::Parallel),
    ] {
        let o = run(&SAMPLE, level, order, Fault::None).unwrap();
        assert!(o.integrity.is_clean(), "{level:?} {order:?}: {:?}", o.integrity);
        assert_eq!((o.census.events, o.failed), (20_000, 0));
        assert!(o.integrity.checked_bytes > 100_000);
        assert!(o.samples.len() > 100);
        assert!(o.end.total_pages <= o.peak.total_pages && o.end.slab_pages <= o.peak.slab_pages);
        if level == Level::Pages {
            assert_eq!((o.end.slab_pages, o.end.live_objects), (0, 0));
            assert_eq!(o.end.total_pages, o.end.page_requests);
        } else {
            // What `stats.py` counts, less what Linux took for itself.
            let metadata = o.census.metadata;
            assert!(o.end.live_objects <= 6294 && o.end.live_objects + metadata >= 6294, "{:?}", o.end);
        }
    }
}

#[test]
fn every_fault_of_an_allocator_is_found() {
    let counts = |fault| run(&SAMPLE, Level::Objects, Order::Trace, fault).unwrap();
    assert!(counts(Fault::Overlap).integrity.overlaps > 10);
    assert!(counts(Fault::Corrupt).integrity.corrupt > 10);
    assert!(counts(Fault::DoubleFree).integrity.double_free > 10);
    assert!(counts(Fault::Leak).integrity.leaked > 10);
    assert!(counts(Fault::Fail).failed > 10);
}

#[test]
fn rounds_repeat_the_operations() {
    let o = run(&SAMPLE, Level::All, Order::Trace, Fault::None).unwrap();
    let fresh = || Model::new(2, 40 << 20, Fault::None).unwrap();
    let target = fresh();
    let t = time(&target, &o.ops, &o.specs).unwrap();
    assert!(t.allocs > 5000 && t.ns_per_alloc > 0.0 && t.ns_per_free > 0.0);
    assert_eq!(crate::target::ReplayTarget::in_use(&target), 0);
    // The probes that tell of new slabs did not exist yet.
    assert_eq!(o.same, None);
    assert_eq!(o.end.slab_pages, o.end.all_slab_pages);
}

#[test]
fn bad_files_are_refused_with_the_line() {
    let at = |input: &Input| match run(input, Level::All, Order::Parallel, Fault::None) {
        Err(LabError::Trace(e)) => e.line,
        other => panic!("{other:?}"),
    };
    let good = "# tracer: nop\n  a-1 [000] ..... 1.0: kfree: call_site=f ptr=0000000000000000\n";
    assert_eq!(at(&text("")), 1);
    assert_eq!(at(&text("# only a comment\n")), 1);
    assert_eq!(at(&text("hello world\n")), 1);
    let cut = format!("{good}  a-1 [000] ..... 1.0: kfree: call_site=f pt\n").leak();
    assert_eq!(at(&text(cut)), 3);
    let cut = format!("{good}  a-1 [000] ..... 1.0: kfree: call_site=f ptr=ffff").leak();
    assert_eq!(at(&text(cut)), 3);
    let cut = format!("{good}{good}garbage\n").leak();
    assert_eq!(at(&text(cut)), 5);
    assert_eq!(run(&text(good), Level::All, Order::Trace, Fault::None).unwrap().census.events, 1);
}

#[test]
fn a_free_on_another_cpu_waits_for_its_allocation() {
    let mut lines = String::new();
    for n in 0..20_000u64 {
        let ptr = 0xffff_8880_0001_0000 + (n % 64) * 64;
        lines.push_str(&format!(
            " a-1 [000] ..... 1.0: kmalloc: call_site=f ptr={ptr:x} bytes_req=64 bytes_alloc=64 gfp_flags=GFP_KERNEL node=-1 accounted=false\n b-2 [001] ..... 1.0: kfree: call_site=f ptr={ptr:x}\n"
        ));
    }
    let o = run(&text(lines.leak()), Level::All, Order::Parallel, Fault::None).unwrap();
    assert!(o.integrity.is_clean(), "{:?}", o.integrity);
    assert_eq!((o.end.live_objects, o.census.replayed), (0, 40_000));
}

#[test]
fn a_free_on_another_cpu_finds_the_cache_that_its_allocation_created() {
    let mut lines = String::new();
    for n in 0..600u64 {
        let ptr = 0xffff_8880_0001_0000 + n * 64;
        lines.push_str(&format!(
            " a-1 [000] ..... 1.0: kmem_cache_alloc: call_site=f ptr={ptr:x} name=c{n} bytes_req=64 bytes_alloc=64 gfp_flags=GFP_KERNEL node=-1 accounted=false\n b-2 [001] ..... 1.0: kmem_cache_free: call_site=f ptr={ptr:x} name=c{n}\n"
        ));
    }
    let o = run(&text(lines.leak()), Level::All, Order::Parallel, Fault::None).unwrap();
    assert!(o.integrity.is_clean(), "{:?}", o.integrity);
    assert_eq!((o.end.live_objects, o.census.replayed), (0, 1200));
}

#[test]
fn memory_that_is_too_small_fails_requests_and_nothing_else() {
    let model = Model::new(1, 1 << 20, Fault::None).unwrap();
    let plan =
        Plan { trace: SAMPLE.open().unwrap(), level: Level::All, order: Order::Trace, book: CacheBook::default() };
    let o = replay(plan, &model, None, |_| {}, |_| {}).unwrap();
    assert!(o.failed > 0 && o.integrity.is_clean(), "{:?}", o.integrity);
}

#[test]
fn the_second_machine_sees_only_what_linux_put_into_new_slabs() {
    let kmalloc = |ptr: u64| {
        format!(
            " a-1 [000] ..... 1.0: kmalloc: call_site=f ptr={ptr:x} bytes_req=2000 bytes_alloc=2048 gfp_flags=GFP_KERNEL node=-1 accounted=false\n"
        )
    };
    let mut lines = kmalloc(0xffff_8880_0900_0000);
    lines.push_str(
        " a-1 [000] ..... 1.0: slab_new: name=kmalloc-2k pfn=0x10 order=2 objects=8 bytes_req=2048 bytes_alloc=2048\n",
    );
    lines.push_str(&kmalloc(0xffff_8880_0001_0000));
    lines.push_str(&kmalloc(0xffff_8880_0001_0800));
    let o = run(&text(lines.leak()), Level::All, Order::Trace, Fault::None).unwrap();
    let same = o.same.unwrap();
    assert_eq!((same.objects, same.live_bytes_end, o.end.live_objects, o.end.live_bytes), (2, 4000, 3, 6000));
    assert_eq!((o.linux.slab_pages_end, o.linux.all_slab_pages_end), (4, 5));
    assert_eq!(o.end.slab_pages, same.slab_pages_end);
}
