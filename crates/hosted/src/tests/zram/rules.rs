//! What a device does, rule by rule.

use kmem_gfp::{Gfp, ZoneKind};
use kmem_zsmalloc::Config;

use super::machine;
use crate::tests::pagers::{Cut, Pairs, page_of, paired_page_of};
use crate::zram::{
    BackingDevice, MmStat, Recompress, Recompressed, Which, Zram, ZramCreateError, ZramError, ZramOptions,
};

const PAGE: u64 = 4096;

fn device(pages: u64) -> Zram {
    Zram::new(machine(), ZramOptions::new(pages * PAGE, Cut)).unwrap()
}

fn read(device: &Zram, page: u64) -> [u8; 4096] {
    let mut data = [0xee; 4096];
    device.read_page(page, &mut data).unwrap();
    data
}

#[test]
fn a_page_of_one_word_takes_no_memory() {
    // ZS-40
    let device = device(8);
    let mut words = [0; 4096];
    for (nth, byte) in words.iter_mut().enumerate() {
        *byte = (nth % 8) as u8 + 1;
    }
    device.write_page(1, &[0; 4096]).unwrap();
    device.write_page(2, &[0xff; 4096]).unwrap();
    device.write_page(3, &words).unwrap();
    let stat = device.mm_stat();
    assert_eq!((stat.same_pages, stat.orig_data_size), (3, 3 * PAGE));
    assert_eq!((stat.compr_data_size, stat.mem_used_total), (0, 0));
    assert_eq!((read(&device, 1), read(&device, 2), read(&device, 3)), ([0; 4096], [0xff; 4096], words));
    // An object takes the place of a word, and the other way round.
    device.write_page(3, &page_of(100, 1)).unwrap();
    assert_eq!((device.mm_stat().same_pages, device.mm_stat().compr_data_size), (2, 100));
    device.write_page(3, &words).unwrap();
    assert_eq!((device.mm_stat().same_pages, device.mm_stat().compr_data_size), (3, 0));
}

#[test]
fn a_page_that_compresses_to_the_huge_size_is_stored_whole() {
    // ZS-40, ZS-41
    let device = device(8);
    let huge = device.pool().huge_class_size();
    device.write_page(0, &page_of(huge - 1, 1)).unwrap();
    assert_eq!((device.mm_stat().huge_pages, device.mm_stat().compr_data_size), (0, huge as u64 - 1));
    device.write_page(1, &page_of(huge, 2)).unwrap();
    device.write_page(2, &page_of(4096, 3)).unwrap();
    let stat = device.mm_stat();
    assert_eq!((stat.huge_pages, stat.huge_pages_since), (2, 2));
    assert_eq!(stat.compr_data_size, huge as u64 - 1 + 2 * PAGE);
    for (page, len, seed) in [(0, huge - 1, 1), (1, huge, 2), (2, 4096, 3)] {
        assert_eq!(read(&device, page), page_of(len, seed));
    }
    device.discard(1..3);
    let stat = device.mm_stat();
    assert_eq!((stat.huge_pages, stat.huge_pages_since), (0, 2), "now, and ever");
}

#[test]
fn objects_may_lie_where_frames_move_and_ask_for_no_io() {
    // ZS-40
    assert_eq!(crate::zram::FLAGS, Gfp::NOIO | Gfp::NOWARN | Gfp::HIGHMEM | Gfp::MOVABLE);
    let machine = machine();
    let device = Zram::new(machine, ZramOptions::new(16 * PAGE, Cut)).unwrap();
    for page in 0..16 {
        device.write_page(page, &page_of(4096, page)).unwrap();
    }
    let free = |zone| {
        let text = machine.kmem().buddyinfo().to_string();
        text.lines().find(|line| line.contains(zone)).map(str::to_owned).unwrap_or_default()
    };
    let plan = machine.plan().ranges();
    assert!(plan.iter().any(|range| range.zone == ZoneKind::Movable), "there is a movable zone: {}", free("Movable"));
    let movable = plan.iter().find(|range| range.zone == ZoneKind::Movable).unwrap().frames;
    let words = |pfn| kmem_gfp::FrameTable::words(kmem::Platform::frames(machine.kmem().platform()), pfn);
    let owned = movable.iter().filter(|pfn| {
        words(*pfn).is_some_and(|words| {
            words.owner.load(kmem_sync::atomic::Ordering::Relaxed) & 7 == kmem_gfp::OwnerTag::Zsmalloc as u64
        })
    });
    assert_eq!(owned.count(), 16, "whole pages in the movable zone");
}

