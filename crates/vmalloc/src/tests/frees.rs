//! Freeing: by any address, from any context, once.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE, TaskFlags};

use super::machine::{BASE, Machine, as_task, on_cpu};
use crate::{VfreeError, VmArea, VmFlags, VmRequest, Work};

#[test]
fn f04_what_vmalloc_gave_vfree_takes() {
    // F04, F06, VM-32
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    // SAFETY: null is nothing.
    unsafe { vmalloc.vfree(core::ptr::null_mut()) }.unwrap();
    let memory = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap();
    let mapped = machine.nr_mapped();
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    assert_eq!((mapped, machine.nr_mapped()), (3, 0));
    assert_eq!(vmalloc.stats().used_bytes, 0);
    drop(vmalloc);
    assert_eq!(machine.in_use_but_tables(), 0);
}

#[test]
fn f06_wrong_addresses_are_caught() {
    // F06, VM-33
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let memory = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap().addr().get();
    let free = |at: usize| {
        // SAFETY: refused, or not used any more.
        unsafe { vmalloc.vfree(at as *mut u8) }
    };
    assert_eq!(free(memory + 8), Err(VfreeError::Misaligned(memory + 8)));
    assert_eq!(machine.reports().len(), 1, "warns");
    assert_eq!(free(BASE + 500 * PAGE_SIZE), Err(VfreeError::NoArea(BASE + 500 * PAGE_SIZE)));
    assert_eq!(free(BASE - PAGE_SIZE), Err(VfreeError::Foreign(BASE - PAGE_SIZE)));
    assert_eq!(free(memory), Ok(()));
    assert_eq!(free(memory), Err(VfreeError::AlreadyFree(memory)));
    vmalloc.purge();
    assert_eq!(free(memory), Err(VfreeError::AlreadyFree(memory)), "pooled");
    crate::PoolShrinker::scan_objects(&vmalloc);
    assert_eq!(free(memory), Err(VfreeError::NoArea(memory)));
}

#[test]
fn any_page_of_an_area_frees_all_of_it() {
    // VM-33
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    for page in 0..4 {
        let memory = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap().addr().get();
        // SAFETY: not used any more. Page 3 is the guard.
        unsafe { vmalloc.vfree((memory + page * PAGE_SIZE) as *mut u8) }.unwrap();
        assert_eq!(machine.nr_mapped(), 0);
        // SAFETY: refused.
        assert!(unsafe { vmalloc.vfree(memory as *mut u8) }.is_err());
    }
}

#[test]
fn interrupts_put_frees_off_and_nmis_may_not_free() {
    // VM-32
    let machine = Machine::with_cpus(64, 2);
    let vmalloc = machine.window(1000);
    let areas: Vec<_> = (0..3).map(|_| vmalloc.vmalloc(1).unwrap()).collect();
    for irq in [TaskFlags::IN_IRQ, TaskFlags::IN_SOFTIRQ] {
        let area = areas[usize::from(irq == TaskFlags::IN_SOFTIRQ)];
        let before = machine.nr_mapped();
        // SAFETY: not used any more.
        as_task(irq, || on_cpu(1, || unsafe { vmalloc.vfree(area.as_ptr()) })).unwrap();
        assert_eq!(machine.nr_mapped(), before, "nothing is unmapped yet");
        // SAFETY: refused.
        assert_eq!(unsafe { vmalloc.vfree(area.as_ptr()) }, Err(VfreeError::AlreadyFree(area.addr().get())));
    }
    assert_eq!(*machine.scheduled.lock().unwrap(), [Work::Free], "only the push onto an empty list asks");
    let nmi = as_task(TaskFlags::IN_NMI, || {
        // SAFETY: refused.
        unsafe { vmalloc.vfree(areas[2].as_ptr()) }
    });
    assert!(matches!(nmi, Err(VfreeError::BadContext(_))));
    assert_eq!(vmalloc.run_deferred(), 2);
    assert_eq!(machine.nr_mapped(), 1);

    // vfree_atomic always puts off; the next free on that CPU does the work.
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree_atomic(areas[2].as_ptr()) }.unwrap();
    assert_eq!(machine.nr_mapped(), 1);
    let last = vmalloc.vmalloc(1).unwrap();
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(last.as_ptr()) }.unwrap();
    assert_eq!(machine.nr_mapped(), 0);
}

#[test]
fn handles_free_themselves() {
    // F04
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let before = machine.in_use();
    let mut area = vmalloc.area(&VmRequest::new(100, Gfp::KERNEL)).unwrap();
    machine.store(area.as_ptr().addr() + 99, 7);
    area.resize(3 * PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!((machine.load(area.as_ptr().addr() + 99), area.size()), (7, 3 * PAGE_SIZE));
    assert!(area.resize(0, Gfp::KERNEL).is_err());
    let raw = area.into_raw();
    assert_eq!(machine.nr_mapped(), 3);
    // SAFETY: made by this window, owned by nobody.
    let area = unsafe { VmArea::from_raw(&vmalloc, raw) }.unwrap();
    assert_eq!(area.size(), 3 * PAGE_SIZE);
    drop(area);
    assert_eq!(machine.nr_mapped(), 0);
    assert!(machine.in_use() - before <= 4, "page tables and bookkeeping only");
    // SAFETY: refused.
    assert!(unsafe { VmArea::from_raw(&vmalloc, raw) }.is_err());
}

#[test]
fn permissions_are_reset_and_flushed_before_frames_are_freed() {
    // VM-07
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let request = VmRequest { flags: VmFlags::FLUSH_RESET_PERMS, ..VmRequest::new(2 * PAGE_SIZE, Gfp::KERNEL) };
    let memory = vmalloc.alloc(&request).unwrap();
    let frame = vmalloc.vmalloc_to_pfn(memory.as_ptr()).unwrap();
    machine.flushes();
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    assert_eq!(machine.tables.lock().unwrap().reset[0].first(), frame);
    let at = memory.addr().get();
    assert_eq!(machine.flushes(), [at..at + 3 * PAGE_SIZE]);
}

#[test]
fn a_free_hands_the_work_of_a_purge_to_whoever_may_sleep() {
    // VM-13
    let machine = Machine::new(64);
    machine.schedules.store(true, core::sync::atomic::Ordering::Relaxed);
    let vmalloc = machine.window(40_000);
    let limit = vmalloc.stats().lazy_limit;
    while vmalloc.stats().lazy_pages <= limit {
        let sparse = vmalloc.get_vm_area(99 * PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap();
        // SAFETY: not used.
        unsafe { vmalloc.vunmap(sparse.as_ptr()) }.unwrap();
    }
    assert_eq!(*machine.scheduled.lock().unwrap(), [Work::Purge]);
    assert_eq!(vmalloc.stats().purges, 0);
    assert!(vmalloc.purge() > limit);
    assert_eq!((vmalloc.stats().purges, vmalloc.stats().lazy_pages), (1, 0));
}
