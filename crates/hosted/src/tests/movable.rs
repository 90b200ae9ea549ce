//! Movable memory: real contents, real second mappings, users that do not notice when it moves.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kmem_buddy::IsolateMode;
use kmem_gfp::{FrameTable, Gfp, MovableOwner, Order, OwnerTag, PAGE_SIZE, Pfn, PfnRange, ZoneKind};

use super::space::{Ending, boot, look, read, word_of, write};
use crate::{Machine, MachineBuilder, MovableError, MovableMemory, MoveFailure, RamBacking, ZoneSplit};

const MIB: u64 = 1 << 20;
const MOVABLE: Gfp = Gfp::HIGHUSER_MOVABLE;
/// As many pages as there are, and no reclaim, compaction or report on the way.
const GREEDY: Gfp = Gfp::MOVABLE.union(Gfp::HIGHMEM).union(Gfp::MEMALLOC).union(Gfp::NOWARN).union(Gfp::NORETRY);

fn small() -> MachineBuilder {
    Machine::builder().cpus(4).ram_bytes(32 * MIB).zones(ZoneSplit::NORMAL_ONLY)
}

fn words(page: &mut [u8; PAGE_SIZE], word: u64) {
    page.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_ne_bytes()));
}

/// The word that fills a page, which is the same throughout.
fn word(page: &[u8; PAGE_SIZE]) -> u64 {
    let first = u64::from_ne_bytes(page[..8].try_into().unwrap());
    let torn = page.chunks_exact(8).find(|chunk| **chunk != first.to_ne_bytes());
    assert_eq!(torn, None, "a torn page: it begins with {first:#x}");
    first
}

fn free_blocks(machine: &Machine, order: Order) -> u64 {
    machine.kmem().pages().drain_all_pages();
    let pages = machine.kmem().pages();
    pages.zones().flat_map(|zone| zone.free_blocks()).map(|of_type| of_type[order.get() as usize]).sum()
}

/// Fills the machine with movable pages one by one and gives every second one back: all free memory is single pages.
fn checkered(machine: &Machine) -> Vec<MovableMemory> {
    let take = || machine.movable_pages(1, GREEDY).ok();
    let mut all: Vec<_> = std::iter::from_fn(take).collect();
    all.sort_by_key(|memory| memory.frame(0));
    for (name, memory) in all.iter().enumerate() {
        words(&mut memory.write(0), name as u64);
    }
    all.into_iter().step_by(2).collect()
}

fn check(all: &[MovableMemory]) {
    for (name, memory) in all.iter().enumerate() {
        assert_eq!(word(&memory.read(0)), 2 * name as u64);
    }
}

#[test]
fn a_moved_page_keeps_its_contents_and_its_address() {
    let machine = boot(small());
    let memory = machine.movable_area(64, MOVABLE).unwrap();
    let at = memory.area().unwrap().addr().get();
    for page in 0..64 {
        words(&mut memory.write(page), page as u64);
    }
    let before: Vec<_> = (0..64).map(|page| memory.frame(page).unwrap()).collect();
    // The pageblock that they lie in is wanted by somebody else.
    let block = PfnRange::with_len(Pfn(before[0].0 & !511), 512).unwrap();
    machine.kmem().pages().alloc_contig_range(block, Gfp::KERNEL, IsolateMode::Other).unwrap();
    for (page, &old) in before.iter().enumerate() {
        let new = memory.frame(page).unwrap();
        assert!(block.contains(old) && !block.contains(new), "{old} to {new}");
        assert_eq!(machine.kmem().vmalloc_to_pfn((at + page * PAGE_SIZE) as *const u8), Some(new));
        // The same bytes by both mappings, and a write by one is seen by the other.
        assert_eq!((word(&memory.read(page)), word_of(&machine, new)), (page as u64, page as u64));
        write(at + page * PAGE_SIZE, 7);
        assert_eq!(word_of(&machine, new), 7);
    }
    assert_eq!((machine.movable_stats().moved, machine.movable_stats().pages), (64, 64));
    drop(memory);
    assert_eq!(machine.movable_stats().pages, 0);
    // SAFETY: taken above.
    unsafe { machine.kmem().pages().free_contig_range(block) }.unwrap();
}

