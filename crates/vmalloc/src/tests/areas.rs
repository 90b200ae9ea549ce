//! What the allocating calls give and refuse.

use std::format;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator, Pfn, TaskFlags};
use proptest::prelude::*;

use super::machine::{BASE, Machine, as_task};
use crate::{Granule, NoMapping, Prot, Run, VmFlags, VmRequest, Vmalloc, VmallocError};

#[test]
fn v01_vmalloc_memory_is_contiguous_though_its_frames_are_not() {
    // V01, VM-20, VM-28, VM-45
    let machine = Machine::new(256);
    machine.frames.lock().unwrap().scattered = true;
    let vmalloc = machine.window(4096);
    machine.frames.lock().unwrap().largest = 0;
    let memory = vmalloc.vmalloc(10 * PAGE_SIZE - 5).unwrap().addr().get();
    assert_eq!(memory % PAGE_SIZE, 0);
    let frames: Vec<Pfn> =
        (0..10).map(|i| vmalloc.vmalloc_to_pfn((memory + i * PAGE_SIZE) as *const u8).unwrap()).collect();
    assert!(frames.windows(2).any(|pair| pair[1].0 != pair[0].0 + 1), "{frames:?}");
    for i in 0..10 * PAGE_SIZE {
        machine.store(memory + i, i as u8);
    }
    assert!((0..10 * PAGE_SIZE).all(|i| machine.load(memory + i) == i as u8));
    // VM-45: the guard page and what lies behind it are not mapped
    assert_eq!(vmalloc.vmalloc_to_pfn((memory + 10 * PAGE_SIZE) as *const u8), None);
    assert_eq!(vmalloc.vmalloc_to_pfn(8 as *const u8), None);
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory as *mut u8) }.unwrap();
    let zeroed = vmalloc.vzalloc(10 * PAGE_SIZE).unwrap().addr().get();
    assert!((0..10 * PAGE_SIZE).all(|i| machine.load(zeroed + i) == 0));
}

#[test]
fn areas_lie_inside_the_window_lowest_first_with_a_guard_page_each() {
    // VM-01, VM-02, VM-03
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    assert_eq!(vmalloc.window(), BASE..BASE + 1000 * PAGE_SIZE);
    let first = vmalloc.vmalloc(1).unwrap().addr().get();
    let second = vmalloc.vmalloc(PAGE_SIZE + 1).unwrap().addr().get();
    let third = vmalloc.vmalloc(PAGE_SIZE).unwrap().addr().get();
    assert_eq!((first, second, third), (BASE, BASE + 2 * PAGE_SIZE, BASE + 5 * PAGE_SIZE));
    let info = vmalloc.find_vm_area((second + 3) as *const u8).unwrap();
    assert_eq!(info.range, second..second + 3 * PAGE_SIZE, "the recorded size has the guard page");
    assert_eq!((info.requested_size, info.usable_size(), info.nr_pages), (PAGE_SIZE + 1, 2 * PAGE_SIZE, 2));
    let request = VmRequest { flags: VmFlags::NO_GUARD, ..VmRequest::new(PAGE_SIZE, Gfp::KERNEL) };
    let bare = vmalloc.alloc(&request).unwrap().addr().get();
    let next = vmalloc.vmalloc(1).unwrap().addr().get();
    assert_eq!(next - bare, PAGE_SIZE);
    assert!(vmalloc.is_vmalloc_addr(BASE as *const u8));
    assert!(vmalloc.is_vmalloc_addr((BASE + 1000 * PAGE_SIZE - 1) as *const u8));
    assert!(!vmalloc.is_vmalloc_addr((BASE - 1) as *const u8));
    assert!(!vmalloc.is_vmalloc_addr((BASE + 1000 * PAGE_SIZE) as *const u8));
}

#[test]
fn a_freed_hole_is_the_lowest_fit_after_a_purge() {
    // VM-02
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let areas: Vec<usize> = (0..5).map(|_| vmalloc.vmalloc(300 * 4).unwrap().addr().get()).collect();
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(areas[1] as *mut u8) }.unwrap();
    let above = vmalloc.vmalloc(4).unwrap().addr().get();
    assert!(above > areas[4], "a lazily freed range is not handed out");
    crate::PoolShrinker::scan_objects(&vmalloc);
    vmalloc.purge();
    crate::PoolShrinker::scan_objects(&vmalloc);
    assert_eq!(vmalloc.vmalloc(4).unwrap().addr().get(), areas[1]);
}

