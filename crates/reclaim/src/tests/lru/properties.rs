//! Random calls against a plain model: which pages are on the lists, whose charge each bears, and which frames are free.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use kmem_gfp::{Gfp, MovableOwner, NodeId, Order, PageAllocator, Pfn, PlainContext};
use proptest::prelude::*;

use super::machine::{LIMITS, Machine, bring, lists};
use crate::lru::{ClassicPolicy, GenerationsPolicy, Lists, PageKind, Policy, Removed};
use crate::{GroupId, PageLists, Protection, Scan, ScanLimits};

#[derive(Clone, Debug)]
enum Op {
    Bring(u64, bool, u32),
    Access(u64, u8),
    Touch(u64),
    Dirty(u64),
    Lock(u64, bool),
    Remove(u64),
    Isolate(u64),
    PutBack(usize),
    Migrate(usize),
    Shrink(u32, u8, u64),
    Age(u32),
    Drain,
    WriteEnds(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..60u64;
    prop_oneof![
        6 => (key.clone(), any::<bool>(), 0..3u32).prop_map(|(key, anon, group)| Op::Bring(key, anon, group)),
        2 => (key.clone(), 1..4u8).prop_map(|(key, n)| Op::Access(key, n)),
        2 => key.clone().prop_map(Op::Touch),
        1 => key.clone().prop_map(Op::Dirty),
        1 => (key.clone(), any::<bool>()).prop_map(|(key, lock)| Op::Lock(key, lock)),
        2 => key.clone().prop_map(Op::Remove),
        1 => key.clone().prop_map(Op::Isolate),
        1 => any::<usize>().prop_map(Op::PutBack),
        1 => any::<usize>().prop_map(Op::Migrate),
        2 => (0..3u32, 0..4u8, 1..40u64).prop_map(|(group, priority, target)| Op::Shrink(group, priority, target)),
        1 => (0..3u32).prop_map(Op::Age),
        1 => Just(Op::Drain),
        1 => key.prop_map(Op::WriteEnds),
    ]
}

/// What the lists should know: for each key its group; and the frames in somebody's hands, with whether they are dead.
#[derive(Default)]
struct Model {
    groups: BTreeMap<u64, u32>,
    held: Vec<(Pfn, Option<u64>)>,
}

const FRAMES: usize = 100;

fn check<P: Policy>(ops: &[Op]) {
    let machine = Machine::new(FRAMES, 1, 1);
    let lists: Lists<_, P> = lists(machine, 3);
    let mut model = Model::default();
    for op in ops {
        match *op {
            Op::Bring(key, anon, group) if !machine.is_here(key) && machine.nr_free() > 0 => {
                machine.look(key, |look| *look = Default::default());
                bring(&lists, key, if anon { PageKind::Anon } else { PageKind::File }, GroupId(group));
                model.groups.insert(key, group);
            }
            Op::Access(key, n) if machine.is_here(key) => (0..n).for_each(|_| lists.mark_accessed(machine.pfn(key))),
            Op::Touch(key) => machine.look(key, |look| (look.accessed, look.mapped) = (look.accessed + 1, true)),
            Op::Dirty(key) if machine.is_here(key) => machine.look(key, |look| look.dirty = true),
            Op::Lock(key, lock) if machine.is_here(key) => lists.set_unevictable(machine.pfn(key), lock),
            Op::Remove(key) => {
                if let Some(pfn) = machine.forget(key) {
                    let held = model.held.iter_mut().find(|held| held.0 == pfn);
                    match lists.remove(pfn).unwrap() {
                        Removed::Yours => {
                            assert!(held.is_none());
                            // SAFETY: ours.
                            unsafe { machine.free_pages(pfn, Order::ZERO) }.unwrap();
                        }
                        Removed::Later => held.unwrap().1 = None,
                    }
                    model.groups.remove(&key);
                }
            }
            Op::Isolate(key) if machine.is_here(key) => {
                let pfn = machine.pfn(key);
                let held = model.held.iter().any(|held| held.0 == pfn);
                assert_eq!(lists.isolate(pfn), !held);
                if !held {
                    model.held.push((pfn, Some(key)));
                }
            }
            Op::PutBack(nth) if !model.held.is_empty() => {
                let (pfn, _) = model.held.swap_remove(nth % model.held.len());
                lists.put_back(pfn);
            }
            Op::Migrate(nth) if !model.held.is_empty() && machine.nr_free() > 0 => {
                let at = nth % model.held.len();
                let (source, key) = model.held[at];
                let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
                let moved = lists.migrate(source, target).is_ok();
                assert!(!moved || key.is_some(), "a dead page does not move");
                if moved {
                    model.held.swap_remove(at);
                }
                // SAFETY: the one that the lists do not have.
                unsafe { machine.free_pages(if moved { source } else { target }, Order::ZERO) }.unwrap();
            }
            Op::Shrink(group, priority, target) => {
                let mut scan = Scan::new(ScanLimits { target, root: GroupId(group), ..LIMITS }, &PlainContext);
                scan.priority = priority;
                let before = machine.nr_free() as u64;
                lists.shrink(NodeId(0), GroupId(group), Protection::default(), &mut scan);
                assert_eq!(machine.nr_free() as u64 - before, scan.reclaimed);
            }
            Op::Age(group) => {
                lists.age(NodeId(0), GroupId(group), &mut Scan::new(LIMITS, &PlainContext));
            }
            Op::Drain => lists.drain_all(),
            Op::WriteEnds(key) if machine.is_here(key) => lists.writeback_ended(machine.pfn(key)),
            _ => {}
        }
        model.groups.retain(|key, _| machine.is_here(*key));
    }
    lists.drain_all();
    // Every page is counted once, in its group; held pages as isolated.
    for group in 0..3 {
        let counts = lists.group_counts(NodeId(0), GroupId(group));
        let all = counts.inactive_anon + counts.active_anon + counts.inactive_file + counts.active_file;
        let isolated = counts.isolated_anon + counts.isolated_file;
        let dead = model.held.iter().filter(|held| held.1.is_none()).count() as u64;
        let pages = model.groups.values().filter(|&&of| of == group).count() as u64;
        let here = all + counts.unevictable + isolated;
        assert!(here >= pages && here <= pages + dead, "group {group}: {counts:?}, {pages} pages");
    }
    for (pfn, _) in model.held.drain(..) {
        lists.put_back(pfn);
    }
    assert_eq!(machine.nr_free() + model.groups.len(), FRAMES);
    for key in model.groups.keys() {
        let pfn = machine.forget(*key).unwrap();
        // SAFETY: the index has forgotten it.
        unsafe { lists.release(pfn) }.unwrap();
    }
    assert_eq!((machine.nr_free(), machine.nr_owned()), (FRAMES, 0));
    assert_eq!(lists.counts(NodeId(0), None), Default::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn classic_lists_keep_every_page_once(ops in proptest::collection::vec(op(), 1..400)) {
        check::<ClassicPolicy>(&ops);
    }

    #[test]
    fn generations_keep_every_page_once(ops in proptest::collection::vec(op(), 1..400)) {
        check::<GenerationsPolicy>(&ops);
    }
}
