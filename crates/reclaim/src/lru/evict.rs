//! What is done to a page that has been taken off its list: ask its owner, take its mappings away, write it, let it go.
//!
//! ```text
//! look ─▶ locked? writeback? in use? ─▶ unmap ─▶ dirty? file: tag it, leave it to the flusher (R-15)
//!                                                        anon: write to swap ─▶ keep until written
//!                                     ─▶ evict(shadow) ─▶ free the frame
//! ```
//!
//! **Locking:** no list lock is held; the page is isolated, so nobody else does this to it.

use kmem_gfp::{Gfp, NodeId, Pfn, ZoneKind, current_gfp_context};
use kmem_sync::atomic::Ordering;

use super::policy::{Arrival, Policy, Verdict};
use super::section::Step;
use super::word::{OwnerWord, State};
use super::{Lists, LruEnv, Page, PageKind, Refused, Shadow, WriteBack};
use crate::{GroupId, Groups, Scan};

/// Pages that are taken off a list at a time.
pub(crate) const PORTION: usize = 32;

/// Isolated pages on their way.
#[derive(Debug)]
pub(crate) struct Isolated {
    pfns: [u32; PORTION],
    len: usize,
}

impl Isolated {
    pub(crate) const fn new() -> Self {
        Self { pfns: [0; PORTION], len: 0 }
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.len == PORTION
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, pfn: Pfn) {
        if let Some(entry) = self.pfns.get_mut(self.len) {
            *entry = pfn.0 as u32;
            self.len += 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Pfn> + '_ {
        self.pfns.iter().take(self.len).map(|&pfn| Pfn(pfn.into()))
    }
}

/// What became of the pages of one portion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) freed: u64,
    /// Found in use.
    pub(crate) activated: u64,
    /// Writes begun or done.
    pub(crate) writes: u64,
}