#[test]
fn alignment_is_kept_and_bad_alignment_refused() {
    // VM-02, TS-13
    let machine = Machine::new(128);
    let vmalloc = machine.window(8192);
    vmalloc.vmalloc(1).unwrap();
    for shift in 0..24 {
        let request = VmRequest { align: 1 << shift, ..VmRequest::new(5000, Gfp::KERNEL) };
        let memory = vmalloc.alloc(&request).unwrap().addr().get();
        assert_eq!(memory % (1 << shift).max(PAGE_SIZE), 0);
    }
    let request = VmRequest { align: 3 * PAGE_SIZE, ..VmRequest::new(1, Gfp::KERNEL) };
    assert_eq!(vmalloc.alloc(&request), Err(VmallocError::BadAlign(3 * PAGE_SIZE)));
    let request = VmRequest { align: 1 << 62, ..VmRequest::new(1, Gfp::KERNEL) };
    assert!(matches!(vmalloc.alloc(&request), Err(VmallocError::NoSpace { .. })));
    // A window that holds the size exactly is used although no slack for alignment is left.
    let exact = VmRequest {
        align: 64 * PAGE_SIZE,
        range: Some(BASE + 4096 * PAGE_SIZE..BASE + 4160 * PAGE_SIZE),
        ..VmRequest::new(63 * PAGE_SIZE, Gfp::KERNEL)
    };
    let machine = Machine::new(128);
    let vmalloc = machine.window(8192);
    assert_eq!(vmalloc.alloc(&exact).unwrap().addr().get(), BASE + 4096 * PAGE_SIZE);
}

#[test]
fn a_range_is_kept_to() {
    // VM-11
    let machine = Machine::new(64);
    let vmalloc = machine.window(8192);
    let range = BASE + 100 * PAGE_SIZE..BASE + 104 * PAGE_SIZE;
    let request = VmRequest { range: Some(range.clone()), ..VmRequest::new(PAGE_SIZE, Gfp::KERNEL) };
    assert_eq!(vmalloc.alloc(&request).unwrap().addr().get(), range.start);
    assert_eq!(vmalloc.alloc(&request).unwrap().addr().get(), range.start + 2 * PAGE_SIZE);
    assert!(matches!(vmalloc.alloc(&request), Err(VmallocError::NoSpace { .. })));
    let outside = VmRequest { range: Some(0..BASE), ..request };
    assert!(matches!(vmalloc.alloc(&outside), Err(VmallocError::BadRange { .. })));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    // VM-20, VM-28
    let machine = Machine::new(64);
    let vmalloc = machine.window(4096);
    assert_eq!(vmalloc.vmalloc(0), Err(VmallocError::ZeroSize));
    assert_eq!(vmalloc.vmalloc(0), Err(VmallocError::ZeroSize));
    assert_eq!(machine.reports().len(), 1, "warns once");
    assert!(matches!(vmalloc.vmalloc(65 * PAGE_SIZE), Err(VmallocError::TooLarge { .. })));
    assert_eq!(machine.reports().len(), 1, "says so");
    assert!(matches!(vmalloc.vmalloc(usize::MAX), Err(VmallocError::TooLarge { .. })));
    let overflow = Err(VmallocError::TooLarge { size_bytes: usize::MAX });
    assert_eq!(vmalloc.vmalloc_array(usize::MAX / 2, 3, Gfp::KERNEL), overflow);
    assert_eq!(vmalloc.vcalloc(usize::MAX, 2), overflow);
    let array = vmalloc.vcalloc(100, 100).unwrap().addr().get();
    assert!((0..10_000).all(|i| machine.load(array + i) == 0));
}

