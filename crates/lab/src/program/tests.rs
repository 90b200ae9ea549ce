//! Programs of small made-up traces, and of the sample.

use super::*;
use crate::trace::{Input, LineKind};

const SAMPLE: &[u8] = include_bytes!("../../data/sample/boot-20k.txt.zst");

fn feed(level: Level, text: &str) -> (Program, Vec<Op>) {
    let mut program = Program::new(level, CacheBook::default());
    let mut ops = Vec::new();
    for line in text.lines() {
        let line = format!("  a-1 [000] ..... 1.0: {}", line.trim());
        match LineKind::of(line.as_bytes()) {
            LineKind::Event(line) => program.event(&line).unwrap(),
            other => panic!("{other:?}: {line}"),
        }
    }
    program.finish(&mut ops);
    ops.retain(|op| !matches!(op.kind, OpKind::Mark(_)));
    assert_eq!(program.census().settled(), program.census().events);
    (program, ops)
}

fn names(ops: &[Op]) -> Vec<&'static str> {
    ops.iter()
        .map(|op| match op.kind {
            OpKind::Kmalloc { .. } => "kmalloc",
            OpKind::CacheAlloc { .. } => "alloc",
            OpKind::CacheAllocBulk { .. } => "alloc-bulk",
            OpKind::Kfree { .. } => "kfree",
            OpKind::CacheFree { .. } => "free",
            OpKind::CacheFreeBulk { .. } => "free-bulk",
            OpKind::KfreeRcu { .. } => "rcu",
            OpKind::PageAlloc { .. } => "pages",
            OpKind::PageAllocBulk { .. } => "pages-bulk",
            OpKind::PageFree { .. } => "free-pages",
            OpKind::AreaAlloc { .. } => "area",
            OpKind::AreaFree { .. } => "free-area",
            OpKind::UnmapAliases => "aliases",
            OpKind::Mark(_) | OpKind::Void => "none",
        })
        .collect()
}

const KMALLOC: &str = "kmalloc: call_site=f+0x1/0x2 ptr=ffff888000010000 bytes_req=60 bytes_alloc=64 gfp_flags=GFP_KERNEL node=-1 accounted=false";
const KFREE: &str = "kfree: call_site=f+0x1/0x2 ptr=ffff888000010000";

#[test]
fn an_object_lives_between_its_allocation_and_its_free() {
    let (p, ops) =
        feed(Level::All, &format!("{KMALLOC}\n{KFREE}\n{KFREE}\nkfree: call_site=f ptr=0000000000000000\n{KMALLOC}"));
    assert_eq!(names(&ops), ["kmalloc", "kfree", "kmalloc"]);
    let c = p.census();
    assert_eq!((c.replayed, c.unmatched_free, c.nothing_to_do), (4, 1, 1));
    let turns: Vec<u32> = ops
        .iter()
        .map(|o| match o.kind {
            OpKind::Kmalloc { object, .. } | OpKind::Kfree { object } => object.turn,
            _ => 99,
        })
        .collect();
    assert_eq!(turns, [0, 0, 2]);
}

#[test]
fn a_large_kmalloc_is_one_request_and_its_pages_are_not_another() {
    let text = "mm_page_alloc: page=1 pfn=0x40 order=2 migratetype=0 gfp_flags=GFP_KERNEL|__GFP_COMP
        mm_page_alloc: page=1 pfn=0x80 order=2 migratetype=0 gfp_flags=GFP_KERNEL|__GFP_COMP
        kmalloc: call_site=f ptr=ffff888000040000 bytes_req=16000 bytes_alloc=16384 gfp_flags=GFP_KERNEL node=-1 accounted=false
        kmalloc: call_site=f ptr=ffff888000040000 bytes_req=16000 bytes_alloc=16384 gfp_flags=GFP_KERNEL node=-1 accounted=false
        kfree: call_site=f ptr=ffff888000040000
        mm_page_free: page=1 pfn=0x40 order=2
        mm_page_free: page=1 pfn=0x80 order=2";
    let (p, ops) = feed(Level::All, text);
    assert_eq!(names(&ops), ["pages", "kmalloc", "kfree", "free-pages"]);
    assert_eq!((p.census().duplicate, p.census().bookkeeping, p.census().unmatched_free), (1, 2, 0));
    assert_eq!(names(&feed(Level::Pages, text).1), ["pages", "pages", "free-pages", "free-pages"]);
    assert_eq!(names(&feed(Level::Objects, text).1), ["kmalloc", "kfree"]);
}

