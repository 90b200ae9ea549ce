//! The figures of the README, one phase a run, for counting instructions:
//!
//! ```text
//! cargo build --release -p kmem-zsmalloc --example figures
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='figures::phase_*' target/release/examples/figures pair
//! ```
//! Phases: `pair`, `batch`, `read`, `fill`, `free`, `free-moving`, `compact`, `scale` (two threads against one, by the clock).

use std::cell::{Cell, RefCell, UnsafeCell};
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;

use kmem_gfp::{
    AllocError, FlatFrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator, Pfn, PlainContext,
};
use kmem_sync::{Cpu, CpuId, IrqState, SpinLock};
use kmem_zsmalloc::{Config, Handle, Pool, ZsEnv};

/// CPUs without interrupts: threads, each on a CPU of its own.
struct Threads;

// SAFETY: `CPU` is another number in each thread, and there are no interrupt handlers. The barrier is never needed: no
// thread reaches into another one's part while that one runs.
unsafe impl Cpu for Threads {
    const REENTRANT: bool = false;

    fn nr_cpus(&self) -> u32 {
        2
    }
    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        CPU.get().map(CpuId)
    }
    #[inline(always)]
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {}
}

thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(Some(0)) };
    static NEAR: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Frames on a stack, with a smaller one for each thread.
struct Machine {
    table: FlatFrameTable,
    free: SpinLock<Vec<u32>>,
}

impl Machine {
    fn new(nr: usize) -> &'static Self {
        let words: &'static [FrameWords] = Vec::leak((0..nr).map(|_| FrameWords::new()).collect());
        let memory: &[UnsafeCell<u8>] = Vec::leak((0..(nr + 1) * PAGE_SIZE).map(|_| UnsafeCell::new(0)).collect());
        let base = memory.as_ptr().expose_provenance().next_multiple_of(PAGE_SIZE);
        let words = NonNull::from(words).cast();
        // SAFETY: `nr` words and frames, leaked, used through this table alone.
        let table = unsafe { FlatFrameTable::new(words, base, Pfn(0), nr as u64) };
        Box::leak(Box::new(Self { table, free: SpinLock::new((0..nr as u32).rev().collect()) }))
    }
}

// SAFETY: a frame is on the stack or handed out.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        // A thread keeps some frames to itself, as a CPU does.
        let frame = NEAR.with_borrow_mut(|near| {
            if near.is_empty() {
                self.free.with(&Threads, |free| near.extend(free.drain(free.len().saturating_sub(32)..)));
            }
            near.pop()
        });
        frame.map(|frame| Pfn(frame.into())).ok_or(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_pages(&self, pfn: Pfn, _order: Order) -> Result<(), FreeError> {
        NEAR.with_borrow_mut(|near| {
            near.push(pfn.0 as u32);
            if near.len() >= 64 {
                self.free.with(&Threads, |free| free.extend(near.drain(32..)));
            }
        });
        Ok(())
    }
}

impl ZsEnv for Machine {
    type Cpu = Threads;
    type Pages = Self;
    type Frames = FlatFrameTable;
    type Context = PlainContext;

    fn cpu(&self) -> &Threads {
        &Threads
    }
    fn pages(&self) -> &Self {
        self
    }
    fn frames(&self) -> &FlatFrameTable {
        &self.table
    }
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
}

type TestPool = Pool<&'static Machine>;

const PAIRS: usize = 10_000;

#[inline(never)]
fn phase_pairs(pool: &TestPool, data: &[u8]) {
    for _ in 0..PAIRS {
        let handle = pool.store(black_box(data), Gfp::NOIO).expect("memory");
        pool.free(black_box(handle)).expect("a live handle");
    }
}

#[inline(never)]
fn phase_reads(pool: &TestPool, handle: Handle) {
    for _ in 0..PAIRS {
        black_box(pool.read(black_box(handle), &mut []).expect("in one frame").len());
    }
}

#[inline(never)]
fn phase_stores(pool: &TestPool, page: &[u8], sizes: &[usize], handles: &mut Vec<Option<Handle>>) {
    for &size in sizes {
        handles.push((size != 0).then(|| pool.store(&page[..size], Gfp::NOIO).expect("memory")));
    }
}