#[test]
fn frames_come_in_large_blocks_then_in_bulk_then_singly() {
    // VM-21
    let machine = Machine::new(4096);
    let vmalloc = machine.window(8192);
    vmalloc.vmalloc(300 * PAGE_SIZE).unwrap();
    machine.watch();
    vmalloc.vmalloc(300 * PAGE_SIZE).unwrap();
    let seen: Vec<_> = machine.seen().into_iter().filter(|seen| seen.gfp.contains(Gfp::HIGHMEM)).collect();
    let orders: Vec<u32> = seen.iter().map(|seen| seen.order).collect();
    assert_eq!(orders, [8, 5, 3, 2], "300 = 256 + 32 + 8 + 4");
    let hard = Gfp::DIRECT_RECLAIM | Gfp::NOFAIL;
    assert!(seen.iter().all(|seen| !seen.gfp.intersects(hard) && seen.gfp.contains(Gfp::NOWARN)), "{seen:?}");

    machine.frames.lock().unwrap().largest = 0;
    machine.watch();
    vmalloc.vmalloc(250 * PAGE_SIZE).unwrap();
    let seen: Vec<_> = machine.seen().into_iter().filter(|seen| seen.gfp.contains(Gfp::HIGHMEM)).collect();
    let bulks: Vec<usize> = seen.iter().map(|seen| seen.bulk).filter(|&bulk| bulk > 0).collect();
    assert_eq!(bulks, [100, 100, 50]);
    assert!(seen.iter().filter(|seen| seen.bulk == 0).all(|seen| seen.order > 0), "tried in falling order");

    // The first bulk request fails: the rest comes one by one with the caller's flags.
    machine.fail_at(Some(3));
    machine.watch();
    vmalloc.vmalloc(4 * PAGE_SIZE).unwrap();
    let singles: Vec<_> = machine
        .seen()
        .into_iter()
        .filter(|seen| seen.order == 0 && seen.bulk == 0 && seen.gfp.contains(Gfp::HIGHMEM))
        .collect();
    assert_eq!(singles.len(), 4);
    assert!(singles.iter().all(|seen| seen.gfp == Gfp::KERNEL | Gfp::HIGHMEM));
}

#[test]
fn zone_flags_are_dropped_but_for_vmalloc_32() {
    // VM-24
    let machine = Machine::new(64);
    let vmalloc = machine.window(4096);
    machine.watch();
    vmalloc.vmalloc_gfp(1, Gfp::KERNEL | Gfp::DMA32 | Gfp::MOVABLE).unwrap();
    assert!(machine.seen().iter().all(|seen| !seen.gfp.intersects(Gfp::DMA32 | Gfp::MOVABLE)));
    vmalloc.vmalloc_gfp(1, Gfp::KERNEL | Gfp::DMA).unwrap();
    assert_eq!(machine.reports().len(), 1, "one message");
    machine.watch();
    vmalloc.vmalloc_32(3 * PAGE_SIZE).unwrap();
    let seen = machine.seen();
    assert!(seen.iter().any(|seen| seen.gfp.contains(Gfp::DMA32)));
    assert!(!seen.iter().any(|seen| seen.gfp.contains(Gfp::DMA32 | Gfp::HIGHMEM)));
    let user = vmalloc.vmalloc_32_user(1).unwrap();
    assert!(vmalloc.find_vm_area(user.as_ptr()).unwrap().flags.contains(VmFlags::USERMAP));
    for gfp in [Gfp::NOFS, Gfp::NOIO, Gfp::USER, Gfp::KERNEL_ACCOUNT, Gfp::ATOMIC, Gfp::NOWAIT] {
        for more in [Gfp::ZERO, Gfp::NOFAIL, Gfp::NORETRY, Gfp::RETRY_MAYFAIL, Gfp::NOWARN, Gfp::NOLOCKDEP] {
            assert!(crate::SUPPORTED.contains(gfp | more), "{gfp} {more}");
        }
    }
}

#[test]
fn page_tables_are_allocated_in_the_scope_that_the_flags_call_for() {
    // VM-25, S-11
    let cases = [
        (Gfp::KERNEL, TaskFlags::empty()),
        (Gfp::NOFS, TaskFlags::NOFS),
        (Gfp::NOIO, TaskFlags::NOIO),
        (Gfp::ATOMIC, TaskFlags::MEMALLOC),
        (Gfp::NOWAIT, TaskFlags::MEMALLOC),
        (Gfp::KERNEL | Gfp::NORETRY, TaskFlags::MEMALLOC),
        (Gfp::KERNEL | Gfp::RETRY_MAYFAIL, TaskFlags::MEMALLOC),
    ];
    for (gfp, scope) in cases {
        let machine = Machine::new(64);
        let vmalloc = machine.window(4096);
        machine.watch();
        vmalloc.vmalloc_gfp(1, gfp).unwrap();
        let table = machine.seen().into_iter().find(|seen| seen.gfp == Gfp::KERNEL | Gfp::ZERO).unwrap();
        assert_eq!(table.task, scope, "{gfp}");
        assert_eq!(kmem_gfp::AllocContext::task_flags(&machine), TaskFlags::empty(), "the scope is over");
    }
}

