//! Models of an area. Run with `cargo xtask loom --crate cma`.

use std::boxed::Box;
use std::sync::Arc;

use kmem_gfp::{AllocError, ContigRange, FreeError, Gfp, Pfn, PfnRange};
use kmem_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::thread;

use super::toy::{ToyContext, ToyCpu, books, range};
use crate::{AreaSpec, Cma, CmaEnv, CmaError, Lender};

/// Frames of a bit: the area of a pageblock has two.
const HALF: u64 = 256;

/// A page allocator of one pageblock, of which one caller at a time can empty a part.
struct Block {
    context: ToyContext,
    isolated: AtomicBool,
    lent: AtomicBool,
    /// Which halves somebody has.
    taken: [AtomicBool; 2],
    /// What their holders write.
    memory: [UnsafeCell<u32>; 2],
    refused: AtomicU32,
}

// SAFETY: the cells are the model's: an access by two is what it looks for.
unsafe impl Sync for Block {}
// SAFETY: as above.
unsafe impl Send for Block {}

impl Block {
    fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            context: ToyContext::default(),
            isolated: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            taken: [AtomicBool::new(false), AtomicBool::new(false)],
            memory: [UnsafeCell::new(0), UnsafeCell::new(0)],
            refused: AtomicU32::new(0),
        }))
    }

    fn halves(range: PfnRange) -> impl Iterator<Item = usize> {
        (range.start.0 / HALF..range.end.0 / HALF).map(|half| half as usize)
    }

    /// Somebody uses the pages.
    fn touch(&self, range: PfnRange) {
        // SAFETY: the model says if it is not so.
        Self::halves(range).for_each(|half| self.memory[half].with_mut(|memory| unsafe { *memory += 1 }));
    }
}

impl CmaEnv for Block {
    type Cpu = ToyCpu;
    type Context = ToyContext;
    type Source = Self;

    fn cpu(&self) -> &ToyCpu {
        &ToyCpu
    }
    fn context(&self) -> &ToyContext {
        &self.context
    }
    fn source(&self) -> &Self {
        self
    }
}

// SAFETY: a half is taken by whoever turns its flag.
unsafe impl ContigRange for Block {
    fn take_range(&self, range: PfnRange, _gfp: Gfp) -> Result<(), AllocError> {
        assert!(self.lent.load(Ordering::Relaxed), "taken before it was lent");
        if self.isolated.swap(true, Ordering::AcqRel) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(AllocError::Busy(range.start));
        }
        let taken = Self::halves(range).find(|&half| self.taken[half].swap(true, Ordering::AcqRel));
        self.isolated.store(false, Ordering::Release);
        match taken {
            None => Ok(()),
            Some(half) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(AllocError::Busy(Pfn(half as u64 * HALF)))
            }
        }
    }

    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError> {
        for half in Self::halves(range) {
            if !self.taken[half].swap(false, Ordering::AcqRel) {
                return Err(FreeError::AlreadyFree(Pfn(half as u64 * HALF)));
            }
        }
        Ok(())
    }
}

// SAFETY: one area has it all.
unsafe impl Lender for Block {
    fn span(&self) -> PfnRange {
        range(0, 512)
    }
    fn reserve(&self, range: PfnRange) -> Result<(), AllocError> {
        match Self::halves(range).find(|&half| self.taken[half].swap(true, Ordering::AcqRel)) {
            None => Ok(()),
            Some(half) => Err(AllocError::Busy(Pfn(half as u64 * HALF))),
        }
    }
    unsafe fn adopt(&self, range: PfnRange) -> Result<(), AllocError> {
        self.reserve(range)
    }
    unsafe fn lend(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.give_up(range) };
        self.lent.store(true, Ordering::Relaxed);
    }
    unsafe fn give_up(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.return_range(range) }.unwrap();
    }
}

/// A machine with one area of two bits.
fn machine(active: bool) -> (Arc<Cma<&'static Block>>, &'static Block) {
    let block = Block::new();
    let cma = Arc::new(Cma::new(block));
    let spec = AreaSpec::new("a", 512).granularity(8);
    // SAFETY: as asked for, ours, for good.
    let area = unsafe { cma.declare(&spec, books(&spec)) }.unwrap();
    if active {
        area.activate();
    }
    (cma, block)
}