#[test]
fn over_the_limit_a_page_is_refused_and_nothing_changes() {
    // ZS-40, ZS-41
    let options = ZramOptions::new(64 * PAGE, Cut).limit_bytes(8 * PAGE);
    let device = Zram::new(machine(), options).unwrap();
    for page in 0..8 {
        device.write_page(page, &page_of(4096, page)).unwrap();
    }
    let before = device.mm_stat();
    assert_eq!((before.mem_used_total, before.mem_limit), (8 * PAGE, 8 * PAGE));
    for page in [8, 3] {
        // Also where it would take the place of another: that one goes only when the new one is stored.
        let error = device.write_page(page, &page_of(4096, 100)).unwrap_err();
        assert!(matches!(error, ZramError::OverLimit { used: 9, limit: 8 }), "{error}");
        assert!(error.is_out_of_memory());
    }
    assert_eq!(read(&device, 3), page_of(4096, 3));
    assert_eq!(read(&device, 8), [0; 4096]);
    let stat = device.mm_stat();
    assert_eq!(stat, MmStat { mem_used_max: 9 * PAGE, ..before });
    assert_eq!(device.io_stat().failed_writes, 2);
    device.set_limit(0);
    device.write_page(8, &page_of(4096, 8)).unwrap();
    device.discard(0..64);
    device.reset_used_max();
    assert_eq!(device.mm_stat().mem_used_max, 0);
    assert_eq!(device.io_stat().notify_free, 64);
}

#[test]
fn recompression_is_kept_only_in_a_smaller_class() {
    // ZS-40
    let options = ZramOptions::new(16 * PAGE, Cut).secondary(Pairs);
    let device = Zram::new(machine(), options).unwrap();
    device.write_page(0, &paired_page_of(2000, 1)).unwrap();
    device.write_page(1, &page_of(2000, 2)).unwrap(); // no pairs
    device.write_page(2, &paired_page_of(4096, 3)).unwrap(); // huge
    device.write_page(3, &paired_page_of(30, 4)).unwrap(); // in the smallest class already
    device.write_page(4, &[7; 4096]).unwrap();
    let done = device.recompress(Recompress::default()).unwrap();
    assert_eq!(done, Recompressed { tried: 4, smaller: 2, saved_bytes: 1000 + 2048 });
    let stat = device.mm_stat();
    assert_eq!(stat.compr_data_size, 1000 + 2000 + 2048 + 30);
    assert_eq!((stat.huge_pages, stat.huge_pages_since), (0, 1));
    let pages = [paired_page_of(2000, 1), page_of(2000, 2), paired_page_of(4096, 3), paired_page_of(30, 4)];
    for (page, data) in pages.iter().enumerate() {
        assert_eq!(&read(&device, page as u64), data);
    }
    // What does not get smaller is not tried again, until it is written.
    assert_eq!(device.recompress(Recompress::default()).unwrap().tried, 0);
    device.write_page(1, &paired_page_of(2000, 5)).unwrap();
    assert_eq!(device.recompress(Recompress::default()).unwrap().smaller, 1);
    assert!(matches!(
        device.recompress(Recompress { priority: Some(2), ..Recompress::default() }),
        Err(ZramError::NoCompressor(2))
    ));
}

