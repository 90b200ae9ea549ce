//! vmalloc over the kernel's page tables, from several CPUs at once.

use alloc::vec::Vec;

use kmem::{Gfp, Order, PAGE_SIZE};
use kmem_sync::CpuId;
use kmem_vmalloc::{Prot, VmFlags};

use super::random::Random;
use super::tools::{check, fill};
use crate::platform::kmem;
use crate::vm::vmalloc;
use crate::{percpu, thread};

super::tests![
    the_same_frames_show_at_two_addresses,
    map_ram_maps_and_unmaps_for_a_short_time,
    every_cpu_makes_and_frees_areas_at_once,
    areas_keep_their_contents_when_they_change_size,
];

fn the_same_frames_show_at_two_addresses() {
    let frames: Vec<_> = (0..16).map(|_| kmem().alloc_page(Gfp::KERNEL).expect("memory")).collect();
    // SAFETY: the frames are ours while they are mapped.
    let [one, two] =
        [(); 2].map(|()| unsafe { vmalloc().vmap(&frames, VmFlags::MAP, Prot::KERNEL) }.expect("addresses"));
    fill(one, 16 * PAGE_SIZE, 5);
    check(two, 16 * PAGE_SIZE, 5);
    // SAFETY: ours.
    unsafe {
        vmalloc().vunmap(one.as_ptr()).expect("ours");
        check(two, 16 * PAGE_SIZE, 5);
        vmalloc().vunmap(two.as_ptr()).expect("ours");
        for frame in frames {
            kmem().free_pages(frame, Order::ZERO).expect("ours");
        }
    }
}

fn map_ram_maps_and_unmaps_for_a_short_time() {
    let frames: Vec<_> = (0..8).map(|_| kmem().alloc_page(Gfp::KERNEL).expect("memory")).collect();
    for round in 0..300 {
        let nr = 1 + round % 8;
        // SAFETY: the frames are ours while they are mapped.
        let mapping = unsafe { vmalloc().vm_map_ram(&frames[..nr], None) }.expect("addresses");
        fill(mapping, nr * PAGE_SIZE, round as u64);
        check(mapping, nr * PAGE_SIZE, round as u64);
        // SAFETY: ours.
        unsafe { vmalloc().vm_unmap_ram(mapping.as_ptr(), nr) }.expect("ours");
    }
    for frame in frames {
        // SAFETY: ours.
        unsafe { kmem().free_page(frame) }.expect("ours");
    }
}

fn every_cpu_makes_and_frees_areas_at_once() {
    let rounds = 150 * super::effort();
    let threads: Vec<_> = (0..percpu::nr_cpus())
        .map(|cpu| {
            thread::spawn("areas", Some(CpuId(cpu)), move || {
                let mut random = Random::new(u64::from(cpu));
                let mut live = Vec::new();
                for round in 0..rounds as u64 {
                    let size = 1 + random.below(if round % 16 == 0 { 1 << 20 } else { 40_000 });
                    let area = vmalloc().vmalloc(size).expect("memory");
                    fill(area, size, round);
                    live.push((area.addr(), size, round));
                    if live.len() > 10 {
                        let (address, size, tag) = live.swap_remove(random.below(live.len()));
                        let area = core::ptr::NonNull::with_exposed_provenance(address);
                        check(area, size, tag);
                        // SAFETY: ours.
                        unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
                    }
                }
                for (address, size, tag) in live {
                    let area = core::ptr::NonNull::with_exposed_provenance(address);
                    check(area, size, tag);
                    // SAFETY: ours.
                    unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join());
    }
}

fn areas_keep_their_contents_when_they_change_size() {
    let mut size = 5000;
    let mut area = vmalloc().vmalloc(size).expect("memory");
    for new in [20_000, 300_000, 9000, 100, 70_000] {
        fill(area, size.min(100), 77);
        // SAFETY: ours; the result replaces it.
        area = unsafe { vmalloc().vrealloc(area.as_ptr(), new, Gfp::KERNEL) }.expect("memory").expect("not empty");
        check(area, size.min(100), 77);
        size = new;
    }
    // SAFETY: ours.
    unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
}
