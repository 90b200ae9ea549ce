//! An ordinary program whose heap is kmem: threads that come and go, memory that is freed by others than those who
//! allocated it, forks in the middle of all that, children that run on, and a program that executes itself.
//!
//! `cargo run --release --example global_alloc` prints a line for each part and `ok` at the end. Every block is filled
//! with a pattern and checked before it is freed.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use kmem_hosted::HostedAlloc;

#[global_allocator]
static HEAP: HostedAlloc = HostedAlloc::new().cpus(8);

/// A small generator of pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// A size: mostly small, now and then up to a megabyte, rarely more than the page allocator's largest block.
    fn size(&mut self) -> usize {
        match self.below(1000) {
            0 => 4 << 20 | self.below(1 << 20),
            1..10 => self.below(1 << 20),
            10..100 => self.below(64 << 10),
            _ => self.below(1024),
        }
    }
}

/// A block with a pattern of its own.
struct Block {
    bytes: Vec<u8>,
    seed: u8,
}

impl Block {
    fn new(size: usize, seed: u8) -> Self {
        Self { bytes: (0..size).map(|at| (at as u8) ^ seed).collect(), seed }
    }

    fn check(&self) {
        for (at, &byte) in self.bytes.iter().enumerate() {
            assert_eq!(byte, (at as u8) ^ self.seed, "byte {at} of a block of {} is damaged", self.bytes.len());
        }
    }

    fn grow(&mut self, size: usize) {
        let seed = self.seed;
        let old = self.bytes.len();
        self.bytes.extend((old..old + size).map(|at| (at as u8) ^ seed));
        self.bytes.shrink_to_fit();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check();
    }
}

/// Allocates, grows and frees; what `give` takes goes to another thread.
fn work(rounds: usize, seed: u64, mut give: impl FnMut(Block)) {
    let mut random = Random(seed | 1);
    let mut live: Vec<Block> = Vec::new();
    for _ in 0..rounds {
        match random.below(4) {
            0 | 1 => live.push(Block::new(random.size(), seed as u8)),
            2 if !live.is_empty() => {
                let at = random.below(live.len());
                let size = random.size();
                live[at].grow(size.min(10_000));
            }
            _ if !live.is_empty() => {
                let block = live.swap_remove(random.below(live.len()));
                if random.below(2) == 0 {
                    give(block);
                }
            }
            _ => {}
        }
        if live.len() > 100 {
            live.truncate(50);
        }
    }
}

/// More threads than CPUs, and none for long; blocks travel between them.
fn churn() {
    let (give, take) = mpsc::channel::<Block>();
    let taker = std::thread::spawn(move || take.into_iter().map(|block| block.bytes.len() as u64).sum::<u64>());
    let threads: Vec<_> = (0..12_u64)
        .map(|thread| {
            let give = give.clone();
            std::thread::spawn(move || {
                for generation in 0..4 {
                    let give = give.clone();
                    let seed = thread * 1000 + generation * 7 + 1;
                    let worker = std::thread::spawn(move || {
                        work(100, seed, |block| give.send(block).expect("the taker outlives the workers"));
                    });
                    worker.join().expect("no worker panics");
                }
            })
        })
        .collect();
    drop(give);
    for thread in threads {
        thread.join().expect("no thread panics");
    }
    println!("churn: {} bytes travelled", taker.join().expect("the taker does not panic"));
}

/// What a thread keeps until its locals are destroyed.
fn thread_locals() {
    thread_local! {
        static KEPT: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
    }
    for round in 0..20 {
        std::thread::spawn(move || KEPT.with_borrow_mut(|kept| kept.push(Block::new(5000, round))))
            .join()
            .expect("freeing during thread exit works");
    }
    println!("thread locals: freed at exit");
}

/// Alignments, zeroed memory, resizing across every boundary.
fn layouts() {
    for shift in 0..=23 {
        for size in [1, 24, 1000, 5000, 70_000, 5 << 20] {
            let layout = Layout::from_size_align(size, 1 << shift).expect("a valid layout");
            // SAFETY: used as `GlobalAlloc` says, within the sizes asked for.
            unsafe {
                let block = HEAP.alloc_zeroed(layout);
                assert!(!block.is_null(), "{layout:?}");
                assert_eq!(block.addr() % layout.align(), 0, "{layout:?}");
                let bytes = std::slice::from_raw_parts_mut(block, size);
                assert!(bytes.iter().all(|&byte| byte == 0), "{layout:?}");
                bytes.fill(0xa5);
                let mut now = size;
                let mut block = block;
                for next in [size * 2, size / 2 + 1, size * 3 + 9000, size] {
                    block = HEAP.realloc(block, Layout::from_size_align_unchecked(now, layout.align()), next);
                    assert!(!block.is_null());
                    assert_eq!(block.addr() % layout.align(), 0);
                    let kept = std::slice::from_raw_parts_mut(block, next);
                    let common = now.min(next).min(size / 2);
                    assert!(kept[..common].iter().all(|&byte| byte == 0xa5), "{size} {layout:?} {next}");
                    kept.fill(0xa5);
                    now = next;
                }
                HEAP.dealloc(block, Layout::from_size_align_unchecked(now, layout.align()));
            }
        }
    }
    println!("layouts: aligned, zeroed, resized");
}

