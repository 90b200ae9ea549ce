//! Models of isolation, migration and compaction. Run with `cargo xtask loom --crate buddy`.

use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateError, MigrateMode, MigrateType, MovableOwner, NodeId, Pfn, ReclaimRequest, ZoneKind};
use kmem_sync::atomic::{AtomicBool, Ordering};
use loom::sync::Mutex;
use loom::thread;

use super::loom::{Shadows, bare, model, with_set};
use super::rig::{Rig, o, range, run_on};
use crate::compact::scan::{Run, Step};
use crate::compact::targets::Targets;
use crate::migrate::{Batch, Destination, Isolated};
use crate::used::Used;
use crate::{Event, IsolateMode};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    At(u64),
    /// As before, and a mover has it.
    Isolated(u64),
    /// The owner wants it gone; the mover still has it.
    Doomed(u64),
    Gone,
}

/// The owner of one page.
struct Owner {
    place: Mutex<Place>,
    /// Somebody uses the page, wherever it was when they began.
    in_use: AtomicBool,
    memory: Shadows,
    rig: Mutex<Option<&'static Rig>>,
}

impl Owner {
    fn new(pfn: u64) -> Arc<Self> {
        Arc::new(Self {
            place: Mutex::new(Place::At(pfn)),
            in_use: AtomicBool::new(false),
            memory: Shadows::new(8),
            rig: Mutex::new(None),
        })
    }

    /// Uses the page.
    fn access(&self) {
        let place = *self.place.lock().unwrap();
        if let Place::At(pfn) | Place::Isolated(pfn) = place
            && self.begin(pfn)
        {
            self.memory.touch(pfn as usize);
            self.in_use.store(false, Ordering::Release);
        }
    }

    /// Holds the page where it is.
    fn begin(&self, pfn: u64) -> bool {
        let place = self.place.lock().unwrap();
        let there = matches!(*place, Place::At(at) | Place::Isolated(at) if at == pfn);
        if there {
            self.in_use.store(true, Ordering::Relaxed);
        }
        there
    }

    /// Gives the page up: at once, or as soon as nobody is moving it.
    fn free(&self, rig: &Rig) {
        let mut place = self.place.lock().unwrap();
        *place = match *place {
            Place::At(pfn) => {
                rig.put(Pfn(pfn), 0);
                Place::Gone
            }
            Place::Isolated(pfn) => Place::Doomed(pfn),
            other => other,
        };
    }

    /// Ends the isolation; what was to be freed meanwhile is.
    fn end(&self, place: &mut Place, at: u64) {
        *place = match *place {
            Place::Doomed(_) => {
                if let Some(rig) = *self.rig.lock().unwrap() {
                    rig.put(Pfn(at), 0);
                }
                Place::Gone
            }
            _ => Place::At(at),
        };
    }
}

// SAFETY: an isolated page is freed by `end` only; after a move nothing refers to the source.
unsafe impl MovableOwner for Owner {
    fn isolate(&self, pfn: Pfn) -> bool {
        let mut place = self.place.lock().unwrap();
        let ours = *place == Place::At(pfn.0);
        if ours {
            *place = Place::Isolated(pfn.0);
        }
        ours
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        let mut place = self.place.lock().unwrap();
        if self.in_use.load(Ordering::Acquire) {
            return Err(MigrateError::Again(source));
        }
        self.memory.touch(source.0 as usize);
        self.memory.touch(target.0 as usize);
        self.end(&mut place, target.0);
        Ok(())
    }

    fn put_back(&self, pfn: Pfn) {
        let mut place = self.place.lock().unwrap();
        self.end(&mut place, pfn.0);
    }
}

/// Shares an owner with the environment.
struct Shared(Arc<Owner>);

// SAFETY: forwards.
unsafe impl MovableOwner for Shared {
    fn isolate(&self, pfn: Pfn) -> bool {
        self.0.isolate(pfn)
    }
    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        self.0.migrate(source, target)
    }
    fn put_back(&self, pfn: Pfn) {
        self.0.put_back(pfn);
    }
}

fn named(rig: &Rig, owner: &Arc<Owner>) {
    assert!(rig.env().owner.set(Box::new(Shared(owner.clone()))).is_ok());
}

/// One target; places that are left are used by the mover at once.
struct One<'r> {
    target: Option<u64>,
    rig: &'r Rig,
    memory: &'r Shadows,
}

