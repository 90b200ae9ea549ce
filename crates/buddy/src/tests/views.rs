//! The kernel's text formats, byte by byte in layout.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId, Pfn, ZoneKind};

use super::rig::{Env, Rig, cached, o, range};
use crate::views::{Extra, NoExtra};
use crate::{MemoryMap, Region, ZoneLimits};

/// A machine like the one that the sample in `data` was taken from: 768 MiB less what a trace buffer holds.
fn sample_machine() -> Rig {
    let regions = [Region::new(range(1, 0x9f)), Region::new(range(0x100, 0x2ffdd))];
    let reserved = [range(0x1000, 0x14700)];
    let map = MemoryMap { regions: &regions, reserved: &reserved, limits: ZoneLimits::X86_64, ..MemoryMap::default() };
    Rig::build(Env::new(1), cached(), &map)
}

/// A text with each number replaced by `#`.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for line in text.lines() {
        let mut in_number = false;
        let mut after_word = false;
        for c in line.chars() {
            let digit = c.is_ascii_digit() && (in_number || !after_word);
            if digit && !in_number {
                shape.push('#');
            } else if !digit {
                shape.push(c);
            }
            in_number = digit;
            after_word = c.is_alphanumeric() || c == '_';
        }
        shape.push('\n');
    }
    shape
}

#[test]
fn buddyinfo_has_eleven_columns_of_six() {
    let rig = sample_machine();
    let text = rig.buddyinfo().to_string();
    let lines: Vec<&str> = text.lines().collect();
    // D-01
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("Node 0, zone      DMA "));
    assert!(lines[1].starts_with("Node 0, zone    DMA32 "));
    for line in lines {
        assert_eq!(line.len(), "Node 0, zone      DMA ".len() + 11 * 7, "{line:?}");
        assert!(line.ends_with(' '));
    }
    // Exactly what is free: frames 1..0x9f, one of each size on the way up, and so on.
    let rig = Rig::small(5 * 512);
    let expected =
        "Node 0, zone   Normal      0      0      0      0      0      0      0      0      0      1      2 \n";
    assert_eq!(rig.buddyinfo().to_string(), expected);
    rig.alloc_pages_at(Gfp::KERNEL, Pfn(3), o(0)).unwrap();
    let expected =
        "Node 0, zone   Normal      1      1      1      1      1      1      1      1      1      2      1 \n";
    assert_eq!(rig.buddyinfo().to_string(), expected);
}

#[test]
fn pagetypeinfo_is_laid_out_as_the_sample() {
    let rig = sample_machine();
    let text = rig.pagetypeinfo().to_string();
    // D-02, D-03, D-04
    let sample = include_str!("data/pagetypeinfo.txt");
    assert_eq!(text.lines().count(), sample.lines().count());
    for (line, sample) in text.lines().zip(sample.lines()) {
        assert_eq!(line.len(), sample.len(), "{line:?} {sample:?}");
        assert_eq!(line.starts_with("Node"), sample.starts_with("Node"));
        if !line.starts_with("Node") {
            assert_eq!(line, sample);
        }
    }
    let columns = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once("type")?.1.trim().split(' ').next()?.to_string())).collect()
    };
    assert_eq!(columns(&text), columns(sample));
}

#[test]
fn zoneinfo_is_laid_out_as_the_sample() {
    let rig = sample_machine();
    let text = rig.zoneinfo(&NoExtra).to_string();
    let sample = include_str!("data/zoneinfo.txt");
    // D-05, D-06, D-09, D-11
    for (line, sample) in shape(&text).lines().zip(shape(sample).lines()) {
        assert_eq!(line, sample);
    }
    assert_eq!(text.lines().count(), sample.lines().count());
    // What follows from the memory map alone is the same to the digit.
    for line in [
        "        spanned  4095",
        "        present  3998",
        "  start_pfn:           1",
        "  start_pfn:           4096",
        "        protection: (0, 0, 0, 0, 0)",
        "  vm stats threshold: 2",
        "  vm stats threshold: 6",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line:?}\n{text}");
        assert!(sample.contains(&format!("{line}\n")), "{line:?}");
    }
}

#[test]
fn zoneinfo_shows_marks_with_their_boost() {
    let rig = Rig::small(64 * 512);
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    let min = zone.watermark(kmem_gfp::Watermark::Min);
    zone.boost.store(77, std::sync::atomic::Ordering::Relaxed);
    let text = rig.zoneinfo(&NoExtra).to_string();
    // D-07
    assert!(text.contains(&format!("        boost    77\n        min      {}\n", min + 77)), "{text}");
}

#[test]
fn vmstat_names_every_counter_in_order() {
    struct Slabs;
    impl Extra for Slabs {
        fn node_counter(&self, _node: NodeId, name: &str) -> u64 {
            if name == "nr_slab_reclaimable" { 8052 } else { 0 }
        }
        fn event(&self, name: &str) -> Option<u64> {
            (name == "slabs_scanned").then_some(5)
        }
    }
    let rig = sample_machine();
    let page = rig.get(Gfp::KERNEL, 3).unwrap();
    rig.get(Gfp::KERNEL | Gfp::DMA, 0).unwrap();
    rig.put(page, 3);
    let text = rig.vmstat(&Slabs).to_string();
    let names = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split(' ').next()?.to_string())).collect()
    };
    // D-08, D-09, D-11, D-12
    assert_eq!(names(&text), names(include_str!("data/vmstat.txt")));
    assert!(text.ends_with("\nnr_unstable 0\n"));
    for line in text.lines() {
        assert_eq!(line.split(' ').count(), 2, "{line}");
    }
    // D-13: base pages, by the zone that served.
    for line in ["pgalloc_dma32 8", "pgalloc_dma 1", "pgfree 8", "nr_slab_reclaimable 8052", "slabs_scanned 5"] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
}

#[test]
fn the_memory_report_sums_up_what_is_free() {
    let rig = Rig::small(5 * 512);
    let text = rig.mem_info().to_string();
    // D-18, D-19
    assert!(text.starts_with("Mem-Info:\n free:2560 free_pcp:0 free_cma:0\n"), "{text}");
    assert!(text.contains("Node 0 Normal free:10240kB boost:0kB min:"), "{text}");
    assert!(text.contains("lowmem_reserve[]: 0 0\n"), "{text}");
    let blocks = "Node 0 Normal: 0*4kB 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 1*2048kB (M) 2*4096kB (M) = 10240kB\n";
    assert!(text.contains(blocks), "{text}");
    assert!(text.ends_with("2560 pages RAM\n0 pages HighMem/MovableOnly\n0 pages reserved\n0 pages cma reserved\n"));
}

#[test]
fn fragmentation_is_told_from_shortage() {
    let rig = Rig::small(5 * 512);
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    for block in 0..5 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
    }
    assert_eq!(zone.fragmentation_index(o(4)), 0);
    for i in 0..64 {
        // SAFETY: frames of tests have no memory.
        unsafe { rig.free_range(range(i * 2, i * 2 + 1)) }.unwrap();
    }
    // D-15: 64 single pages.
    assert_eq!(zone.fragmentation_index(o(4)), 922);
    assert_eq!(zone.fragmentation_index(o(0)), -1000);
    assert_eq!((zone.unusable_index(o(4)), zone.unusable_index(o(0))), (1000, 0));
}