/// Forks while other threads allocate. Each child allocates, starts threads of its own, and frees what its parent
/// allocated.
fn forks() {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let others: Vec<_> = (0..3)
        .map(|thread| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work(50, thread + 100, drop);
                    if thread == 0 {
                        HEAP.release_free(1 << 20);
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for fork in 0..25_u64 {
        let mut inherited: Vec<Block> = (1..50).map(|size| Block::new(size * 37, fork as u8)).collect();
        // SAFETY: the child runs code that relies on the heap alone, which is what is shown here.
        match unsafe { libc::fork() } {
            0 => {
                inherited.truncate(10);
                work(100, fork + 1, drop);
                let grandchild = fork % 3 == 0;
                // SAFETY: as above.
                if grandchild && unsafe { libc::fork() } == 0 {
                    work(50, fork + 2, drop);
                    // SAFETY: as below.
                    unsafe { libc::_exit(0) };
                }
                let threads: Vec<_> =
                    (0..3).map(|thread| std::thread::spawn(move || work(50, fork + thread, drop))).collect();
                let mut fine = threads.into_iter().all(|thread| thread.join().is_ok());
                if grandchild {
                    let mut status = 0;
                    // SAFETY: our only child, waited for once.
                    fine &= unsafe { libc::wait(&mut status) } > 0 && status == 0;
                }
                drop(inherited);
                // SAFETY: no destructors and no output of the parent's run twice.
                unsafe { libc::_exit(if fine { 0 } else { 1 }) };
            }
            child => {
                assert!(child > 0, "fork works");
                let mut status = 0;
                // SAFETY: our child, waited for once.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert_eq!(status, 0, "child {fork} is fine");
                inherited.iter().for_each(Block::check);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for other in others {
        other.join().expect("the parent's threads go on");
    }
    println!("forks: 25 children, {} rounds in the parent", rounds.load(Ordering::Relaxed));
}

/// Executes this program again.
fn exec() {
    let output = Command::new(std::env::current_exe().expect("the program's path"))
        .arg("child")
        .output()
        .expect("the program runs again");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "child: ok\n");
    println!("exec: the program ran again");
}

/// Frees a lot and gives it back to the host.
fn give_back() {
    let blocks: Vec<Vec<u8>> = (1..=200).map(|seed| vec![seed; 200_000]).collect();
    let before = HEAP.resident_bytes();
    drop(blocks);
    let released = HEAP.release_free(u64::MAX);
    let after = HEAP.resident_bytes();
    assert!(released >= 200 * 200_000 / 2, "{released} bytes released");
    assert!(after < before, "{before} bytes resident before, {after} after");
    println!("give back: more than half of 40 MB");
}

/// More than the page allocator starts with: 5 GiB of address space, none of it touched, or as much as the heap has.
fn grow() {
    let layout = Layout::from_size_align(4 << 20, 4 << 20).expect("a valid layout");
    let mut blocks = Vec::with_capacity(1280);
    // SAFETY: used as `GlobalAlloc` says.
    unsafe {
        while blocks.len() < blocks.capacity() {
            let block = HEAP.alloc(layout);
            if block.is_null() {
                break;
            }
            assert_eq!(block.addr() % layout.align(), 0);
            blocks.push(block);
        }
        let distinct: std::collections::BTreeSet<_> = blocks.iter().collect();
        assert_eq!(distinct.len(), blocks.len());
        for block in blocks.drain(..) {
            HEAP.dealloc(block, layout);
        }
    }
    println!("grow: large blocks until the end, or 5 GiB");
}

/// Failure is an error, not an abort, where the program asks for it; `errno` stays.
fn shortage() {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = 77 };
    let mut vector: Vec<u8> = Vec::new();
    assert!(vector.try_reserve_exact(isize::MAX as usize).is_err());
    drop(Block::new(6 << 20, 1));
    // SAFETY: as above.
    assert_eq!(unsafe { *libc::__errno_location() }, 77);
    println!("shortage: an error");
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("child") {
        work(500, 1, drop);
        println!("child: ok");
        return;
    }
    churn();
    thread_locals();
    layouts();
    forks();
    exec();
    give_back();
    grow();
    shortage();
    println!("ok");
}
