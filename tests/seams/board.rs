//! A machine with one CPU whose memory is a static of this program: the least that kmem runs on, and a memory cgroup.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kmem::gfp::{FlatFrameTable, FrameWords, NoReclaim, PlainContext};
use kmem::kmalloc::KmallocConfig;
use kmem::sync::{Cpu, CpuId, IrqState, NoReaders};
use kmem::{Gfp, Kmem, KmemCell, MemoryMap, NoAddressSpace, Order, PAGE_SIZE, Pfn, PfnRange, Platform, Region};

const PAGES: usize = 2048;
/// The frame that the memory begins at.
const FIRST: Pfn = Pfn(0x400);

#[repr(align(0x40_0000))]
struct Memory(UnsafeCell<[u8; PAGES * PAGE_SIZE]>);
// SAFETY: the page allocator hands it out piece by piece.
unsafe impl Sync for Memory {}

#[repr(align(4096))]
struct Books(UnsafeCell<[u8; 512 << 10]>);
// SAFETY: given to the page allocator once.
unsafe impl Sync for Books {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; PAGES * PAGE_SIZE]));
static WORDS: [FrameWords; PAGES] = [const { FrameWords::new() }; PAGES];
static BOOKS: Books = Books(UnsafeCell::new([0; 512 << 10]));
static KMEM: KmemCell<Board> = KmemCell::new();
static PINNED: AtomicBool = AtomicBool::new(false);

/// One CPU that several test threads take turns on.
#[derive(Clone, Copy)]
pub(crate) struct OneCpu(&'static AtomicBool);

impl OneCpu {
    /// The CPU that a flag stands for: set while somebody is on it.
    #[allow(dead_code, reason = "the file is part of two test programs")]
    pub(crate) const fn new(taken: &'static AtomicBool) -> Self {
        Self(taken)
    }
}

// SAFETY: a thread that pins owns the CPU until it unpins (1, 3); nothing interrupts it (2, 4); the barrier
// waits until it has had the CPU to itself (5).
unsafe impl Cpu for OneCpu {
    const REENTRANT: bool = false;
    fn nr_cpus(&self) -> u32 {
        1
    }
    fn try_pin(&self) -> Option<CpuId> {
        (!self.0.swap(true, Ordering::Acquire)).then_some(CpuId(0))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {
        self.0.store(false, Ordering::Release);
    }
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        // Whoever was pinned at the call has unpinned in between, and whoever pins later sees what came before.
        while self.0.swap(true, Ordering::AcqRel) {
            std::thread::yield_now();
        }
        self.0.store(false, Ordering::Release);
    }
}

/// The machine.
pub(crate) struct Board {
    cpu: OneCpu,
    grace: NoReaders,
    frames: FlatFrameTable,
    /// Pages that the one memory cgroup may still be charged for.
    credit: AtomicU64,
}

impl Board {
    /// Sets how many pages may still be charged.
    #[allow(dead_code, reason = "the file is part of two test programs")]
    pub(crate) fn limit(&self, pages: u64) {
        self.credit.store(pages, Ordering::Relaxed);
    }
}

impl Platform for Board {
    type Cpu = OneCpu;
    type Context = PlainContext;
    type Grace = NoReaders;
    type Reclaimer = NoReclaim;
    type Frames = FlatFrameTable;
    type Space = NoAddressSpace;

    fn cpu(&self) -> &OneCpu {
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
    fn kmalloc_config(&self) -> KmallocConfig {
        KmallocConfig { cgroup: true, ..KmallocConfig::default() }
    }
    fn charge(&self, _gfp: Gfp, _pfn: Pfn, order: Order) -> bool {
        let pages = order.nr_pages() as u64;
        let pay = |credit: u64| credit.checked_sub(pages);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

/// The machine, booted once.
pub(crate) fn kmem() -> &'static Kmem<Board> {
    static BOOT: Once = Once::new();
    BOOT.call_once(|| {
        let base = MEMORY.0.get().expose_provenance();
        // SAFETY: as many words as frames, all in statics; nobody reads objects without owning them.
        let board = unsafe {
            Board {
                cpu: OneCpu(&PINNED),
                grace: NoReaders::new(),
                frames: FlatFrameTable::new(NonNull::from(&WORDS[0]), base, FIRST, PAGES as u64),
                credit: AtomicU64::new(u64::MAX),
            }
        };
        let regions = [Region::new(PfnRange::with_len(FIRST, PAGES as u64).unwrap())];
        let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
        let books = |layout: core::alloc::Layout| {
            let fits = layout.size() <= size_of::<Books>() && layout.align() <= align_of::<Books>();
            NonNull::new(BOOKS.0.get().cast::<u8>()).filter(|_| fits)
        };
        // SAFETY: the statics are this machine's alone, and the table covers all of them.
        unsafe { KMEM.init(board, &map, books) }.unwrap();
    });
    KMEM.get().unwrap()
}

/// Where the machine lives.
#[allow(dead_code, reason = "the file is part of two test programs")]
pub(crate) fn cell() -> &'static KmemCell<Board> {
    &KMEM
}
