//! Guard pages, protection, translations that must not linger: what only real page tables can show.

use alloc::vec::Vec;
use core::hint::black_box;

use kmem::{Gfp, PAGE_SIZE};
use kmem_sync::CpuId;
use kmem_sync::atomic::{AtomicUsize, Ordering};
use kmem_vmalloc::{Prot, VmFlags, VmRequest};

use super::tools::{check, fill};
use crate::fault::{self, Access, GUARD_HITS, STACK_OVERFLOWS};
use crate::page_table::KernelSpace;
use crate::platform::kmem;
use crate::vm::vmalloc;
use crate::{percpu, sched, thread};

super::tests![
    touching_a_guard_page_is_caught_and_names_the_owner,
    a_freed_area_faults_once_translations_are_flushed,
    memory_that_is_only_read_faults_when_written,
    an_overflowing_stack_ends_its_thread_and_nothing_else,
    no_cpu_keeps_a_translation_after_a_flush,
    large_pages_are_used_and_split,
];

fn touching_a_guard_page_is_caught_and_names_the_owner() {
    for pages in [1, 3, 16] {
        let area = vmalloc().vmalloc(pages * PAGE_SIZE).expect("memory");
        let here = core::panic::Location::caller().file();
        let last = area.addr().get() + pages * PAGE_SIZE - 1;
        for access in [Access::Read, Access::Write] {
            assert!(fault::probe(last, access).is_some(), "the last byte is there");
            let before = GUARD_HITS.load(Ordering::Relaxed);
            assert_eq!(fault::probe(last + 1, access), None, "the guard page is not");
            assert_eq!(GUARD_HITS.load(Ordering::Relaxed), before + 1);
            assert_eq!(fault::last_address(), last + 1);
        }
        let (info, owner) = fault::guard_of(last + 1).expect("an owner");
        assert_eq!(info.range.start, area.addr().get());
        assert_eq!(owner.file(), here, "the area was made here");
        // SAFETY: ours.
        unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
    }
}

fn a_freed_area_faults_once_translations_are_flushed() {
    let area = vmalloc().vmalloc(2 * PAGE_SIZE).expect("memory");
    fill(area, 2 * PAGE_SIZE, 3);
    // SAFETY: ours.
    unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
    vmalloc().vm_unmap_aliases();
    assert_eq!(fault::probe(area.addr().get(), Access::Read), None);
    assert_eq!(fault::probe(area.addr().get() + PAGE_SIZE, Access::Write), None);
}

fn memory_that_is_only_read_faults_when_written() {
    let area = vmalloc().vmalloc(2 * PAGE_SIZE).expect("memory");
    fill(area, 2 * PAGE_SIZE, 9);
    // SAFETY: ours, and nobody writes it.
    unsafe { vmalloc().protect(area.as_ptr(), 1, Prot::KERNEL_RO) }.expect("mapped");
    let start = area.addr().get();
    assert!(fault::probe(start, Access::Read).is_some());
    assert_eq!(fault::probe(start, Access::Write), None);
    assert!(fault::probe(start + PAGE_SIZE, Access::Write).is_some(), "the other page is as before");
    // SAFETY: ours.
    unsafe {
        vmalloc().protect(area.as_ptr(), 1, Prot::KERNEL).expect("mapped");
        assert!(fault::probe(start, Access::Write).is_some());
        vmalloc().vfree(area.as_ptr()).expect("ours");
    }
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "the guard page ends it")]
fn deeper(depth: u64) -> u64 {
    let filler = black_box([depth; 32]);
    deeper(depth + 1).wrapping_add(black_box(filler)[0])
}

fn an_overflowing_stack_ends_its_thread_and_nothing_else() {
    let before = STACK_OVERFLOWS.load(Ordering::Relaxed);
    let overflowing = thread::spawn("overflows", None, || {
        black_box(deeper(0));
    });
    assert!(!overflowing.join(), "it cannot end well");
    assert_eq!(STACK_OVERFLOWS.load(Ordering::Relaxed), before + 1);
}

/// Every CPU reads an address through one frame, then through another, over and over: a translation that lingers shows
/// the wrong one.
fn no_cpu_keeps_a_translation_after_a_flush() {
    static ADDRESS: AtomicUsize = AtomicUsize::new(0);
    static EXPECTED: AtomicUsize = AtomicUsize::new(0);
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 50;
    ROUND.store(0, Ordering::Relaxed);
    DONE.store(0, Ordering::Relaxed);
    let cpus = percpu::nr_cpus() as usize;
    let readers: Vec<_> = (0..cpus)
        .map(|cpu| {
            thread::spawn("reads", Some(CpuId(cpu as u32)), || {
                for round in 1..=ROUNDS {
                    while ROUND.load(Ordering::Acquire) < round {
                        sched::park_or_yield();
                    }
                    let address = ADDRESS.load(Ordering::Relaxed);
                    let found = fault::probe(address, Access::Read);
                    assert_eq!(found.map(usize::from), Some(EXPECTED.load(Ordering::Relaxed)), "round {round}");
                    DONE.fetch_add(1, Ordering::Release);
                }
            })
        })
        .collect();
    let frames = [(); 2].map(|()| kmem().alloc_page(Gfp::KERNEL).expect("memory"));
    for (tag, &frame) in (1..).zip(&frames) {
        let page = kmem().page_address(frame).expect("mapped");
        // SAFETY: ours.
        unsafe { page.write_bytes(tag, PAGE_SIZE) };
    }
    let mut seen = Vec::new();
    for round in 1..=ROUNDS {
        let which = round % 2;
        // SAFETY: the frames are ours while they are mapped.
        let mapping = unsafe { vmalloc().vmap(&frames[which..=which], VmFlags::MAP, Prot::KERNEL) }.expect("addresses");
        ADDRESS.store(mapping.addr().get(), Ordering::Relaxed);
        EXPECTED.store(which + 1, Ordering::Relaxed);
        seen.push(mapping.addr().get());
        ROUND.store(round, Ordering::Release);
        while DONE.load(Ordering::Acquire) < round * cpus {
            sched::park_or_yield();
        }
        // SAFETY: everybody has read it.
        unsafe { vmalloc().vunmap(mapping.as_ptr()) }.expect("ours");
        vmalloc().vm_unmap_aliases();
    }
    for reader in readers {
        assert!(reader.join());
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() < ROUNDS, "addresses are used again");
    for frame in frames {
        // SAFETY: ours.
        unsafe { kmem().free_page(frame) }.expect("ours");
    }
}

fn large_pages_are_used_and_split() {
    const SIZE: usize = 4 << 20;
    let request = VmRequest { flags: VmFlags::ALLOW_HUGE, align: 2 << 20, ..VmRequest::new(SIZE, Gfp::KERNEL) };
    let area = vmalloc().alloc(&request).expect("memory");
    fill(area, SIZE, 11);
    check(area, SIZE, 11);
    // One page of it gets another protection: the large entry is split, and nothing else changes.
    let middle = area.as_ptr().wrapping_add((1 << 20) + PAGE_SIZE);
    // SAFETY: ours, and nobody writes it.
    unsafe { vmalloc().protect(middle, 1, Prot::KERNEL_RO) }.expect("mapped");
    assert_eq!(fault::probe(middle.addr(), Access::Write), None);
    check(area, SIZE, 11);
    let pfn = vmalloc().vmalloc_to_pfn(middle).expect("mapped");
    assert_eq!(kmem_vmalloc::AddressSpace::translate(&KernelSpace, middle.addr()), Some(pfn));
    // SAFETY: ours.
    unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
}