#[test]
fn the_pages_of_a_slab_are_linuxs_and_not_requests() {
    let text = "mm_page_alloc: page=1 pfn=0x10 order=1 migratetype=0 gfp_flags=GFP_KERNEL|__GFP_COMP
        slab_new: name=x pfn=0x10 order=1 objects=8 bytes_req=1000 bytes_alloc=1024
        kmem_cache_alloc: call_site=f ptr=ffff888000010400 name=x bytes_req=1000 bytes_alloc=1024 gfp_flags=GFP_KERNEL node=-1 accounted=false
        kmem_cache_free: call_site=f ptr=ffff888000010400 name=x
        slab_free: name=x pfn=0x10 order=1
        mm_page_free: page=1 pfn=0x10 order=1";
    let (p, ops) = feed(Level::All, text);
    assert_eq!(names(&ops), ["alloc", "free"]);
    let f = p.linux_figures();
    assert_eq!((f.slab_pages_peak, f.slab_pages_end, f.all_slab_pages_peak), (2, 0, 2));
    assert_eq!(p.caches().all().len(), 1);
    assert_eq!(p.caches().all()[0].stride, 1024);
    assert_eq!(p.census().unmatched_free, 0);
}

#[test]
fn metadata_of_linux_is_left_out_on_both_sides() {
    let text = "slab_new: name=kmalloc-512 pfn=0x10 order=0 objects=8 bytes_req=512 bytes_alloc=512
        kmalloc: call_site=__pcs_replace_empty_main+0x1/0x2 ptr=ffff888000010000 bytes_req=496 bytes_alloc=512 gfp_flags=GFP_NOWAIT node=0 accounted=false
        kfree: call_site=f ptr=ffff888000010000";
    let (p, ops) = feed(Level::Objects, text);
    assert!(ops.is_empty());
    assert_eq!((p.census().metadata, p.linux_figures().slab_pages_end, p.linux_figures().recorded_end), (2, 0, 1));
}

#[test]
fn deferred_frees_happen_once() {
    let text =
        format!("{KMALLOC}\nkvfree_rcu: ptr=ffff888000010000\n{KFREE}\n{KMALLOC}\nkvfree_rcu: ptr=ffffc90000001000");
    let (p, ops) = feed(Level::All, &text);
    assert_eq!(names(&ops), ["kmalloc", "rcu", "kmalloc"]);
    assert_eq!((p.census().duplicate, p.census().bookkeeping), (1, 1));
    let (p, ops) = feed(Level::All, &format!("{KMALLOC}\nkvfree_rcu: ptr=ffff888000010000\n{KMALLOC}\n{KFREE}"));
    assert_eq!(names(&ops), ["kmalloc", "rcu", "kmalloc", "kfree"]);
    assert_eq!(p.census().reused_live, 0);
}

#[test]
fn a_free_recorded_after_the_reuse_of_its_address_is_the_old_objects() {
    let (p, ops) = feed(Level::All, &format!("{KMALLOC}\n{KMALLOC}\n{KFREE}\n{KFREE}"));
    assert_eq!(names(&ops), ["kmalloc", "kfree", "kmalloc", "kfree"]);
    assert_eq!((p.census().reused_live, p.census().duplicate), (1, 1));
}

#[test]
fn pages_come_back_in_other_units() {
    let text = "mm_page_alloc: page=1 pfn=0x40 order=2 migratetype=0 gfp_flags=GFP_KERNEL
        page_alloc_bulk: call_site=v nr=3 got=3 migratetype=0 gfp_flags=GFP_KERNEL pfns=0x40,0x50,0x51
        mm_page_free: page=1 pfn=0x41 order=0
        mm_page_free_batched: page=1 pfn=0x41 order=0
        mm_page_free: page=1 pfn=0x50 order=1
        mm_page_free: page=1 pfn=0x40 order=2
        mm_page_free: page=1 pfn=0x99 order=0
        mm_page_alloc: page=0 pfn=0x0 order=0 migratetype=0 gfp_flags=GFP_KERNEL";
    let (p, ops) = feed(Level::All, text);
    assert_eq!(
        names(&ops),
        ["pages", "pages-bulk", "free-pages", "free-pages", "free-pages", "free-pages", "free-pages"]
    );
    let c = p.census();
    assert_eq!((c.unmatched_free, c.unmatched_pages, c.failed_in_trace, c.duplicate), (1, 2, 1, 1));
}