impl Destination for One<'_> {
    fn target(&mut self, _order: kmem_gfp::Order) -> Option<Pfn> {
        self.target.take().map(Pfn)
    }
    fn unused(&mut self, target: Pfn, _order: kmem_gfp::Order) {
        self.memory.touch(target.0 as usize);
        self.target = Some(target.0);
    }
    fn vacated(&mut self, source: Pfn, _order: kmem_gfp::Order) {
        self.memory.touch(source.0 as usize);
        self.rig.put(source, 0);
    }
}

/// Two pageblocks of which everything is in use; frame 1 is the owner's and frame 2 a place to move to.
fn crowded() -> (Arc<Rig>, Arc<Owner>) {
    let rig = bare();
    for block in 0..2 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        rig.split_page(Pfn(block * 512), o(9)).unwrap();
    }
    let owner = Owner::new(1);
    named(&rig, &owner);
    (rig, owner)
}

/// Moves frame 1 to frame 2, if its owner lets it be moved.
fn move_it(rig: &Rig, owner: &Owner) {
    let state = rig.state().unwrap();
    let mut destination = One { target: Some(2), rig, memory: &owner.memory };
    let mut batch = Batch::new();
    let used = Used { pfn: Pfn(1), order: Some(o(0)) };
    if let Some(isolated) = Isolated::new(&**rig, state, used, true) {
        batch.push(isolated);
        let _ = batch.migrate(state, MigrateMode::Async, &mut destination);
    }
    drop(batch);
    if let Some(unused) = destination.target {
        owner.memory.touch(unused as usize);
        rig.put(Pfn(unused), 0);
    }
}

#[test]
fn an_owner_that_uses_its_page_never_meets_the_mover() {
    model(|| {
        let (rig, owner) = crowded();
        let user = thread::spawn({
            let owner = owner.clone();
            move || {
                run_on(Some(1));
                owner.access();
                owner.access();
            }
        });
        run_on(Some(0));
        move_it(&rig, &owner);
        user.join().unwrap();
        assert_eq!(rig.free_page_count(), 1);
        let place = *owner.place.lock().unwrap();
        assert!(matches!(place, Place::At(1 | 2)), "{place:?}");
    });
}

#[test]
fn a_page_that_is_given_up_while_it_moves_is_freed_once() {
    model(|| {
        let (rig, owner) = crowded();
        // SAFETY: taken away again below, while the rig lives.
        let lasting: &'static Rig = unsafe { &*Arc::as_ptr(&rig) };
        *owner.rig.lock().unwrap() = Some(lasting);
        let user = thread::spawn({
            let (rig, owner) = (rig.clone(), owner.clone());
            move || {
                run_on(Some(1));
                owner.access();
                owner.free(&rig);
            }
        });
        run_on(Some(0));
        move_it(&rig, &owner);
        user.join().unwrap();
        *owner.rig.lock().unwrap() = None;
        assert_eq!(*owner.place.lock().unwrap(), Place::Gone);
        assert_eq!(rig.free_page_count(), 2);
        assert_eq!(rig.event(Event::BadFree), 0);
    });
}

#[test]
fn what_is_freed_into_an_isolated_pageblock_stays_there() {
    model(|| {
        let rig = with_set(0);
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(3), o(0)).unwrap();
        // Everything has an owner, so nothing stands in the way.
        named(&rig, &Owner::new(3));
        let user = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.put(Pfn(3), 0);
            }
        });
        run_on(Some(0));
        let isolation = rig.isolate_range(range(0, 8), IsolateMode::Other).unwrap();
        user.join().unwrap();
        assert!(isolation.is_free(), "the frame is in some CPU's set");
        drop(isolation);
        assert_eq!(rig.all_free(), 4 * 512);
    });
}

#[test]
fn a_range_is_taken_only_without_those_who_allocate_in_it() {
    model(|| {
        let rig = bare();
        for block in 0..2 {
            rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        }
        rig.split_page(Pfn(0), o(9)).unwrap();
        rig.put(Pfn(3), 0);
        let memory = Arc::new(Shadows::new(8));
        let user = thread::spawn({
            let (rig, memory) = (rig.clone(), memory.clone());
            move || {
                let block = rig.state().unwrap().block_of(Pfn(3)).unwrap();
                let mut got = None;
                block.take(MigrateType::Movable, 0, 1, |pfn| got = Some(pfn));
                memory.touch(got?.0 as usize);
                got
            }
        });
        run_on(Some(0));
        let isolation = rig.isolate_blocks(range(3, 4), IsolateMode::Other).unwrap();
        let taken = isolation.take(Gfp::KERNEL).is_ok();
        if taken {
            memory.touch(3);
        }
        let theirs = user.join().unwrap();
        assert!(!(taken && theirs.is_some()), "one frame for two");
        let line = rig.state().unwrap().block_of(Pfn(3)).unwrap().free_line().count();
        assert_eq!(line, u32::from(!taken && theirs.is_none()));
        assert_eq!(rig.zones().next().unwrap().free_of(MigrateType::Isolate), 0);
    });
}

