//! Pages go: for good, or for a while.
//!
//! ```text
//!            remove                      isolate                put_back
//! batched ──cas──▶ yours       listed ──lock──▶ isolated ──lock, cas──▶ listed
//! listed ──lock──▶ yours                            │ remove: cas
//!                                                   ▼
//!                                              isolated, dead ──put_back──▶ the lists free it
//! ```

use kmem_gfp::{Order, PageAllocator, Pfn};
use kmem_sync::atomic::Ordering;

use super::lists::uncharge;
use super::policy::{Arrival, Policy};
use super::section::Step;
use super::word::{OwnerWord, State, Whereabouts};
use super::{Lists, LruEnv};
use crate::GroupId;

/// Who frees the frame of a removed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the frame leaks unless it is freed by whom this says"]
pub enum Removed {
    /// The caller: the frame is its own again.
    Yours,
    /// The lists, when whoever has taken the page off its list lets go of it.
    Later,
}

/// A frame is not a page of the lists, or has been removed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not on the page lists")]
pub struct NotListed(pub Pfn);

impl<E: LruEnv, P: Policy> Lists<E, P> {
    /// Takes a page off the lists for good, and gives its charge back. Its owner has made sure that nobody finds the page any
    /// more, and that [`PageOwner::evict`](super::PageOwner::evict) is refused for it.
    ///
    /// Any context but NMI. A compare-and-swap for a page that is in a batch; otherwise takes the list lock.
    ///
    /// # Errors
    /// [`NotListed`]; nothing has changed.
    pub fn remove(&self, pfn: Pfn) -> Result<Removed, NotListed> {
        let words = self.words(pfn).ok_or(NotListed(pfn))?;
        loop {
            // Acquire: as in `owner_word`.
            let word = OwnerWord(words.owner.load(Ordering::Acquire));
            match word.whereabouts() {
                Whereabouts::Foreign => return Err(NotListed(pfn)),
                Whereabouts::Batched | Whereabouts::Listed => {
                    if self.with_number_kept(word.group(), || self.take_out(pfn, word)) {
                        return Ok(Removed::Yours);
                    }
                }
                Whereabouts::Isolated if word.is_dead() => return Err(NotListed(pfn)),
                Whereabouts::Isolated => {
                    // Release pairs with the acquire of whoever puts it back and frees it.
                    if self.swap(pfn, word, word.dead()) {
                        return Ok(Removed::Later);
                    }
                }
            }
        }
    }

    /// Takes a page off its list or out of its batch, if its word still says so, and uncharges it.
    fn take_out(&self, pfn: Pfn, word: OwnerWord) -> bool {
        let out = if word.whereabouts() == Whereabouts::Batched {
            // Release: the next owner of the frame comes behind everything that was done to the page.
            self.swap(pfn, word, OwnerWord::NONE)
        } else {
            self.section(word.node(), word.group(), |section| section.take_out(pfn)).flatten().is_some()
        };
        if out {
            // A section takes out pages of its own group only.
            uncharge(&self.env, word.group());
        }
        out
    }

    /// [`remove`](Self::remove)s a page and frees its frame, now or later.
    ///
    /// # Safety
    /// The frame is the owner's, and nothing uses its memory any more.
    ///
    /// # Errors
    /// [`NotListed`]; nothing has changed.
    pub unsafe fn release(&self, pfn: Pfn) -> Result<(), NotListed> {
        if self.remove(pfn)? == Removed::Yours {
            self.free_frame(pfn);
        }
        Ok(())
    }