#[test]
fn objects_are_freed_in_bulk_whatever_the_event_leaves_out() {
    let text = "cache_alloc_bulk: call_site=f name=m bytes_req=232 bytes_alloc=256 gfp_flags=GFP_ATOMIC nr=3 ok=1 ptrs=ffff888000010000,ffff888000010100
        cache_free_bulk: name=m nr=3 ptrs=ffff888000010000,ffff888000010100,ffff888000010200
        cache_alloc_bulk: call_site=f name=m bytes_req=232 bytes_alloc=256 gfp_flags=GFP_ATOMIC nr=3 ok=0 ptrs=";
    let (p, ops) = feed(Level::All, text);
    assert_eq!(names(&ops), ["alloc-bulk", "free-bulk"]);
    assert_eq!((p.census().bulk_cut_off, p.census().failed_in_trace), (1, 1));
}

/// The sums that `stats.py` prints for the same file.
#[test]
fn the_sample_adds_up_to_its_statistics() {
    let mut program = Program::new(Level::All, CacheBook::default());
    let mut ops = Vec::new();
    for chunk in Input::Bundled("sample", SAMPLE).open().unwrap().chunks {
        for (number, line) in chunk.unwrap().lines() {
            match LineKind::of(line) {
                LineKind::Event(line) => program.event(&line).unwrap(),
                LineKind::Skip => {}
                other => panic!("{other:?} at {number}"),
            }
        }
        program.drain(&mut ops, false);
    }
    program.finish(&mut ops);
    let c = program.census();
    assert_eq!((c.events, c.settled()), (20_000, 20_000));
    assert_eq!(c.by_type.values().sum::<u64>(), 20_000);
    assert_eq!(c.unknown_event, 0);
    let (takes, gives) = (ops.iter().filter(|o| o.kind.takes()).count(), ops.len());
    assert!(takes > 5000 && gives > takes);
}

/// Whatever a file holds, it is read, or refused with an error; every event that is read has one fate.
#[test]
fn damaged_lines_are_read_or_refused() {
    let chunk = Input::Bundled("sample", SAMPLE).open().unwrap().chunks.next().unwrap().unwrap();
    let lines: Vec<&[u8]> =
        chunk.lines().map(|(_, l)| l).filter(|l| !l.starts_with(b"#")).step_by(3).take(900).collect();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let mut refused = 0;
    for round in 0..60 {
        let level = [Level::All, Level::Objects, Level::Pages][round % 3];
        let mut program = Program::new(level, CacheBook::default());
        let mut ops = Vec::new();
        let mut read = 0;
        for line in &lines {
            let mut line = line.to_vec();
            for _ in 0..random(3) {
                let (at, byte) = (random(line.len()), b"0123456789abcdef =:[]-|x\xff"[random(25)]);
                line[at] = byte;
            }
            match LineKind::of(&line) {
                LineKind::Event(event) => match program.event(&event) {
                    Ok(()) => read += 1,
                    Err(_) => refused += 1,
                },
                LineKind::Lost(n) => program.lost(n),
                LineKind::Skip | LineKind::Malformed => refused += 1,
            }
            program.drain(&mut ops, false);
        }
        program.finish(&mut ops);
        assert_eq!(program.census().settled(), read);
    }
    assert!(refused > 1000);
}

const AREA: &str = "alloc_vmap_area: va_start: 18446683600570023936 size=20480 align=1 vstart=0x0 vend=0x1 failed=0";
const AREA_FREE: &str = "free_vmap_area_noflush: va_start=0xffffc90000000000 nr_lazy=5 nr_lazy_max=8192";
const AREA_DUE: &str = "free_vmap_area_noflush: va_start=0xffffc90000000000 nr_lazy=8193 nr_lazy_max=8192";
const PURGE: &str = "purge_vmap_area_lazy: start=0xffffc90000000000 end=0xffffc90000005000 num_purged=1";

#[test]
fn areas_come_and_go_and_purges_are_linuxs_own_affair_unless_asked_for() {
    let failed = AREA.replace("failed=0", "failed=1");
    let text = [AREA, AREA_FREE, PURGE, AREA_FREE, &failed, AREA, AREA, AREA_DUE, PURGE].join("\n");
    let (p, ops) = feed(Level::All, &text);
    assert_eq!(names(&ops), ["area", "free-area", "aliases", "area", "free-area", "area", "free-area"]);
    let c = p.census();
    assert_eq!((c.replayed, c.unmatched_free, c.failed_in_trace, c.bookkeeping, c.reused_live), (6, 1, 1, 1, 1));
    let linux = p.linux_areas();
    assert_eq!((linux.areas_peak, linux.areas_end, linux.pages_peak, linux.pages_end), (1, 0, 5, 0));
    assert_eq!((linux.lazy_pages_peak, linux.lazy_pages_end, linux.purges, linux.purged_areas), (8193, 0, 2, 2));
    let (p, ops) = feed(Level::Objects, &text);
    assert_eq!((ops.len(), p.census().other_level), (0, 8));
}
