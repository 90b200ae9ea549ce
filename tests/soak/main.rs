//! Random contexts, group limits and failures on a machine under pressure, round after round; after each, every page must be
//! where the counters say.
//!
//! `KMEM_SOAK_SECONDS` says how long (`cargo xtask soak` sets it); a few seconds unless given. `KMEM_SOAK_SEED` repeats a round.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kmem::reclaim::memcg::{PAGES_MAX, Wait};
use kmem::reclaim::{GroupId, ProactiveRequest};
use kmem_gfp::{Gfp, Order, PAGE_SIZE, Pfn};
use kmem_hosted::{Access, Machine, PageStore, ReclaimOptions, Reports, TaskFlags, in_context};

const THREADS: u64 = 3;
const GROUPS: usize = 6;

/// A xorshift generator.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// Pages of a store with the number that each was last written with.
struct Book {
    store: &'static PageStore,
    first: u64,
    versions: Vec<u64>,
}

impl Book {
    fn new(store: &'static PageStore, first: u64, pages: u64) -> Self {
        Self { store, first, versions: vec![0; pages as usize] }
    }

    fn turn(&mut self, dice: &mut Dice, gfp: Gfp) {
        let nth = dice.below(self.versions.len() as u64);
        let (index, version) = (self.first + nth, &mut self.versions[nth as usize]);
        if dice.below(2) == 0 {
            let next = *version + 1;
            let written = self.store.with_page(index, Access::Write, gfp, |page| {
                page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = (next << 32 | index).to_ne_bytes());
            });
            *version = if written.is_ok() { next } else { *version };
        } else {
            let wanted = if *version == 0 { 0 } else { *version << 32 | index };
            let _ = self.store.with_page(index, Access::Read, gfp, |page| {
                let whole = page.as_chunks::<8>().0.iter().all(|word| u64::from_ne_bytes(*word) == wanted);
                assert!(whole, "page {index} has lost its contents");
            });
        }
    }
}

/// A request in a random context, with random flags.
fn request(machine: &Machine, dice: &mut Dice) -> Option<(Pfn, Order)> {
    let kmem = machine.kmem();
    let order = Order::new([0, 0, 0, 0, 1, 2, 3, 4][dice.below(8) as usize])?;
    let extra =
        [Gfp::empty(), Gfp::ACCOUNT, Gfp::NORETRY, Gfp::RETRY_MAYFAIL, Gfp::ZERO][dice.below(5) as usize] | Gfp::NOWARN;
    let got = match dice.below(6) {
        0 => in_context(TaskFlags::IN_IRQ, || kmem.alloc_pages(Gfp::ATOMIC | extra, order)),
        1 => in_context(TaskFlags::ATOMIC, || kmem.alloc_pages(Gfp::NOWAIT | extra, order)),
        2 => {
            let _scope = kmem.nofs_scope();
            kmem.alloc_pages(Gfp::KERNEL | extra, order)
        }
        3 => {
            let _scope = kmem.noio_scope();
            kmem.alloc_pages(Gfp::KERNEL | extra, order)
        }
        4 => kmem.alloc_pages(Gfp::KERNEL.difference(Gfp::RECLAIM) | extra, order),
        _ => kmem.alloc_pages(Gfp::KERNEL | extra, order),
    };
    got.ok().map(|pfn| (pfn, order))
}

fn free(machine: &Machine, block: (Pfn, Order)) {
    // SAFETY: allocated by `request`, in nobody's hands any more.
    unsafe { machine.kmem().free_pages(block.0, block.1) }.expect("the block is ours");
}

fn worker(
    machine: &'static Machine,
    seed: u64,
    groups: &[GroupId],
    file: &'static PageStore,
    stop: &AtomicBool,
) -> u64 {
    let mut dice = Dice::new(seed);
    let mm = machine.mm().expect("the machine reclaims");
    let nth = seed % THREADS;
    let share = file.pages() / THREADS;
    let mut cache = Book::new(file, nth * share, share);
    let mut blocks: Vec<(Pfn, Order)> = Vec::new();
    let mut steps = 0;
    while !stop.load(Ordering::Relaxed) {
        // A task of its own in some group, for a while.
        let group = groups[dice.below(groups.len() as u64) as usize];
        let below = (dice.below(3) == 0).then(|| mm.groups().create(group).ok()).flatten();
        let task = machine.task("soak").expect("a task").in_group(below.unwrap_or(group));
        let anon_pages = 64 << dice.below(5);
        let mut anon = Book::new(task.anonymous_pages(anon_pages).expect("memory"), 0, anon_pages);
        task.run(|| {
            for _ in 0..dice.below(3000) {
                steps += 1;
                match dice.below(10) {
                    0..3 => cache.turn(&mut dice, Gfp::HIGHUSER_MOVABLE),
                    3..7 => anon.turn(&mut dice, Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN),
                    7..9 => blocks.extend(request(machine, &mut dice)),
                    _ if blocks.is_empty() => {}
                    _ => free(machine, blocks.swap_remove(dice.below(blocks.len() as u64) as usize)),
                }
                if blocks.len() > 200 {
                    blocks.drain(..).for_each(|block| free(machine, block));
                }
                if dice.below(500) == 0 {
                    machine.fail_page_request(1 + dice.below(20));
                }
            }
        });
        blocks.drain(..).for_each(|block| free(machine, block));
        drop(task);
        if let Some(below) = below {
            mm.groups().remove(below).expect("it has neither tasks nor children");
        }
    }
    steps
}