#[test]
fn readers_and_writers_never_see_a_torn_page() {
    for lingering in [false, true] {
        let machine = boot(small().lingering_translations(lingering));
        let pages = 96;
        let memory = machine.movable_area(pages, MOVABLE).unwrap();
        let bare = machine.movable_pages(pages, MOVABLE).unwrap();
        let constant = machine.movable_area(8, MOVABLE).unwrap();
        (0..8).for_each(|page| words(&mut constant.write(page), 0xabcd));
        let over = AtomicBool::new(false);
        let rounds = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for (memory, seed) in [(&memory, 1_usize), (&memory, 2), (&bare, 3)] {
                let (over, rounds) = (&over, &rounds);
                scope.spawn(move || {
                    let mut seen = vec![0; pages];
                    for i in 0.. {
                        let page = i * (2 * seed + 1) % pages;
                        let now = word(&memory.read(page));
                        assert!(now >= seen[page], "a write was lost: {now} after {}", seen[page]);
                        let mut alone = memory.write(page);
                        seen[page] = word(&alone) + 1;
                        words(&mut alone, seen[page]);
                        drop(alone);
                        rounds.fetch_add(1, Ordering::Relaxed);
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            // Nobody writes to these, so no guard is needed to read them.
            let (over, at) = (&over, constant.area().unwrap().addr().get());
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    for word in (0..8 * PAGE_SIZE).step_by(8) {
                        assert_eq!(read(at + word), 0xabcd);
                    }
                }
            });
            let kmem = machine.kmem();
            let end = Instant::now() + Duration::from_millis(1500);
            while Instant::now() < end {
                for memory in [&memory, &bare, &constant] {
                    let block = PfnRange::with_len(Pfn(memory.frame(0).unwrap().0 & !511), 512).unwrap();
                    let taken = kmem.pages().alloc_contig_range(block, Gfp::KERNEL, IsolateMode::Other);
                    if taken.is_ok() {
                        // SAFETY: taken just before.
                        unsafe { kmem.pages().free_contig_range(block) }.unwrap();
                    }
                }
                kmem.compact_memory(1).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        let stats = machine.movable_stats();
        assert!(stats.moved > 500 && rounds.load(Ordering::Relaxed) > 500, "{stats:?}, {rounds:?}");
        assert_eq!(stats.pages as usize, 2 * pages + 8);
    }
}

#[test]
fn compaction_makes_large_blocks_of_a_chequered_machine() {
    let machine = boot(small());
    let kept = checkered(&machine);
    assert_eq!((free_blocks(&machine, Order::PAGEBLOCK), free_blocks(&machine, Order::MAX)), (0, 0));
    machine.kmem().compact_memory(1).unwrap();
    // Half of the pages are free, and lie together.
    let large = free_blocks(&machine, Order::PAGEBLOCK) + 2 * free_blocks(&machine, Order::MAX);
    assert!(large >= 7, "{large} of 16 pageblocks");
    check(&kept);
}

#[test]
fn a_request_for_a_large_block_compacts_by_itself() {
    for (on, gets) in [(true, true), (false, false)] {
        let machine = boot(small().compaction(on));
        let kept = checkered(&machine);
        let got = machine.kmem().alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, Order::PAGEBLOCK);
        assert_eq!(got.is_ok(), gets, "{got:?}");
        assert_eq!(machine.movable_stats().moved > 0, gets);
        check(&kept);
    }
}

#[test]
fn the_daemon_compacts_when_it_is_woken_and_by_itself() {
    for thread in [true, false] {
        let machine = boot(small().kcompactd(thread));
        let kept = checkered(&machine);
        machine.wake_kcompactd(kmem_gfp::NodeId(0), Order::PAGEBLOCK, ZoneKind::Movable);
        let end = Instant::now() + Duration::from_secs(20);
        while free_blocks(&machine, Order::PAGEBLOCK) + free_blocks(&machine, Order::MAX) == 0 && Instant::now() < end {
            if thread {
                std::thread::sleep(Duration::from_millis(5));
            } else {
                assert!(machine.poll_kcompactd().is_some());
            }
        }
        assert!(free_blocks(&machine, Order::PAGEBLOCK) + free_blocks(&machine, Order::MAX) > 0, "thread: {thread}");
        check(&kept);
    }
}

/// All frames that there are: those that can be had, none twice, and how many the allocators hold for themselves.
fn all_frames(machine: &Machine) -> usize {
    machine.kmem().vm_unmap_aliases();
    machine.kmem().slabs().rcu_barrier();
    machine.kmem().slabs().shrink_all();
    machine.kmem().pages().drain_all_pages();
    let frames: Vec<Pfn> = std::iter::from_fn(|| machine.kmem().alloc_page(GREEDY).ok()).collect();
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), frames.len(), "a frame twice");
    for &pfn in &frames {
        // SAFETY: ours.
        unsafe { machine.kmem().free_page(pfn) }.unwrap();
    }
    let slabs = machine.kmem().slabs().stats();
    let vmalloc = machine.kmem().vmalloc_layer().stats();
    let books = slabs.slab_pages() + slabs.metadata_pages + vmalloc.metadata_pages + machine.space_stats().table_frames;
    frames.len() + books as usize
}

