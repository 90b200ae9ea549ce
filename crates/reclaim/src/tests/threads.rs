//! Real threads: a background thread, allocators that sleep and such that do not, shrinkers that come and go.

use core::time::Duration;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, Gfp, MigrateType, NodeId, Order, ReclaimRequest, Reclaimer, TaskFlags, Watermark, ZoneKind,
};
use kmem_sync::SingleCpu;

use crate::{
    GroupId, ListCounts, NoGroups, NoOom, Node, PageLists, Park, Protection, Reclaim, ReclaimEnv, Scan, ShrinkControl,
    ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot, Wait, WaitQueue, Zones,
};

const N0: NodeId = NodeId(0);
const PAGES: i64 = 2000;
const MARKS: [i64; 4] = [100, 125, 150, 175];

/// Pages that are free or in a cache; a condition variable to sleep on.
struct Machine {
    free: AtomicI64,
    cached: AtomicI64,
    cpu: SingleCpu,
    nodes: [Node; 1],
    lock: Mutex<()>,
    bell: Condvar,
}

std::thread_local! {
    static TASK: core::cell::Cell<TaskFlags> = const { core::cell::Cell::new(TaskFlags::empty()) };
}

impl Zones for Machine {
    fn managed(&self, _node: NodeId, zone: ZoneKind) -> u64 {
        if zone == ZoneKind::Normal { PAGES as u64 } else { 0 }
    }
    fn free(&self, _node: NodeId, _zone: ZoneKind) -> u64 {
        self.free.load(Ordering::SeqCst).max(0) as u64
    }
    fn mark(&self, _node: NodeId, _zone: ZoneKind, mark: Watermark) -> u64 {
        MARKS[mark as usize] as u64
    }
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, _order: Order, mark: Watermark, _ceiling: ZoneKind) -> bool {
        Zones::free(self, node, zone) > self.mark(node, zone, mark)
    }
}

impl PageLists for Machine {
    fn shrink(&self, _node: NodeId, _group: GroupId, _protection: Protection, scan: &mut Scan<'_>) {
        let want = (self.cached.load(Ordering::SeqCst) >> scan.priority).max(32);
        let mut had = self.cached.load(Ordering::SeqCst);
        while let Err(now) = self.cached.compare_exchange(had, had - had.min(want), Ordering::SeqCst, Ordering::SeqCst)
        {
            had = now;
        }
        let freed = had.min(want);
        self.free.fetch_add(freed, Ordering::SeqCst);
        scan.scanned += freed as u64;
        scan.reclaimed += freed as u64;
    }
    fn age(&self, _node: NodeId, _group: GroupId, _scan: &mut Scan<'_>) {}
    fn counts(&self, _node: NodeId, _zone: Option<ZoneKind>) -> ListCounts {
        ListCounts { inactive_file: self.cached.load(Ordering::SeqCst) as u64, ..ListCounts::default() }
    }
    fn group_counts(&self, node: NodeId, _group: GroupId) -> ListCounts {
        self.counts(node, None)
    }
    fn reparent(&self, _group: GroupId, _parent: GroupId) {}
}

impl AllocContext for Machine {
    fn task_flags(&self) -> TaskFlags {
        TASK.get()
    }
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        TASK.replace((TASK.get() | set) - clear)
    }
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_millis() as u64)
    }
    fn yield_now(&self) {
        std::thread::yield_now();
    }
}

impl Park for Machine {
    fn park(&self, _context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        let guard = self.lock.lock().unwrap();
        if queue.sequence() == seen {
            let timeout = Duration::from_millis(wait.timeout_ms.unwrap_or(20_000));
            let (guard, result) = self.bell.wait_timeout(guard, timeout).unwrap();
            assert!(wait.timeout_ms.is_some() || !result.timed_out(), "a wake-up was lost");
            drop(guard);
        }
    }
    fn unpark_all(&self, _queue: &WaitQueue) {
        drop(self.lock.lock().unwrap());
        self.bell.notify_all();
    }
}

