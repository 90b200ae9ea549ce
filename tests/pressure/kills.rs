//! The OOM killer on tasks with real memory, and owners that need memory to free memory.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kmem::CacheArgs;
use kmem::slab::CacheElements;
use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_hosted::{Machine, ReclaimOptions, StoreError, SwapDevice};

use crate::rig::{check, machine, write};

#[test]
fn the_largest_task_is_killed_and_the_others_lose_nothing() {
    let machine = machine(32, ReclaimOptions::default());
    let pages = machine.kmem().pages().free_page_count();
    let small = machine.task("small").unwrap();
    let kept = small.anonymous_pages(pages / 8).unwrap();
    small.run(|| (0..pages / 8).for_each(|index| write(kept, index, 3).unwrap()));
    let hog = machine.task("hog").unwrap();
    let memory = hog.anonymous_pages(2 * pages).unwrap();
    let ended = hog.run(|| {
        for index in 0..2 * pages {
            write(memory, index, 5)?;
        }
        Ok::<(), StoreError>(())
    });
    assert!(ended.is_err() && hog.is_killed(), "{ended:?}");
    drop(hog);
    assert!(!small.is_killed());
    small.run(|| (0..pages / 8).for_each(|index| check(kept, index, 3).unwrap()));
    let report = machine.take_reports();
    assert!(report.contains("invoked oom-killer") && report.contains("(hog)"), "{report}");
    assert!(report.contains("MemTotal:"), "it tells what memory looks like: {report}");
    drop(small);
    assert_eq!(machine.count_pages().unwrap(), (0, 0));
}

#[test]
fn a_victim_that_does_not_get_to_its_end_is_reaped() {
    let machine = machine(16, ReclaimOptions::default());
    let pages = machine.kmem().pages().free_page_count();
    let hog = machine.task("stuck").unwrap();
    let memory = hog.anonymous_pages(pages).unwrap();
    hog.run(|| {
        let mut index = 0;
        while index < pages && write(memory, index, 5).is_ok() {
            index += 1;
        }
    });
    // The request of another one is met although the victim never exits.
    let other = machine.task("other").unwrap().with_oom_score_adj(-1000);
    let own = other.anonymous_pages(pages / 4).unwrap();
    other.run(|| (0..pages / 4).for_each(|index| write(own, index, 6).unwrap()));
    assert!(hog.is_killed());
    assert_eq!(hog.stats().resident, 0, "reaped");
    // The reaper's thread says so when it is through, which may be a moment after the last page has gone.
    let mut report = machine.take_reports();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !report.contains("oom_reaper: reaped") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        report += &machine.take_reports();
    }
    assert!(report.contains("oom_reaper: reaped"), "{report}");
}

type Side = kmem::ObjectSide<kmem_hosted::Host<kmem_hosted::HostCpu>>;

/// A device that needs memory of the machine for every page that it writes: an element of a mempool, and a bounce page that it
/// waits for until there is one.
struct Bouncing {
    machine: &'static Machine,
    pool: kmem::slab::Mempool<'static, Side, CacheElements<'static, Side>>,
    places: Vec<Mutex<Option<Box<[u8; PAGE_SIZE]>>>>,
}

impl SwapDevice for Bouncing {
    fn write_page(&self, offset: u64, page: &[u8; PAGE_SIZE]) -> io::Result<()> {
        // As a block layer does: whatever happens, there is one element at least.
        let element = self.pool.alloc(Gfp::NOIO).map_err(|error| io::Error::other(error.to_string()))?;
        // SAFETY: the pool's elements have a page's size.
        let bounce = unsafe { element.cast::<[u8; PAGE_SIZE]>().as_mut() };
        bounce.copy_from_slice(page);
        if let Some(place) = self.places.get(offset as usize) {
            *place.lock().unwrap() = Some(Box::new(*bounce));
        }
        std::thread::yield_now();
        // SAFETY: allocated above.
        unsafe { self.pool.free(element) };
        Ok(())
    }

    fn read_page(&self, offset: u64, page: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        let place = self.places.get(offset as usize).ok_or(io::ErrorKind::NotFound)?;
        page.copy_from_slice(place.lock().unwrap().as_deref().ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}

#[test]
fn owners_that_need_memory_to_free_memory_never_deadlock() {
    let machine = machine(16, ReclaimOptions::default());
    let kmem = machine.kmem();
    let cache = kmem.kmem_cache_create("bounce", PAGE_SIZE, &CacheArgs::default()).unwrap();
    let elements = CacheElements { slabs: kmem.slabs(), cache };
    let pool = kmem::slab::Mempool::new(kmem.slabs(), 2, elements, Gfp::KERNEL).unwrap();
    let places = 2 * kmem.pages().managed_pages();
    let device = Bouncing { machine, pool, places: (0..places).map(|_| Mutex::new(None)).collect() };
    assert!(core::ptr::eq(device.machine, machine));
    machine.swap_on(Box::new(device), places).unwrap();
    let pages = kmem.pages().free_page_count();
    let (done, watch) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::thread::scope(|scope| {
            for seed in 0..3u64 {
                scope.spawn(move || {
                    let anon = machine.anonymous_pages(pages / 2).unwrap();
                    for round in 0..2 {
                        (0..pages / 2).for_each(|index| write(anon, index, seed + round).unwrap());
                        (0..pages / 2).for_each(|index| check(anon, index, seed + round).unwrap());
                    }
                });
            }
        });
        done.send(()).unwrap();
    });
    watch.recv_timeout(Duration::from_secs(120)).expect("it comes to its end");
    assert!(machine.swap().unwrap().traffic().0 > pages / 4);
}
