//! The machine itself: the map, the zones, the CPUs, the timer, grace periods.

use kmem::{Gfp, Order, ZoneKind};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{CpuId, GracePeriod, Pinned};

use super::tools::{OPTIMISTIC, exhaust};
use crate::cpu::KernelCpu;
use crate::grace::SchedulerGrace;
use crate::memory::GIVEN;
use crate::platform::kmem;
use crate::{ipi, percpu, sched, thread};

super::tests![
    frames_of_holes_and_reserved_ranges_are_never_handed_out,
    zones_follow_addresses,
    every_cpu_runs_threads_and_ticks,
    a_barrier_reaches_every_cpu,
    a_grace_period_waits_for_readers,
    memory_above_4_gib_is_used,
];

fn frames_of_holes_and_reserved_ranges_are_never_handed_out() {
    let given = GIVEN.get().expect("the map");
    let pages = exhaust(Gfp::HIGHUSER_MOVABLE.difference(Gfp::RECLAIM));
    assert!(pages.len() > 1000, "{} pages", pages.len());
    for page in pages.iter() {
        assert!(given.is_free_memory(page), "{page} is not memory");
    }
    let managed = kmem().pages().managed_pages();
    let regions: u64 = given.regions().iter().map(|region| region.range.len()).sum();
    assert!(managed < regions && pages.len() as u64 <= managed);
    pages.free();
}

fn zones_follow_addresses() {
    let limits = GIVEN.get().expect("the map").limits;
    for zone in kmem().pages().zones() {
        println!("zone {}: {} of {} pages free", zone.kind(), zone.free_pages(), zone.managed_pages());
    }
    for (gfp, highest) in
        [(Gfp::DMA, ZoneKind::Dma), (Gfp::KERNEL | Gfp::DMA32, ZoneKind::Dma32), (Gfp::KERNEL, ZoneKind::Normal)]
    {
        for order in [0, 3, 9] {
            let order = Order::new(order).expect("an order");
            let page = kmem().alloc_pages(gfp, order).expect("memory");
            assert!(limits.zone_of(page) <= highest, "{gfp} gave {page}");
            // SAFETY: ours.
            unsafe { kmem().free_pages(page, order) }.expect("ours");
        }
    }
    let block = kmem().kmalloc(100, OPTIMISTIC).expect("memory");
    // SAFETY: ours.
    unsafe { kmem().kfree(block.as_ptr()) }.expect("ours");
}

fn every_cpu_runs_threads_and_ticks() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    SEEN.store(0, Ordering::Relaxed);
    let cpus = percpu::nr_cpus();
    let threads: alloc::vec::Vec<_> = (0..cpus)
        .map(|cpu| {
            thread::spawn("on a cpu", Some(CpuId(cpu)), move || {
                let pin = Pinned::new(&KernelCpu).expect("always");
                assert_eq!(pin.id(), CpuId(cpu));
                SEEN.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join());
    }
    assert_eq!(SEEN.load(Ordering::Relaxed), u64::from(cpus));
    let before: alloc::vec::Vec<_> = percpu::all().iter().map(|cpu| cpu.ticks.load(Ordering::Relaxed)).collect();
    for (cpu, before) in percpu::all().iter().zip(before) {
        while cpu.ticks.load(Ordering::Relaxed) < before + 3 {
            sched::park_or_yield();
        }
    }
}

fn a_barrier_reaches_every_cpu() {
    for _ in 0..100 {
        ipi::barrier();
    }
    let numbers: alloc::vec::Vec<_> = percpu::all().iter().map(|cpu| cpu.answered.load(Ordering::Relaxed)).collect();
    assert!(percpu::nr_cpus() == 1 || numbers.iter().filter(|&&number| number >= 50).count() > 0, "{numbers:?}");
}

fn a_grace_period_waits_for_readers() {
    let pin = Pinned::new(&KernelCpu);
    let grace = SchedulerGrace.snapshot();
    let until = sched::now_ms() + 20;
    while sched::now_ms() < until {
        assert!(!SchedulerGrace.has_passed(grace), "a reader is running");
        core::hint::spin_loop();
    }
    drop(pin);
    SchedulerGrace.synchronize();
    assert!(SchedulerGrace.has_passed(grace));
}

/// Runs on machines with so much only; others have nothing to show.
fn memory_above_4_gib_is_used() {
    let given = GIVEN.get().expect("the map");
    let Some(high) = given.regions().iter().map(|region| region.range).find(|range| range.start.0 >= 1 << 20) else {
        return;
    };
    // The zone reaches from below to above: sooner or later a block is from there.
    let mut others = alloc::vec::Vec::with_capacity(4096);
    let block = loop {
        let block = kmem().alloc_pages(OPTIMISTIC, Order::PAGEBLOCK).expect("memory above 4 GiB is free");
        if high.contains(block) {
            break block;
        }
        others.push(block);
    };
    let address = kmem().page_address(block).expect("mapped");
    super::tools::fill(address, Order::PAGEBLOCK.size_bytes(), 1);
    super::tools::check(address, Order::PAGEBLOCK.size_bytes(), 1);
    others.push(block);
    for block in others {
        // SAFETY: ours.
        unsafe { kmem().free_pages(block, Order::PAGEBLOCK) }.expect("ours");
    }
}