#[test]
fn recompression_takes_the_pages_asked_for() {
    let options = ZramOptions::new(16 * PAGE, Cut).secondary(Pairs);
    let device = Zram::new(machine(), options).unwrap();
    device.write_page(0, &paired_page_of(4096, 0)).unwrap();
    device.write_page(1, &paired_page_of(4096, 1)).unwrap();
    device.write_page(2, &paired_page_of(1000, 2)).unwrap();
    device.write_page(3, &paired_page_of(2000, 3)).unwrap();
    device.mark_idle();
    let _ = read(&device, 0);
    let only = |which, threshold| Recompress { which, threshold, ..Recompress::default() };
    assert_eq!(device.recompress(only(Which::HugeIdle, 0)).unwrap().tried, 1);
    assert_eq!(device.recompress(only(Which::Huge, 0)).unwrap().tried, 1);
    assert_eq!(device.recompress(only(Which::Idle, 1500)).unwrap().tried, 1);
    assert_eq!(device.recompress(Recompress { max_pages: 0, ..Recompress::default() }).unwrap().tried, 0);
    assert_eq!(device.recompress(only(Which::All, 0)).unwrap().tried, 1);
    for (page, len) in [(0, 4096), (1, 4096), (2, 1000), (3, 2000)] {
        assert_eq!(read(&device, page), paired_page_of(len, page));
    }
}

#[test]
fn mm_stat_prints_the_kernels_nine_fields_in_their_order() {
    // ZS-41
    let device = Zram::new(machine(), ZramOptions::new(64 * PAGE, Cut).limit_bytes(1 << 20)).unwrap();
    for page in 0..32 {
        device.write_page(page, &page_of(1000, page)).unwrap();
    }
    device.write_page(40, &page_of(4096, 40)).unwrap();
    device.write_page(41, &[0; 4096]).unwrap();
    for page in (0..32).step_by(2) {
        device.discard(page..page + 1);
    }
    let freed = device.compact();
    assert!(freed > 0);
    let stat = device.mm_stat();
    let used = device.pool_stats().object_frames * PAGE;
    let fields: Vec<u64> = stat.to_string().split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!(fields, [18 * PAGE, 16_000 + PAGE, used, 1 << 20, stat.mem_used_max, 1, freed, 1, 1]);
    assert!(stat.mem_used_max > used);
    let line = MmStat { orig_data_size: 4096, huge_pages_since: 7, ..MmStat::default() }.to_string();
    assert_eq!(line, "    4096        0        0        0        0        0        0        0        7\n");
}

#[test]
fn bytes_anywhere_on_the_device_are_read_and_written() {
    let device = device(4);
    let text: Vec<u8> = (0..9000_u32).map(|n| (n * 7 % 251) as u8).collect();
    device.write_at(1234, &text).unwrap();
    let mut back = vec![0; 9000];
    device.read_at(1234, &mut back).unwrap();
    assert_eq!(back, text);
    let mut edge = [9; 2];
    device.read_at(1233, &mut edge).unwrap();
    assert_eq!(edge, [0, text[0]]);
    for (offset, len) in [(4 * PAGE, 1), (4 * PAGE - 1, 2), (u64::MAX, 1)] {
        let error = device.write_at(offset, &vec![0; len]).unwrap_err();
        assert!(matches!(error, ZramError::BytesOutOfRange { size, .. } if size == 4 * PAGE), "{error}");
    }
    let error = device.read_page(4, &mut [0; 4096]).unwrap_err();
    assert!(matches!(error, ZramError::OutOfRange { page: 4, pages: 4 }));
    device.discard(2..u64::MAX);
    assert_eq!(read(&device, 2), [0; 4096]);
}

#[test]
fn a_device_that_cannot_be_is_refused() {
    let create = |options| Zram::new(machine(), options).unwrap_err();
    assert_eq!(create(ZramOptions::new(0, Cut)), ZramCreateError::Size(0));
    assert_eq!(create(ZramOptions::new(u64::MAX, Cut)), ZramCreateError::Size(u64::MAX));
    let many = (0..4).fold(ZramOptions::new(PAGE, Cut), |options, _| options.secondary(Pairs));
    assert_eq!(create(many), ZramCreateError::Secondaries(4));
    let bad = create(ZramOptions::new(PAGE, Cut).pool(Config::new().with_chain(99)));
    assert!(matches!(bad, ZramCreateError::Pool(_)));
}

