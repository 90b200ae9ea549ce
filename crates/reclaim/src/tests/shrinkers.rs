//! Shrinkers: the count/scan contract, deferred work, awareness, life cycle.

use std::sync::Mutex;
use std::vec::Vec;

use kmem_gfp::{Gfp, NoFsScope, NodeId, Reclaimer, TaskFlags};
use kmem_sync::atomic::{AtomicU64, Ordering};

use super::toy::{List, N0, N1, NORMAL, Pages, Toy, machine, request};
use crate::{
    GroupId, Protection, Reclaim, ReclaimEvent, RegisterError, ShrinkControl, ShrinkCount, ShrinkScan, Shrinker,
    ShrinkerSlot,
};

/// A cache of so many objects that notes how it is asked.
#[derive(Default)]
struct Cache {
    objects: AtomicU64,
    /// What it reports to have looked at, if not what it was asked for.
    reports: Option<u64>,
    /// Whether it frees nothing.
    keeps: bool,
    stops_after: Option<usize>,
    asked: Mutex<Vec<u64>>,
    told: Mutex<Vec<(NodeId, GroupId, Gfp)>>,
}

impl Cache {
    fn of(objects: u64) -> Self {
        Self { objects: AtomicU64::new(objects), ..Self::default() }
    }

    fn asked(&self) -> Vec<u64> {
        core::mem::take(&mut self.asked.lock().unwrap())
    }

    fn told(&self) -> Vec<(NodeId, GroupId, Gfp)> {
        core::mem::take(&mut self.told.lock().unwrap())
    }
}

impl Shrinker for Cache {
    fn count_objects(&self, control: &ShrinkControl<'_>) -> ShrinkCount {
        self.told.lock().unwrap().push((control.node, control.group, control.gfp));
        match self.objects.load(Ordering::Relaxed) {
            0 => ShrinkCount::Empty,
            u64::MAX => ShrinkCount::Skip,
            objects => ShrinkCount::Objects(objects),
        }
    }

    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        let mut asked = self.asked.lock().unwrap();
        if self.stops_after.is_some_and(|most| asked.len() >= most) {
            return ShrinkScan::Stop;
        }
        asked.push(nr);
        assert!(asked.len() < 100_000, "asked for ever");
        let scanned = self.reports.unwrap_or(nr);
        if self.keeps {
            return ShrinkScan::Scanned { freed: 0, scanned };
        }
        let freed = nr.min(self.objects.load(Ordering::Relaxed));
        self.objects.fetch_sub(freed, Ordering::Relaxed);
        ShrinkScan::Scanned { freed, scanned }
    }
}

fn shrink(reclaim: &Reclaim<Toy>, priority: u8) -> u64 {
    reclaim.shrink_slab(N0, GroupId::ROOT, priority, Gfp::KERNEL, reclaim.env())
}

#[test]
fn a_shrinker_is_asked_in_batches_and_the_rest_is_deferred() {
    //
    let reclaim = machine(1);
    let cache = Cache::of(10_000);
    let slot = ShrinkerSlot::new("cache", &cache);
    reclaim
        .with_shrinker(&slot, || {
            assert_eq!(shrink(&reclaim, 6), 256);
            assert_eq!(cache.asked(), [128, 128]);
            assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 56);
            assert_eq!(reclaim.stats().get(ReclaimEvent::SlabsScanned), 256);
        })
        .unwrap();
}

#[test]
fn batch_and_seeks_are_the_shrinkers() {
    //
    let reclaim = machine(1);
    let cache = Cache::of(6400);
    let slot = ShrinkerSlot::new("cache", &cache).with_batch(50).with_seeks(4);
    reclaim.with_shrinker(&slot, || assert_eq!(shrink(&reclaim, 6), 100)).unwrap();
    assert_eq!(cache.asked(), [50, 50]);
    let free = Cache::of(1000);
    let slot = ShrinkerSlot::new("free", &free).with_seeks(0).with_batch(0);
    reclaim.with_shrinker(&slot, || assert_eq!(shrink(&reclaim, 12), 384)).unwrap();
    assert_eq!(free.asked(), [128, 128, 128], "half of it at any priority");
}

#[test]
fn whoever_is_busy_or_empty_is_not_scanned() {
    //
    let reclaim = machine(1);
    for objects in [0, u64::MAX] {
        let cache = Cache::of(objects);
        let slot = ShrinkerSlot::new("cache", &cache);
        reclaim.with_shrinker(&slot, || assert_eq!(shrink(&reclaim, 0), 0)).unwrap();
        assert_eq!(cache.asked(), []);
        assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 0);
    }
}

#[test]
fn a_stop_ends_the_loop_and_leaves_the_work() {
    //
    let reclaim = machine(1);
    let cache = Cache { stops_after: Some(1), ..Cache::of(10_000) };
    let slot = ShrinkerSlot::new("cache", &cache);
    reclaim.with_shrinker(&slot, || assert_eq!(shrink(&reclaim, 6), 128)).unwrap();
    assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 312 - 128);
}

