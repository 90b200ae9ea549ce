//! A window: an aligned run of frames that becomes one block by moving out what lies in it.
//!
//! ```text
//! used     # . # # . . # .       held at first   . 1 . . 1 1 . 1      its free frames, taken
//!          │   └─┴─ moved ──▶    held then       1 1 1 1 1 1 1 1      and the places that were left
//!          dropped: all that is held goes back to the lines          kept: the block is somebody's
//! ```

use kmem_gfp::{Order, Pfn, PfnRange};

use crate::bits::{WORD_ORDER, heads, low, run};
use crate::block::Block;
use crate::buddy::Buddy;
use crate::compact::scan::Run;
use crate::compact::targets::Targets;
use crate::env::BuddyEnv;
use crate::free::clear_tails;
use crate::line::{FRAMES, WORDS};
use crate::migrate::{Batch, Destination, Isolated};
use crate::record::Record;
use crate::state::State;
use crate::used::{each_used, pageblocks, take_bits};
use crate::zone::Zone;

/// Windows of one pageblock that are tried.
pub(crate) const TRIES: u32 = 3;

/// What of a pageblock can become free, a bit per frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prospect {
    /// Frames in use.
    pub(crate) used: [u64; WORDS],
    /// Frames that are free, or in use by somebody who moves them.
    pub(crate) open: [u64; WORDS],
}

impl Prospect {
    /// Looks at a pageblock.
    pub(crate) fn of<E: BuddyEnv>(buddy: &Buddy<E>, state: &State, block: &Block<'_>, how: &Run<'_>) -> Self {
        let used = block.used_words();
        let mut open = block.free_line().snapshot();
        let first = block.first_frame();
        let mut scanned = 0;
        block.each_used(0, FRAMES, |found| {
            scanned += 1;
            let Some(order) = found.order.filter(|&order| order < how.window_order()) else { return true };
            let owner = buddy.env().movable_owner(found.pfn);
            if owner.is_some_and(|owner| owner.moves(order) && (how.enter_fs || !owner.needs_fs()))
                && let Some(offset) = found.pfn.checked_sub(first)
            {
                mark(&mut open, offset as u32, order.get());
            }
            true
        });
        how.scanned(state, scanned);
        Self { used, open }
    }

    /// The run of `order` (at most 9) with the fewest frames in use of those that can become free: its offset.
    pub(crate) fn best(&self, order: u32) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        let mut consider = |offset: u32, used: u32| {
            if used > 0 && best.is_none_or(|(_, least)| used < least) {
                best = Some((offset, used));
            }
        };
        if order <= WORD_ORDER {
            for (i, (&open, &used)) in self.open.iter().zip(&self.used).enumerate() {
                let mut left = heads(open, order);
                while left != 0 {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    consider(i as u32 * 64 + bit, (used >> bit & run(order)).count_ones());
                }
            }
        } else {
            let group = 1 << (order.min(9) - WORD_ORDER);
            for (i, (open, used)) in self.open.chunks(group).zip(self.used.chunks(group)).enumerate() {
                if open.iter().all(|&word| word == u64::MAX) {
                    let count = used.iter().map(|word| word.count_ones()).sum();
                    consider((i * group) as u32 * 64, count);
                }
            }
        }
        best.map(|(offset, _)| offset)
    }

    /// Whether all of it can become free, and some of it is not.
    pub(crate) fn is_open(&self) -> bool {
        self.open.iter().all(|&word| word == u64::MAX)
    }

    /// Leaves a run out of account.
    pub(crate) fn close(&mut self, offset: u32) {
        if let Some(word) = self.open.get_mut(offset as usize / 64) {
            *word &= !(1 << (offset % 64));
        }
    }
}

/// Sets the bits of the block of `order` at `offset`.
fn mark(words: &mut [u64; WORDS], offset: u32, order: u32) {
    if order < WORD_ORDER {
        if let Some(word) = words.get_mut(offset as usize / 64) {
            *word |= run(order) << (offset % 64);
        }
        return;
    }
    let first = offset as usize / 64;
    words.iter_mut().skip(first).take(1 << (order.min(9) - WORD_ORDER)).for_each(|word| *word = u64::MAX);
}

