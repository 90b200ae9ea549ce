//! G06 and memory cgroups: who pays, and what happens at a limit.

use kmem::reclaim::GroupId;
use kmem::reclaim::memcg::{Event, Events, Wait};
use kmem_gfp::{AllocError, Gfp, Order};
use kmem_hosted::{Machine, ReclaimOptions};
use kmem_tests::free_all;

use crate::rig::{check, machine, quiet, write};

fn group(machine: &Machine, max: u64) -> GroupId {
    let groups = machine.mm().unwrap().groups();
    let group = groups.create(GroupId::ROOT).unwrap();
    groups.set_max(group, max, Wait::MayBlock).unwrap();
    group
}

#[test]
fn g06_over_the_limit_an_accounted_request_reclaims_within_the_group_and_then_fails() {
    let machine = machine(64, quiet());
    let (kmem, groups) = (machine.kmem(), machine.mm().unwrap().groups());
    let (small, other) = (group(machine, 256), group(machine, 10_000));
    let task = machine.task("worker").unwrap().in_group(small).with_oom_score_adj(-1000);
    let neighbour = machine.task("neighbour").unwrap().in_group(other);
    let (file, foreign) = (machine.file_pages(200).unwrap(), machine.file_pages(200).unwrap());
    neighbour.run(|| (0..200).for_each(|index| write(foreign, index, 1).unwrap()));
    foreign.flush(200);
    let mut pages = Vec::new();
    let refused = task.run(|| {
        (0..200).for_each(|index| check_clean(file, index));
        assert!(groups.usage(small) >= 200);
        loop {
            match kmem.alloc_page(Gfp::KERNEL_ACCOUNT) {
                Ok(page) => pages.push(page),
                Err(error) => return error,
            }
        }
    });
    assert!(matches!(refused, AllocError::OverLimit { order: Order::ZERO, .. }), "{refused}");
    assert_eq!(pages.len(), 256, "every page of the limit, once the cache had gone");
    assert_eq!(file.stats().resident, 0, "reclaimed");
    assert_eq!(foreign.stats().evictions, 0, "the neighbour has lost nothing");
    assert!(groups.events(small, Event::Max, Events::Total) > 0);
    // Without the flag nobody asks the group; freeing gives the charge back.
    let free = task.run(|| kmem.alloc_page(Gfp::KERNEL)).unwrap();
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, vec![free]);
        free_all(kmem, pages.split_off(250));
    }
    let again: Vec<_> = task.run(|| (0..6).map(|_| kmem.alloc_page(Gfp::KERNEL_ACCOUNT).unwrap()).collect());
    // SAFETY: as above.
    unsafe {
        free_all(kmem, again);
        free_all(kmem, pages);
    }
    groups.drain_stocks();
    assert_eq!(groups.usage(small), 0);
}

fn check_clean(file: &kmem_hosted::PageStore, index: u64) {
    file.with_page(index, kmem_hosted::Access::Read, crate::rig::USER, |_| {}).unwrap();
}

#[test]
fn charges_survive_splits_exact_areas_and_vmalloc() {
    let machine = machine(64, quiet());
    let (kmem, groups) = (machine.kmem(), machine.mm().unwrap().groups());
    let group = group(machine, 4096);
    let task = machine.task("worker").unwrap().in_group(group);
    task.run(|| {
        let order = Order::new(3).unwrap();
        let block = kmem.alloc_pages(Gfp::KERNEL_ACCOUNT, order).unwrap();
        kmem.pages().split_page(block, order).unwrap();
        let exact = kmem.pages().alloc_pages_exact(Gfp::KERNEL_ACCOUNT, 5, None).unwrap();
        let area = kmem.vmalloc_layer().alloc(&kmem::VmRequest::new(300_000, Gfp::KERNEL_ACCOUNT)).unwrap();
        groups.drain_stocks();
        let areas = 300_000u64.div_ceil(4096);
        assert_eq!(groups.usage(group), 8 + 5 + areas);
        for frame in 0..8 {
            // SAFETY: a part of the block.
            unsafe { kmem.free_page(kmem_gfp::Pfn(block.0 + frame)) }.unwrap();
        }
        // SAFETY: allocated above.
        unsafe {
            kmem.pages().free_pages_exact(exact).unwrap();
            kmem.vmalloc_layer().vfree(area.as_ptr()).unwrap();
        }
    });
    groups.drain_stocks();
    assert_eq!(groups.usage(group), 0);
}

#[test]
fn a_group_that_goes_leaves_its_pages_to_its_parent() {
    let machine = machine(64, ReclaimOptions { swap_bytes: 32 << 20, ..quiet() });
    let groups = machine.mm().unwrap().groups();
    let parent = group(machine, 10_000);
    let child = groups.create(parent).unwrap();
    let file = machine.file_pages(500).unwrap();
    machine.task("child").unwrap().in_group(child).run(|| {
        (0..500).for_each(|index| write(file, index, 9).unwrap());
    });
    groups.remove(child).unwrap();
    groups.drain_stocks();
    assert_eq!(groups.usage(parent), 500);
    file.flush(500);
    // The parent's limit reaches them.
    groups.set_max(parent, 100, Wait::MayBlock).unwrap();
    assert!(file.stats().resident <= 100, "{:?}", file.stats());
    (0..500).for_each(|index| check(file, index, 9).unwrap());
    file.clear();
    groups.drain_stocks();
    assert_eq!(groups.usage(parent), 0);
}

#[test]
fn a_group_swaps_within_its_limit() {
    let machine = machine(64, ReclaimOptions { swap_bytes: 32 << 20, ..ReclaimOptions::default() });
    let group = group(machine, 300);
    let task = machine.task("worker").unwrap().in_group(group);
    let memory = task.anonymous_pages(2000).unwrap();
    task.run(|| {
        (0..2000).for_each(|index| write(memory, index, 4).unwrap());
        (0..2000).for_each(|index| check(memory, index, 4).unwrap());
    });
    let groups = machine.mm().unwrap().groups();
    assert!(groups.usage(group) <= 300);
    assert!(memory.stats().evictions >= 3000, "{:?}", memory.stats());
    machine.mm().unwrap().lists().drain_all();
    let mut stat = String::new();
    machine.mm().unwrap().write_memory_stat(group, &mut stat).unwrap();
    let anon: u64 = stat.lines().find_map(|line| line.strip_prefix("anon ")?.parse().ok()).unwrap();
    assert_eq!(anon / 4096, memory.stats().resident, "{stat}");
    drop(task);
    groups.drain_stocks();
    assert_eq!(groups.usage(group), 0);
}