#[test]
fn interrupts_may_not_allocate_and_atomic_tasks_only_without_blocking() {
    // VM-06, VM-29, TS-15
    let machine = Machine::new(64);
    let vmalloc = machine.window(4096);
    for irq in [TaskFlags::IN_IRQ, TaskFlags::IN_SOFTIRQ, TaskFlags::IN_NMI] {
        let refused = as_task(irq, || vmalloc.vmalloc_gfp(1, Gfp::ATOMIC));
        assert_eq!(refused, Err(VmallocError::BadContext { gfp: Gfp::ATOMIC, task: irq }));
    }
    as_task(TaskFlags::ATOMIC, || {
        assert!(matches!(vmalloc.vmalloc(1), Err(VmallocError::BadContext { .. })));
        vmalloc.vmalloc_gfp(1, Gfp::ATOMIC).unwrap();
        vmalloc.vmalloc_gfp(1, Gfp::NOWAIT).unwrap();
    });
}

#[test]
fn user_memory_is_zeroed_aligned_and_marked() {
    // VM-28, VM-47
    let machine = Machine::new(64);
    let vmalloc = machine.window(4096);
    vmalloc.vmalloc(1).unwrap();
    let user = vmalloc.vmalloc_user(5000).unwrap();
    let at = user.addr().get();
    assert_eq!(at % machine.shmlba, 0);
    assert!((0..5000).all(|i| machine.load(at + i) == 0));
    vmalloc.check_user_range(user.as_ptr(), 2 * PAGE_SIZE).unwrap();
    assert!(vmalloc.check_user_range(user.as_ptr(), 3 * PAGE_SIZE).is_err(), "the guard page is no part of it");
    assert!(vmalloc.check_user_range(user.as_ptr(), 100).is_err());
    assert!(vmalloc.check_user_range((at + 1) as *const u8, PAGE_SIZE).is_err());
    assert!(vmalloc.check_user_range((at + PAGE_SIZE) as *const u8, PAGE_SIZE).is_ok());
    assert!(vmalloc.check_user_range(usize::MAX as *const u8, PAGE_SIZE).is_err());
    let plain = vmalloc.vmalloc(PAGE_SIZE).unwrap();
    assert!(matches!(vmalloc.check_user_range(plain.as_ptr(), PAGE_SIZE), Err(VmallocError::BadFlags(_))));
}

#[test]
fn node_forms_pass_their_preference_on() {
    // VM-28
    let machine = Machine::new(64);
    let vmalloc = machine.window(4096);
    machine.watch();
    vmalloc.vmalloc_node(1, NodeId(3)).unwrap();
    vmalloc.vzalloc_node(4 * PAGE_SIZE, NodeId(3)).unwrap();
    let seen: Vec<_> = machine.seen().into_iter().filter(|seen| seen.gfp.contains(Gfp::HIGHMEM)).collect();
    assert!(seen.len() >= 2 && seen.iter().all(|seen| seen.node == Some(NodeId(3))));
}

#[test]
fn huge_mappings_are_used_whole_or_not_at_all() {
    // VM-27, VM-28, VM-45
    let machine = Machine::new(4096);
    let vmalloc = machine.window(16384);
    vmalloc.vmalloc(1).unwrap();
    let huge = vmalloc.vmalloc_huge(3 << 20, Gfp::KERNEL).unwrap().addr().get();
    assert_eq!(huge % (2 << 20), 0, "alignment grows");
    let info = vmalloc.find_vm_area(huge as *const u8).unwrap();
    assert_eq!((info.nr_pages, info.requested_size), (1024, 3 << 20), "rounding grows");
    for page in 0..1024 {
        assert_eq!(machine.entry(huge + page * PAGE_SIZE).unwrap().1, 21);
    }
    // A page in the middle of a large entry has its own frame.
    let first = vmalloc.vmalloc_to_pfn(huge as *const u8).unwrap();
    assert_eq!(vmalloc.vmalloc_to_pfn((huge + 77 * PAGE_SIZE + 5) as *const u8), Some(Pfn(first.0 + 77)));
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(huge as *mut u8) }.unwrap();

    // Too small, or not permitted: base pages.
    let small = vmalloc.vmalloc_huge((2 << 20) - 1, Gfp::KERNEL).unwrap().addr().get();
    assert_eq!(machine.entry(small).unwrap().1, 12);
    let plain = vmalloc.vmalloc(4 << 20).unwrap().addr().get();
    assert_eq!(machine.entry(plain).unwrap().1, 12);

    // One block is missing: everything is base pages, and nothing is lost.
    let machine = Machine::new(4096);
    let vmalloc = machine.window(16384);
    machine.frames.lock().unwrap().largest = 8;
    let fallen = vmalloc.vmalloc_huge(3 << 20, Gfp::KERNEL).unwrap().addr().get();
    assert_eq!(machine.entry(fallen).unwrap().1, 12);
    assert_eq!(vmalloc.find_vm_area(fallen as *const u8).unwrap().nr_pages, 768, "and not rounded");
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(fallen as *mut u8) }.unwrap();
    drop(vmalloc);
    assert_eq!(machine.in_use_but_tables(), 0);
}

