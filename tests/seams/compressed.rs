//! Compressed objects under those who move frames: contiguous areas, and whoever asks the page allocator's environment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kmem::buddy::BuddyEnv;
use kmem::zsmalloc::Config;
use kmem::{AreaSpec, Gfp, PAGE_SIZE, Pfn};
use kmem_gfp::{FrameTable, OwnerTag};
use kmem_hosted::{Machine, Reports, ZoneSplit};
use kmem_tests::Kmem;

const GFP: Gfp = Gfp::NOIO.union(Gfp::HIGHMEM).union(Gfp::MOVABLE);

fn boot() -> &'static Machine {
    let builder = Machine::builder().cpus(4).ram_bytes(64 << 20).zones(ZoneSplit::NORMAL_ONLY);
    builder.reports(Reports::Capture).boot().unwrap()
}

fn is_compressed(kmem: Kmem, pfn: Pfn) -> bool {
    let words = kmem::Platform::frames(kmem.platform()).words(pfn);
    words.is_some_and(|words| words.owner.load(Ordering::Relaxed) & OwnerTag::MASK == OwnerTag::Zsmalloc as u64)
}

fn bytes(nth: usize) -> Vec<u8> {
    (0..200 + nth * 31 % 3800).map(|at| (nth * 7 + at) as u8).collect()
}

#[test]
fn an_area_is_emptied_of_compressed_objects_under_their_readers() {
    // P03
    let machine = boot();
    let kmem = machine.kmem();
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("camera", 32 << 8)).unwrap();
    let lent = area.ranges().next().unwrap();
    let pools: Vec<_> = (0..2).map(|_| kmem.zs_create_pool(Config::new(), Gfp::KERNEL).unwrap()).collect();
    let objects: Vec<_> = (0..6000)
        .map(|nth| {
            let pool = &pools[nth % 2];
            (nth, pool, kmem.zs_malloc(pool, &bytes(nth), GFP).unwrap())
        })
        .collect();
    let there = |range: kmem::PfnRange| range.iter().filter(|pfn| is_compressed(kmem, *pfn)).count();
    assert!(there(lent) > 500, "{} frames of the area hold objects", there(lent));
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (objects, done, reads) = (&objects, &done, &reads);
            scope.spawn(move || {
                let mut buffer = [0; PAGE_SIZE];
                for (nth, pool, handle) in objects.iter().cycle().skip(seed * 3000) {
                    assert_eq!(*pool.read(*handle, &mut buffer).unwrap(), bytes(*nth), "object {nth}");
                    reads.fetch_add(1, Ordering::Relaxed);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        while reads.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        // Whoever is being read at the moment stays, so it may take another try.
        let frames = (0..100).find_map(|_| kmem.cma_alloc(area, 32 << 8, 0).ok());
        done.store(true, Ordering::Relaxed);
        let frames = frames.expect("the whole area");
        assert_eq!((frames.range(), there(frames.range())), (lent, 0));
        let first = kmem.page_address(lent.start).unwrap();
        // SAFETY: the area's frames are ours now.
        unsafe { first.write_bytes(0xdd, 32 << 20) };
    });
    let mut buffer = [0; PAGE_SIZE];
    for (nth, pool, handle) in &objects {
        assert_eq!(*pool.read(*handle, &mut buffer).unwrap(), bytes(*nth), "object {nth}");
        pool.free(*handle).unwrap();
    }
    assert_eq!(machine.take_reports(), "");
}

#[test]
fn a_pool_outlives_the_isolation_of_its_frames() {
    let machine = boot();
    let kmem = machine.kmem();
    let pool = kmem.zs_create_pool(Config::new(), Gfp::KERNEL).unwrap();
    let handle = kmem.zs_malloc(&pool, &[7; 3000], GFP).unwrap();
    let pfn = {
        let mut buffer = [0; PAGE_SIZE];
        let object = pool.read(handle, &mut buffer).unwrap();
        kmem.virt_to_pfn(object.as_ptr()).unwrap()
    };
    let owner = kmem.pages().env().movable_owner(pfn).unwrap();
    assert!(owner.isolate(pfn) && !owner.isolate(pfn), "once at a time");
    let moved_to = kmem.alloc_page(GFP).unwrap();
    assert!(!owner.isolate(moved_to), "nobody's");
    kmem.zs_free(&pool, handle).unwrap();
    let is_gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop(pool);
            is_gone.store(true, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!is_gone.load(Ordering::Relaxed), "somebody is about to move a frame of it");
        owner.migrate(pfn, moved_to).unwrap();
    });
    assert!(is_gone.load(Ordering::Relaxed));
    assert!(!is_compressed(kmem, pfn) && !is_compressed(kmem, moved_to));
    assert!(!owner.isolate(moved_to), "the pool has gone");
    assert!(owner.migrate(moved_to, pfn).is_err());
    // SAFETY: the source of a migration is the mover's.
    unsafe { kmem.free_page(pfn) }.unwrap();
    assert_eq!(machine.take_reports(), "");
}
