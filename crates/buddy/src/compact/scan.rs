//! One run through a zone: the migrate scanner upwards, the free scanner downwards, until they meet or a block is there.

use kmem_gfp::alloc_flags::DefragMode;
use kmem_gfp::{MigrateMode, MigrateType, Order, Pfn, PfnRange, ReclaimRequest, TaskFlags, Watermark};
use kmem_sync::atomic::Ordering;

use crate::block::Block;
use crate::buddy::Buddy;
use crate::compact::index::{Verdict, Wish};
use crate::compact::targets::Targets;
use crate::compact::window::{Emptied, NoRoom, Prospect, TRIES, Window};
use crate::env::BuddyEnv;
use crate::line::FRAMES;
use crate::record::Record;
use crate::state::State;
use crate::stats::Event;
use crate::take::fallbacks;
use crate::zone::Zone;

/// What came of a run, from the least to the most. The most over all zones is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Not tried: the zone is not suitable.
    Skipped,
    /// Not tried: it failed lately.
    Deferred,
    /// The whole zone was gone through.
    Complete,
    /// The rest of the zone was gone through.
    PartialSkipped,
    /// Stopped because somebody was in the way, or the task is to end.
    Contended,
    /// A block is there.
    Success,
}

/// Why and how a zone is compacted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'r> {
    /// The order wanted; `None`: everything.
    pub(crate) order: Option<Order>,
    pub(crate) migratetype: MigrateType,
    pub(crate) mode: MigrateMode,
    /// The request on whose behalf, if it is a direct run.
    pub(crate) request: Option<&'r ReclaimRequest>,
    /// What decides before the start whether to run at all.
    pub(crate) wish: Option<Wish>,
    pub(crate) enter_fs: bool,
    /// Pageblocks of any type serve as new places.
    pub(crate) thorough: bool,
    pub(crate) ignore_skips: bool,
    /// From end to end, whatever the scanners remember.
    pub(crate) whole: bool,
    /// Counted as the daemon's work.
    pub(crate) daemon: bool,
    /// Until the zone's score is as low as this.
    pub(crate) until_score: Option<u64>,
}

impl Run<'_> {
    /// A run over everything.
    pub(crate) const fn everything(mode: MigrateMode) -> Self {
        Self {
            order: None,
            migratetype: MigrateType::Movable,
            mode,
            request: None,
            wish: None,
            enter_fs: true,
            thorough: false,
            ignore_skips: true,
            whole: true,
            daemon: false,
            until_score: None,
        }
    }

    /// The order of the windows.
    pub(crate) fn window_order(&self) -> Order {
        self.order.unwrap_or(Order::PAGEBLOCK)
    }

    fn count(&self, state: &State, event: Event, daemon: Event, n: u64) {
        state.count_n(event, n);
        if self.daemon {
            state.count_n(daemon, n);
        }
    }

    pub(crate) fn scanned(&self, state: &State, pages: u64) {
        self.count(state, Event::CompactMigrateScanned, Event::CompactDaemonMigrateScanned, pages);
    }

    pub(crate) fn scanned_free(&self, state: &State, pages: u64) {
        self.count(state, Event::CompactFreeScanned, Event::CompactDaemonFreeScanned, pages);
    }

    pub(crate) fn isolated(&self, state: &State, pages: u64) {
        state.count_n(Event::CompactIsolated, pages);
    }

    /// Whether pages may be moved out of a pageblock.
    fn suits(&self, record: Record) -> bool {
        let kind = record.stored_type();
        if record.has(Record::ISOLATE) || !record.has(Record::PRESENT) {
            return false;
        }
        let Some(request) = self.request else { return true };
        let movable = request.migratetype == MigrateType::Movable;
        if kind == MigrateType::Cma && !movable {
            return false;
        }
        if self.mode != MigrateMode::Async {
            return true;
        }
        if movable || request.order >= Order::PAGEBLOCK {
            return matches!(kind, MigrateType::Movable | MigrateType::Cma);
        }
        kind == request.migratetype
    }
}

/// What came of one pageblock.
#[derive(Debug)]
pub(crate) enum Step {
    /// On to the next one.
    Next,
    /// The block went to the request that waited for it.
    Captured,
    Contended,
    NoRoom,
}