/// What became of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Freed(OwnerWord, PageKind),
    Keep,
    Activate,
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    /// Reclaims what it can of `pages`, which the caller has isolated from the lists of `group` on `node`, and puts the rest back.
    pub(crate) fn reclaim(&self, node: NodeId, group: GroupId, pages: &Isolated, scan: &mut Scan<'_>) -> Outcome {
        let gfp = current_gfp_context(scan.limits.gfp, scan.context.task_flags());
        let (mut outcome, mut kept) = (Outcome::default(), Isolated::new());
        let (mut gone, mut uncharged) = ([(OwnerWord::NONE, PageKind::File); PORTION], (group, 0u64));
        for pfn in pages.iter() {
            match self.reclaim_page(pfn, gfp, scan, &mut outcome) {
                Fate::Freed(word, kind) => {
                    if let Some(entry) = gone.get_mut(outcome.freed as usize) {
                        *entry = (word, kind);
                    }
                    outcome.freed += 1;
                    let charged = word.group();
                    if charged != uncharged.0 {
                        self.uncharge_some(uncharged);
                        uncharged = (charged, 0);
                    }
                    uncharged.1 += 1;
                    self.free_frame(pfn);
                }
                fate => {
                    outcome.activated += u64::from(fate == Fate::Activate);
                    kept.push(pfn);
                }
            }
        }
        self.uncharge_some(uncharged);
        // Counted as isolated until it is uncharged: that keeps the group's number.
        for &(word, kind) in gone.iter().take(outcome.freed as usize) {
            self.uncount_isolated(word, kind);
        }
        outcome.freed += self.put_back_all(node, group, &kept);
        scan.reclaimed += outcome.freed;
        outcome
    }

    /// Puts pages back that were isolated from the lists of `group` on `node`; returns how many were dead and are free.
    pub(crate) fn put_back_all(&self, node: NodeId, group: GroupId, pages: &Isolated) -> u64 {
        let mut dead = Isolated::new();
        let mut elsewhere = Isolated::new();
        self.with_number_kept(group, || {
            self.section(node, group, |section| {
                for pfn in pages.iter() {
                    match section.put_back(pfn, Some(Arrival::Rejected)) {
                        Step::Done => {}
                        Step::Elsewhere => elsewhere.push(pfn),
                        Step::Dead(_) => dead.push(pfn),
                    }
                }
            });
            for pfn in dead.iter() {
                self.bury(pfn, group);
            }
        });
        for pfn in elsewhere.iter() {
            self.put_back_as(pfn, Some(Arrival::Rejected));
        }
        dead.len() as u64
    }

    fn uncharge_some(&self, (group, pages): (GroupId, u64)) {
        if pages > 0 {
            self.env.groups().uncharge(group, pages);
        }
    }

    fn reclaim_page(&self, pfn: Pfn, gfp: Gfp, scan: &mut Scan<'_>, outcome: &mut Outcome) -> Fate {
        let Some(words) = self.words(pfn) else { return Fate::Keep };
        let word = self.owner_word(pfn);
        let state = State(words.state.load(Ordering::Relaxed));
        let page = Page { pfn, key: state.key(), kind: state.kind() };
        if word.is_dead() || state.has(State::UNEVICTABLE) {
            return Fate::Keep;
        }
        let Some(owner) = self.env.owner(word.owner()) else { return Fate::Keep };
        let set = |flags| words.state.fetch_or(flags, Ordering::Relaxed);
        let activate = |flags| {
            set(State::ACTIVE | flags);
            Fate::Activate
        };
        let look = owner.look(page);
        if look.locked {
            set(State::UNEVICTABLE);
            return Fate::Keep;
        }
        if look.mapped && !scan.limits.may_unmap {
            return Fate::Keep;
        }
        if state.has(State::WRITEBACK) {
            scan.writeback += 1;
            return activate(State::RECLAIM);
        }
        let (verdict, judged) = P::judge(state, look);
        self.rejudge(pfn, state, judged);
        match verdict {
            Verdict::Activate => return activate(0),
            Verdict::Keep => return Fate::Keep,
            Verdict::ReclaimClean if look.dirty => return Fate::Keep,
            Verdict::Reclaim | Verdict::ReclaimClean => {}
        }
        if page.kind == PageKind::Anon {
            let nowhere = !state.has(State::SWAPPED) && self.env.swap_free() == 0;
            if !scan.limits.may_swap || nowhere {
                return activate(0);
            }
            if !gfp.contains(Gfp::IO) {
                return Fate::Keep;
            }
        }
        if look.mapped && owner.unmap(page, gfp).is_err() {
            return activate(0);
        }
        if look.dirty {
            if page.kind == PageKind::File {
                scan.dirty += 1;
                return activate(State::RECLAIM);
            }
            if !scan.limits.may_write {
                scan.dirty += 1;
                return Fate::Keep;
            }
            // Noted before the write begins: it may end at any moment from then on.
            set(State::WRITEBACK | State::RECLAIM);
            match owner.write_back(page, gfp) {
                Ok(WriteBack::Started) => {
                    outcome.writes += 1;
                    return Fate::Keep;
                }
                done => {
                    words.state.fetch_and(!(State::WRITEBACK | State::RECLAIM), Ordering::Relaxed);
                    match done {
                        Ok(_) => outcome.writes += 1,
                        Err(Refused::Unwritable) => return activate(0),
                        Err(_) => return Fate::Keep,
                    }
                }
            }
        }
        let Some(vector) = self.vector(word.node(), word.group()) else { return Fate::Keep };
        let now = State(words.state.load(Ordering::Relaxed));
        let age = P::eviction_age(vector, now);
        let shadow = Shadow::new(word.node(), word.group(), age, now.has(State::WORKINGSET), now.refs());
        if owner.evict(page, shadow, gfp).is_err() {
            return Fate::Keep;
        }
        // Nobody else refers to the frame (promise 1 of `PageOwner`), and only a forwarding put-back changes an isolated page's
        // group: this is the word that its counts follow. The caller uncounts it.
        let word = self.owner_word(pfn);
        words.state.store(0, Ordering::Relaxed);
        words.links.store(0, Ordering::Relaxed);
        words.owner.store(OwnerWord::NONE.0, Ordering::Release);
        Fate::Freed(word, page.kind)
    }

    /// Stores what the reference rule left of the state; an access that is noted meanwhile stays noted.
    fn rejudge(&self, pfn: Pfn, from: State, to: State) {
        let Some(words) = self.words(pfn) else { return };
        let (set, clear) = (to.0 & !from.0, from.0 & !to.0);
        if set | clear != 0 {
            let mut found = words.state.load(Ordering::Relaxed);
            while let Err(now) =
                words.state.compare_exchange_weak(found, found & !clear | set, Ordering::Relaxed, Ordering::Relaxed)
            {
                found = now;
            }
        }
    }
}

/// Whether a page of this zone helps a run.
pub(crate) fn helps(zone: usize, ceiling: ZoneKind) -> bool {
    zone <= ceiling.index()
}
