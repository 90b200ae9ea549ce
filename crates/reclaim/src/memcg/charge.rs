//! Charging and uncharging pages: the fast path, and the way to the counters.
//!
//! ```text
//! charge ─▶ stock has n? ──yes──▶ done: no shared line, no atomic read-modify-write
//!              └──no──▶ count max(64, n) in every level ─▶ keep the rest in stock
//!                            └──over──▶ count exactly n ──over──▶ `pressure.rs`
//! ```
//!
//! A charge that goes to the counters holds references to its group meanwhile, taken before it looks whether the group is
//! online: so the group that it charges cannot have become another one.

use core::num::NonZeroU32;

use kmem_gfp::{AllocContext, Gfp, Order, TaskFlags};
use kmem_sync::atomic::Ordering;

use crate::GroupId;
use crate::memcg::pressure::{Next, Tries};
use crate::memcg::slot::{Added, ONLINE, TAKEN};
use crate::memcg::stock::{BATCH, CpuStock};
use crate::memcg::table::State;
use crate::memcg::views::Stat;
use crate::memcg::{Memcg, MemcgEnv};

/// Who paid for a page or an object: a group, never the root. Holds the group's number until it is uncharged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Payer(NonZeroU32);

impl Payer {
    /// The payer in a word as [`to_raw`](Self::to_raw) gave it; `None` for zero: nobody.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(group) => Some(Self(group)),
            None => None,
        }
    }

    /// The payer as a word that is not zero.
    #[inline(always)]
    pub const fn to_raw(self) -> u32 {
        self.0.get()
    }

    /// The group that was charged. It may have gone since.
    #[inline(always)]
    pub const fn group(self) -> GroupId {
        GroupId(self.0.get())
    }
}

/// A charge that was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory cgroup {} has no room for {pages} pages, mode {gfp}", group.0)]
pub struct OverLimit {
    /// The group whose limit it is: the charged one or an ancestor.
    pub group: GroupId,
    /// The pages asked for.
    pub pages: u64,
    /// The flags asked with.
    pub gfp: Gfp,
}

/// Whether a charge holds references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A payer word names the group.
    Payer,
    /// The page goes to a reclaim list.
    Listed,
}

impl Kind {
    #[inline(always)]
    const fn refs(self, pages: u64) -> u64 {
        match self {
            Self::Payer => pages,
            Self::Listed => 0,
        }
    }
}

impl<E: MemcgEnv> Memcg<E> {
    /// Who pays for what the running context allocates with [`Gfp::ACCOUNT`] (A-01): the override if one is in force;
    /// otherwise nobody in an interrupt or for a kernel thread, and the task's group else. `None` for nobody, the root and a
    /// machine without groups. Any context; a few loads.
    #[inline]
    pub fn payer(&self) -> Option<GroupId> {
        let state = self.state()?;
        if !state.config.kernel_memory {
            return None;
        }
        let flags = self.env.context().task_flags();
        let group = match self.env.active_group() {
            Some(group) => group,
            None if !flags.in_task() || flags.contains(TaskFlags::KTHREAD) => return None,
            None => self.env.task_group(),
        };
        (group != GroupId::ROOT).then_some(group)
    }

    /// Charges `1 << order` pages that have been allocated with [`Gfp::ACCOUNT`] to whoever pays for them (A-02). The page
    /// stores the payer, for instance in [`PagePayers`](crate::memcg::PagePayers). `Ok(None)`: nobody pays. Contexts as
    /// `gfp` says.
    ///
    /// # Errors
    /// [`OverLimit`]; the page is to be freed again.
    #[inline]
    pub fn charge_page(&self, gfp: Gfp, order: Order) -> Result<Option<Payer>, OverLimit> {
        match self.payer() {
            None => Ok(None),
            Some(group) => self.charge(group, gfp, order.nr_pages() as u64),
        }
    }

    /// Charges `pages` pages to `group`. `Ok(None)`: nobody pays, for the root, for a number that no group has, and without
    /// groups. A group that has gone but is still referred to is represented by its parent. Contexts as `gfp` says: with
    /// [`Gfp::DIRECT_RECLAIM`] it may sleep, without any reclaim bit it may be called anywhere.
    ///
    /// The common case writes this CPU's lines only.
    ///
    /// # Errors
    /// [`OverLimit`] after the failure path (A-06, A-07).
    #[inline]
    pub fn charge(&self, group: GroupId, gfp: Gfp, pages: u64) -> Result<Option<Payer>, OverLimit> {
        let Some(state) = self.state() else { return Ok(None) };
        if group == GroupId::ROOT || pages == 0 {
            return Ok(None);
        }
        if self.take_from_stock(state, group, pages, Kind::Payer) {
            return Ok(Payer::from_raw(group.0));
        }
        self.charge_slow(state, group, gfp, pages, Kind::Payer).map(|charged| Payer::from_raw(charged.0))
    }

