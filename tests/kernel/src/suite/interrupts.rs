//! Interrupts that allocate in the middle of everybody's allocations, and NMIs that use the calls for any context.
//!
//! ```text
//! threads    allocate, fill, check, free        on every CPU
//! timer      the same with GFP_ATOMIC           on every CPU, wherever the thread happens to be
//! NMI        alloc_pages_nolock, kmalloc_nolock    on every CPU, even inside the timer's allocations
//! ```

use alloc::vec::Vec;
use core::ptr::NonNull;

use kmem::{CacheArgs, Gfp, KmemCache, Order, Pfn};
use kmem_gfp::{AllocContext, TaskFlags};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use kmem_sync::{CpuId, Pinned};

use super::random::{Random, mix};
use super::tools::{check, fill};
use crate::context::KernelContext;
use crate::cpu::KernelCpu;
use crate::percpu::{self, MAX_CPUS};
use crate::platform::kmem;
use crate::vm::vmalloc;
use crate::{apic, sched, step, thread, trap};

super::tests![
    timer_interrupts_allocate_in_the_middle_of_other_allocations,
    an_nmi_uses_the_calls_for_any_context,
    areas_freed_by_an_interrupt_are_finished_by_a_thread,
    timer_and_nmi_at_once_for_a_while,
    an_interrupt_or_nmi_comes_at_every_instruction,
];

const HELD: usize = 24;

/// What the handlers of one CPU hold. Only they touch it, one at a time on a CPU.
struct Hoard {
    blocks: [AtomicUsize; HELD],
    tags: [AtomicU64; HELD],
    pages: [AtomicU64; HELD],
    count: AtomicU64,
}

impl Hoard {
    const fn new() -> Self {
        Self {
            blocks: [const { AtomicUsize::new(0) }; HELD],
            tags: [const { AtomicU64::new(0) }; HELD],
            pages: [const { AtomicU64::new(0) }; HELD],
            count: AtomicU64::new(0),
        }
    }
}

static TIMER: [Hoard; MAX_CPUS] = [const { Hoard::new() }; MAX_CPUS];
static NMI: [Hoard; MAX_CPUS] = [const { Hoard::new() }; MAX_CPUS];
static CACHE: AtomicPtr<KmemCache> = AtomicPtr::new(core::ptr::null_mut());
static FAILED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn size_of_block(tag: u64) -> usize {
    8 << (tag % 9)
}

fn block_at(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}

/// Whether a block still holds what was written; a handler must not panic.
fn intact(block: NonNull<u8>, size: usize, tag: u64) -> bool {
    // SAFETY: the handler's own block of that size.
    [0, size - 1].into_iter().all(|at| unsafe { block.add(at).read() } == mix(tag ^ at as u64) as u8)
}

fn mark(block: NonNull<u8>, size: usize, tag: u64) {
    for at in [0, size - 1] {
        // SAFETY: the handler's own block of that size.
        unsafe { block.add(at).write(mix(tag ^ at as u64) as u8) };
    }
}

