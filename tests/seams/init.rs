//! A machine that does not come up: memory runs out at every page allocation of its start in turn, and the cell can be used again.

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use kmem::gfp::{FlatFrameTable, FrameWords, NoReclaim, PlainContext};
use kmem::kmalloc::KmallocConfig;
use kmem::sync::{NoReaders, SingleCpu};
use kmem::vmalloc::MapError as VmapError;
use kmem::{
    Gfp, InitError, Kmem, KmemCell, KvmallocError, MapError, MemoryMap, NoAddressSpace, Order, PAGE_SIZE, Pfn,
    PfnRange, Platform, Region, VmallocError,
};

const PAGES: u64 = 2048;
/// Addresses that no program has.
const WINDOW: Range<usize> = 0xffff_a000_0000_0000..0xffff_a000_4000_0000;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static FAIL_AT: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Shaky {
    cpu: SingleCpu,
    grace: NoReaders,
    frames: FlatFrameTable,
}

impl Platform for Shaky {
    type Cpu = SingleCpu;
    type Context = PlainContext;
    type Grace = NoReaders;
    type Reclaimer = NoReclaim;
    type Frames = FlatFrameTable;
    type Space = NoAddressSpace;

    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    fn grace(&self) -> &NoReaders {
        &self.grace
    }
    fn reclaimer(&self) -> &NoReclaim {
        &NoReclaim
    }
    fn frames(&self) -> &FlatFrameTable {
        &self.frames
    }
    fn space(&self) -> &NoAddressSpace {
        &NoAddressSpace
    }
    fn vmalloc_window(&self) -> Option<Range<usize>> {
        Some(WINDOW)
    }
    fn kmalloc_config(&self) -> KmallocConfig {
        KmallocConfig { cgroup: true, partitions: true, ..KmallocConfig::default() }
    }
    fn inject_failure(&self, _gfp: Gfp, _order: Order) -> bool {
        CALLS.fetch_add(1, Ordering::Relaxed) >= FAIL_AT.load(Ordering::Relaxed)
    }
}

/// There are addresses, but no page tables: every form fails by naming that, and no page is lost.
fn nothing_can_be_mapped(kmem: &'static Kmem<Shaky>) {
    let used = || kmem.vmalloc_stats().used_bytes;
    let refused = kmem.vmalloc(10_000).unwrap_err();
    let source = VmapError::Refused { address: WINDOW.start };
    assert_eq!(refused, VmallocError::NotMapped { nr_pages: 3, source });
    let neither = kmem.kvmalloc(5 << 20, Gfp::KERNEL | Gfp::NOWARN).unwrap_err();
    assert!(matches!(neither, KvmallocError::Neither { vmalloc: VmallocError::NotMapped { .. }, .. }), "{neither}");
    assert!(kmem.kvmalloc(2 * PAGE_SIZE, Gfp::KERNEL).is_ok(), "kmalloc has that");
    assert_eq!((used(), kmem.vmallocinfo().to_string().matches(" vmalloc").count()), (0, 0));
}

fn books(layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not of size zero.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

#[test]
fn a_start_that_fails_anywhere_can_be_tried_again() {
    let ram = Layout::from_size_align(PAGES as usize * PAGE_SIZE, 4 << 20).unwrap();
    // SAFETY: not of size zero.
    let base = unsafe { std::alloc::alloc_zeroed(ram) }.expose_provenance();
    let words: &'static [FrameWords] = (0..PAGES).map(|_| FrameWords::new()).collect::<Vec<_>>().leak();
    let shaky = || {
        // SAFETY: one thread, one machine at a time; as many words as frames; no readers.
        unsafe {
            Shaky {
                cpu: SingleCpu::new(),
                grace: NoReaders::new(),
                frames: FlatFrameTable::new(NonNull::from(&words[0]), base, Pfn(0), PAGES),
            }
        }
    };
    let regions = [Region::new(PfnRange::new(Pfn(0), Pfn(PAGES)))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let mut failures = 0;
    for n in 0.. {
        let cell: &'static KmemCell<Shaky> = Box::leak(Box::new(KmemCell::new()));
        CALLS.store(0, Ordering::Relaxed);
        FAIL_AT.store(n, Ordering::Relaxed);
        // SAFETY: the memory is this test's; the machine of the round before is not used any more.
        let started = unsafe { cell.init(shaky(), &map, books) };
        let reached = CALLS.load(Ordering::Relaxed) > n;
        FAIL_AT.store(usize::MAX, Ordering::Relaxed);
        match started {
            Err(error) => {
                failures += 1;
                assert!(matches!(error, InitError::Alloc(_) | InitError::Create(_) | InitError::Window(_)), "{error}");
                assert!(cell.get().is_none());
                // Whatever the caches had taken was given back, and its words with it.
                assert!(words.iter().all(|words| words.owner.load(Ordering::Relaxed) == 0), "failure {n}");
                // SAFETY: as above.
                let kmem = unsafe { cell.init(shaky(), &map, books) }.unwrap();
                assert!(kmem.kmalloc(100, Gfp::KERNEL).is_ok());
                for words in words {
                    words.owner.store(0, Ordering::Relaxed);
                }
            }
            Ok(kmem) => {
                assert!(kmem.kmalloc(100, Gfp::KERNEL).is_ok());
                nothing_can_be_mapped(kmem);
                // SAFETY: refused.
                let again = unsafe { cell.init(shaky(), &map, books) };
                assert!(matches!(again, Err(InitError::AlreadyInitialised)));
                for words in words {
                    words.owner.store(0, Ordering::Relaxed);
                }
                if !reached {
                    break;
                }
            }
        }
    }
    assert!(failures > 5, "{failures}");

    let cell: &'static KmemCell<Shaky> = Box::leak(Box::new(KmemCell::new()));
    // SAFETY: refused, twice.
    unsafe {
        let no_books = cell.init(shaky(), &map, |_| None);
        assert!(matches!(no_books, Err(InitError::Map(MapError::NotEnoughMetadata { .. }))));
        let no_memory = cell.init(shaky(), &MemoryMap::default(), books);
        assert!(matches!(no_memory, Err(InitError::Map(MapError::Empty))));
    }
}