#[test]
fn work_goes_by_what_the_shrinker_says_it_looked_at() {
    //
    let reclaim = machine(1);
    let cache = Cache { reports: Some(32), keeps: true, ..Cache::of(10_000) };
    let slot = ShrinkerSlot::new("cache", &cache);
    reclaim.with_shrinker(&slot, || shrink(&reclaim, 6)).unwrap();
    assert_eq!(cache.asked().len(), 6, "312 - 6 x 32 = 120 is less than a batch");
    assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 120);
}

#[test]
fn who_looks_at_nothing_without_a_stop_does_not_loop_for_ever() {
    // the trap is closed.
    let reclaim = machine(1);
    let cache = Cache { reports: Some(0), keeps: true, ..Cache::of(10_000) };
    let slot = ShrinkerSlot::new("cache", &cache);
    reclaim.with_shrinker(&slot, || shrink(&reclaim, 0)).unwrap();
    assert_eq!(cache.asked(), [128]);
    // One that frees and says it has looked at nothing is paid by the object.
    let cache = Cache { reports: Some(0), ..Cache::of(1000) };
    let slot = ShrinkerSlot::new("cache", &cache).with_batch(100);
    reclaim.with_shrinker(&slot, || assert_eq!(shrink(&reclaim, 1), 1000)).unwrap();
}

#[test]
fn deferred_work_is_taken_by_one_and_done_later() {
    //
    let reclaim = machine(1);
    let cache = Cache::of(1280);
    let slot = ShrinkerSlot::new("cache", &cache);
    reclaim
        .with_shrinker(&slot, || {
            for pass in 1..=12 {
                assert_eq!(shrink(&reclaim, 8), 0, "10 objects a pass");
                assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 10 * pass);
            }
            assert_eq!(shrink(&reclaim, 0), 1280, "all at once");
            assert_eq!(cache.objects.load(Ordering::Relaxed), 0);
            assert!(slot.nr_deferred(N0, GroupId::ROOT) <= 2560, "capped");
        })
        .unwrap();
}

#[test]
fn nodes_are_told_apart_only_by_those_who_can() {
    //
    let reclaim = machine(2);
    let (one, two) = (Cache::of(100), Cache::of(100));
    let words = [const { AtomicU64::new(0) }; 2];
    let unaware = ShrinkerSlot::new("unaware", &one);
    let aware = ShrinkerSlot::new("aware", &two).numa_aware(&words);
    let shrink = |node| reclaim.shrink_slab(node, GroupId::ROOT, 1, Gfp::KERNEL, reclaim.env());
    reclaim
        .with_shrinker(&unaware, || {
            reclaim
                .with_shrinker(&aware, || {
                    shrink(N1);
                    assert_eq!(one.told(), [(N0, GroupId::ROOT, Gfp::KERNEL)]);
                    assert_eq!(two.told(), [(N1, GroupId::ROOT, Gfp::KERNEL)]);
                    assert_eq!(unaware.nr_deferred(N0, GroupId::ROOT), unaware.nr_deferred(N1, GroupId::ROOT));
                })
                .unwrap();
        })
        .unwrap();
    assert_eq!(aware.nr_deferred(N0, GroupId::ROOT), 0);
}

#[test]
fn groups_are_asked_only_of_those_who_can_and_may_have_something() {
    //
    let reclaim = machine(1);
    let (one, two) = (Cache::of(1000), Cache::of(1000));
    let deferred = [const { AtomicU64::new(0) }; 3];
    let filled = [const { AtomicU64::new(0) }; 1];
    let unaware = ShrinkerSlot::new("unaware", &one);
    let aware = ShrinkerSlot::new("aware", &two).memcg_aware(1, &deferred, &filled);
    let shrink = |group| reclaim.shrink_slab(N0, GroupId(group), 3, Gfp::KERNEL, reclaim.env());
    reclaim
        .with_shrinker(&unaware, || {
            reclaim
                .with_shrinker(&aware, || {
                    assert_eq!(shrink(2), 0);
                    assert_eq!((one.told().len(), two.told().len()), (0, 0), "nothing noted for the group");
                    aware.note_objects(N0, GroupId(2));
                    assert!(shrink(2) > 0);
                    assert_eq!(one.told(), []);
                    assert_eq!(two.told(), [(N0, GroupId(2), Gfp::KERNEL)]);
                    assert_eq!(deferred.iter().position(|word| word.load(Ordering::Relaxed) > 0), Some(2));
                    // Empty: it is asked twice, and then no more.
                    two.objects.store(0, Ordering::Relaxed);
                    shrink(2);
                    assert_eq!(two.told().len(), 2);
                    shrink(2);
                    assert_eq!(two.told().len(), 0);
                    two.objects.store(5, Ordering::Relaxed);
                    aware.note_objects(N0, GroupId(2));
                    shrink(2);
                    assert_eq!(two.told().len(), 1);
                    // A group that the words do not reach is always asked.
                    shrink(70);
                    assert_eq!(two.told().len(), 1);
                    assert_eq!(aware.nr_deferred(N0, GroupId(70)), 0);
                })
                .unwrap();
        })
        .unwrap();
}