    /// Charges `pages` pages that go to a reclaim list to `group`. Returns the group that was charged, under which the lists
    /// are to keep them: this one, an ancestor if it has gone, or the root, which is not charged. Given back by
    /// [`Groups::uncharge`](crate::Groups::uncharge). Contexts as for [`charge`](Self::charge).
    ///
    /// # Errors
    /// As for [`charge`](Self::charge).
    #[inline]
    pub fn charge_listed(&self, group: GroupId, gfp: Gfp, pages: u64) -> Result<GroupId, OverLimit> {
        let Some(state) = self.state() else { return Ok(GroupId::ROOT) };
        if group == GroupId::ROOT || pages == 0 {
            return Ok(group);
        }
        if self.take_from_stock(state, group, pages, Kind::Listed) {
            return Ok(group);
        }
        self.charge_slow(state, group, gfp, pages, Kind::Listed)
    }

    /// Gives back `pages` of the pages that `payer` paid for. Any context.
    #[inline]
    pub fn uncharge(&self, payer: Payer, pages: u64) {
        let Some(state) = self.state() else { return };
        if pages != 0 && !self.give_to_stock(state, payer.group(), pages, Kind::Payer) {
            self.uncharge_slow(state, payer.group(), pages, Kind::Payer);
        }
    }

    /// Gives back pages that were charged for a reclaim list. Any context.
    #[inline]
    pub(crate) fn uncharge_listed(&self, group: GroupId, pages: u64) {
        let Some(state) = self.state() else { return };
        if group == GroupId::ROOT || pages == 0 {
            return;
        }
        // What reclaim frees makes room for every CPU at once.
        let is_reclaim = self.env.context().task_flags().contains(TaskFlags::MEMALLOC);
        if is_reclaim || !self.give_to_stock(state, group, pages, Kind::Listed) {
            self.uncharge_slow(state, group, pages, Kind::Listed);
        }
    }

    #[inline(always)]
    fn take_from_stock(&self, state: &State, group: GroupId, pages: u64, kind: Kind) -> bool {
        pages <= BATCH
            && state
                .stocks
                .try_with(self.env.cpu(), |stock, _| stock.take(group.0, pages as u32, kind.refs(pages) as i32))
                == Some(true)
    }

    #[inline(always)]
    fn give_to_stock(&self, state: &State, group: GroupId, pages: u64, kind: Kind) -> bool {
        pages <= BATCH
            && state
                .stocks
                .try_with(self.env.cpu(), |stock, _| stock.give(group.0, pages as u32, kind.refs(pages) as i32))
                == Some(true)
    }

    /// A charge that the stock does not cover. Returns the group charged.
    #[cold]
    #[inline(never)]
    pub(crate) fn charge_slow(
        &self,
        state: &State,
        group: GroupId,
        gfp: Gfp,
        pages: u64,
        kind: Kind,
    ) -> Result<GroupId, OverLimit> {
        let most = if gfp.allows_spinning() { pages.max(BATCH) } else { pages };
        let mut batch = most;
        let mut tries = Tries::default();
        loop {
            match state.try_count(group, batch) {
                Ok(charged) => {
                    self.keep(state, charged, pages, batch, kind);
                    self.look_at_high(state, charged, gfp, batch);
                    return Ok(charged);
                }
                Err(_) if batch > pages => batch = pages,
                Err(over) => match self.under_pressure(state, over, gfp, pages, &mut tries) {
                    Next::Retry => {
                        batch = most;
                        if self.take_from_stock(state, group, pages, kind) {
                            return Ok(group);
                        }
                    }
                    Next::Refuse => return Err(OverLimit { group: over, pages, gfp }),
                    Next::Force => {
                        let charged = state.force_count(group, pages);
                        self.keep(state, charged, pages, pages, kind);
                        return Ok(charged);
                    }
                },
            }
        }
    }

    /// After `batch` pages have been counted for `charged` and as many references are held: puts into stock what is more
    /// than `pages`, and lets go of the references that the charge does not keep.
    fn keep(&self, state: &State, charged: GroupId, pages: u64, batch: u64, kind: Kind) {
        if charged == GroupId::ROOT {
            return;
        }
        let rest = batch.saturating_sub(pages);
        if rest > 0 && !self.stash(state, charged, rest, Kind::Listed) {
            state.uncount(charged, rest);
        }
        let kept = kind.refs(pages);
        if kept > 0
            && let Some(slot) = state.slot(charged)
        {
            slot.add_stat(Stat::Kernel, kept as i64);
        }
        state.put_refs(charged, batch - kept);
    }

    /// Puts pages into this CPU's stock, making an entry if the group is online. `false` if that cannot be done here. The
    /// caller holds references to the group, or its pages do.
    fn stash(&self, state: &State, group: GroupId, pages: u64, kind: Kind) -> bool {
        let (Ok(nr), Ok(refs)) = (u32::try_from(pages), i32::try_from(kind.refs(pages))) else { return false };
        if pages > BATCH {
            return false;
        }
        let stashed = state.stocks.try_with(self.env.cpu(), |stock, _| {
            if stock.give(group.0, nr, refs) {
                return true;
            }
            if !open_entry(state, stock, group) {
                return false;
            }
            stock.give(group.0, nr, refs)
        });
        stashed == Some(true)
    }