/// Changes limits, and reclaims ahead of time.
fn meddle(machine: &'static Machine, seed: u64, groups: &[GroupId], stop: &AtomicBool) {
    let mut dice = Dice::new(seed ^ 0xfeed);
    let mm = machine.mm().expect("the machine reclaims");
    while !stop.load(Ordering::Relaxed) {
        let group = groups[dice.below(groups.len() as u64) as usize];
        let pages = 200 + dice.below(3000);
        let done = match dice.below(7) {
            0 | 1 => mm.groups().set_max(group, pages, Wait::MayBlock).map(|_| ()),
            2 => mm.groups().set_high(group, pages, Wait::No).map(|_| ()),
            3 => mm.groups().set_low(group, pages / 4),
            4 => mm.groups().set_max(group, PAGES_MAX, Wait::No).map(|_| ()),
            5 => mm.groups().set_swappiness(group, Some(dice.below(201) as u8)),
            _ => {
                let request = ProactiveRequest { pages: 64, swappiness: None };
                let _ =
                    mm.engine().reclaim_proactively(kmem::Platform::context(machine.kmem().platform()), group, request);
                Ok(())
            }
        };
        done.expect("the group is there");
        std::thread::sleep(Duration::from_millis(dice.below(5)));
    }
}

/// Managed pages that no counter knows of: the allocators' own.
fn own_pages(machine: &Machine) -> u64 {
    let kmem = machine.kmem();
    kmem.slabs().shrink_all();
    kmem.pages().drain_all_pages();
    let cached: u64 = kmem.pages().zones().map(|zone| kmem.pages().zone_stats(zone).cached_pages).sum();
    let slabs = kmem.slabs().stats();
    let known = kmem.pages().free_page_count() + cached + slabs.slab_pages() + slabs.metadata_pages;
    kmem.pages().managed_pages() - known
}

/// One machine from its boot to its end; returns its steps.
fn round(seed: u64, length: Duration) -> u64 {
    let mut dice = Dice::new(seed);
    let machine = Machine::builder()
        .cpus(THREADS as u32)
        .ram_bytes((16 + 8 * dice.below(3)) << 20)
        .nodes(1 + dice.below(2) as u32)
        .reports(Reports::Discard)
        .reclaim(ReclaimOptions { groups: 64, swap_bytes: (4 + dice.below(32)) << 20, ..ReclaimOptions::default() })
        .boot()
        .expect("the machine boots");
    let mm = machine.mm().expect("the machine reclaims");
    let mut groups = vec![GroupId::ROOT];
    for _ in 0..GROUPS {
        let parent = groups[dice.below(groups.len() as u64) as usize];
        groups.push(mm.groups().create(parent).expect("room for a group"));
    }
    let file = machine.file_pages(2 * machine.ram_bytes() / PAGE_SIZE as u64).expect("a file");
    let own = own_pages(machine);
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for nth in 0..THREADS {
            let (groups, stop, steps) = (&groups, &stop, &steps);
            scope.spawn(move || {
                let seed = seed.wrapping_mul(THREADS).wrapping_add(nth);
                steps.fetch_add(worker(machine, seed, groups, file, stop), Ordering::Relaxed);
            });
        }
        let (limited, stop_all) = (&groups[1..], &stop);
        scope.spawn(move || meddle(machine, seed, limited, stop_all));
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
    });
    machine.fail_page_request(0);
    file.clear();
    assert_eq!(machine.count_pages().expect("counts"), (0, 0), "seed {seed}: pages on the lists or in stores");
    let swap = machine.swap().expect("swap");
    assert_eq!(swap.free_pages(), swap.total_pages(), "seed {seed}: places of swap");
    mm.groups().drain_stocks();
    assert_eq!(mm.groups().usage(GroupId::ROOT), 0, "seed {seed}: charges");
    assert_eq!(own_pages(machine), own, "seed {seed}: pages that nobody knows of");
    // SAFETY: nothing of the machine is used any more.
    unsafe { machine.shut_down() };
    steps.into_inner()
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
#[ignore = "takes as long as it is told to: cargo xtask soak"]
fn counters_conserve_pages_under_random_contexts_limits_and_failures() {
    let length = Duration::from_secs(variable("KMEM_SOAK_SECONDS").unwrap_or(4));
    let (begun, mut rounds, mut steps) = (Instant::now(), 0u64, 0);
    let first = variable("KMEM_SOAK_SEED").unwrap_or(1);
    while begun.elapsed() < length {
        let each = if length > Duration::from_secs(60) { 10 } else { 2 };
        steps += round(first + rounds, Duration::from_secs(each));
        rounds += 1;
        println!("clean for {:.0} s: {rounds} rounds, {steps} steps", begun.elapsed().as_secs_f64());
    }
}