    pub(crate) fn swap(&self, pfn: Pfn, from: OwnerWord, to: OwnerWord) -> bool {
        self.words(pfn).is_some_and(|words| {
            words.owner.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Frees a frame that has left the lists and belongs to nobody else.
    pub(crate) fn free_frame(&self, pfn: Pfn) {
        // SAFETY: the page was removed by its owner, or evicted with its consent (promise 1 of `PageOwner`); its owner word is
        // zero, and the compare-and-swap or the list lock that made it so had one winner, who calls this.
        let freed = unsafe { self.env.pages().free_pages(pfn, Order::ZERO) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Takes a page off its list, for the caller to put back: neither reclaim nor anybody else takes it meanwhile. `false` if
    /// it is not on a list at the moment, or its owner will not have it. Takes the list lock.
    #[doc(alias = "folio_isolate_lru")]
    pub fn isolate(&self, pfn: Pfn) -> bool {
        loop {
            let word = self.owner_word(pfn);
            match word.whereabouts() {
                Whereabouts::Foreign | Whereabouts::Isolated => return false,
                Whereabouts::Batched => self.settle(&[pfn.0 as u32]),
                Whereabouts::Listed => {
                    if self.section(word.node(), word.group(), |section| section.isolate(pfn)) == Some(true) {
                        return true;
                    }
                    if self.owner_word(pfn) == word {
                        return false;
                    }
                }
            }
        }
    }

    /// Puts a page back that the caller has isolated, where it was; frees its frame if it was removed in the meantime. Takes
    /// the list lock.
    #[doc(alias = "folio_putback_lru")]
    pub fn put_back(&self, pfn: Pfn) {
        self.put_back_as(pfn, None);
    }

    pub(crate) fn put_back_as(&self, pfn: Pfn, arrival: Option<Arrival>) {
        loop {
            let word = self.owner_word(pfn);
            if word.whereabouts() != Whereabouts::Isolated {
                return;
            }
            let is_elsewhere = self.with_number_kept(word.group(), || {
                match self.section(word.node(), word.group(), |section| section.put_back(pfn, arrival)) {
                    Some(Step::Elsewhere) => return true,
                    Some(Step::Dead(group)) => self.bury(pfn, group),
                    Some(Step::Done) | None => {}
                }
                false
            });
            if !is_elsewhere {
                return;
            }
        }
    }

    /// Frees a dead page that has been put back. The stretch that keeps its number began before that.
    pub(crate) fn bury(&self, pfn: Pfn, group: GroupId) {
        uncharge(&self.env, group);
        self.free_frame(pfn);
    }

    /// Whether a page must stay: one of its mappings is locked, or its owner says so for another reason. Takes the list lock.
    #[doc(alias("mlock_folio", "munlock_folio"))]
    pub fn set_unevictable(&self, pfn: Pfn, unevictable: bool) {
        let Some(words) = self.words(pfn) else { return };
        if unevictable {
            words.state.fetch_or(State::UNEVICTABLE, Ordering::Relaxed);
        } else {
            words.state.fetch_and(!State::UNEVICTABLE, Ordering::Relaxed);
        }
        self.settle(&[pfn.0 as u32]);
    }

    /// Notes that a page is being written: reclaim passes it over until [`writeback_ended`](Self::writeback_ended). Not for
    /// writes that reclaim itself asked for, which are noted. One atomic operation on the page's word.
    pub fn writeback_started(&self, pfn: Pfn) {
        if let Some(words) = self.words(pfn) {
            words.state.fetch_or(State::WRITEBACK, Ordering::Relaxed);
        }
    }

    /// Notes that a write has ended. A page that was to be reclaimed (R-15) goes to where reclaim takes it next. Any context
    /// but NMI.
    #[doc(alias("folio_end_writeback", "folio_rotate_reclaimable"))]
    pub fn writeback_ended(&self, pfn: Pfn) {
        let Some(words) = self.words(pfn) else { return };
        let before = State(words.state.fetch_and(!(State::WRITEBACK | State::RECLAIM), Ordering::Relaxed));
        if before.has(State::RECLAIM) && !before.has(State::UNEVICTABLE) {
            words.state.fetch_and(!(State::ACTIVE | State::REFS_MASK), Ordering::Relaxed);
            self.rearrive(pfn, Arrival::Written);
        }
    }

    /// Moves a listed page.
    pub(crate) fn rearrive(&self, pfn: Pfn, arrival: Arrival) {
        let word = self.owner_word(pfn);
        if word.whereabouts() == Whereabouts::Listed {
            self.section(word.node(), word.group(), |section| section.rearrive(pfn, arrival));
        }
    }
}