#[test]
fn every_failure_at_every_migration_loses_nothing() {
    for failure in MoveFailure::ALL {
        // Another machine, as counting scatters what is free.
        let total = all_frames(&boot(small()));
        let machine = boot(small());
        drop(machine.movable_area(24, MOVABLE).unwrap());
        let mut nth = 1;
        loop {
            let memory = machine.movable_area(24, MOVABLE).unwrap();
            (0..24).for_each(|page| words(&mut memory.write(page), page as u64 + 100 * u64::from(nth)));
            machine.fail_migration(nth, failure);
            let frames = (0..24).map(|page| memory.frame(page).unwrap().0);
            let block = PfnRange::new(Pfn(frames.clone().min().unwrap()), Pfn(frames.max().unwrap() + 1));
            assert_eq!(block.len(), 24, "neighbours");
            let pages = machine.kmem().pages();
            let taken = pages.alloc_contig_range(block, Gfp::KERNEL, IsolateMode::Other);
            let came = !machine.migration_failure_pending();
            // A page that fails for the moment, or could not be isolated, is tried again.
            let lasting = matches!(failure, MoveFailure::Permanent | MoveFailure::NoMemory | MoveFailure::Mapping);
            assert!(taken.is_ok() || (came && lasting), "{failure:?} {nth}: {taken:?}");
            (0..24).for_each(|page| assert_eq!(word(&memory.read(page)), page as u64 + 100 * u64::from(nth)));
            let at = memory.area().unwrap().addr().get();
            for page in 0..24 {
                let frame = memory.frame(page).unwrap();
                assert_eq!(machine.kmem().vmalloc_to_pfn((at + page * PAGE_SIZE) as *const u8), Some(frame));
                assert_eq!(look(at + page * PAGE_SIZE), Some(word_of(&machine, frame)));
            }
            if taken.is_ok() {
                assert!((0..24).all(|page| !block.contains(memory.frame(page).unwrap())));
                // SAFETY: taken above.
                unsafe { pages.free_contig_range(block) }.unwrap();
            }
            // Nothing stayed isolated: the same range can be had now.
            machine.fail_migration(0, failure);
            pages.alloc_contig_range(block, Gfp::KERNEL, IsolateMode::Other).unwrap();
            // SAFETY: taken just before.
            unsafe { pages.free_contig_range(block) }.unwrap();
            drop(memory);
            if !came {
                break;
            }
            nth += 1;
        }
        assert!(nth > 24, "{failure:?}: {nth}");
        assert_eq!(all_frames(&machine), total, "{failure:?}");
    }
}