#[inline(never)]
fn phase_frees(pool: &TestPool, handles: &[Handle]) {
    for &handle in handles {
        pool.free(handle).expect("a live handle");
    }
}

#[inline(never)]
fn phase_compact(pool: &TestPool) -> u64 {
    pool.compact()
}

/// The handles that the recorded workload frees.
fn half(handles: Vec<Option<Handle>>) -> Vec<Handle> {
    let mut s: u64 = 11;
    let mut drawn = Vec::new();
    for handle in handles {
        s ^= s >> 12;
        s ^= s << 25;
        s ^= s >> 27;
        if s.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32 & 1 == 1 {
            drawn.extend(handle);
        }
    }
    drawn
}

fn scale(threads: usize) -> f64 {
    NEAR.take();
    let pool = Pool::new(Machine::new(20_000), Config::new(), Gfp::KERNEL).expect("memory");
    let rounds = 300_000;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for id in 0..threads {
            let pool = &pool;
            scope.spawn(move || {
                CPU.set(Some(id as u32));
                let page = [id as u8; PAGE_SIZE];
                let mut live: Vec<Handle> = Vec::new();
                let mut s = 7 + id as u64;
                for _ in 0..rounds {
                    s ^= s >> 12;
                    s ^= s << 25;
                    s ^= s >> 27;
                    let draw = (s.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize;
                    if live.len() < 1000 || draw & 1 == 0 && live.len() < 2000 {
                        live.push(pool.store(&page[..(draw >> 8) % 3000 + 500], Gfp::NOIO).expect("memory"));
                    } else {
                        let index = (draw >> 8) % live.len();
                        pool.free(live.swap_remove(index)).expect("a live handle");
                    }
                }
            });
        }
    });
    (rounds * threads) as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let phase = std::env::args().nth(1).unwrap_or_default();
    let raw = match std::env::args().nth(2).as_deref() {
        Some("zstd") => &include_bytes!("../data/sizes-zstd.u16")[..],
        _ => &include_bytes!("../data/sizes-lz4.u16")[..],
    };
    let moving = phase.ends_with("moving");
    let config = if moving { Config::new().with_moves_per_free(1) } else { Config::new() };
    NEAR.take();
    let pool = Pool::new(Machine::new(90_000), config, Gfp::KERNEL).expect("memory");
    let page = vec![0x5a; PAGE_SIZE];
    match phase.as_str() {
        "pair" | "read" => {
            let size = std::env::args().nth(2).and_then(|size| size.parse().ok()).unwrap_or(100);
            let kept: Vec<_> = (0..5).map(|_| pool.store(&page[..size], Gfp::NOIO).expect("memory")).collect();
            if phase == "pair" {
                phase_pairs(&pool, &page[..size]);
            } else {
                phase_reads(&pool, kept[0]);
            }
            println!("{PAIRS} times, {size} bytes");
        }
        "batch" => {
            let sizes = vec![100; PAIRS];
            let mut handles = Vec::with_capacity(PAIRS);
            phase_stores(&pool, &page, &sizes, &mut handles);
            phase_frees(&pool, &handles.into_iter().flatten().collect::<Vec<_>>());
            println!("{PAIRS} times");
        }
        "fill" | "free" | "free-moving" | "compact" => {
            let sizes: Vec<usize> =
                raw.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect();
            let mut handles = Vec::with_capacity(sizes.len());
            phase_stores(&pool, &page, &sizes, &mut handles);
            println!("filled: {} objects, density {:.4}", pool.stats().objects, pool.stats().density());
            if phase != "fill" {
                let drawn = half(handles);
                phase_frees(&pool, &drawn);
                println!("freed: {} objects, density {:.4}", drawn.len(), pool.stats().density());
            }
            if phase == "compact" {
                println!("compacted: {} frames, density {:.4}", phase_compact(&pool), pool.stats().density());
            }
        }
        "scale" => {
            let _ = scale(1);
            let best = |threads| (0..5).map(|_| scale(threads)).fold(0.0, f64::max);
            let (one, two) = (best(1), best(2));
            println!("one thread {one:.0} operations a second, two {two:.0}: {:.2} times", two / one);
        }
        other => println!("no phase `{other}`; see the head of examples/figures.rs"),
    }
}