#[test]
fn pages_leave_for_the_backing_device_and_come_back() {
    let path = std::env::temp_dir().join(format!("zram-backing-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let options = ZramOptions::new(16 * PAGE, Cut).backing(BackingDevice::new(file, 3));
    let device = Zram::new(machine(), options).unwrap();
    for page in 0..6 {
        device.write_page(page, &page_of(if page < 2 { 4096 } else { 500 }, page)).unwrap();
    }
    assert_eq!(device.writeback(Which::Huge, u64::MAX).unwrap(), 2);
    device.mark_idle();
    let _ = read(&device, 2);
    assert_eq!(device.writeback(Which::Idle, 1).unwrap(), 1);
    assert!(matches!(device.writeback(Which::All, 1), Err(ZramError::NoBacking(_))), "it has three places");
    let stat = device.mm_stat();
    assert_eq!((stat.orig_data_size, stat.compr_data_size, stat.huge_pages), (6 * PAGE, 1500, 0));
    for page in 0..6 {
        assert_eq!(read(&device, page), page_of(if page < 2 { 4096 } else { 500 }, page));
    }
    assert_eq!(device.bd_stat().to_string(), "       3        3        3\n");
    device.write_page(0, &page_of(10, 9)).unwrap();
    assert_eq!(device.writeback(Which::All, 1).unwrap(), 1, "a place was given back");
    assert_eq!(read(&device, 0), page_of(10, 9));
}

#[test]
fn each_page_request_may_fail_and_nothing_is_lost() {
    let machine = machine();
    for nth in 1.. {
        let options = ZramOptions::new(64 * PAGE, Cut).secondary(Pairs);
        machine.fail_page_request(nth);
        let Ok(device) = Zram::new(machine, options) else { continue };
        let mut held: Vec<Option<[u8; 4096]>> = vec![None; 64];
        for step in 0..160_u64 {
            let page = step * 29 % 64;
            let data = paired_page_of([64, 700, 2000, 4096][step as usize % 4], step);
            match device.write_page(page, &data) {
                Ok(()) => held[page as usize] = Some(data),
                Err(error) => assert!(error.is_out_of_memory(), "{error}"),
            }
        }
        // At worst it stops half way.
        let _ = device.recompress(Recompress::default());
        device.compact();
        for (page, data) in held.iter().enumerate() {
            assert_eq!(read(&device, page as u64), data.unwrap_or([0; 4096]), "request {nth}, page {page}");
        }
        let stored = held.iter().flatten().count() as u64;
        assert_eq!(device.mm_stat().orig_data_size, stored * PAGE);
        device.reset();
        assert_eq!(device.pool_stats().objects, 0);
        assert_eq!((device.mm_stat().compr_data_size, device.mm_stat().huge_pages), (0, 0));
        drop(device);
        if machine.failure_pending() {
            break;
        }
        assert!(nth < 500);
    }
    machine.fail_page_request(0);
    assert_eq!(machine.take_reports(), "", "no pool ended with objects, nobody was told of a shortage");
}

#[cfg(all(feature = "lz4", feature = "zstd"))]
#[test]
fn the_compressors_of_the_crate_bring_every_page_back() {
    use crate::{Compressor, Lz4, Zstd};
    let options = ZramOptions::new(64 * PAGE, Lz4).secondary(Zstd::default());
    let device = Zram::new(machine(), options).unwrap();
    let text: Vec<u8> = include_str!("rules.rs").bytes().cycle().take(20 * 4096).collect();
    device.write_at(0, &text).unwrap();
    for page in 20..24 {
        device.write_page(page, &page_of(4096, page)).unwrap();
    }
    let before = device.mm_stat();
    assert!(before.compr_data_size - 4 * PAGE < 20 * PAGE * 6 / 10 && before.huge_pages == 4, "{before}");
    let done = device.recompress(Recompress::default()).unwrap();
    assert!(done.smaller >= 19 && done.saved_bytes > 10_000, "{done:?}");
    let mut back = vec![0; text.len()];
    device.read_at(0, &mut back).unwrap();
    assert_eq!(back, text);
    for page in 20..24 {
        assert_eq!(read(&device, page), page_of(4096, page));
    }
    let mut page = [0; 4096];
    for compressor in [&Lz4 as &dyn Compressor, &Zstd::new(1)] {
        assert!(compressor.decompress(&[0xff; 100], &mut page).is_err(), "{}", compressor.name());
        assert!(compressor.decompress(&[], &mut page).is_err());
        let noise = compressor.compress(&page_of(4096, 77), &mut page);
        assert!(noise.is_none_or(|len| len > 3500 && len < 4096), "{noise:?}");
    }
}