impl<E: BuddyEnv> Buddy<E> {
    /// Compacts one zone.
    pub(crate) fn compact_zone<'b>(&'b self, state: &'b State, zone: &'b Zone, run: &Run<'b>) -> Outcome {
        if let Some(wish) = &run.wish {
            match state.judge(zone, wish) {
                _ if self.is_content(zone, run) => return Outcome::Success,
                Verdict::Success if !self.wants_whole_blocks(run) => return Outcome::Success,
                Verdict::Skipped => return Outcome::Skipped,
                Verdict::Success | Verdict::Continue => {}
            }
        }
        if run.order.is_some_and(|order| zone.progress.is_restarting(order)) {
            zone.forget_skips();
        }
        // What lies in per-CPU sets is nobody's, but looks like somebody's.
        if run.mode == MigrateMode::Async {
            self.drain_local_pages();
        } else {
            self.drain_zone_pages(zone.node, zone.kind);
        }
        let total = zone.nr_pageblocks();
        let (mut at, mut free_at) = if run.whole { (0, total) } else { zone.progress.positions(run.mode) };
        if at + 1 >= free_at.min(total) {
            zone.progress.rewind();
            (at, free_at) = (0, total);
        }
        free_at = free_at.min(total);
        let complete = if at == 0 && free_at == total { Outcome::Complete } else { Outcome::PartialSkipped };
        let heeds = !run.ignore_skips && zone.progress.heeds_hints(run.window_order());
        let hints_count = !run.ignore_skips;
        let run = &Run { ignore_skips: !heeds, ..*run };
        let mut targets = Targets::new(self, state, zone, *run, free_at);
        loop {
            if at + 1 >= targets.position() {
                break;
            }
            if self.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                return Outcome::Contended;
            }
            if run.until_score.is_some() && self.env().background_running(zone.node) {
                return Outcome::PartialSkipped;
            }
            targets.set_floor(at);
            let step = self.compact_pageblock(state, zone, run, at, &mut targets);
            at += 1;
            zone.progress.note_migrate(run.mode, at);
            match step {
                Step::Captured => return Outcome::Success,
                Step::Contended => return Outcome::Contended,
                Step::NoRoom => break,
                Step::Next if self.is_done(state, zone, run) => return Outcome::Success,
                Step::Next => {}
            }
        }
        // The scanners have met, or the free scanner has nothing left.
        zone.progress.rewind();
        if hints_count {
            zone.progress.note_stale_hints();
        }
        complete
    }

    /// Moves pages out of one pageblock, or a part of it.
    fn compact_pageblock<'b>(
        &'b self,
        state: &'b State,
        zone: &'b Zone,
        run: &Run<'_>,
        at: u64,
        targets: &mut Targets<'b, E>,
    ) -> Step {
        let Some(block) = zone.block_at(at) else { return Step::Next };
        let skipped = |block: &Block<'_>| !run.ignore_skips && block.arena.skips.is_set(block.index);
        if !run.suits(block.record()) || skipped(&block) {
            return Step::Next;
        }
        let order = run.window_order();
        if order == Order::MAX {
            // Both halves, from the lower one.
            let Some(other) = block.neighbour().filter(|_| block.index.is_multiple_of(2)) else { return Step::Next };
            if !run.suits(other.record()) || skipped(&other) {
                return Step::Next;
            }
            let open = |block: &Block<'_>| Prospect::of(self, state, block, run).is_open();
            if !open(&block) || !open(&other) {
                skip(zone, &block, order);
                return Step::Next;
            }
            let step = self.compact_window(state, zone, run, (block.first_frame(), order), targets);
            return step.unwrap_or(Step::Next);
        }
        let mut prospect = Prospect::of(self, state, &block, run);
        for _ in 0..TRIES {
            let Some(offset) = prospect.best(order.get()) else { break };
            let first = Pfn(block.first_frame().0 + u64::from(offset));
            if let Some(step) = self.compact_window(state, zone, run, (first, order), targets) {
                return step;
            }
            prospect.close(offset);
        }
        skip(zone, &block, order);
        Step::Next
    }

    /// Empties one window; `None` if it did not become empty.
    pub(crate) fn compact_window<'b>(
        &'b self,
        state: &'b State,
        zone: &'b Zone,
        run: &Run<'_>,
        (first, order): (Pfn, Order),
        targets: &mut Targets<'b, E>,
    ) -> Option<Step> {
        if !zone.can_spare(order.nr_pages() as u64) {
            return Some(Step::NoRoom);
        }
        let range = PfnRange::block(first, order)?;
        let mut window = Window::new(self, state, zone, range, order);
        match window.evacuate(run, targets) {
            Ok(Emptied::Yes) => Some(if self.capture(state, run, window) { Step::Captured } else { Step::Next }),
            Ok(Emptied::Contended) if run.mode == MigrateMode::Async => Some(Step::Contended),
            Ok(Emptied::Contended | Emptied::No) => None,
            Err(NoRoom) => Some(Step::NoRoom),
        }
    }

    /// Hands an empty window to the request that waits for it; otherwise it becomes free.
    fn capture(&self, state: &State, run: &Run<'_>, window: Window<'_, E>) -> bool {
        let Some(request) = run.request.filter(|request| state.captures.is_wanted(request)) else { return false };
        let Some(block) = state.block_of(window.range().start) else { return false };
        let kind = block.record().migratetype();
        let mixes = kind == MigrateType::Movable && request.migratetype != MigrateType::Movable;
        if matches!(kind, MigrateType::Cma | MigrateType::Isolate) || (mixes && window.order() < Order::PAGEBLOCK) {
            return false;
        }
        let (range, order, zone) = (window.range(), window.order(), window.zone());
        let pfn = window.keep();
        if state.captures.offer(request, pfn) {
            zone.allocated_pages.fetch_add(range.len(), Ordering::Relaxed);
            zone.allocated_calls.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        drop(Window::unkept(self, state, zone, range, order));
        false
    }

    /// Whether the daemon of a machine that keeps types apart works for whole pageblocks.
    fn wants_whole_blocks(&self, run: &Run<'_>) -> bool {
        run.daemon && run.order.is_some() && self.defrag_mode() == DefragMode::On
    }

    /// Whether there are whole pageblocks enough.
    fn is_content(&self, zone: &Zone, run: &Run<'_>) -> bool {
        self.wants_whole_blocks(run) && zone.free_pages_in_whole_blocks() >= zone.watermark(Watermark::High)
    }

    /// Whether the run has reached what it is for. Asked between pageblocks.
    fn is_done(&self, state: &State, zone: &Zone, run: &Run<'_>) -> bool {
        if let Some(low) = run.until_score {
            return state.zone_score(zone) <= low;
        }
        let Some(order) = run.order else { return false };
        if self.wants_whole_blocks(run) {
            return self.is_content(zone, run);
        }
        let k = order.get();
        let has = |migratetype: MigrateType| zone.has_block_of(migratetype.index(), k);
        if has(run.migratetype) || (run.migratetype == MigrateType::Movable && has(MigrateType::Cma)) {
            return true;
        }
        let grouping = state.grouping.load(Ordering::Relaxed);
        let claims = k >= 4 || run.migratetype != MigrateType::Movable || !grouping;
        claims && fallbacks(run.migratetype).into_iter().any(has)
    }
}

/// A pageblock yielded nothing.
fn skip(zone: &Zone, block: &Block<'_>, order: Order) {
    block.arena.skips.set(block.index);
    zone.progress.note_hint(order);
}

impl Zone {
    /// How many pageblocks the zone's segments have; some may hold no memory.
    pub(crate) fn nr_pageblocks(&self) -> u64 {
        self.segments().map(|segment| (segment.end - segment.start) as u64).sum()
    }

    /// The pageblock with an ordinal, in the order of the segments.
    pub(crate) fn block_at(&self, ordinal: u64) -> Option<Block<'_>> {
        let mut left = ordinal;
        for segment in self.segments() {
            let len = (segment.end - segment.start) as u64;
            if left < len {
                let block = segment.arena().block(segment.start + left as usize)?;
                return block.record().has(Record::PRESENT).then_some(block);
            }
            left -= len;
        }
        None
    }
}

const _: () = assert!(FRAMES == 512, "a window of order 9 is a pageblock");
