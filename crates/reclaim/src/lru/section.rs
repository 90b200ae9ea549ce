//! A stretch of code that holds the lock of a vector: the only place where pages go on and off lists.

use kmem_gfp::{FrameTable, FrameWords, NodeId, Pfn};
use kmem_sync::atomic::Ordering;

use super::chain::Chain;
use super::policy::{Arrival, End, Place, Policy};
use super::vector::{Inner, Kind, Tally, UNEVICTABLE_LIST, Vector};
use super::word::{OwnerWord, State, Whereabouts};
use super::{Lists, LruEnv, Page};
use crate::GroupId;

/// What came of an attempt at one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is left to do.
    Done,
    /// The page belongs to another vector.
    Elsewhere,
    /// The page is dead: its frame is to be freed by the caller, who has it alone. It leaves a group.
    Dead(GroupId),
}

/// The lock of a vector is held.
pub(crate) struct Section<'s, E: LruEnv, P: Policy> {
    pub(crate) lists: &'s Lists<E, P>,
    pub(crate) vector: &'s Vector<P>,
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    pub(crate) inner: &'s mut Inner<P>,
    pub(crate) tally: Tally,
}

fn owner_word(words: &FrameWords) -> OwnerWord {
    // Acquire pairs with the releases that add a page and put it back: its state is seen.
    OwnerWord(words.owner.load(Ordering::Acquire))
}

