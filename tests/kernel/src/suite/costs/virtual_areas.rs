//! vmalloc, with page tables and invalidations.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::ptr::NonNull;

use kmem::{Gfp, Pfn};
use kmem_vmalloc::{Prot, VmFlags};

use super::meter::{Table, both, each, opaque_pointer, sustained};
use crate::platform::kmem;
use crate::vm::vmalloc;

fn alloc(size: usize) -> NonNull<u8> {
    match vmalloc().vmalloc(size) {
        Ok(area) => area,
        Err(_) => none(),
    }
}

#[cold]
fn none() -> ! {
    // PANIC: a count without memory means nothing.
    panic!("no memory")
}

fn free(area: NonNull<u8>) {
    // SAFETY: the measurement's own.
    let _ = unsafe { vmalloc().vfree(area.as_ptr()) };
}

struct Rows {
    size: usize,
    n: usize,
    names: [&'static str; 4],
    linux: [u64; 4],
}

const ROWS: [Rows; 4] = [
    Rows {
        size: 4 << 10,
        n: 500,
        names: [
            "vmalloc(4 KiB)+vfree",
            "vmalloc(4 KiB), batch",
            "vfree(4 KiB), batch",
            "vmalloc(4 KiB)+vfree sustained, all in",
        ],
        linux: [32_260, 19_080, 13_280, 35_270],
    },
    Rows {
        size: 64 << 10,
        n: 200,
        names: [
            "vmalloc(64 KiB)+vfree",
            "vmalloc(64 KiB), batch",
            "vfree(64 KiB), batch",
            "vmalloc(64 KiB)+vfree sustained, all in",
        ],
        linux: [62_150, 32_730, 30_380, 65_650],
    },
    Rows {
        size: 1 << 20,
        n: 40,
        names: [
            "vmalloc(1 MiB)+vfree",
            "vmalloc(1 MiB), batch",
            "vfree(1 MiB), batch",
            "vmalloc(1 MiB)+vfree sustained, all in",
        ],
        linux: [533_930, 233_840, 299_340, 538_780],
    },
    Rows {
        size: 4 << 20,
        n: 10,
        names: [
            "vmalloc(4 MiB)+vfree",
            "vmalloc(4 MiB), batch",
            "vfree(4 MiB), batch",
            "vmalloc(4 MiB)+vfree sustained, all in",
        ],
        linux: [2_095_220, 895_050, 1_179_090, 2_085_620],
    },
];

pub(super) fn measure(table: &mut Table) {
    table.section("vmalloc");
    for Rows { size, n, names, linux } in ROWS {
        // Until ranges come back from the first purge nothing is as it goes on being.
        let all_in = sustained(n * 40, |_| free(opaque_pointer(alloc(size))));
        table.row(names[0], each(n, |_| free(opaque_pointer(alloc(size)))), linux[0]);
        let areas = RefCell::new(alloc::vec![NonNull::<u8>::dangling(); n]);
        let (taken, freed) = both(
            n,
            || areas.borrow_mut().iter_mut().for_each(|slot| *slot = alloc(size)),
            || areas.borrow().iter().copied().for_each(free),
        );
        table.row(names[1], taken, linux[1]);
        table.row(names[2], freed, linux[2]);
        table.row(names[3], all_in, linux[3]);
    }
    for (name, size, linux) in
        [("kvmalloc(16 KiB)+kvfree", 16 << 10, 9460), ("kvmalloc(1 MiB)+kvfree", 1 << 20, 86_130)]
    {
        let count = each(200, |_| {
            let Ok(block) = kmem().kvmalloc(size, Gfp::KERNEL) else { none() };
            // SAFETY: the measurement's own.
            let _ = unsafe { kmem().kvfree(opaque_pointer(block).as_ptr()) };
        });
        table.row(name, count, linux);
    }
    let frames: Vec<Pfn> = (0..16).filter_map(|_| kmem().alloc_page(Gfp::KERNEL).ok()).collect();
    let count = each(100, |_| {
        // SAFETY: the frames are ours while they are mapped.
        unsafe {
            let Ok(mapping) = vmalloc().vmap(&frames, VmFlags::MAP, Prot::KERNEL) else { none() };
            let _ = vmalloc().vunmap(opaque_pointer(mapping).as_ptr());
        }
    });
    table.row("vmap(16 pages)+vunmap", count, 31_720);
    let count = each(100, |_| {
        // SAFETY: as above.
        unsafe {
            let Ok(mapping) = vmalloc().vm_map_ram(&frames, None) else { none() };
            let _ = vmalloc().vm_unmap_ram(opaque_pointer(mapping).as_ptr(), 16);
        }
    });
    table.row("vm_map_ram(16 pages)+vm_unmap_ram", count, 20_210);
    for frame in frames {
        // SAFETY: ours.
        let _ = unsafe { kmem().free_page(frame) };
    }
}
