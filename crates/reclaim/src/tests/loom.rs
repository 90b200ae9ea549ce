//! Models of what meets on several CPUs. `cargo xtask loom --crate reclaim`.
//!
//! Sleepers sleep on a condition variable of the model, so that a wake-up that is lost is a deadlock, which loom reports.

use std::vec::Vec;

use kmem_gfp::{
    AllocContext, Gfp, MigrateType, NodeId, Order, ReclaimRequest, Reclaimer, TaskFlags, Watermark, ZoneKind,
};
use kmem_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kmem_sync::{SingleCpu, UnsafeCell};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::{
    GroupId, KswapdStep, ListCounts, NoGroups, NoOom, Node, PageLists, Park, Protection, Reclaim, ReclaimEnv, Scan,
    ShrinkControl, ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot, Wait, WaitQueue, Zones,
};

const N0: NodeId = NodeId(0);
/// Free pages below which a wake is due, and above which the node is balanced.
const HIGH: u64 = 2;

/// A node whose free pages are a counter, with a list of pages that reclaim moves there.
struct Machine {
    free: AtomicU64,
    cached: AtomicU64,
    cpu: SingleCpu,
    nodes: Vec<Node>,
    lock: Mutex<()>,
    bell: Condvar,
    background: UnsafeCell<()>,
}

// SAFETY: what the cell holds is nothing.
unsafe impl Sync for Machine {}

impl Zones for Machine {
    fn managed(&self, _node: NodeId, zone: ZoneKind) -> u64 {
        u64::from(zone == ZoneKind::Normal) * 64
    }
    fn free(&self, _node: NodeId, _zone: ZoneKind) -> u64 {
        self.free.load(Ordering::Acquire)
    }
    fn mark(&self, _node: NodeId, _zone: ZoneKind, _mark: Watermark) -> u64 {
        HIGH
    }
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, order: Order, _mark: Watermark, _ceiling: ZoneKind) -> bool {
        Zones::free(self, node, zone) > HIGH + u64::from(order.get())
    }
}

