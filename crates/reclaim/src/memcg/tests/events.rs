//! Events, statistics, and the files they are read from.

use std::string::String;

use kmem_gfp::Gfp;

use super::rig::table;
use crate::memcg::{Event, Events, Stat};
use crate::{GroupId, ListCounts};

#[test]
fn events_count_in_the_group_and_in_its_ancestors() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(GroupId::ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    for (times, event) in Event::ALL.into_iter().enumerate() {
        for _ in 0..=times {
            memcg.record_event(b, event);
        }
    }
    let mut text = String::new();
    memcg.write_events(a, Events::Total, &mut text).unwrap();
    assert_eq!(text, "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n");
    text.clear();
    memcg.write_events(a, Events::Local, &mut text).unwrap();
    assert_eq!(text, "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\nsock_throttled 0\n");
    memcg.remove(b).unwrap();
    assert_eq!(memcg.events(a, Event::Max, Events::Total), 3, "a gone group's events stay with its ancestors");
}

#[test]
fn memory_stat_adds_lists_kernel_memory_and_objects_of_the_subtree() {
    let memcg = table(1, 8);
    let a = memcg.create(GroupId::ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    *memcg.env().counts.lock().unwrap() = ListCounts {
        inactive_anon: 1,
        active_anon: 2,
        inactive_file: 3,
        active_file: 4,
        unevictable: 5,
        ..Default::default()
    };
    memcg.charge(b, Gfp::KERNEL, 3).unwrap();
    memcg.drain_stocks();
    memcg.account(b, Stat::SlabReclaimable, 100);
    memcg.account(a, Stat::SlabUnreclaimable, 23);
    memcg.account(b, Stat::Sock, 8);
    let mut text = String::new();
    memcg.write_stat(a, &mut text).unwrap();
    let expected = "anon 24576\nfile 57344\nkernel 12288\nkernel_stack 0\npagetables 0\npercpu 0\nsock 8\nvmalloc 0\n\
        inactive_anon 8192\nactive_anon 16384\ninactive_file 24576\nactive_file 32768\nunevictable 40960\n\
        slab_reclaimable 100\nslab_unreclaimable 23\nslab 123\n";
    assert_eq!(text, expected, "two groups with the same lists");
}

#[test]
fn a_gone_groups_statistics_go_to_its_parent() {
    let memcg = table(1, 8);
    let a = memcg.create(GroupId::ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let payer = memcg.charge(b, Gfp::KERNEL, 5).unwrap().unwrap();
    memcg.account(b, Stat::Vmalloc, 7);
    memcg.remove(b).unwrap();
    assert_eq!((memcg.stat(a, Stat::Kernel), memcg.stat(a, Stat::Vmalloc)), (5 * 4096, 7));
    memcg.account(payer.group(), Stat::Vmalloc, -7);
    memcg.uncharge(payer, 5);
    memcg.drain_stocks();
    assert_eq!((memcg.stat(a, Stat::Kernel), memcg.stat(a, Stat::Vmalloc)), (0, 0));
}