/// A window that is being emptied.
///
/// # Invariants
/// Frames whose bit is set in `held` are ours: neither free nor anybody else's, and without tail bits.
pub(crate) struct Window<'b, E: BuddyEnv> {
    buddy: &'b Buddy<E>,
    state: &'b State,
    zone: &'b Zone,
    range: PfnRange,
    order: Order,
    /// Two pageblocks at most.
    held: [[u64; WORDS]; 2],
}

impl<'b, E: BuddyEnv> Window<'b, E> {
    pub(crate) fn new(buddy: &'b Buddy<E>, state: &'b State, zone: &'b Zone, range: PfnRange, order: Order) -> Self {
        Self { buddy, state, zone, range, order, held: [[0; WORDS]; 2] }
    }

    fn nr_held(&self) -> u64 {
        self.held.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Takes the frames of the window that are free.
    fn hold_free(&mut self, how: &Run<'_>) {
        for ((block, offset, end), held) in pageblocks(self.state, self.range).flatten().zip(&mut self.held) {
            let got = take_bits(&block, offset, end, &[u64::MAX; WORDS]);
            let mut nr = 0;
            for (held, got) in held.iter_mut().zip(got) {
                // INVARIANT: just taken from the line; free frames have no tail bits.
                *held |= got;
                nr += got.count_ones();
            }
            if nr > 0 {
                self.buddy.account(self.state, self.zone, -i64::from(nr));
                block.refile();
                block.recount();
                how.isolated(self.state, u64::from(nr));
            }
        }
    }

    /// Whether somebody has begun to isolate one of the pageblocks: theirs is the older right.
    fn is_isolated(&self) -> bool {
        pageblocks(self.state, self.range).flatten().any(|(block, ..)| block.record().has(Record::ISOLATE))
    }

    /// Empties the window; whether all of it is held then. `Err`: there is nowhere to move to.
    pub(crate) fn evacuate(&mut self, how: &Run<'_>, targets: &mut Targets<'b, E>) -> Result<Emptied, NoRoom> {
        self.hold_free(how);
        if self.is_isolated() {
            return Ok(Emptied::No);
        }
        let mut contended = false;
        let mut at = self.range.start;
        while at < self.range.end {
            let mut batch = Batch::new();
            let mut next = self.range.end;
            let (buddy, state) = (self.buddy, self.state);
            let held = self.held;
            let first = Pfn(self.range.start.0 & !u64::from(FRAMES - 1));
            each_used(state, PfnRange::new(at, self.range.end), |used| {
                let ours = used.pfn.checked_sub(first).is_some_and(|i| is_held(&held, i));
                if ours || used.order.is_none_or(|order| order >= how.window_order()) {
                    return true;
                }
                if batch.is_full() {
                    next = used.pfn;
                    return false;
                }
                if let Some(isolated) = Isolated::new(buddy, state, used, how.enter_fs) {
                    how.isolated(state, used.order.map_or(0, |order| order.nr_pages() as u64));
                    batch.push(isolated);
                }
                true
            });
            at = next;
            if batch.is_empty() {
                continue;
            }
            let left = batch.migrate(state, how.mode, &mut Mover { window: self, targets }).map_err(|_| NoRoom)?;
            if left > 0 {
                contended = true;
                break;
            }
        }
        // What its owners have freed meanwhile.
        self.hold_free(how);
        if self.nr_held() == self.range.len() && !self.is_isolated() {
            return Ok(Emptied::Yes);
        }
        Ok(if contended { Emptied::Contended } else { Emptied::No })
    }

    /// Makes one allocated block of the window, which is held entirely.
    pub(crate) fn keep(mut self) -> Pfn {
        let start = self.range.start;
        if self.buddy.options().init_on_free {
            self.zero_held();
        }
        for (block, offset, end) in pageblocks(self.state, self.range).flatten() {
            let head = u32::from(block.first_frame().0 + u64::from(offset) == start.0);
            block.mark_frames_as_tails(offset + head, end);
        }
        // INVARIANT: nothing is held any more.
        self.held = [[0; WORDS]; 2];
        start
    }

    /// Takes a block back that [`keep`](Self::keep) made: nobody wanted it.
    pub(crate) fn unkept(buddy: &'b Buddy<E>, state: &'b State, zone: &'b Zone, range: PfnRange, order: Order) -> Self {
        let mut window = Self::new(buddy, state, zone, range, order);
        for ((block, offset, end), held) in pageblocks(state, range).flatten().zip(&mut window.held) {
            block.tail_line().assign(offset, end - offset, false);
            for (word, (_, mask)) in (offset as usize / 64..).zip(block.free_line().pieces(offset, end - offset)) {
                if let Some(held) = held.get_mut(word) {
                    *held |= mask;
                }
            }
        }
        window
    }

    pub(crate) fn range(&self) -> PfnRange {
        self.range
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    pub(crate) fn zone(&self) -> &'b Zone {
        self.zone
    }

    /// A place in the window has been left: it is held from here on.
    fn hold(&mut self, pfn: Pfn, order: Order) {
        let Some(block) = self.state.block_of(pfn) else { return };
        let offset = (pfn.0 % u64::from(FRAMES)) as u32;
        self.buddy.mark_owned(self.state, pfn, false);
        if order > Order::ZERO {
            clear_tails(&block, offset, order.get());
        }
        let first = self.range.start.0 / u64::from(FRAMES);
        let half = (pfn.0 / u64::from(FRAMES)).wrapping_sub(first) as usize;
        if let Some(held) = self.held.get_mut(half) {
            // INVARIANT: its owner has left it to us, and the tails have just been cleared.
            mark(held, offset, order.get());
        }
    }
}

fn is_held(held: &[[u64; WORDS]; 2], frame: u64) -> bool {
    let word = held.get(frame as usize / FRAMES as usize).and_then(|half| half.get(frame as usize % 512 / 64));
    word.is_some_and(|word| word >> (frame % 64) & 1 != 0)
}

impl<E: BuddyEnv> Drop for Window<'_, E> {
    fn drop(&mut self) {
        let nr = self.nr_held();
        if nr == 0 {
            return;
        }
        if self.buddy.options().init_on_free {
            self.zero_held();
        }
        for ((block, ..), held) in pageblocks(self.state, self.range).flatten().zip(&self.held) {
            for (i, &mask) in held.iter().enumerate().filter(|&(_, &mask)| mask != 0) {
                // Nobody can have set bits that are ours.
                let put = block.put_bits(i as u32 * 64, mask);
                debug_assert!(put.is_ok(), "{put:?}");
            }
        }
        self.buddy.account(self.state, self.zone, nr as i64);
    }
}