fn swap_owner(words: &FrameWords, from: OwnerWord, to: OwnerWord) -> bool {
    words.owner.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

impl<'s, E: LruEnv, P: Policy> Section<'s, E, P> {
    fn words(&self, pfn: Pfn) -> Option<&'s FrameWords> {
        let lists: &'s Lists<E, P> = self.lists;
        lists.env.frames().words(pfn)
    }

    fn is_here(&self, word: OwnerWord) -> bool {
        word.node() == self.node && word.group() == self.group
    }

    /// The page's words if it is listed here.
    pub(crate) fn listed(&self, pfn: Pfn) -> Option<(&'s FrameWords, OwnerWord)> {
        let words = self.words(pfn)?;
        let word = owner_word(words);
        (word.whereabouts() == Whereabouts::Listed && self.is_here(word)).then_some((words, word))
    }

    pub(crate) fn kind(&self, list: usize) -> Kind {
        if list == UNEVICTABLE_LIST { Kind::Unevictable } else { self.inner.policy.kind(list) }
    }

    fn place(&self, state: State, arrival: Arrival) -> Place {
        if state.has(State::UNEVICTABLE) {
            Place { list: UNEVICTABLE_LIST, end: End::Head, clear: State::ACTIVE }
        } else {
            self.inner.policy.place(state, arrival)
        }
    }

    /// Links a page whose word says that it is on this list already.
    fn link(&mut self, pfn: Pfn, words: &FrameWords, word: OwnerWord, place: Place) {
        if place.clear != 0 && words.state.load(Ordering::Relaxed) & place.clear != 0 {
            words.state.fetch_and(!place.clear, Ordering::Relaxed);
        }
        let frames = self.lists.env.frames();
        if let Some(chain) = self.inner.chains.get_mut(place.list) {
            match place.end {
                End::Head => chain.push_head(frames, pfn, words),
                End::Tail => chain.push_tail(frames, pfn, words),
            }
        }
        if let Some(n) = self.inner.zones.get_mut(place.list).and_then(|zones| zones.get_mut(word.zone())) {
            *n = n.wrapping_add(1);
        }
        let kind = self.kind(place.list);
        self.tally.add(word.zone(), kind, 1);
    }

    /// Takes a listed page off its list; its word still says that it is on it.
    pub(crate) fn unlink_listed(&mut self, words: &FrameWords, word: OwnerWord) {
        let list = word.list();
        if let Some(chain) = self.inner.chains.get_mut(list) {
            chain.unlink(self.lists.env.frames(), words);
        }
        if let Some(n) = self.inner.zones.get_mut(list).and_then(|zones| zones.get_mut(word.zone())) {
            *n = n.wrapping_sub(1);
        }
        let kind = self.kind(list);
        self.tally.add(word.zone(), kind, -1);
    }

    /// Moves a listed page.
    pub(crate) fn relist(&mut self, pfn: Pfn, words: &FrameWords, word: OwnerWord, place: Place) {
        self.unlink_listed(words, word);
        let word = word.listed(place.list);
        // Release: as for every word that says `Listed`. Nobody else changes the word of a listed page.
        words.owner.store(word.0, Ordering::Release);
        self.link(pfn, words, word, place);
    }

    /// Moves a listed page to where this arrival would put it.
    pub(crate) fn rearrive(&mut self, pfn: Pfn, arrival: Arrival) {
        if let Some((words, word)) = self.listed(pfn) {
            let place = self.place(State(words.state.load(Ordering::Relaxed)), arrival);
            self.relist(pfn, words, word, place);
        }
    }

    /// Puts a batched page on its list, or a listed one on the right one.
    pub(crate) fn settle(&mut self, pfn: Pfn) -> Step {
        let Some(words) = self.words(pfn) else { return Step::Done };
        loop {
            let word = owner_word(words);
            let whereabouts = word.whereabouts();
            if matches!(whereabouts, Whereabouts::Foreign | Whereabouts::Isolated) {
                return Step::Done;
            }
            if !self.is_here(word) {
                return Step::Elsewhere;
            }
            if let Some(parent) = self.inner.forward {
                swap_owner(words, word, word.with_group(parent));
                return Step::Elsewhere;
            }
            let state = State(words.state.load(Ordering::Relaxed));
            if whereabouts == Whereabouts::Batched {
                let place = self.place(state, Arrival::New);
                let listed = word.listed(place.list);
                if swap_owner(words, word, listed) {
                    self.link(pfn, words, listed, place);
                    return Step::Done;
                }
            } else {
                let unevictable = word.list() == UNEVICTABLE_LIST;
                if unevictable != state.has(State::UNEVICTABLE) {
                    let place = self.place(state, Arrival::New);
                    self.relist(pfn, words, word, place);
                } else if !unevictable && self.inner.policy.is_misplaced(state, word.list()) {
                    let place = self.place(state, Arrival::New);
                    self.relist(pfn, words, word, place);
                    P::moved(self.vector);
                }
                return Step::Done;
            }
        }
    }

    /// Takes a listed page off the lists for good. `None` if it is not listed here (any more).
    pub(crate) fn take_out(&mut self, pfn: Pfn) -> Option<OwnerWord> {
        let (words, word) = self.listed(pfn)?;
        self.unlink_listed(words, word);
        words.state.store(0, Ordering::Relaxed);
        words.links.store(0, Ordering::Relaxed);
        // Release: the frame's next owner sees the other words as they are left here.
        words.owner.store(OwnerWord::NONE.0, Ordering::Release);
        Some(word)
    }

    /// Takes a listed page off its list for a while. `false` if it is not listed here, or its owner says no.
    pub(crate) fn isolate(&mut self, pfn: Pfn) -> bool {
        let Some((words, word)) = self.listed(pfn) else { return false };
        let state = State(words.state.load(Ordering::Relaxed));
        let page = Page { pfn, key: state.key(), kind: state.kind() };
        if !self.lists.env.owner(word.owner()).is_some_and(|owner| owner.can_isolate(page)) {
            return false;
        }
        self.unlink_listed(words, word);
        words.owner.store(word.isolated().0, Ordering::Release);
        self.tally.add(word.zone(), Kind::isolated(page.kind), 1);
        true
    }

    /// Puts an isolated page back.
    pub(crate) fn put_back(&mut self, pfn: Pfn, arrival: Option<Arrival>) -> Step {
        let Some(words) = self.words(pfn) else { return Step::Done };
        loop {
            let word = owner_word(words);
            if word.whereabouts() != Whereabouts::Isolated {
                return Step::Done;
            }
            if !self.is_here(word) {
                return Step::Elsewhere;
            }
            if let Some(parent) = self.inner.forward {
                // The page is counted as isolated where it is from then on.
                let state = State(words.state.load(Ordering::Relaxed));
                if swap_owner(words, word, word.with_group(parent)) {
                    self.lists.move_isolated(self.node, self.group, parent, state.kind());
                }
                return Step::Elsewhere;
            }
            let state = State(words.state.load(Ordering::Relaxed));
            if word.is_dead() {
                self.tally.add(word.zone(), Kind::isolated(state.kind()), -1);
                words.state.store(0, Ordering::Relaxed);
                words.links.store(0, Ordering::Relaxed);
                words.owner.store(OwnerWord::NONE.0, Ordering::Release);
                return Step::Dead(word.group());
            }
            let place = self.place(state, arrival.unwrap_or(Arrival::Back(word.list())));
            let listed = word.listed(place.list);
            if swap_owner(words, word, listed) {
                self.tally.add(word.zone(), Kind::isolated(state.kind()), -1);
                self.link(pfn, words, listed, place);
                return Step::Done;
            }
        }
    }

    /// The page at a list's tail.
    pub(crate) fn tail(&self, list: usize) -> Option<Pfn> {
        self.inner.chains.get(list)?.last()
    }

    /// The page at a list's head.
    pub(crate) fn head(&self, list: usize) -> Option<Pfn> {
        self.inner.chains.get(list)?.first()
    }

    /// Pages on a list.
    pub(crate) fn len(&self, list: usize) -> u64 {
        self.inner.chains.get(list).map_or(0, Chain::len)
    }
}