    /// An uncharge that the stock has no entry or no room for.
    #[cold]
    #[inline(never)]
    fn uncharge_slow(&self, state: &State, group: GroupId, pages: u64, kind: Kind) {
        match kind {
            // The pages' own references keep the group's number.
            Kind::Payer => {
                if self.stash(state, group, pages, kind) {
                    return;
                }
                state.uncount(group, pages);
                if let Some(slot) = state.slot(state.online_from(group)) {
                    slot.add_stat(Stat::Kernel, (pages as i64).wrapping_neg());
                }
                state.put_refs(group, pages);
            }
            Kind::Listed => {
                let held = state.hold(group, 1);
                if held == GroupId::ROOT {
                    return;
                }
                let is_reclaim = self.env.context().task_flags().contains(TaskFlags::MEMALLOC);
                if is_reclaim || !self.stash(state, held, pages, kind) {
                    state.uncount(held, pages);
                }
                state.put_refs(held, 1);
            }
        }
    }
}

/// An entry for `group` in this CPU's stock, empty or flushed; `false` if the group is not online.
pub(crate) fn open_entry(state: &State, stock: &mut CpuStock, group: GroupId) -> bool {
    // Inside the section: a group that goes offline after this look drains the section's CPU after that.
    if state.online(group).is_none() {
        return false;
    }
    let flushed = if stock.has(group.0) { stock.flush(group.0) } else { None };
    let displaced = stock.open(group.0);
    for flushed in [flushed, displaced].into_iter().flatten() {
        state.settle(flushed);
    }
    true
}

impl State {
    /// Takes references to the first of a group and its ancestors that is online. The root is not held.
    pub(crate) fn hold(&self, group: GroupId, refs: u64) -> GroupId {
        let mut at = group;
        loop {
            if at == GroupId::ROOT {
                return at;
            }
            let Some(slot) = self.slot(at) else { return GroupId::ROOT };
            // One step: whoever frees the place either sees this reference or has shown that the group is offline.
            let life = slot.life.fetch_add(refs, Ordering::AcqRel);
            if life & ONLINE != 0 {
                return at;
            }
            let above = if life & TAKEN != 0 { slot.parent() } else { None };
            self.put_refs(at, refs);
            at = above.unwrap_or(GroupId::ROOT);
        }
    }

    /// Counts `pages` pages for a group, or for the nearest ancestor if it has gone, and takes as many references.
    ///
    /// # Errors
    /// The group whose limit has no room. Nothing is counted or held then.
    pub(crate) fn try_count(&self, group: GroupId, pages: u64) -> Result<GroupId, GroupId> {
        let held = self.hold(group, pages);
        if held == GroupId::ROOT {
            return Ok(held);
        }
        self.count(held, pages).inspect_err(|_| self.put_refs(held, pages)).map(|()| held)
    }

    /// As [`try_count`](Self::try_count), above every limit.
    #[cold]
    pub(crate) fn force_count(&self, group: GroupId, pages: u64) -> GroupId {
        let held = self.hold(group, pages);
        if held == GroupId::ROOT {
            return held;
        }
        for (at, slot) in self.levels_from(held) {
            let usage = slot.usage.fetch_add(pages, Ordering::AcqRel).wrapping_add(pages);
            slot.note_peak(usage);
            self.tell(at, usage);
        }
        held
    }

    /// Adds going up; at the first level over its max takes it all back (A-17).
    fn count(&self, group: GroupId, pages: u64) -> Result<(), GroupId> {
        for (at, slot) in self.levels_from(group) {
            match slot.add(pages) {
                Added::Within(usage) => {
                    self.tell(at, usage);
                    slot.note_peak(usage);
                }
                Added::Over => {
                    slot.sub(pages);
                    slot.failures.fetch_add(1, Ordering::Relaxed);
                    for (below, slot) in self.levels_from(group).take_while(|&(below, _)| below != at) {
                        let usage = slot.sub(pages);
                        self.tell(below, usage);
                    }
                    return Err(at);
                }
            }
        }
        Ok(())
    }

    /// Takes `pages` pages off a group and its ancestors.
    pub(crate) fn uncount(&self, group: GroupId, pages: u64) {
        for (at, slot) in self.levels_from(group) {
            let usage = slot.sub(pages);
            self.tell(at, usage);
        }
    }

    /// Tells the parent of `at` what is protected now. The root does not care: its children never share a protection.
    #[inline]
    pub(crate) fn tell(&self, at: GroupId, usage: u64) {
        if let Some(slot) = self.slot(at)
            && let Some(above) = slot.parent().filter(|&parent| parent != GroupId::ROOT)
            && let Some(above) = self.slot(above)
        {
            slot.tell_protected(above, usage);
        }
    }
}