impl ReclaimEnv for Machine {
    type Cpu = SingleCpu;
    type Context = Self;
    type Zones = Self;
    type Lists = Self;
    type Groups = NoGroups;
    type Park = Self;
    type Oom = NoOom;

    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    fn context(&self) -> &Self {
        self
    }
    fn zones(&self) -> &Self {
        self
    }
    fn lists(&self) -> &Self {
        self
    }
    fn groups(&self) -> &NoGroups {
        &NoGroups
    }
    fn park(&self) -> &Self {
        self
    }
    fn oom(&self) -> &NoOom {
        &NoOom
    }
    fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

fn machine() -> Reclaim<Machine> {
    Reclaim::new(Machine {
        free: AtomicI64::new(PAGES),
        cached: AtomicI64::new(0),
        // SAFETY: nothing is pinned; the locks are plain spin locks.
        cpu: unsafe { SingleCpu::new() },
        nodes: [Node::new()],
        lock: Mutex::new(()),
        bell: Condvar::new(),
    })
}

/// Takes a page at a mark, as a page allocator does; wakes the thread below the low mark.
fn take(reclaim: &Reclaim<Machine>, gfp: Gfp, mark: Watermark) -> bool {
    let machine = reclaim.env();
    let request = ReclaimRequest {
        gfp,
        order: Order::ZERO,
        ceiling: ZoneKind::Normal,
        node: N0,
        this_node_only: false,
        migratetype: MigrateType::Movable,
    };
    for round in 0..2000 {
        let before = machine.free.fetch_sub(1, Ordering::SeqCst);
        if before <= MARKS[Watermark::Low as usize] {
            reclaim.wake_background(N0, &request);
        }
        if before > MARKS[mark as usize] {
            return true;
        }
        machine.free.fetch_add(1, Ordering::SeqCst);
        if !gfp.contains(Gfp::DIRECT_RECLAIM) {
            return false;
        }
        reclaim.reclaim(machine, &request);
        if round > 100 {
            std::thread::yield_now();
        }
    }
    false
}

#[test]
fn allocators_in_all_contexts_live_on_what_is_reclaimed() {
    let reclaim = machine();
    let stop = AtomicBool::new(false);
    let (sleepers, atomics, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            TASK.set(TaskFlags::KTHREAD);
            reclaim.kswapd_run(N0, || stop.load(Ordering::SeqCst));
        });
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let (reclaim, sleepers, atomics, refused) = (&reclaim, &sleepers, &atomics, &refused);
                threads.spawn(move || {
                    for turn in 0..5000 {
                        let atomic = (turn + n) % 4 == 0;
                        let gfp = if atomic { Gfp::ATOMIC } else { Gfp::KERNEL };
                        if take(reclaim, gfp, Watermark::Min) {
                            // Into the cache: whoever is short of pages takes it from there.
                            reclaim.env().cached.fetch_add(1, Ordering::SeqCst);
                            (if atomic { atomics } else { sleepers }).fetch_add(1, Ordering::Relaxed);
                        } else {
                            assert!(atomic, "a sleeping request fails although there is a cache");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        reclaim.kswapd_kick(N0);
    });
    let machine = reclaim.env();
    assert_eq!(machine.free.load(Ordering::SeqCst) + machine.cached.load(Ordering::SeqCst), PAGES, "no page was lost");
    assert_eq!(sleepers.load(Ordering::Relaxed), 3 * 5000 * 3 / 4);
    assert!(atomics.load(Ordering::Relaxed) > 0);
    assert!(!reclaim.kswapd_is_running(N0));
}

#[test]
fn shrinkers_come_and_go_under_scans() {
    /// Fails when it is called while it should not be.
    struct Guarded {
        live: AtomicBool,
        calls: AtomicU64,
    }
    impl Shrinker for Guarded {
        fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
            assert!(self.live.load(Ordering::SeqCst), "called outside of its registration");
            self.calls.fetch_add(1, Ordering::Relaxed);
            ShrinkCount::Objects(1000)
        }
        fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
            std::thread::yield_now();
            assert!(self.live.load(Ordering::SeqCst), "called outside of its registration");
            ShrinkScan::Scanned { freed: nr / 2, scanned: nr }
        }
    }
    let reclaim = machine();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    reclaim.shrink_slab(N0, GroupId::ROOT, 2, Gfp::KERNEL, reclaim.env());
                }
            });
        }
        let owners: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    for _ in 0..300 {
                        let guarded = Guarded { live: AtomicBool::new(true), calls: AtomicU64::new(0) };
                        let slot = ShrinkerSlot::new("guarded", &guarded);
                        reclaim.with_shrinker(&slot, std::thread::yield_now).unwrap();
                        guarded.live.store(false, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for owner in owners {
            owner.join().unwrap();
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(reclaim.shrinkers().len(&reclaim.env().cpu, reclaim.env()), 0);
}
