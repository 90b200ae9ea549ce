//! Mapping given frames, device memory, sparse ranges; protection; per-CPU sets.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE, Pfn, TaskFlags};

use super::machine::{BASE, Machine, as_task};
use crate::{PercpuArea, Prot, VfreeError, VmFlags, Vmalloc, VmallocError};

#[test]
fn vmap_maps_given_frames_in_order_and_leaves_them_to_the_caller() {
    // VM-34, VM-35, VM-45
    let machine = Machine::new(256);
    let vmalloc = machine.window(1000);
    let mut frames = machine.take_frames(70);
    frames.reverse();
    frames[3..40].sort();
    let in_use = machine.in_use();
    // SAFETY: the frames are ours.
    let at = unsafe { vmalloc.vmap(&frames, VmFlags::empty(), Prot::KERNEL_EXEC) }.unwrap().addr().get();
    for (i, &frame) in frames.iter().enumerate() {
        assert_eq!(vmalloc.vmalloc_to_pfn((at + i * PAGE_SIZE) as *const u8), Some(frame));
    }
    assert_eq!(machine.entry(at).unwrap().0, Prot::KERNEL, "never executable");
    assert_eq!(vmalloc.find_vm_area(at as *const u8).unwrap().flags, VmFlags::MAP);
    // SAFETY: refused.
    let in_irq = as_task(TaskFlags::IN_IRQ, || unsafe { vmalloc.vunmap(at as *mut u8) });
    assert!(matches!(in_irq, Err(VfreeError::BadContext(_))));
    // SAFETY: not used any more.
    unsafe { vmalloc.vunmap(at as *mut u8) }.unwrap();
    assert_eq!(machine.nr_mapped(), 0);
    // vfree releases only the mapping, too.
    // SAFETY: the frames are ours, and the mapping is not used.
    unsafe {
        let at = vmalloc.vmap(&frames, VmFlags::empty(), Prot::KERNEL).unwrap();
        vmalloc.vfree(at.as_ptr()).unwrap();
    }
    assert!(machine.in_use() <= in_use + 4);
    machine.give_frames(&frames);
}

#[test]
fn frames_given_away_are_freed_with_the_area() {
    // VM-07, VM-34
    let machine = Machine::new(256);
    let vmalloc = machine.window(1000);
    let frames = machine.take_frames(20);
    // SAFETY: the frames are given away.
    let at = unsafe { vmalloc.vmap(&frames, VmFlags::MAP_PUT_PAGES, Prot::KERNEL) }.unwrap();
    // SAFETY: refused: the frames would be lost.
    assert!(matches!(unsafe { vmalloc.vunmap(at.as_ptr()) }, Err(VfreeError::WrongKind { .. })));
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(at.as_ptr()) }.unwrap();
    drop(vmalloc);
    assert_eq!(machine.in_use_but_tables(), 0);
}

#[test]
fn vunmap_does_not_lose_what_vmalloc_gave() {
    // VM-34, F06
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let memory = vmalloc.vmalloc(1).unwrap();
    // SAFETY: refused.
    assert!(matches!(unsafe { vmalloc.vunmap(memory.as_ptr()) }, Err(VfreeError::WrongKind { .. })));
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
}

#[test]
fn vmap_refuses_what_it_cannot_do() {
    // VM-35
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let frames = machine.take_frames(2);
    let map = |frames: &[Pfn], flags| {
        // SAFETY: the frames are ours, and the mapping is not used.
        unsafe { vmalloc.vmap(frames, flags, Prot::KERNEL) }
    };
    assert_eq!(map(&[], VmFlags::empty()), Err(VmallocError::ZeroSize));
    assert!(matches!(map(&[frames[0]; 65], VmFlags::empty()), Err(VmallocError::TooLarge { .. })));
    assert!(matches!(map(&frames, VmFlags::FLUSH_RESET_PERMS), Err(VmallocError::BadFlags(_))));
    machine.reports();
    let at = map(&frames, VmFlags::NO_GUARD).unwrap();
    assert_eq!(machine.reports().len(), 1, "the guard stays, with a warning");
    assert_eq!(vmalloc.find_vm_area(at.as_ptr()).unwrap().range.len(), 3 * PAGE_SIZE);
    as_task(TaskFlags::ATOMIC, || assert!(matches!(map(&frames, VmFlags::MAP), Err(VmallocError::BadContext { .. }))));
}

#[test]
fn io_areas_are_aligned_to_their_size_up_to_a_limit() {
    // VM-06, VM-07
    let machine = Machine::new(64);
    let vmalloc = machine.window(1 << 20);
    vmalloc.vmalloc(1).unwrap();
    for (size, align) in [(1, 1), (3 * PAGE_SIZE, 4), (100 * PAGE_SIZE, 128), (1000 * PAGE_SIZE, 128)] {
        // SAFETY: nothing is accessed.
        let at = unsafe { vmalloc.ioremap(0xfee0_0123, size, Prot::DEVICE) }.unwrap().addr().get();
        assert_eq!(at % PAGE_SIZE, 0x123, "points at the register");
        assert_eq!((at - 0x123) % (align * PAGE_SIZE), 0);
        assert_eq!(vmalloc.vmalloc_to_pfn(at as *const u8), Some(Pfn(0xfee00)));
        let mut bytes = [1; 8];
        assert_eq!(vmalloc.vread(at as *const u8, &mut bytes), 8);
        assert_eq!(bytes, [0; 8], "device memory is not read");
        // SAFETY: not used any more.
        unsafe { vmalloc.iounmap(at as *mut u8) }.unwrap();
    }
    // Large pieces use large entries.
    // SAFETY: nothing is accessed.
    let at = unsafe { vmalloc.ioremap(4 << 30, 8 << 20, Prot::DEVICE) }.unwrap().addr().get();
    let shifts: Vec<u32> = (0..2048).map(|page| machine.entry(at + page * PAGE_SIZE).unwrap().1).collect();
    assert!(shifts.contains(&12) || shifts.iter().all(|&shift| shift == 21));
}