/// Replaces one block and one page of the hoard by new ones.
fn turn_over(
    hoard: &Hoard,
    alloc: impl Fn(usize) -> Option<NonNull<u8>>,
    free: impl Fn(NonNull<u8>) -> bool,
    alloc_page: impl Fn() -> Option<Pfn>,
    free_page: impl Fn(Pfn) -> bool,
) {
    let count = hoard.count.load(Ordering::Relaxed) + 1;
    hoard.count.store(count, Ordering::Relaxed);
    let place = (mix(count) % HELD as u64) as usize;
    let old = hoard.blocks[place].load(Ordering::Relaxed);
    let old_tag = hoard.tags[place].load(Ordering::Relaxed);
    if let Some(block) = block_at(old)
        && (!intact(block, size_of_block(old_tag), old_tag) || !free(block))
    {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    let tag = (count << 4) + mix(count) % 9;
    match alloc(size_of_block(tag)) {
        Some(block) => {
            mark(block, size_of_block(tag), tag);
            hoard.blocks[place].store(block.expose_provenance().get(), Ordering::Relaxed);
            hoard.tags[place].store(tag, Ordering::Relaxed);
        }
        None => {
            hoard.blocks[place].store(0, Ordering::Relaxed);
            FAILED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let old = hoard.pages[place].load(Ordering::Relaxed);
    if old != 0 && !free_page(Pfn(old)) {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    hoard.pages[place].store(alloc_page().map_or(0, |page| page.0), Ordering::Relaxed);
}

fn on_tick() {
    if KernelContext.task_flags().may_sleep() {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    let kmem = kmem();
    let hoard = &TIMER[percpu::this().id().index()];
    for _ in 0..4 {
        turn_over(
            hoard,
            |size| kmem.kmalloc(size, Gfp::ATOMIC).ok(),
            // SAFETY: the hoard's.
            |block| unsafe { kmem.kfree(block.as_ptr()) }.is_ok(),
            || kmem.alloc_page(Gfp::ATOMIC).ok(),
            // SAFETY: the hoard's.
            |page| unsafe { kmem.free_page(page) }.is_ok(),
        );
    }
    // SAFETY: a cache that outlives the hook.
    if let Some(cache) = unsafe { CACHE.load(Ordering::Acquire).as_ref() } {
        let mut objects = [None; 5];
        for slot in &mut objects {
            *slot = kmem.kmem_cache_alloc(cache, Gfp::ATOMIC).ok();
        }
        for object in objects.into_iter().flatten() {
            // SAFETY: just allocated.
            if unsafe { kmem.kmem_cache_free(cache, object) }.is_err() {
                WRONG.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn on_nmi() {
    if !KernelContext.task_flags().contains(TaskFlags::IN_NMI) {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    let kmem = kmem();
    turn_over(
        &NMI[percpu::this().id().index()],
        |size| kmem.kmalloc_nolock(size, Gfp::empty(), None).ok(),
        // SAFETY: the hoard's.
        |block| unsafe { kmem.kfree_nolock(block.as_ptr()) }.is_ok(),
        || kmem.alloc_pages_nolock(Gfp::empty(), Order::ZERO, None).ok(),
        // SAFETY: the hoard's.
        |page| unsafe { kmem.pages().free_pages_nolock(page, Order::ZERO) }.is_ok(),
    );
}

/// Gives back what handlers hold, when no handler runs any more.
fn empty(hoards: &[Hoard]) -> u64 {
    let mut count = 0;
    for hoard in hoards {
        count += hoard.count.swap(0, Ordering::Relaxed);
        for place in 0..HELD {
            if let Some(block) = block_at(hoard.blocks[place].swap(0, Ordering::Relaxed)) {
                let tag = hoard.tags[place].load(Ordering::Relaxed);
                assert!(intact(block, size_of_block(tag), tag));
                super::contract::kfree(block);
            }
            let page = hoard.pages[place].swap(0, Ordering::Relaxed);
            if page != 0 {
                // SAFETY: the hoard's.
                unsafe { kmem().free_page(Pfn(page)) }.expect("ours");
            }
        }
    }
    count
}

/// Lets every CPU allocate and free until `stop`, checking what it holds.
fn churn(cache: &'static KmemCache, stop: &'static AtomicBool) -> Vec<thread::JoinHandle> {
    stop.store(false, Ordering::Relaxed);
    (0..percpu::nr_cpus())
        .map(|cpu| {
            thread::spawn("churns", Some(CpuId(cpu)), move || {
                let mut random = Random::new(u64::from(cpu) + 7);
                let mut live: Vec<(NonNull<u8>, usize, u64)> = Vec::with_capacity(200);
                let mut tag = u64::from(cpu) << 32;
                while !stop.load(Ordering::Relaxed) {
                    tag += 1;
                    if live.len() < 200 && random.percent(52) {
                        let size = 1 + random.below(3000);
                        let block = match random.below(4) {
                            0 => kmem().kmem_cache_alloc(cache, Gfp::KERNEL),
                            _ => kmem().kmalloc(size.max(cache.object_size()), Gfp::KERNEL),
                        };
                        let block = block.expect("memory");
                        fill(block, cache.object_size(), tag);
                        live.push((block, cache.object_size(), tag));
                    } else if !live.is_empty() {
                        let (block, size, tag) = live.swap_remove(random.below(live.len()));
                        check(block, size, tag);
                        super::contract::kfree(block);
                    }
                    let order = Order::new(random.below(4) as u32).expect("an order");
                    let pages = kmem().alloc_pages(Gfp::KERNEL, order).expect("memory");
                    // SAFETY: ours.
                    unsafe { kmem().free_pages(pages, order) }.expect("ours");
                }
                for (block, size, tag) in live {
                    check(block, size, tag);
                    super::contract::kfree(block);
                }
            })
        })
        .collect()
}

/// Runs the churn with the given handlers for a while.
fn run(timer: bool, nmis: bool, ms: u64) {
    static STOP: AtomicBool = AtomicBool::new(false);
    let cache = kmem().kmem_cache_create("interrupts", 88, &CacheArgs::default()).expect("a cache");
    CACHE.store((&raw const *cache).cast_mut(), Ordering::Release);
    for counter in [&FAILED, &WRONG] {
        counter.store(0, Ordering::Relaxed);
    }
    let workers = churn(cache, &STOP);
    trap::on_tick(timer.then_some(on_tick as trap::Hook));
    trap::on_nmi(nmis.then_some(on_nmi as trap::Hook));
    let until = sched::now_ms() + ms;
    let mut target = 0;
    while sched::now_ms() < until {
        if nmis {
            target = (target + 1) % percpu::nr_cpus();
            let cpu = percpu::of(CpuId(target));
            // One at a time on each CPU: an NMI that comes during another is kept by the processor, so no reply is lost.
            let before = cpu.nmis.load(Ordering::Acquire);
            apic::send_nmi(cpu.apic_id.load(Ordering::Relaxed) as u8);
            while cpu.nmis.load(Ordering::Acquire) == before {
                core::hint::spin_loop();
            }
        } else {
            sched::yield_now();
        }
    }
    trap::on_nmi(None);
    trap::on_tick(None);
    STOP.store(true, Ordering::Relaxed);
    for worker in workers {
        assert!(worker.join());
    }
    // Every handler that was running has finished.
    kmem_sync::GracePeriod::synchronize(&crate::grace::SchedulerGrace);
    let (ticks, interrupts) = (empty(&TIMER), empty(&NMI));
    CACHE.store(core::ptr::null_mut(), Ordering::Release);
    println!(
        "{ticks} rounds in timer interrupts, {interrupts} in NMIs, {} requests refused",
        FAILED.load(Ordering::Relaxed)
    );
    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
    assert!(!timer || ticks > 0);
    assert!(!nmis || interrupts > 0);
    assert!(FAILED.load(Ordering::Relaxed) * 2 < ticks + interrupts, "most succeed");
    // SAFETY: nobody uses it any more.
    unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
}

fn timer_interrupts_allocate_in_the_middle_of_other_allocations() {
    run(true, false, 200 * super::effort() as u64);
}

fn an_nmi_uses_the_calls_for_any_context() {
    run(false, true, 200 * super::effort() as u64);
}

fn timer_and_nmi_at_once_for_a_while() {
    run(true, true, 300 * super::effort() as u64);
}

static TO_FREE: AtomicUsize = AtomicUsize::new(0);

fn free_in_interrupt() {
    let area = TO_FREE.swap(0, Ordering::AcqRel);
    if area != 0 {
        // SAFETY: the test gave it away.
        if unsafe { vmalloc().vfree(core::ptr::with_exposed_provenance_mut(area)) }.is_err() {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn areas_freed_by_an_interrupt_are_finished_by_a_thread() {
    WRONG.store(0, Ordering::Relaxed);
    trap::on_tick(Some(free_in_interrupt));
    for _ in 0..20 {
        let area = vmalloc().vmalloc(100_000).expect("memory");
        TO_FREE.store(area.expose_provenance().get(), Ordering::Release);
        while TO_FREE.load(Ordering::Acquire) != 0 {
            sched::park_or_yield();
        }
    }
    trap::on_tick(None);
    let _pin = Pinned::new(&KernelCpu);
    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
}

fn some_blocks(count: u64, size: usize) {
    let mut blocks = [None; 40];
    for (tag, slot) in (0..count).zip(&mut blocks) {
        let block = kmem().kmalloc(size, Gfp::KERNEL).expect("memory");
        mark(block, size, tag);
        *slot = Some(block);
    }
    for (tag, block) in (0..count).zip(blocks.into_iter().flatten()) {
        if !intact(block, size, tag) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
        super::contract::kfree(block);
    }
}

fn some_pages(order: u32) {
    let order = Order::new(order).expect("an order");
    let pages = kmem().alloc_pages(Gfp::KERNEL, order).expect("memory");
    let memory = kmem().page_address(pages).expect("mapped");
    mark(memory, order.size_bytes(), 5);
    if !intact(memory, order.size_bytes(), 5) {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: ours.
    unsafe { kmem().free_pages(pages, order) }.expect("ours");
}

/// Sweeps the moment of the interruption over whole operations: no window is too short to be hit.
fn an_interrupt_or_nmi_comes_at_every_instruction() {
    type Operation = fn();
    // With the distance between the moments: one, but for what takes long.
    let operations: [(&str, u64, Operation); 5] = [
        ("kmalloc(64)+kfree", 1, || some_blocks(1, 64)),
        ("alloc_pages(0)+free_pages", 1, || some_pages(0)),
        ("alloc_pages(3)+free_pages", 1, || some_pages(3)),
        ("40 x kmalloc(256), 40 x kfree", 97, || some_blocks(40, 256)),
        ("20 x kmalloc(4096), 20 x kfree", 89, || some_blocks(20, 4096)),
    ];
    WRONG.store(0, Ordering::Relaxed);
    for (name, distance, operation) in operations {
        for nmi in [false, true] {
            let work = move || {
                operation();
                let (mut n, mut moments) = (1, 0);
                let handler: trap::Hook = if nmi { on_nmi } else { on_tick };
                while step::interrupt_at(0, n, nmi, handler, operation) {
                    n += distance;
                    moments += 1;
                }
                println!("{name}: {} at {moments} moments", if nmi { "NMI" } else { "interrupt" });
                assert!(moments > 10);
            };
            assert!(thread::spawn("is interrupted", Some(CpuId(0)), work).join());
        }
    }
    empty(&TIMER);
    empty(&NMI);
    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
}