impl<E: BuddyEnv> Window<'_, E> {
    /// With `init_on_free` everything that is free has been zeroed.
    fn zero_held(&self) {
        let first = self.range.start.0 & !u64::from(FRAMES - 1);
        for (i, &word) in self.held.iter().flatten().enumerate() {
            let mut left = word;
            while left != 0 {
                let start = left.trailing_zeros();
                let len = (left >> start).trailing_ones();
                let frames = PfnRange::with_len(Pfn(first + i as u64 * 64 + u64::from(start)), u64::from(len));
                // SAFETY: held, so ours (type invariant).
                unsafe { self.buddy.env().zero_frames(frames.unwrap_or_default()) };
                left &= !(low(len) << start);
            }
        }
    }
}

/// What became of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emptied {
    Yes,
    /// Something in it did not move.
    No,
    /// Something in it did not move now.
    Contended,
}

/// The free scanner found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// Moves out of a window to where the free scanner says.
struct Mover<'w, 'b, E: BuddyEnv> {
    window: &'w mut Window<'b, E>,
    targets: &'w mut Targets<'b, E>,
}

impl<E: BuddyEnv> Destination for Mover<'_, '_, E> {
    fn target(&mut self, order: Order) -> Option<Pfn> {
        self.targets.take(order)
    }

    fn unused(&mut self, target: Pfn, order: Order) {
        self.targets.put(target, order);
    }

    fn vacated(&mut self, source: Pfn, order: Order) {
        self.window.hold(source, order);
    }
}