#[test]
fn slab_objects_belong_to_groups_only_where_kernel_memory_is_accounted() {
    //
    let reclaim = machine(1);
    let (one, two) = (Cache::of(1000), Cache::of(1000));
    let slab = ShrinkerSlot::new("slab", &one).memcg_aware(1, &[], &[]);
    let pages = ShrinkerSlot::new("pages", &two).memcg_aware(1, &[], &[]).nonslab();
    reclaim.env().state().kernel_memory = false;
    let both = reclaim.with_shrinker(&slab, || {
        reclaim.with_shrinker(&pages, || {
            reclaim.shrink_slab(N0, GroupId(1), 3, Gfp::KERNEL, reclaim.env());
            assert_eq!((one.told().len(), two.told().len()), (0, 1));
        })
    });
    both.unwrap().unwrap();
}

#[test]
fn a_filesystem_shrinker_is_never_entered_without_leave() {
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, 1000);
    reclaim.env().list(N0, GroupId::ROOT, List::new(64, Pages::Stay));
    let (fs, plain) = (Cache::of(100_000), Cache::of(100_000));
    let slots = [ShrinkerSlot::new("fs", &fs).needing(Gfp::FS), ShrinkerSlot::new("plain", &plain)];
    let [fs_slot, plain_slot] = &slots;
    let both = reclaim.with_shrinker(fs_slot, || {
        reclaim.with_shrinker(plain_slot, || {
            let freed = NoFsScope::run(reclaim.env(), || reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)));
            assert!(freed > 0);
            assert_eq!(fs.told(), []);
            assert!(plain.told().iter().all(|(_, _, gfp)| !gfp.contains(Gfp::FS)));
            reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0));
            assert!(!fs.told().is_empty());
        })
    });
    both.unwrap().unwrap();
}

#[test]
fn shrinkers_follow_the_lists_at_the_same_priority_and_count_as_progress() {
    //
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, 1000);
    reclaim.env().list(N0, GroupId::ROOT, List::new(64, Pages::Stay));
    let cache = Cache::of(1 << 19);
    let slot = ShrinkerSlot::new("cache", &cache);
    let freed = reclaim.with_shrinker(&slot, || reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)));
    assert_eq!(freed, Ok(256), "2 x freeable >> 12");
    assert_eq!(reclaim.env().shrinks(), [(N0, GroupId::ROOT, 12)]);
}

#[test]
fn every_group_of_the_walk_is_asked() {
    //
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, 1000);
    reclaim.env().group(1, 0, Protection::default());
    let cache = Cache::of(1000);
    let slot = ShrinkerSlot::new("cache", &cache).memcg_aware(1, &[], &[]);
    reclaim.with_shrinker(&slot, || reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0))).unwrap();
    let told: Vec<GroupId> = cache.told().iter().map(|(_, group, _)| *group).take(2).collect();
    assert_eq!(told, [GroupId::ROOT, GroupId(1)]);
}

#[test]
fn callbacks_run_between_registration_and_unregistration_only() {
    //
    let reclaim = machine(1);
    let cache = Cache::of(100);
    let slot = ShrinkerSlot::new("cache", &cache);
    shrink(&reclaim, 0);
    assert_eq!(cache.told(), []);
    let count = reclaim.with_shrinker(&slot, || reclaim.shrinkers().len(reclaim.env().cpu_of(), reclaim.env()));
    assert_eq!(count, Ok(1));
    shrink(&reclaim, 0);
    assert_eq!(cache.told(), []);
    assert_eq!(reclaim.unregister_shrinker(&slot), Err(RegisterError::NotRegistered));
}

#[test]
fn a_slot_is_on_one_list_at_a_time() {
    //
    let (first, second) = (machine(1), machine(1));
    let cache = Cache::of(100);
    let slot = ShrinkerSlot::new("cache", &cache);
    let inner = first.with_shrinker(&slot, || {
        assert_eq!(second.unregister_shrinker(&slot), Err(RegisterError::NotRegistered));
        second.with_shrinker(&slot, || ())
    });
    assert_eq!(inner, Ok(Err(RegisterError::AlreadyRegistered)));
    assert_eq!(second.with_shrinker(&slot, || ()), Ok(()), "it is free again");
}