#[test]
fn two_requests_have_pages_of_their_own_and_neither_is_in_the_others_way() {
    loom::model(|| {
        let (cma, block) = machine(true);
        let request = |cma: &Cma<&'static Block>| {
            let area = cma.areas().next().unwrap();
            let pages = area.alloc_raw(HALF, 0, Gfp::KERNEL | Gfp::NOWARN);
            if let Ok(pages) = pages {
                block.touch(pages);
            }
            pages
        };
        let other = thread::spawn({
            let cma = cma.clone();
            move || request(&cma)
        });
        let mine = request(&cma).unwrap();
        let theirs = other.join().unwrap().unwrap();
        assert_ne!(mine, theirs);
        assert_eq!(block.refused.load(Ordering::Relaxed), 0);
        let stats = cma.areas().next().unwrap().stats();
        assert_eq!((stats.available_pages, stats.used_pages, stats.alloc_success), (0, 512, 2));
    });
}

#[test]
fn a_request_has_released_pages_once_nobody_else_has_them() {
    loom::model(|| {
        let (cma, block) = machine(true);
        let area = cma.areas().next().unwrap();
        let first = area.alloc_raw(HALF, 0, Gfp::KERNEL).unwrap();
        let _second = area.alloc_raw(HALF, 0, Gfp::KERNEL).unwrap();
        let other = thread::spawn({
            let cma = cma.clone();
            move || {
                block.touch(first);
                // SAFETY: ours, unused from here on.
                unsafe { cma.areas().next().unwrap().release(first) }.unwrap();
            }
        });
        match area.alloc_raw(HALF, 0, Gfp::KERNEL | Gfp::NOWARN) {
            Ok(pages) => {
                assert_eq!(pages, first);
                block.touch(pages);
            }
            Err(error) => assert_eq!(error, CmaError::NoRoom { nr_pages: HALF, busy: None }),
        }
        other.join().unwrap();
        assert_eq!(block.refused.load(Ordering::Relaxed), 0, "never asked for pages that are in use");
        let stats = area.stats();
        assert_eq!(stats.available_pages + stats.used_pages, 512);
    });
}

#[test]
fn two_releases_of_neighbours_lose_no_bit() {
    loom::model(|| {
        let (cma, _) = machine(true);
        let area = cma.areas().next().unwrap();
        let first = area.alloc_raw(HALF, 0, Gfp::KERNEL).unwrap();
        let second = area.alloc_raw(HALF, 0, Gfp::KERNEL).unwrap();
        let other = thread::spawn({
            let cma = cma.clone();
            // SAFETY: ours, unused.
            move || unsafe { cma.areas().next().unwrap().release(first) }.unwrap()
        });
        // SAFETY: ours, unused.
        unsafe { area.release(second) }.unwrap();
        other.join().unwrap();
        let stats = area.stats();
        assert_eq!((stats.available_pages, stats.used_pages), (512, 0));
    });
}

#[test]
fn an_area_that_becomes_active_has_lent_its_memory() {
    loom::model(|| {
        let (cma, block) = machine(false);
        let other = thread::spawn({
            let cma = cma.clone();
            move || cma.activate_all()
        });
        let area = cma.areas().next().unwrap();
        match area.alloc_raw(HALF, 0, Gfp::KERNEL | Gfp::NOWARN) {
            Ok(pages) => block.touch(pages),
            Err(error) => assert_eq!(error, CmaError::Inactive),
        }
        assert!(other.join().unwrap());
        assert!(area.alloc_raw(HALF, 0, Gfp::KERNEL).is_ok());
    });
}

#[test]
fn areas_declared_at_once_are_both_found_whole() {
    loom::model(|| {
        let cma = Arc::new(Cma::new(Block::new()));
        let spec = AreaSpec::new("a", 512).granularity(8);
        let other = thread::spawn({
            let cma = cma.clone();
            move || {
                // SAFETY: as asked for, ours, for good.
                let _ = unsafe { cma.declare(&spec, books(&spec)) };
            }
        });
        // Whatever is listed is complete.
        assert!(cma.areas().all(|area| area.name() == "a" && area.nr_pages() == 512));
        // SAFETY: as above.
        let mine = unsafe { cma.declare(&spec, books(&spec)) };
        other.join().unwrap();
        assert!(mine.is_err() || mine.is_ok_and(|area| area.nr_pages() == 512));
        assert_eq!(cma.areas().count(), 1, "there was memory for one");
    });
}