impl PageLists for Machine {
    fn shrink(&self, _node: NodeId, _group: GroupId, _protection: Protection, scan: &mut Scan<'_>) {
        if scan.limits.background {
            // Loom fails if two background runs are here at once.
            self.background.with_mut(|_| thread::yield_now());
        }
        let freed = self.cached.swap(0, Ordering::AcqRel);
        self.free.fetch_add(freed, Ordering::AcqRel);
        scan.scanned += freed;
        scan.reclaimed += freed;
    }
    fn age(&self, _node: NodeId, _group: GroupId, _scan: &mut Scan<'_>) {}
    fn counts(&self, _node: NodeId, _zone: Option<ZoneKind>) -> ListCounts {
        // Whatever the present number: there is something to wait for.
        ListCounts { inactive_file: 64, ..ListCounts::default() }
    }
    fn group_counts(&self, node: NodeId, _group: GroupId) -> ListCounts {
        self.counts(node, None)
    }
    fn reparent(&self, _group: GroupId, _parent: GroupId) {}
}

impl AllocContext for Machine {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn yield_now(&self) {
        thread::yield_now();
    }
}

impl Park for Machine {
    fn park(&self, _context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        if wait.timeout_ms.is_some() {
            // The time is over at once.
            return;
        }
        let mut guard = self.lock.lock().unwrap();
        while queue.sequence() == seen {
            guard = self.bell.wait(guard).unwrap();
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

fn machine(free: u64, cached: u64) -> Reclaim<Machine> {
    Reclaim::new(Machine {
        free: AtomicU64::new(free),
        cached: AtomicU64::new(cached),
        // SAFETY: nothing is pinned; the locks are loom's.
        cpu: unsafe { SingleCpu::new() },
        nodes: std::vec![Node::new()],
        lock: Mutex::new(()),
        bell: Condvar::new(),
        background: UnsafeCell::new(()),
    })
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(f);
}

fn request() -> ReclaimRequest {
    ReclaimRequest {
        gfp: Gfp::KERNEL,
        order: Order::ZERO,
        ceiling: ZoneKind::Normal,
        node: N0,
        this_node_only: false,
        migratetype: MigrateType::Movable,
    }
}

/// Takes a page, and wakes the thread if that leaves too few.
fn take(reclaim: &Reclaim<Machine>) {
    reclaim.env().free.fetch_sub(1, Ordering::AcqRel);
    if !reclaim.is_balanced(N0, Order::ZERO, ZoneKind::Normal) {
        reclaim.wake_background(N0, &request());
    }
}

/// The thread, until it has nothing to do; naps are over at once.
fn run_until_idle(reclaim: &Reclaim<Machine>) {
    let mut now = 0;
    while reclaim.kswapd_poll(N0, now) != KswapdStep::Idle {
        now += 1000;
    }
}

#[test]
fn the_thread_never_sleeps_over_a_request() {
    model(|| {
        // Enough for single pages, not for pairs.
        let reclaim = Arc::new(machine(HIGH + 1, 4));
        run_until_idle(&reclaim);
        // Somebody lets it run for nothing, so that it is on its way to sleep when the request comes.
        reclaim.rouse(reclaim.node(N0).unwrap(), Order::ZERO, ZoneKind::Normal);
        let kswapd = thread::spawn({
            let reclaim = reclaim.clone();
            move || {
                // Sleeps as `kswapd_run` does, until there are more pages than at the beginning.
                let queue = reclaim.kswapd_queue(N0).unwrap();
                let mut now = 0;
                while reclaim.env().free.load(Ordering::Acquire) < HIGH + 5 {
                    now += 1000;
                    let seen = queue.sequence();
                    match reclaim.kswapd_poll(N0, now) {
                        KswapdStep::Idle => {
                            queue.wait(reclaim.env(), reclaim.env(), seen, Wait::KILLABLE);
                        }
                        KswapdStep::Nap(_) | KswapdStep::Worked => {}
                    }
                }
            }
        });
        reclaim.wake_background(N0, &ReclaimRequest { order: Order::new(1).unwrap(), ..request() });
        // A deadlock here is a request slept over.
        kswapd.join().unwrap();
    });
}

#[test]
fn a_nap_that_ends_sees_the_pages_taken_or_the_wake() {
    model(|| {
        let reclaim = Arc::new(machine(HIGH + 1, 2));
        reclaim.rouse(reclaim.node(N0).unwrap(), Order::ZERO, ZoneKind::Normal);
        while !matches!(reclaim.kswapd_poll(N0, 0), KswapdStep::Nap(_)) {}
        let kswapd = thread::spawn({
            let reclaim = reclaim.clone();
            // The nap is over: balanced still? Then it sleeps for good.
            move || reclaim.kswapd_poll(N0, 1000)
        });
        // A page goes, comes back, goes again.
        take(&reclaim);
        reclaim.env().free.fetch_add(1, Ordering::AcqRel);
        take(&reclaim);
        kswapd.join().unwrap();
        run_until_idle(&reclaim);
        assert!(reclaim.is_balanced(N0, Order::ZERO, ZoneKind::Normal), "asleep over too few pages");
    });
}

#[test]
fn of_two_pollers_one_works() {
    model(|| {
        let reclaim = Arc::new(machine(0, 8));
        reclaim.wake_background(N0, &request());
        let other = thread::spawn({
            let reclaim = reclaim.clone();
            move || reclaim.kswapd_poll(N0, 0)
        });
        let mine = reclaim.kswapd_poll(N0, 0);
        let theirs = other.join().unwrap();
        assert!(mine != KswapdStep::Idle && theirs != KswapdStep::Idle);
        assert_eq!(reclaim.env().free.load(Ordering::Acquire), 8, "the pages were freed once");
        run_until_idle(&reclaim);
    });
}

#[test]
fn a_throttled_request_is_woken_when_there_is_enough() {
    model(|| {
        let reclaim = Arc::new(machine(0, 4));
        // The thread exists, and has not been woken yet.
        assert_eq!(reclaim.kswapd_poll(N0, 0), KswapdStep::Idle);
        let kswapd = thread::spawn({
            let reclaim = reclaim.clone();
            move || {
                let queue = reclaim.kswapd_queue(N0).unwrap();
                let mut now = 0;
                while reclaim.env().free.load(Ordering::Acquire) == 0 {
                    now += 1000;
                    let seen = queue.sequence();
                    if reclaim.kswapd_poll(N0, now) == KswapdStep::Idle {
                        queue.wait(reclaim.env(), reclaim.env(), seen, Wait::KILLABLE);
                    }
                }
            }
        });
        // Waits at the entry until the thread has freed the pages, then finds none left to free.
        reclaim.reclaim(reclaim.env(), &request());
        assert_eq!(reclaim.env().free.load(Ordering::Acquire), 4);
        kswapd.join().unwrap();
    });
}

#[test]
fn a_thread_that_stops_lets_throttled_requests_go() {
    model(|| {
        let reclaim = Arc::new(machine(0, 0));
        assert_eq!(reclaim.kswapd_poll(N0, 0), KswapdStep::Idle);
        let kswapd = thread::spawn({
            let reclaim = reclaim.clone();
            move || reclaim.kswapd_stopped(N0)
        });
        assert_eq!(reclaim.reclaim(reclaim.env(), &request()), 0);
        kswapd.join().unwrap();
    });
}

/// A cache that may be called only while it is live.
struct Guarded {
    live: AtomicBool,
    objects: AtomicU64,
}

impl Shrinker for Guarded {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        assert!(self.live.load(Ordering::Relaxed), "called outside of its registration");
        match self.objects.load(Ordering::Relaxed) {
            0 => ShrinkCount::Empty,
            objects => ShrinkCount::Objects(objects),
        }
    }
    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        assert!(self.live.load(Ordering::Relaxed), "called outside of its registration");
        let freed = self.objects.load(Ordering::Relaxed).min(nr);
        self.objects.fetch_sub(freed, Ordering::Relaxed);
        ShrinkScan::Scanned { freed, scanned: nr }
    }
}

fn guarded(objects: u64) -> Guarded {
    Guarded { live: AtomicBool::new(true), objects: AtomicU64::new(objects) }
}

#[test]
fn no_callback_runs_outside_of_a_registration() {
    model(|| {
        let reclaim = Arc::new(machine(0, 0));
        let scanner = thread::spawn({
            let reclaim = reclaim.clone();
            move || reclaim.shrink_slab(N0, GroupId::ROOT, 0, Gfp::KERNEL, reclaim.env())
        });
        let cache = guarded(3);
        let slot = ShrinkerSlot::new("guarded", &cache);
        reclaim.with_shrinker(&slot, || ()).unwrap();
        cache.live.store(false, Ordering::Relaxed);
        let freed = scanner.join().unwrap();
        assert!(freed == 0 || freed == 3);
    });
}

#[test]
fn slots_around_a_walker_may_leave() {
    model(|| {
        let reclaim = Arc::new(machine(0, 0));
        let scanner = thread::spawn({
            let reclaim = reclaim.clone();
            move || reclaim.shrink_slab(N0, GroupId::ROOT, 0, Gfp::KERNEL, reclaim.env())
        });
        let (first, second) = (guarded(1), guarded(1));
        let slots = [ShrinkerSlot::new("first", &first), ShrinkerSlot::new("second", &second)];
        let [one, two] = &slots;
        // SAFETY: both are unregistered before they go.
        unsafe {
            reclaim.shrinkers().register_unchecked(reclaim.env().cpu(), one).unwrap();
            reclaim.shrinkers().register_unchecked(reclaim.env().cpu(), two).unwrap();
        }
        // The first goes while a walker may be at it; the walk goes on to the second.
        reclaim.unregister_shrinker(one).unwrap();
        first.live.store(false, Ordering::Relaxed);
        reclaim.unregister_shrinker(two).unwrap();
        second.live.store(false, Ordering::Relaxed);
        scanner.join().unwrap();
    });
}

#[test]
fn an_object_added_to_an_empty_cache_is_not_forgotten() {
    model(|| {
        let reclaim = Arc::new(machine(0, 0));
        let cache = guarded(0);
        let deferred = [AtomicU64::new(0), AtomicU64::new(0)];
        let filled = [AtomicU64::new(0b10)];
        let slot = Arc::new((cache, deferred, filled));
        let adder = thread::spawn({
            let (reclaim, all) = (reclaim.clone(), slot.clone());
            move || {
                let aware = ShrinkerSlot::new("aware", &all.0).memcg_aware(1, &all.1, &all.2);
                all.0.objects.fetch_add(1, Ordering::Relaxed);
                aware.note_objects(N0, GroupId(1));
                drop(reclaim);
            }
        });
        let aware = ShrinkerSlot::new("aware", &slot.0).memcg_aware(1, &slot.1, &slot.2);
        let mut freed = 0;
        reclaim
            .with_shrinker(&aware, || {
                freed += reclaim.shrink_slab(N0, GroupId(1), 0, Gfp::KERNEL, reclaim.env());
                adder.join().unwrap();
                freed += reclaim.shrink_slab(N0, GroupId(1), 0, Gfp::KERNEL, reclaim.env());
            })
            .unwrap();
        assert_eq!(freed, 1, "the bit says that there is nothing");
    });
}

#[test]
fn deferred_work_is_done_by_one() {
    model(|| {
        let reclaim = Arc::new(machine(0, 0));
        let cache = Arc::new(guarded(64));
        let slot = ShrinkerSlot::new("guarded", &*cache).with_batch(128);
        reclaim
            .with_shrinker(&slot, || {
                // 2 x 64 >> 5 = 4 objects of work, too few for a batch.
                reclaim.shrink_slab(N0, GroupId::ROOT, 5, Gfp::KERNEL, reclaim.env());
                let other = thread::spawn({
                    let reclaim = reclaim.clone();
                    move || reclaim.shrink_slab(N0, GroupId::ROOT, 5, Gfp::KERNEL, reclaim.env())
                });
                reclaim.shrink_slab(N0, GroupId::ROOT, 5, Gfp::KERNEL, reclaim.env());
                other.join().unwrap();
                assert_eq!(slot.nr_deferred(N0, GroupId::ROOT), 12, "three passes left four objects each");
            })
            .unwrap();
    });
}