#[test]
fn sparse_areas_are_populated_in_parts() {
    // VM-07, VM-46
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let at = vmalloc.get_vm_area(10 * PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap().addr().get();
    let frames = machine.take_frames(3);
    let part = (at + 4 * PAGE_SIZE) as *mut u8;
    // SAFETY: the frames are ours, the part is free.
    unsafe { vmalloc.vm_area_map(part, &frames, Prot::KERNEL) }.unwrap();
    assert_eq!(vmalloc.vmalloc_to_pfn(part), Some(frames[0]));
    for outside in [at + 8 * PAGE_SIZE, at + 10 * PAGE_SIZE, at + 1, at - PAGE_SIZE] {
        // SAFETY: refused.
        let refused = unsafe { vmalloc.vm_area_map(outside as *mut u8, &frames, Prot::KERNEL) };
        assert!(matches!(refused, Err(VmallocError::BadRange { .. })), "{outside:#x}");
    }
    machine.tables.lock().unwrap().refuse = true;
    // SAFETY: the frames are ours, the part is free.
    assert!(unsafe { vmalloc.vm_area_map(at as *mut u8, &frames, Prot::KERNEL) }.is_err());
    machine.tables.lock().unwrap().refuse = false;
    assert_eq!(machine.nr_mapped(), 3);
    let mut byte = [9];
    assert_eq!(vmalloc.vread(part, &mut byte), 1);
    assert_eq!(byte, [0]);
    // SAFETY: not used any more.
    unsafe { vmalloc.vm_area_unmap(part, 1) }.unwrap();
    assert_eq!(machine.nr_mapped(), 2);
    // SAFETY: not used any more.
    unsafe { vmalloc.vunmap(at as *mut u8) }.unwrap();
    assert_eq!(machine.nr_mapped(), 0);
    machine.give_frames(&frames);
}

#[test]
fn protection_changes_and_is_flushed() {
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let at = vmalloc.vmalloc(4 * PAGE_SIZE).unwrap().addr().get();
    machine.flushes();
    // SAFETY: nothing is written.
    unsafe { vmalloc.protect((at + PAGE_SIZE) as *mut u8, 2, Prot::KERNEL_RO) }.unwrap();
    let prots: Vec<Prot> = (0..4).map(|page| machine.entry(at + page * PAGE_SIZE).unwrap().0).collect();
    assert_eq!(prots, [Prot::KERNEL, Prot::KERNEL_RO, Prot::KERNEL_RO, Prot::KERNEL]);
    assert_eq!(machine.flushes(), [at + PAGE_SIZE..at + 3 * PAGE_SIZE]);
    // SAFETY: refused: the guard page is not mapped.
    assert!(unsafe { vmalloc.protect((at + 3 * PAGE_SIZE) as *mut u8, 2, Prot::KERNEL_RO) }.is_err());
}

fn pages(offset: usize, size: usize) -> PercpuArea {
    PercpuArea { offset: offset * PAGE_SIZE, size: size * PAGE_SIZE }
}

fn taken(vmalloc: &Vmalloc<&Machine>, page: usize) -> bool {
    vmalloc.find_vm_area((BASE + page * PAGE_SIZE) as *const u8).is_some()
}

#[test]
fn percpu_sets_are_congruent_at_the_top_and_all_or_none() {
    // VM-48
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let set = [pages(0, 4), pages(100, 4), pages(300, 2)];
    let base = vmalloc.get_percpu_areas(&set, PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!(base, BASE + 698 * PAGE_SIZE);
    assert!(taken(&vmalloc, 698) && taken(&vmalloc, 801) && taken(&vmalloc, 999) && !taken(&vmalloc, 702));
    // The next set interleaves with the first, as high as it can.
    let second = vmalloc.get_percpu_areas(&set, 4 * PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!(second % (4 * PAGE_SIZE), 0);
    assert!(second < base && second >= base - 8 * PAGE_SIZE, "{}", (base - second) / PAGE_SIZE);
    // SAFETY: refused: vfree is not for them.
    assert!(matches!(unsafe { vmalloc.vfree(base as *mut u8) }, Err(VfreeError::WrongKind { .. })));
    // SAFETY: not used any more.
    unsafe { vmalloc.free_percpu_areas(base, &set) }.unwrap();
    assert!(!taken(&vmalloc, 698) && vmalloc.stats().lazy_pages == 10);

    // One purge makes room; without room nothing is kept.
    let all = [pages(0, 990), pages(990, 10)];
    assert!(matches!(vmalloc.get_percpu_areas(&all, PAGE_SIZE, Gfp::KERNEL), Err(VmallocError::NoSpace { .. })));
    // SAFETY: not used any more.
    unsafe { vmalloc.free_percpu_areas(second, &set) }.unwrap();
    assert_eq!(vmalloc.get_percpu_areas(&all, PAGE_SIZE, Gfp::KERNEL), Ok(BASE));
    for bad in [&[pages(5, 4), pages(3, 1)][..], &[pages(0, 4), pages(3, 1)][..]] {
        assert!(matches!(vmalloc.get_percpu_areas(bad, PAGE_SIZE, Gfp::KERNEL), Err(VmallocError::BadRange { .. })));
    }
    let uneven = [PercpuArea { offset: 0, size: 100 }];
    assert!(matches!(vmalloc.get_percpu_areas(&uneven, PAGE_SIZE, Gfp::KERNEL), Err(VmallocError::BadAlign(_))));
}