#[test]
fn what_others_own_never_moves() {
    let machine = boot(small());
    let kmem = machine.kmem();
    let mut pinned = Vec::new();
    let mut kept = Vec::new();
    while let Ok(memory) = machine.movable_pages(1, GREEDY) {
        kept.push(memory);
        if let Ok(pfn) = kmem.alloc_page(Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOWARN | Gfp::NORETRY) {
            let at = kmem.platform().table.address_of(pfn).unwrap().addr().get();
            write(at, pfn.0);
            pinned.push((pfn, at));
        }
        kept.truncate(kept.len() - kept.len() % 3 / 2);
    }
    kept.truncate(kept.len() / 2);
    for _ in 0..3 {
        kmem.compact_memory(1).unwrap();
    }
    for &(pfn, at) in &pinned {
        assert_eq!(read(at), pfn.0);
        let block = PfnRange::with_len(pfn, 1).unwrap();
        assert!(kmem.pages().alloc_contig_range(block, Gfp::KERNEL, IsolateMode::Other).is_err());
        assert!(!kmem.platform().movable.isolate(pfn));
    }
    for (pfn, _) in pinned {
        // SAFETY: ours.
        unsafe { kmem.free_page(pfn) }.unwrap();
    }
}

#[test]
fn compaction_beside_threads_that_allocate_and_free_conserves_pages() {
    let machine = boot(small().kcompactd(true));
    let total = all_frames(&machine);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3_u64 {
            let (machine, over): (&Machine, _) = (&machine, &over);
            scope.spawn(move || {
                let mut random = seed * 2 + 1;
                let mut live: Vec<(MovableMemory, u64)> = Vec::new();
                let mut blocks: Vec<(Pfn, Order)> = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let dice = random >> 33;
                    let full = live.len() > 200;
                    match dice % 8 {
                        0..4 if !full => {
                            let pages = 1 + (dice >> 8) as usize % 8;
                            let made = if dice & 16 == 0 {
                                machine.movable_pages(pages, MOVABLE | Gfp::NOWARN | Gfp::NORETRY)
                            } else {
                                machine.movable_area(pages, MOVABLE | Gfp::NOWARN | Gfp::NORETRY)
                            };
                            if let Ok(memory) = made {
                                (0..pages).for_each(|page| words(&mut memory.write(page), random ^ page as u64));
                                live.push((memory, random));
                            }
                        }
                        4 => {
                            let order = Order::new((dice >> 8) as u32 % 10).unwrap();
                            let gfp = Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY;
                            blocks.extend(machine.kmem().alloc_pages(gfp, order).ok().map(|pfn| (pfn, order)));
                        }
                        5 if !blocks.is_empty() => {
                            let (pfn, order) = blocks.swap_remove(dice as usize % blocks.len());
                            // SAFETY: ours.
                            unsafe { machine.kmem().free_pages(pfn, order) }.unwrap();
                        }
                        _ if !live.is_empty() => {
                            let (memory, name) = live.swap_remove(dice as usize % live.len());
                            for page in 0..memory.nr_pages() {
                                assert_eq!(word(&memory.read(page)), name ^ page as u64);
                            }
                        }
                        _ => {}
                    }
                }
                for (pfn, order) in blocks {
                    // SAFETY: ours.
                    unsafe { machine.kmem().free_pages(pfn, order) }.unwrap();
                }
            });
        }
        let end = Instant::now() + Duration::from_millis(2000);
        while Instant::now() < end {
            machine.kmem().compact_memory(1).unwrap();
            let large = machine.kmem().alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, Order::PAGEBLOCK);
            if let Ok(pfn) = large {
                // SAFETY: ours.
                unsafe { machine.kmem().free_pages(pfn, Order::PAGEBLOCK) }.unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(machine.movable_stats().pages, 0);
    assert!(machine.movable_stats().moved > 100, "{:?}", machine.movable_stats());
    assert_eq!(all_frames(&machine), total);
}

#[test]
fn a_page_that_is_held_stays_and_moves_later() {
    let machine = boot(small());
    let memory = machine.movable_pages(1, MOVABLE).unwrap();
    let area = machine.movable_area(1, MOVABLE).unwrap();
    let pages = machine.kmem().pages();
    let take = |memory: &MovableMemory| {
        let frame = memory.frame(0).unwrap();
        let range = PfnRange::with_len(frame, 1).unwrap();
        let taken = pages.alloc_contig_range(range, Gfp::KERNEL, IsolateMode::Other);
        if taken.is_ok() {
            // SAFETY: taken just before.
            unsafe { pages.free_contig_range(range) }.unwrap();
        }
        (taken.is_ok(), memory.frame(0) != Some(frame))
    };
    // A reader of a page without a second mapping holds it, one of a mapped page does not; writers hold either.
    let reader = memory.read(0);
    assert_eq!(take(&memory), (false, false));
    drop(reader);
    let writer = memory.write(0);
    assert_eq!(take(&memory), (false, false));
    drop(writer);
    assert_eq!(take(&memory), (true, true));
    let reader = area.read(0);
    assert_eq!(take(&area), (true, true));
    drop(reader);
    let writer = area.write(0);
    assert_eq!(take(&area), (false, false));
    drop(writer);
    assert_eq!(take(&area), (true, true));
    assert!(machine.movable_stats().contended >= 3);
}