#[test]
fn slots_leave_from_any_place() {
    //
    static CACHE: Cache = Cache {
        objects: AtomicU64::new(1),
        reports: None,
        keeps: false,
        stops_after: None,
        asked: Mutex::new(Vec::new()),
        told: Mutex::new(Vec::new()),
    };
    static SLOTS: [ShrinkerSlot<'static>; 4] = [const { ShrinkerSlot::new("one of four", &CACHE) }; 4];
    let reclaim = machine(1);
    for gone in &SLOTS {
        for slot in &SLOTS {
            reclaim.register_shrinker(slot).unwrap();
        }
        let all = || reclaim.shrinkers().len(reclaim.env().cpu_of(), reclaim.env());
        assert_eq!(all(), 4);
        reclaim.unregister_shrinker(gone).unwrap();
        assert_eq!(all(), 3);
        reclaim.register_shrinker(gone).unwrap();
        for slot in SLOTS.iter().rev() {
            reclaim.unregister_shrinker(slot).unwrap();
        }
        assert_eq!(all(), 0);
    }
}

#[test]
fn a_shrinker_unregistered_while_it_runs_is_waited_for() {
    //
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    struct Slow {
        inside: Barrier,
        over: AtomicBool,
    }
    impl Shrinker for Slow {
        fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
            self.inside.wait();
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.over.store(true, Ordering::SeqCst);
            ShrinkCount::Skip
        }
        fn scan_objects(&self, _control: &ShrinkControl<'_>, _nr: u64) -> ShrinkScan {
            ShrinkScan::Stop
        }
    }
    let slow = Slow { inside: Barrier::new(2), over: AtomicBool::new(false) };
    let shrinkers = crate::Shrinkers::new();
    let slot = ShrinkerSlot::new("slow", &slow);
    // SAFETY: nothing is pinned; the locks are plain spin locks.
    let cpu = unsafe { kmem_sync::SingleCpu::new() };
    let context = kmem_gfp::PlainContext;
    std::thread::scope(|threads| {
        shrinkers
            .with_registered(&cpu, &crate::Polled, &context, &slot, || {
                threads.spawn(|| {
                    shrinkers.for_each(&cpu, &crate::Polled, |slot| {
                        let control =
                            ShrinkControl { gfp: Gfp::KERNEL, node: N0, group: GroupId::ROOT, context: &context };
                        slot.shrinker().count_objects(&control);
                    });
                });
                slow.inside.wait();
            })
            .unwrap();
        assert!(slow.over.load(Ordering::SeqCst));
    });
}

#[test]
fn dropping_everything_goes_on_while_it_is_worth_while() {
    //
    let reclaim = machine(2);
    reclaim.env().group(1, 0, Protection::default());
    /// Gives so many objects a pass.
    struct Steps(Mutex<Vec<u64>>);
    impl Shrinker for Steps {
        fn count_objects(&self, control: &ShrinkControl<'_>) -> ShrinkCount {
            assert!(control.context.task_flags().contains(TaskFlags::MEMALLOC));
            ShrinkCount::Objects(1)
        }
        fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
            let freed = self.0.lock().unwrap().pop().unwrap_or(0);
            ShrinkScan::Scanned { freed, scanned: nr }
        }
    }
    // Two nodes: two calls a pass. 10 >> 0, 10 >> 1, 10 >> 2 > 1, 10 >> 3 is not.
    let steps = Steps(Mutex::new(std::vec![5; 100]));
    let slot = ShrinkerSlot::new("steps", &steps);
    assert_eq!(reclaim.with_shrinker(&slot, || reclaim.drop_slab(reclaim.env())), Ok(40));
    assert_eq!(reclaim.node_stats(N0).get(ReclaimEvent::DropSlab), 1);
    // A fatal signal ends it.
    reclaim.env().task(TaskFlags::FATAL_SIGNAL);
    assert_eq!(reclaim.with_shrinker(&slot, || reclaim.drop_slab(reclaim.env())), Ok(0));
}

#[test]
fn several_passes_may_defer_beyond_the_cap() {
    // the trap, kept: each of two may leave up to the cap.
    let reclaim = machine(1);
    /// Lets another pass run inside its own.
    struct Nested<'a>(&'a Reclaim<Toy>, std::sync::atomic::AtomicBool);
    impl Shrinker for Nested<'_> {
        fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
            ShrinkCount::Objects(100)
        }
        fn scan_objects(&self, _control: &ShrinkControl<'_>, _nr: u64) -> ShrinkScan {
            if !self.1.swap(true, Ordering::Relaxed) {
                shrink(self.0, 0);
            }
            ShrinkScan::Stop
        }
    }
    let nested = Nested(&reclaim, std::sync::atomic::AtomicBool::new(false));
    let slot = ShrinkerSlot::new("nested", &nested);
    reclaim.with_shrinker(&slot, || shrink(&reclaim, 0)).unwrap();
    assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 400);
}
