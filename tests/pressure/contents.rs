//! Pages go and come back with their contents; the counters know where they are.

use kmem_gfp::PAGE_SIZE;
use kmem_hosted::ReclaimOptions;

use crate::rig::{check, machine, quiet, vmstat, write};

#[test]
fn file_pages_beyond_memory_keep_their_contents() {
    let machine = machine(16, ReclaimOptions::default());
    let pages = 3 * machine.ram_bytes() / PAGE_SIZE as u64;
    let file = machine.file_pages(pages).unwrap();
    for index in 0..pages {
        write(file, index, 1).unwrap();
    }
    for index in 0..pages {
        check(file, index, 1).unwrap();
    }
    let stats = file.stats();
    assert!(stats.evictions > pages / 2 && stats.refaults > pages / 2, "{stats:?}");
    let (listed, stored) = machine.count_pages().unwrap();
    assert_eq!(listed, stored);
}

#[test]
fn anonymous_pages_beyond_memory_come_back_from_swap() {
    let machine = machine(16, ReclaimOptions { swap_bytes: 64 << 20, ..ReclaimOptions::default() });
    let pages = 2 * machine.ram_bytes() / PAGE_SIZE as u64;
    let anon = machine.anonymous_pages(pages).unwrap();
    for round in 0..2 {
        for index in 0..pages {
            write(anon, index, round).unwrap();
        }
        for index in 0..pages {
            check(anon, index, round).unwrap();
        }
    }
    let swap = machine.swap().unwrap();
    assert!(swap.traffic().0 > pages / 2, "{:?}", swap.traffic());
    assert_eq!(swap.total_pages() - swap.free_pages(), anon.stats().swapped);
    anon.clear();
    assert_eq!(swap.total_pages(), swap.free_pages());
    assert_eq!(machine.count_pages().unwrap(), (0, 0));
}

#[test]
fn without_threads_requests_reclaim_for_themselves() {
    let machine = machine(16, ReclaimOptions { swap_bytes: 64 << 20, ..quiet() });
    let pages = 2 * machine.ram_bytes() / PAGE_SIZE as u64;
    let anon = machine.anonymous_pages(pages).unwrap();
    for index in 0..pages {
        write(anon, index, 7).unwrap();
    }
    for index in 0..pages {
        check(anon, index, 7).unwrap();
    }
    assert_eq!(vmstat(machine, "pgsteal_kswapd "), 0);
    assert_eq!(vmstat(machine, "pgsteal_direct "), anon.stats().evictions);
}