#[test]
fn at_the_limit_of_mappings_pages_stay_where_they_are() {
    let machine = boot(small());
    let memory = machine.movable_area(64, MOVABLE).unwrap();
    let used = machine.space_stats().host_mappings;
    drop(memory);
    // As many as one run of neighbours needs, none for a page in the middle of it that goes elsewhere.
    let machine = boot(small().mapping_budget(used + 2));
    let memory = match machine.movable_area(64, MOVABLE) {
        Ok(memory) => memory,
        // Other tests' machines have used up what all may have together.
        Err(MovableError::Mapping { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    (0..64).for_each(|page| words(&mut memory.write(page), page as u64));
    let frame = memory.frame(30).unwrap();
    let range = PfnRange::with_len(frame, 1).unwrap();
    let _ = machine.kmem().pages().alloc_contig_range(range, Gfp::KERNEL, IsolateMode::Other);
    (0..64).for_each(|page| assert_eq!(word(&memory.read(page)), page as u64));
}

#[test]
fn nothing_is_left_of_movable_memory_that_could_not_be_had() {
    let machine = boot(small().ram_bytes(8 * MIB));
    let total = all_frames(&machine);
    assert!(matches!(machine.movable_area(0, MOVABLE), Err(MovableError::Empty)));
    for nth in 1.. {
        machine.fail_page_request(nth);
        let result = machine.movable_area(20, MOVABLE | Gfp::NOWARN | Gfp::NORETRY);
        let came = !machine.failure_pending();
        machine.fail_page_request(0);
        drop(result);
        if !came {
            break;
        }
        assert_eq!(machine.movable_stats().pages, 0);
    }
    assert_eq!(all_frames(&machine), total);
    let private = boot(small().ram_backing(RamBacking::Private));
    assert!(matches!(private.movable_area(4, MOVABLE), Err(MovableError::Mapping { .. })));
    assert_eq!(private.movable_pages(4, MOVABLE).unwrap().nr_pages(), 4);
}

/// An owner of frames that others have tagged, and that do not move.
struct Stubborn(AtomicU64);

// SAFETY: nothing is ever isolated.
unsafe impl MovableOwner for Stubborn {
    fn isolate(&self, _pfn: Pfn) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        false
    }
    fn migrate(&self, source: Pfn, _target: Pfn) -> Result<(), kmem_gfp::MigrateError> {
        Err(kmem_gfp::MigrateError::Permanent(source))
    }
    fn put_back(&self, _pfn: Pfn) {}
}

#[test]
fn owners_are_found_by_the_tag_of_their_frames() {
    static OWNER: Stubborn = Stubborn(AtomicU64::new(0));
    let machine: Ending = boot(small());
    assert!(machine.set_movable_owner(OwnerTag::Lru, &OWNER));
    assert!(!machine.set_movable_owner(OwnerTag::Lru, &OWNER), "named already");
    let pfn = machine.kmem().alloc_page(MOVABLE).unwrap();
    let words = machine.kmem().platform().table.words(pfn).unwrap();
    words.owner.store(OwnerTag::Lru as u64, Ordering::Relaxed);
    let range = PfnRange::with_len(pfn, 1).unwrap();
    let taken = machine.kmem().pages().alloc_contig_range(range, Gfp::KERNEL, IsolateMode::Other);
    assert!(taken.is_err() && OWNER.0.load(Ordering::Relaxed) > 0);
    words.owner.store(OwnerTag::None as u64, Ordering::Relaxed);
}
