//! G01..G09: what the flags promise.

use kmem_gfp::verdict::{GfpError, check_sleep};
use kmem_gfp::{AllocError, Gfp, Order, Pfn, ZoneKind};
use kmem_hosted::{Machine, TaskFlags, in_context};
use kmem_tests::{Script, exhaust, free_all, machine, short_machine};

fn zone_of(machine: &Machine, pfn: Pfn) -> ZoneKind {
    let range = machine.plan().ranges().iter().find(|range| range.frames.contains(pfn));
    range.expect("the frame is the machine's").zone
}

#[test]
fn g01_gfp_kernel_is_the_default_and_may_reclaim_and_sleep() {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    let block = kmem.kmalloc(100, Gfp::KERNEL).unwrap();
    // SAFETY: allocated above.
    unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
    assert_eq!(script.take_heard().wakes, 0, "no shortage, no reclaim");

    script.hoard(exhaust(kmem, Gfp::KERNEL.difference(Gfp::RECLAIM)));
    script.rounds(&[64]);
    let page = kmem.alloc_page(Gfp::KERNEL).unwrap();
    let heard = script.take_heard();
    assert!(heard.wakes > 0, "in the background");
    assert_eq!(heard.reclaims.len(), 1, "and directly");
    let mut pages = script.take_hoard();
    pages.push(page);
    // SAFETY: allocated above.
    unsafe { free_all(kmem, pages) };

    // A context that must not sleep must not ask with it.
    let irq = in_context(TaskFlags::IN_IRQ, kmem_hosted::task_flags);
    assert!(matches!(check_sleep(Gfp::KERNEL, irq), Err(GfpError::SleepInAtomic { .. })));
    #[cfg(debug_assertions)]
    {
        type Call = fn(kmem_tests::Kmem) -> bool;
        let calls: [Call; 3] = [
            |kmem| kmem.alloc_page(Gfp::KERNEL).is_ok(),
            |kmem| kmem.kmalloc(100, Gfp::KERNEL).is_ok(),
            |kmem| kmem.kzalloc_node(100_000, Gfp::KERNEL, None).is_ok(),
        ];
        for call in calls {
            let kmem = core::panic::AssertUnwindSafe(kmem);
            let caught = std::panic::catch_unwind(|| in_context(TaskFlags::IN_IRQ, || call(*kmem)));
            assert!(caught.is_err(), "debug builds say so");
        }
    }
}

#[test]
fn g02_gfp_nowait_neither_sleeps_nor_reclaims_but_wakes_kswapd() {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    in_context(TaskFlags::ATOMIC, || {
        let block = kmem.kmalloc(100, Gfp::NOWAIT).unwrap();
        // SAFETY: allocated above.
        unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
        let pages = exhaust(kmem, Gfp::NOWAIT);
        script.hoard(pages);
        script.rounds(&[64]);
        script.take_heard();
        assert!(kmem.alloc_page(Gfp::NOWAIT).is_err(), "likely to fail under pressure");
    });
    let heard = script.take_heard();
    assert!(heard.wakes > 0);
    assert!(heard.reclaims.is_empty());
    // SAFETY: allocated above.
    unsafe { free_all(kmem, script.take_hoard()) };
}

#[test]
fn g03_nowarn_silences_the_report_and_without_it_reports_are_rate_limited() {
    let script = Script::new();
    let machine = short_machine(script);
    let kmem = machine.kmem();
    let optimistic = Gfp::KERNEL.difference(Gfp::RECLAIM);
    let pages = exhaust(kmem, optimistic);
    machine.take_reports();
    assert!(kmem.alloc_page(optimistic | Gfp::NOWARN).is_err());
    assert!(kmem.alloc_page(Gfp::NOWAIT).is_err());
    assert_eq!(machine.take_reports(), "", "silent");
    let failing = Gfp::NOWAIT.difference(Gfp::NOWARN);
    assert!(kmem.alloc_page(failing).is_err());
    let report = machine.take_reports();
    assert!(report.contains("allocation failure"), "{report}");
    assert!(report.contains("order:0") || report.contains("order 0"), "{report}");
    assert!(kmem.alloc_page(failing).is_err());
    assert_eq!(machine.take_reports(), "", "rate-limited");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, pages) };
}