#[test]
fn nofail_waits_for_space_and_tables_and_frames() {
    // VM-26
    let machine = Machine::new(64);
    let vmalloc = machine.window(4);
    let memory = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap().addr().get();
    let raw: *const Vmalloc<&Machine> = &vmalloc;
    let raw = raw.addr();
    let mut freed = false;
    *machine.on_yield.lock().unwrap() = Some(std::boxed::Box::new(move || {
        if !core::mem::replace(&mut freed, true) {
            let vmalloc = core::ptr::with_exposed_provenance::<Vmalloc<&Machine>>(raw);
            // SAFETY: the window outlives the request that yields; the memory is not used any more.
            unsafe { (*vmalloc).vfree(memory as *mut u8) }.unwrap();
        }
    }));
    (&raw const vmalloc).expose_provenance();
    let again = vmalloc.vmalloc_gfp(3 * PAGE_SIZE, Gfp::KERNEL | Gfp::NOFAIL).unwrap().addr().get();
    assert_eq!(again, BASE);
    *machine.on_yield.lock().unwrap() = None;
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(again as *mut u8) }.unwrap();

    // Page tables fail once.
    let machine = Machine::new(64);
    let vmalloc = machine.window(2000);
    vmalloc.vmalloc(1).unwrap();
    let high = VmRequest {
        range: Some(BASE + 1500 * PAGE_SIZE..BASE + 1600 * PAGE_SIZE),
        ..VmRequest::new(1, Gfp::KERNEL | Gfp::NOFAIL)
    };
    for request in 1..10 {
        machine.fail_at(Some(request));
        let memory = vmalloc.alloc(&high).unwrap();
        // SAFETY: not used.
        unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    }
}

#[test]
fn a_killed_task_gets_no_more_single_pages() {
    // VM-23
    let machine = Machine::new(64);
    let vmalloc = machine.window(2000);
    vmalloc.vmalloc(PAGE_SIZE).unwrap();
    vmalloc.purge();
    machine.frames.lock().unwrap().largest = 0;
    let before = machine.in_use();
    as_task(TaskFlags::FATAL_SIGNAL, || {
        machine.fail_at(Some(4));
        assert!(matches!(vmalloc.vmalloc(8 * PAGE_SIZE), Err(VmallocError::Interrupted { .. })));
        assert_eq!(machine.in_use(), before, "partial results are released");
        machine.fail_at(Some(4));
        vmalloc.vmalloc_gfp(8 * PAGE_SIZE, Gfp::KERNEL | Gfp::NOFAIL).unwrap();
    });
}

#[test]
fn exhaustion_purges_then_asks_the_notifier_then_fails() {
    // VM-05
    let machine = Machine::new(64);
    let vmalloc = machine.window(10);
    let first = vmalloc.vmalloc(4 * PAGE_SIZE).unwrap();
    let second = vmalloc.vmalloc(4 * PAGE_SIZE).unwrap();
    // SAFETY: not used.
    unsafe { vmalloc.vfree(first.as_ptr()) }.unwrap();
    assert!(matches!(vmalloc.vmalloc_gfp(4 * PAGE_SIZE, Gfp::NOWAIT), Err(VmallocError::NoSpace { nr_pages: 5 })));
    assert_eq!(vmalloc.stats().purges, 0, "who cannot wait fails at once");
    let first = vmalloc.vmalloc(4 * PAGE_SIZE).unwrap();
    assert_eq!((first.addr().get(), vmalloc.stats().purges), (BASE, 1));
    assert_eq!(machine.notified.load(core::sync::atomic::Ordering::Relaxed), 0);
    machine.reports();

    assert!(matches!(vmalloc.vmalloc_gfp(4 * PAGE_SIZE, Gfp::KERNEL | Gfp::NOWARN), Err(VmallocError::NoSpace { .. })));
    assert_eq!(machine.notified.load(core::sync::atomic::Ordering::Relaxed), 1);
    assert!(machine.reports().is_empty());
    assert!(vmalloc.vmalloc(4 * PAGE_SIZE).is_err());
    assert!(machine.reports()[0].contains("address space"));

    // The notifier finds one.
    (&raw const vmalloc).expose_provenance();
    let (raw, victim) = ((&raw const vmalloc).addr(), second.addr().get());
    *machine.notifier.lock().unwrap() = Some(std::boxed::Box::new(move |pages| {
        assert_eq!(pages, 5);
        let vmalloc = core::ptr::with_exposed_provenance::<Vmalloc<&Machine>>(raw);
        // SAFETY: the window outlives the request that asks; the memory is not used any more.
        match unsafe { (*vmalloc).vfree(victim as *mut u8) } {
            Ok(()) => 5,
            Err(_) => 0,
        }
    }));
    assert_eq!(vmalloc.vmalloc(4 * PAGE_SIZE).unwrap(), second);
    *machine.notifier.lock().unwrap() = None;
}

