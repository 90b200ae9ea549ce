//! The free scanner: new places for what is moved, from the end of the zone downwards.
//!
//! ```text
//! migrate scanner ─▶ ... ┃ not below ┃ ... [.##.] [####] [#..#] ◀─ at        pool: single frames taken in advance
//! ```
//!
//! It takes from the smallest runs of each pageblock, and passes by pageblocks that hold a free block as large as wanted.

use kmem_gfp::{MigrateType, Order, Pfn};

use crate::block::Block;
use crate::buddy::Buddy;
use crate::compact::scan::Run;
use crate::env::BuddyEnv;
use crate::free::put_checked;
use crate::record::Record;
use crate::state::State;
use crate::zone::Zone;

/// Single frames taken at once.
const POOL: usize = 64;

/// The free scanner of one run.
pub(crate) struct Targets<'b, E: BuddyEnv> {
    buddy: &'b Buddy<E>,
    state: &'b State,
    zone: &'b Zone,
    run: Run<'b>,
    /// One more than the pageblock that is looked at next.
    at: u64,
    /// The migrate scanner's pageblock, and below it: not for us.
    floor: u64,
    pool: [u64; POOL],
    len: usize,
}

impl<'b, E: BuddyEnv> Targets<'b, E> {
    pub(crate) fn new(buddy: &'b Buddy<E>, state: &'b State, zone: &'b Zone, run: Run<'b>, at: u64) -> Self {
        Self { buddy, state, zone, run, at, floor: 0, pool: [0; POOL], len: 0 }
    }

    /// Where the scanner is.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The migrate scanner has come to pageblock `floor`.
    pub(crate) fn set_floor(&mut self, floor: u64) {
        self.floor = floor;
    }

    /// A block to move something to.
    pub(crate) fn take(&mut self, order: Order) -> Option<Pfn> {
        let pfn = if order == Order::ZERO {
            if self.len == 0 {
                self.fill();
            }
            self.len = self.len.checked_sub(1)?;
            Pfn(*self.pool.get(self.len)?)
        } else {
            self.take_block(order)?
        };
        self.buddy.mark_owned(self.state, pfn, true);
        Some(pfn)
    }

    /// Takes a block back that was not used.
    pub(crate) fn put(&mut self, pfn: Pfn, order: Order) {
        self.buddy.mark_owned(self.state, pfn, false);
        if order == Order::ZERO
            && let Some(slot) = self.pool.get_mut(self.len)
        {
            *slot = pfn.0;
            self.len += 1;
            return;
        }
        self.release(pfn, order);
    }

    fn release(&self, pfn: Pfn, order: Order) {
        if let Some(block) = self.state.block_of(pfn) {
            let put = put_checked(&block, pfn, order);
            debug_assert!(put.is_ok(), "{put:?}");
            self.buddy.account(self.state, self.zone, order.nr_pages() as i64);
        }
    }

    /// Whether something may be moved into a pageblock.
    fn suits(&self, block: &Block<'_>) -> bool {
        let record = block.record();
        let kind = matches!(record.stored_type(), MigrateType::Movable | MigrateType::Cma) || self.run.thorough;
        kind && !record.has(Record::ISOLATE)
            && record.stored_type() != MigrateType::HighAtomic
            && record.filed() > 0
            // A block as large as wanted stays whole.
            && record.filed() <= self.run.window_order().get().min(9)
            && (self.run.ignore_skips || !block.arena.full.is_set(block.index))
    }

    /// Takes up to `want` blocks from the pageblock that is next; `false` at the end of the road.
    fn take_next(&mut self, order: Order, want: u32, mut taken: impl FnMut(Pfn)) -> bool {
        let want = want.min((self.zone.spare_pages() >> order.get()).min(u64::from(u32::MAX)) as u32);
        if want == 0 {
            return false;
        }
        while self.at > self.floor + 1 {
            let Some(block) = self.zone.block_at(self.at - 1) else {
                self.at -= 1;
                continue;
            };
            if self.suits(&block) {
                self.run.scanned_free(self.state, u64::from(block.free_line().count()));
                let migratetype = block.record().stored_type();
                let got = block.take(migratetype, order.get(), want, &mut taken);
                if got > 0 {
                    block.refile();
                    if block.record().is_special() {
                        block.recount();
                    }
                    let pages = i64::from(got) << order.get();
                    self.buddy.account(self.state, self.zone, -pages);
                    self.run.isolated(self.state, pages as u64);
                    // Half a pageblock of movable contents makes a movable pageblock.
                    if order.get() >= 8 && migratetype.is_mergeable() && migratetype != MigrateType::Movable {
                        block.change_type(migratetype, MigrateType::Movable);
                    }
                    return true;
                }
            }
            if order == Order::ZERO {
                block.arena.full.set(block.index);
                self.zone.progress.note_hint(self.run.window_order());
            }
            self.at -= 1;
            self.zone.progress.note_free(self.at);
        }
        false
    }

    fn fill(&mut self) {
        let mut pool = [0; POOL];
        let mut len = 0;
        self.take_next(Order::ZERO, POOL as u32, |pfn| {
            if let Some(slot) = pool.get_mut(len) {
                *slot = pfn.0;
                len += 1;
            }
        });
        (self.pool, self.len) = (pool, len);
    }

    fn take_block(&mut self, order: Order) -> Option<Pfn> {
        // Looking for a large block must not use up the pageblocks that have single frames.
        let at = self.at;
        let mut found = None;
        self.take_next(order, 1, |pfn| found = Some(pfn));
        self.at = at;
        found
    }
}

impl<E: BuddyEnv> Drop for Targets<'_, E> {
    fn drop(&mut self) {
        for i in 0..self.len {
            if let Some(&pfn) = self.pool.get(i) {
                self.release(Pfn(pfn), Order::ZERO);
            }
        }
    }
}