#[test]
fn g04_gfp_atomic_digs_into_part_of_the_reserves() {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    let pages = exhaust(kmem, Gfp::NOWAIT);
    let reserve = in_context(TaskFlags::IN_IRQ, || exhaust(kmem, Gfp::ATOMIC));
    assert!(!reserve.is_empty(), "from what others may not touch");
    let _ = script.take_heard();
    let deeper = {
        let _scope = kmem.noreclaim_scope();
        exhaust(kmem, Gfp::KERNEL)
    };
    assert!(!deeper.is_empty(), "but only a part of it");
    assert!(script.take_heard().reclaims.is_empty());
    for pages in [pages, reserve, deeper] {
        // SAFETY: allocated above.
        unsafe { free_all(kmem, pages) };
    }
}

#[test]
fn g05_scope_api_weakens_every_allocation_inside() {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    script.hoard(exhaust(kmem, Gfp::KERNEL.difference(Gfp::RECLAIM)));
    let seen = |gfp: Gfp| {
        script.rounds(&[32]);
        let page = kmem.alloc_page(gfp).unwrap();
        script.hoard(exhaust(kmem, Gfp::KERNEL.difference(Gfp::RECLAIM)));
        script.hoard(vec![page]);
        script.take_heard().reclaims.last().expect("reclaim was asked").gfp
    };
    assert!(seen(Gfp::KERNEL).contains(Gfp::IO | Gfp::FS));
    assert!(!seen(Gfp::NOFS).intersects(Gfp::FS));
    assert!(!seen(Gfp::NOIO).intersects(Gfp::IO | Gfp::FS));
    {
        let _nofs = kmem.nofs_scope();
        assert_eq!(seen(Gfp::KERNEL) & (Gfp::IO | Gfp::FS), Gfp::IO);
        {
            let _noio = kmem.noio_scope();
            assert!(!seen(Gfp::KERNEL).intersects(Gfp::IO | Gfp::FS), "scopes nest");
            let _again = kmem.nofs_scope();
        }
        assert_eq!(seen(Gfp::KERNEL) & (Gfp::IO | Gfp::FS), Gfp::IO, "and end one by one");
    }
    assert!(seen(Gfp::KERNEL).contains(Gfp::IO | Gfp::FS));
    let token = kmem.memalloc_noio_save();
    assert!(!seen(Gfp::KERNEL).contains(Gfp::IO));
    kmem.memalloc_noio_restore(token).unwrap();
    assert!(seen(Gfp::KERNEL).contains(Gfp::IO));
    {
        // Inside a noreclaim scope nothing is reclaimed; every reserve may be used.
        let _noreclaim = kmem.noreclaim_scope();
        script.hoard(vec![kmem.alloc_page(Gfp::KERNEL).unwrap()]);
        assert!(script.take_heard().reclaims.is_empty());
    }
    // SAFETY: allocated above.
    unsafe { free_all(kmem, script.take_hoard()) };
}

#[test]
fn g06_account_charges_a_group_and_fails_over_its_limit() {
    use crate::flags::board::{Board, kmem};
    let kmem = kmem();
    let board: &Board = kmem.platform();
    let limit = 4;
    board.limit(limit);
    let mut pages = Vec::new();
    let error = loop {
        match kmem.alloc_page(Gfp::KERNEL_ACCOUNT | Gfp::NOWARN) {
            Ok(page) => pages.push(page),
            Err(error) => break error,
        }
    };
    assert_eq!(pages.len(), limit as usize);
    assert!(matches!(error, AllocError::OverLimit { order: Order::ZERO, .. }), "{error}");
    let free = kmem.alloc_page(Gfp::KERNEL).unwrap();
    pages.push(free);
    for page in pages {
        // SAFETY: allocated above.
        unsafe { kmem.free_page(page) }.unwrap();
    }
    board.limit(u64::MAX);
    // Accounted kmalloc memory has caches of its own.
    let block = kmem.kmalloc(100, Gfp::KERNEL_ACCOUNT).unwrap();
    let cache = kmem.slabs().cache_of(block).unwrap();
    assert_eq!(cache.name(), "kmalloc-cg-128");
    // SAFETY: allocated above.
    unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
}

#[path = "../seams/board.rs"]
mod board;