#[test]
fn a_window_must_make_sense_and_comes_without_loss() {
    let machine = Machine::new(64);
    let vmalloc: Vmalloc<&Machine> = Vmalloc::new(&machine);
    assert_eq!(vmalloc.vmalloc(1), Err(VmallocError::NotReady));
    assert_eq!(format!("{}", vmalloc.vmallocinfo()), "");
    for window in [BASE..BASE, BASE + 1..BASE + PAGE_SIZE, 0..usize::MAX & !(PAGE_SIZE - 1)] {
        // SAFETY: refused.
        assert!(matches!(unsafe { vmalloc.init(window) }, Err(VmallocError::BadRange { .. })));
    }
    for request in 1.. {
        machine.fail_at(Some(request));
        // SAFETY: the addresses mean nothing outside of the machine.
        match unsafe { vmalloc.init(BASE..BASE + (1 << 40)) } {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, VmallocError::NoMemory { source: AllocError::NoMemory { .. }, .. })),
        }
        assert_eq!(machine.in_use(), 0, "request {request}");
    }
    assert_eq!(vmalloc.stats().total_bytes, 1 << 40);
    drop(vmalloc);
    assert_eq!(machine.in_use(), 0);
}

#[test]
fn flags_of_other_calls_are_refused() {
    // VM-07
    let machine = Machine::new(64);
    let vmalloc = machine.window(100);
    for flags in [VmFlags::MAP, VmFlags::IOREMAP, VmFlags::SPARSE, VmFlags::RAM, VmFlags::PERCPU] {
        let request = VmRequest { flags, ..VmRequest::new(1, Gfp::KERNEL) };
        assert_eq!(vmalloc.alloc(&request), Err(VmallocError::BadFlags(flags)));
    }
    let code = vmalloc.vmalloc_exec(1, None).unwrap();
    assert_eq!(machine.entry(code.addr().get()).unwrap().0, Prot::KERNEL_EXEC);
}

#[test]
fn units_check_their_bounds() {
    assert_eq!(Run::new(Pfn(5), 0), None);
    assert_eq!(Run::new(Pfn(1 << 40), 1), None);
    let run = Run::new(Pfn(5), 3).unwrap();
    assert_eq!((run.first(), run.nr_pages(), run.range().len()), (Pfn(5), 3, 3));
    assert_eq!(run.joined(Run::new(Pfn(8), 1).unwrap()), Run::new(Pfn(5), 4));
    assert_eq!(run.joined(Run::new(Pfn(9), 1).unwrap()), None);
    assert_eq!(Granule::new(11), None);
    assert_eq!(Granule::new(48), None);
    assert_eq!(Granule::MIB_2.nr_pages(), 512);
    assert!(crate::CpuSet::Mask(&[0, 2]).contains(65));
    assert!(!crate::CpuSet::Mask(&[0, 2]).contains(200));
    let _ = NoMapping;
    let _ = Order::ZERO;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn every_size_is_rounded_to_pages(size in 1_usize..40 * PAGE_SIZE) {
        // VM-20
        let machine = Machine::new(64);
        let vmalloc = machine.window(100);
        let before = machine.in_use();
        let memory = vmalloc.vmalloc(size).unwrap();
        let info = vmalloc.find_vm_area(memory.as_ptr()).unwrap();
        prop_assert_eq!(info.nr_pages as usize, size.div_ceil(PAGE_SIZE));
        prop_assert_eq!(vmalloc.stats().used_bytes as usize, info.nr_pages as usize * PAGE_SIZE);
        prop_assert!(machine.in_use() - before >= info.nr_pages as usize);
        let _ = machine.nr_nodes();
    }
}
