//! Memory behind the frames.

use std::time::Instant;

use kmem_gfp::{FrameTable, PAGE_SIZE, Pfn, PfnRange};

use crate::ram::Ram;
use crate::{MemoryPlan, RamBacking, ZoneSplit};

const MIB: u64 = 1 << 20;

fn small(backing: RamBacking) -> Ram {
    Ram::map(MemoryPlan::new(64 * MIB, 1, ZoneSplit::every_zone(64 * MIB)).unwrap(), backing).unwrap()
}

#[expect(clippy::mut_from_ref, reason = "the memory is not part of the value")]
fn bytes(ram: &Ram, range: PfnRange) -> &mut [u8] {
    let start = ram.table().address_of(range.start).unwrap();
    // SAFETY: the tests own all frames, and use one slice at a time.
    unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len() as usize * PAGE_SIZE) }
}

#[test]
fn addresses_and_frames_invert_each_other_in_every_range() {
    let ram = small(RamBacking::Private);
    let base = ram.table().address_of(ram.plan().span().start).unwrap().as_ptr() as usize;
    assert_eq!(base % (4 << 20), 0);
    for range in ram.plan().ranges() {
        for pfn in [range.frames.start, Pfn(range.frames.end.0 - 1)] {
            let address = ram.table().address_of(pfn).unwrap().as_ptr() as usize;
            assert_eq!(ram.table().frame_of(address + 4095), Some(pfn));
            bytes(&ram, PfnRange::with_len(pfn, 1).unwrap()).fill(1);
        }
    }
    assert_eq!(ram.table().frame_of(base - 1), None);
}

#[test]
fn zeroing_zeroes_touched_and_untouched_pages() {
    for backing in [RamBacking::Private, RamBacking::Memfd] {
        let ram = small(backing);
        let normal = ram.plan().ranges()[2].frames;
        let range = PfnRange::with_len(normal.start, 2048).unwrap();
        // Runs of touched pages of every length around the threshold, with gaps.
        let mut page = 0;
        for run in 1..40 {
            let touched = PfnRange::with_len(Pfn(range.start.0 + page), run).unwrap();
            bytes(&ram, touched).fill(0xa5);
            page += run + run % 23 + 1;
        }
        let before = ram.resident(range);
        // SAFETY: the test owns all frames.
        unsafe { ram.zero(range) };
        if backing == RamBacking::Private {
            assert!(ram.resident(range) < range.len(), "long untouched runs stay untouched");
            assert!(ram.resident(range) >= before);
        }
        assert!(bytes(&ram, range).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn discarded_memory_is_not_resident_and_reads_as_zero() {
    for backing in [RamBacking::Private, RamBacking::Memfd] {
        let ram = small(backing);
        let range = PfnRange::with_len(ram.plan().ranges()[2].frames.start, 512).unwrap();
        bytes(&ram, range).fill(0xa5);
        assert_eq!(ram.resident(range), 512);
        assert!(ram.resident_below(range.end) >= 512);
        // SAFETY: the test owns all frames.
        unsafe { ram.discard(range) }.unwrap();
        assert_eq!(ram.resident(range), 0);
        assert!(bytes(&ram, range).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_range_that_is_not_memory_is_refused() {
    let ram = small(RamBacking::Private);
    let hole = PfnRange::with_len(Pfn(0x8_0000), 16).unwrap();
    // SAFETY: nothing is there.
    assert!(unsafe { ram.discard(hole) }.is_err());
    assert_eq!(ram.resident(hole), 0);
}

#[test]
fn a_memory_file_shows_what_frames_hold() {
    use std::os::unix::fs::FileExt;
    let ram = small(RamBacking::Memfd);
    let pfn = ram.plan().ranges()[1].frames.start;
    bytes(&ram, PfnRange::with_len(pfn, 1).unwrap()).fill(0x5a);
    let file = std::fs::File::from(ram.file().unwrap().try_clone_to_owned().unwrap());
    let mut page = [0; PAGE_SIZE];
    file.read_exact_at(&mut page, (pfn.0 - ram.plan().span().start.0) * PAGE_SIZE as u64).unwrap();
    assert!(page.iter().all(|&byte| byte == 0x5a));
}

#[test]
fn mapping_takes_no_longer_for_more_memory() {
    for gib in [1_u64, 64] {
        let best = (0..5).map(|_| {
            let started = Instant::now();
            let ram =
                Ram::map(MemoryPlan::new(gib << 30, 1, ZoneSplit::every_zone(gib << 30)).unwrap(), RamBacking::Private);
            let time = started.elapsed();
            drop(ram.unwrap());
            time
        });
        let best = best.min().unwrap();
        assert!(best.as_millis() < 5, "{gib} GiB took {best:?}");
    }
}
