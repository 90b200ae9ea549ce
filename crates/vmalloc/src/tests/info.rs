//! Views and reads.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE};

use super::machine::{BASE, Machine};
use crate::{Prot, VmFlags};

#[test]
fn vmallocinfo_shows_each_area_on_a_line() {
    // DB-18
    let mut machine = Machine::new(256);
    machine.nr_nodes = 2;
    let vmalloc = machine.window(1 << 16);
    let gone = vmalloc.vmalloc(1).unwrap();
    vmalloc.vmalloc(5 * PAGE_SIZE).unwrap();
    vmalloc.vmalloc_user(1).unwrap();
    let frames = machine.take_frames(3);
    // SAFETY: the frames are ours; nothing is accessed.
    unsafe {
        vmalloc.vmap(&frames, VmFlags::DMA_COHERENT, Prot::KERNEL).unwrap();
        vmalloc.ioremap(0xfee0_0000, 100, Prot::DEVICE).unwrap();
        vmalloc.vm_map_ram(&frames, None).unwrap();
        vmalloc.get_vm_area(PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap();
        vmalloc.vfree(gone.as_ptr()).unwrap();
    }
    let info = format!("{}", vmalloc.vmallocinfo());
    let lines: Vec<&str> = info.lines().collect();
    assert_eq!(lines.len(), 7, "{info}");
    assert!(lines[0].starts_with("0xffffc90000002000-0xffffc90000008000   24576 "), "{info}");
    let (place, rest) = lines[0][47..].split_once(' ').unwrap();
    assert!(place.trim().contains("info.rs:"), "{place}");
    assert!(rest.contains("pages=5 vmalloc N0=5") || rest.contains("pages=5 vmalloc N"), "{rest}");
    let has = |needle: &str| lines.iter().filter(|line| line.contains(needle)).count();
    assert_eq!(has(" vmalloc user "), 1);
    assert_eq!(has(" pages=3 vmap dma-coherent"), 1);
    assert_eq!(has(" phys=0x00000000fee00000 ioremap"), 1);
    assert_eq!(has(" vm_map_ram"), 1);
    assert_eq!(has(" sparse"), 1);
    assert!(lines[6].ends_with("   8192 unpurged vm_area"), "last: {info}");
    let starts: Vec<&str> = lines[..6].iter().map(|line| &line[..18]).collect();
    assert!(starts.is_sorted(), "{info}");
}

#[test]
fn counters_add_up() {
    let machine = Machine::new(256);
    let vmalloc = machine.window(1000);
    let memory = vmalloc.vmalloc(5 * PAGE_SIZE).unwrap();
    let stats = vmalloc.stats();
    assert_eq!((stats.total_bytes, stats.used_bytes), (1000 * PAGE_SIZE as u64, 5 * PAGE_SIZE as u64));
    assert_eq!(stats.largest_free_bytes, 994 * PAGE_SIZE as u64);
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    assert_eq!((vmalloc.stats().used_bytes, vmalloc.stats().lazy_pages), (0, 6));
    vmalloc.purge();
    assert_eq!((vmalloc.stats().pooled, vmalloc.stats().flushes), (1, 1));
}

#[test]
fn reads_cross_areas_and_fill_holes_with_zeroes() {
    // VM-46
    let machine = Machine::new(256);
    let vmalloc = machine.window(1000);
    let areas: Vec<usize> = (0..3).map(|_| vmalloc.vmalloc(2 * PAGE_SIZE).unwrap().addr().get()).collect();
    for (value, &at) in (1..).zip(&areas) {
        (0..2 * PAGE_SIZE).for_each(|i| machine.store(at + i, value));
    }
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(areas[1] as *mut u8) }.unwrap();
    let mut bytes = vec![9; 9 * PAGE_SIZE - 10];
    assert_eq!(vmalloc.vread((areas[0] + 10) as *const u8, &mut bytes), bytes.len());
    let page = |i: usize| bytes[i * PAGE_SIZE];
    let expected = [1, 1, 0, 0, 0, 0, 3, 3, 0];
    assert_eq!(core::array::from_fn::<u8, 9, _>(page), expected);
    // A range with no area at all reads as zeroes and counts; what lies outside of the window does not.
    let mut bytes = [9; 100];
    assert_eq!(vmalloc.vread((BASE + 900 * PAGE_SIZE) as *const u8, &mut bytes), 100);
    assert_eq!(bytes, [0; 100]);
    assert_eq!(vmalloc.vread((BASE + 1000 * PAGE_SIZE - 40) as *const u8, &mut bytes), 40);
    assert_eq!(vmalloc.vread((BASE - 40) as *const u8, &mut bytes), 0);
    // Blocks are read where they are mapped.
    let frames = machine.take_frames(3);
    // SAFETY: the frames are ours.
    let ram = unsafe { vmalloc.vm_map_ram(&frames, None) }.unwrap().addr().get();
    (0..3).for_each(|i| machine.store(ram + i * PAGE_SIZE, 5));
    let mut bytes = vec![9; 5 * PAGE_SIZE];
    vmalloc.vread(ram as *const u8, &mut bytes);
    assert_eq!([0, 1, 2, 3, 4].map(|i| bytes[i * PAGE_SIZE]), [5, 5, 5, 0, 0]);
}

#[test]
fn readers_and_frees_do_not_meet() {
    // VM-46, VM-50, VM-52
    let machine = Machine::with_cpus(1024, 3);
    let vmalloc = machine.window(200);
    let done = core::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (machine, vmalloc, done) = (&machine, &vmalloc, &done);
        scope.spawn(move || {
            super::machine::on_cpu(1, || {
                let mut bytes = vec![0; 20 * PAGE_SIZE];
                let mut text = String::new();
                while !done.load(core::sync::atomic::Ordering::Relaxed) {
                    // A page of an area is read whole or not at all: the simulated fault would panic.
                    vmalloc.vread(BASE as *const u8, &mut bytes);
                    for page in bytes.chunks(PAGE_SIZE) {
                        assert!(page[PAGE_SIZE - 1] == page[0] || page[0] == 0 || page[PAGE_SIZE - 1] == 0);
                    }
                    text = format!("{}", vmalloc.vmallocinfo());
                }
                drop(text);
            });
        });
        for round in 0..300_usize {
            let mut memory = vmalloc.vzalloc(3 * PAGE_SIZE).unwrap();
            (0..3).for_each(|i| machine.store(memory.addr().get() + i * PAGE_SIZE, 1));
            if round % 2 == 0 {
                // SAFETY: ours.
                memory = unsafe { vmalloc.vrealloc(memory.as_ptr(), PAGE_SIZE, Gfp::KERNEL) }.unwrap().unwrap();
            }
            // SAFETY: not used any more.
            unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
        }
        done.store(true, core::sync::atomic::Ordering::Relaxed);
    });
}