#[test]
fn g07_user_pages_come_only_from_the_zones_their_flags_allow() {
    let machine = machine();
    let kmem = machine.kmem();
    let zones = |gfp: Gfp| {
        let pages = exhaust(kmem, gfp.difference(Gfp::RECLAIM));
        let mut zones: Vec<_> = pages.iter().map(|page| zone_of(machine, *page)).collect();
        // SAFETY: allocated above.
        unsafe { free_all(kmem, pages) };
        zones.dedup();
        zones.sort();
        zones.dedup();
        zones
    };
    let unmovable = [ZoneKind::Dma32, ZoneKind::Normal];
    let of = |gfp| zones(gfp).into_iter().filter(|zone| *zone != ZoneKind::Dma).collect::<Vec<_>>();
    assert_eq!(of(Gfp::USER), unmovable, "not movable, so nothing from the MOVABLE zone");
    assert_eq!(of(Gfp::HIGHUSER), unmovable, "nor with HIGHMEM alone");
    assert_eq!(of(Gfp::HIGHUSER_MOVABLE), [ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::Movable]);
    let first = kmem.alloc_page(Gfp::HIGHUSER_MOVABLE).unwrap();
    assert_eq!(zone_of(machine, first), ZoneKind::Movable, "which is tried first");
    let user = kmem.alloc_page(Gfp::USER).unwrap();
    assert!(kmem.page_address(user).is_some(), "directly accessible");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, vec![first, user]) };
}

#[test]
fn g08_dma_memory_lies_below_the_limit_of_the_hardware() {
    let machine = machine();
    let kmem = machine.kmem();
    for (gfp, limit) in
        [(Gfp::DMA, 16_u64 << 20), (Gfp::KERNEL | Gfp::DMA, 16 << 20), (Gfp::KERNEL | Gfp::DMA32, 4 << 30)]
    {
        for order in [0, 3, 9] {
            let order = Order::new(order).unwrap();
            let page = kmem.alloc_pages(gfp, order).unwrap();
            let end = page.address().unwrap() + order.size_bytes() as u64;
            assert!(end <= limit, "{gfp} gave {page}");
            // SAFETY: allocated above.
            unsafe { kmem.free_pages(page, order) }.unwrap();
        }
    }
    let block = kmem.kmalloc(512, Gfp::KERNEL | Gfp::DMA).unwrap();
    assert_eq!(zone_of(machine, kmem.virt_to_pfn(block.as_ptr()).unwrap()), ZoneKind::Dma);
    // SAFETY: allocated above.
    unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
}

#[test]
fn g09_zero_and_every_zeroing_variant_return_zeroed_memory() {
    let kmem = machine().kmem();
    let dirty_then = |make: &dyn Fn() -> (*mut u8, usize), free: &dyn Fn(*mut u8)| {
        for _ in 0..3 {
            let (block, len) = make();
            for at in 0..len {
                // SAFETY: inside the block.
                assert_eq!(unsafe { block.add(at).read() }, 0);
            }
            // SAFETY: inside the block.
            unsafe { block.write_bytes(0xee, len) };
            free(block);
        }
    };
    // SAFETY: each closure frees what its neighbour allocated.
    let kfree = |block: *mut u8| unsafe { kmem.kfree(block) }.unwrap();
    for size in [24, 100, 4000, 8192, 70_000] {
        dirty_then(&|| (kmem.kmalloc(size, Gfp::KERNEL | Gfp::ZERO).unwrap().as_ptr(), size), &kfree);
        dirty_then(&|| (kmem.kzalloc(size, Gfp::ATOMIC).unwrap().as_ptr(), size), &kfree);
        dirty_then(&|| (kmem.kcalloc(3, size, Gfp::KERNEL).unwrap().as_ptr(), 3 * size), &kfree);
        dirty_then(&|| (kmem.kzalloc_node(size, Gfp::KERNEL, None).unwrap().as_ptr(), size), &kfree);
    }
    let cache = kmem.kmem_cache_create("zeroes", 200, &kmem::CacheArgs::default()).unwrap();
    dirty_then(&|| (kmem.kmem_cache_zalloc(cache, Gfp::KERNEL).unwrap().as_ptr(), 200), &kfree);
    // SAFETY: as above.
    let free_page = |page: *mut u8| unsafe { kmem.free_pages_at(page, Order::ZERO) }.unwrap();
    dirty_then(&|| (kmem.get_zeroed_page(Gfp::KERNEL).unwrap().as_ptr(), 4096), &free_page);
    let order = Order::new(2).unwrap();
    // SAFETY: as above.
    let free_pages = |page: *mut u8| unsafe { kmem.free_pages_at(page, order) }.unwrap();
    let zeroed = Gfp::KERNEL | Gfp::ZERO;
    dirty_then(&|| (kmem.get_free_pages(zeroed, order).unwrap().as_ptr(), order.size_bytes()), &free_pages);
}