fn wish() -> ReclaimRequest {
    ReclaimRequest {
        gfp: Gfp::HIGHUSER_MOVABLE,
        order: o(1),
        ceiling: ZoneKind::Movable,
        node: NodeId(0),
        this_node_only: false,
        migratetype: MigrateType::Movable,
    }
}

/// Makes a block of frames 0 and 1 for whoever waits for it.
fn compact_it(rig: &Rig) -> Option<Step> {
    let state = rig.state().unwrap();
    let zone = rig.zones().next().unwrap();
    let request = wish();
    let run = Run { order: Some(o(1)), request: Some(&request), ..Run::everything(MigrateMode::Async) };
    let mut targets = Targets::new(&**rig, state, zone, run, 2);
    rig.compact_window(state, zone, &run, (Pfn(0), o(1)), &mut targets)
}

/// The cell that stands for a frame.
fn small(pfn: Pfn) -> usize {
    if pfn.0 < 4 { pfn.0 as usize } else { 4 + (pfn.0 % 4) as usize }
}

/// An owner that remembers only where its page is.
struct Plain(Mutex<Place>);

// SAFETY: the page is never freed.
unsafe impl MovableOwner for Plain {
    fn isolate(&self, pfn: Pfn) -> bool {
        let mut place = self.0.lock().unwrap();
        let ours = *place == Place::At(pfn.0);
        if ours {
            *place = Place::Isolated(pfn.0);
        }
        ours
    }
    fn migrate(&self, _source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        *self.0.lock().unwrap() = Place::At(target.0);
        Ok(())
    }
    fn put_back(&self, pfn: Pfn) {
        *self.0.lock().unwrap() = Place::At(pfn.0);
    }
}

/// Frame 0 is free, frame 1 the owner's, the rest of the first pageblock in use; the second has free frames at its end.
fn plain() -> Arc<Rig> {
    let rig = bare();
    for block in 0..2 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        rig.split_page(Pfn(block * 512), o(9)).unwrap();
    }
    assert!(rig.env().owner.set(Box::new(Plain(Mutex::new(Place::At(1))))).is_ok());
    rig.set_min_free_kbytes(0).unwrap();
    rig.put(Pfn(0), 0);
    [1017, 1019, 1021].into_iter().for_each(|pfn| rig.put(Pfn(pfn), 0));
    rig
}

#[test]
fn a_captured_block_has_no_other_taker() {
    model(|| {
        let rig = plain();
        let memory = Arc::new(Shadows::new(8));
        let user = thread::spawn({
            let (rig, memory) = (rig.clone(), memory.clone());
            move || {
                run_on(None);
                let pfn = rig.get(ANY | Gfp::MOVABLE, 0)?;
                memory.touch(small(pfn));
                Some(pfn)
            }
        });
        run_on(Some(0));
        let captures = &rig.state().unwrap().captures;
        let waiting = captures.publish(&wish()).unwrap();
        let _ = compact_it(&rig);
        let captured = captures.collect(waiting);
        if let Some(pfn) = captured {
            memory.touch(small(pfn));
            memory.touch(small(Pfn(pfn.0 + 1)));
        }
        let theirs = user.join().unwrap();
        let used = u64::from(theirs.is_some()) + if captured.is_some() { 2 } else { 0 };
        // The tenant's move changes nothing: one frame left, one taken.
        assert_eq!(rig.free_page_count(), 4 - used);
    });
}

#[test]
fn pages_that_leave_a_set_under_a_compaction_are_neither_lost_nor_doubled() {
    model(|| {
        let rig = plain();
        rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, true);
        // Frame 0 lies in the set of CPU 1.
        run_on(Some(1));
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(0), o(0)).unwrap();
        rig.put(Pfn(0), 0);
        let drainer = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.drain_local_pages();
            }
        });
        run_on(Some(0));
        let step = compact_it(&rig);
        drainer.join().unwrap();
        assert_eq!(rig.all_free(), 4, "{step:?}");
        let zone = rig.zones().next().unwrap();
        let listed: Vec<u64> =
            zone.free_blocks().iter().map(|row| row.iter().enumerate().map(|(k, nr)| nr << k).sum()).collect();
        assert_eq!(listed.iter().sum::<u64>(), 4);
    });
}
