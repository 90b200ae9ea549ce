//! Pages come in, and are used: by way of each CPU's batch, so that a list lock is taken once for many pages.
//!
//! ```text
//! add ──▶ owner word: batched ──▶ this CPU's batch ──(full, or drained)──▶ under the lock: batched ─cas─▶ listed, linked
//! ```
//!
//! An entry of a batch is a hint: "look at this frame". Whoever finds a batched page under the lock of its vector lists it,
//! and one compare-and-swap wins; so entries may be stale, double, or about a frame that has changed hands.

use kmem_gfp::{FrameTable, OwnerTag, Pfn};
use kmem_sync::atomic::Ordering;

use super::chain::PFN_LIMIT;
use super::hands::CpuLists;
use super::policy::{Access, Policy};
use super::section::Step;
use super::word::{KEY_LIMIT, OwnerWord, State, Whereabouts};
use super::{Lists, LruEnv, OwnerId, PageKind, Shadow};
use crate::GroupId;

/// Entries of a batch.
const BATCH: usize = 31;

/// Frames that a CPU has yet to bring to their lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch {
    pfns: [u32; BATCH],
    len: usize,
}

impl Batch {
    /// Adds a frame; whether the batch is full.
    fn push(&mut self, pfn: Pfn) -> bool {
        if let Some(entry) = self.pfns.get_mut(self.len) {
            *entry = pfn.0 as u32;
            self.len += 1;
        }
        self.len == BATCH
    }

    fn pfns(&self) -> &[u32] {
        self.pfns.get(..self.len).unwrap_or(&[])
    }
}

/// A page that is to be added.
#[derive(Clone, Copy, Debug)]
pub struct NewPage {
    /// Whose it is.
    pub owner: OwnerId,
    /// What the owner knows it by, given back in [`Page::key`](super::Page::key); less than 2^48.
    pub key: u64,
    /// Its kind.
    pub kind: PageKind,
    /// The group that it is charged to. The lists give the charge back when the page leaves them.
    pub group: GroupId,
    /// Whether a fault brought it in, so that somebody is about to use it through a mapping.
    pub faulted: bool,
    /// Whether it must stay (`mlock`).
    pub unevictable: bool,
    /// What [`PageOwner::evict`](super::PageOwner::evict) left of the page when it was evicted last.
    pub shadow: Option<Shadow>,
}

impl NewPage {
    /// A page of the root group without a past.
    pub const fn new(owner: OwnerId, key: u64, kind: PageKind) -> Self {
        Self { owner, key, kind, group: GroupId::ROOT, faulted: false, unevictable: false, shadow: None }
    }
}

/// Why a page is not added. It stays the caller's, and so does its charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The frame table does not cover it, or its number does not fit 32 bits.
    #[error("{0} has no frame words that lists could use")]
    NoWords(Pfn),
    /// The frame has an owner already.
    #[error("{pfn} belongs to {tag:?} already")]
    Owned {
        /// The frame.
        pfn: Pfn,
        /// Whose it is.
        tag: OwnerTag,
    },
    /// The owner's number or the key is too large.
    #[error("owner {owner} with key {key:#x} does not fit")]
    BadOwner {
        /// The owner's number.
        owner: u16,
        /// The key.
        key: u64,
    },
    /// There are no lists for its group on its node.
    #[error("there are no lists for group {group} on node {node}")]
    NoLists {
        /// The group.
        group: u32,
        /// The node.
        node: u32,
    },
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    /// Adds a page that the caller owns. From then on reclaim may take it, as soon as its owner agrees.
    ///
    /// Any context but NMI; never sleeps. Touches this CPU's batch alone, but for each 31st call, which takes the list locks of
    /// the pages in it.
    ///
    /// # Errors
    /// [`AddError`]; nothing has changed.
    #[doc(alias = "folio_add_lru")]
    pub fn add(&self, pfn: Pfn, page: NewPage) -> Result<(), AddError> {
        let words = match self.words(pfn) {
            Some(words) if pfn.0 < PFN_LIMIT => words,
            _ => return Err(AddError::NoWords(pfn)),
        };
        if page.owner.0 >= OwnerId::LIMIT || page.key >= KEY_LIMIT {
            return Err(AddError::BadOwner { owner: page.owner.0, key: page.key });
        }
        let found = words.owner.load(Ordering::Relaxed);
        if found != 0 {
            return Err(AddError::Owned { pfn, tag: OwnerTag::of(found) });
        }
        let (node, zone) = self.env.zone_of(pfn);
        if self.vector(node, page.group).is_none() {
            return Err(AddError::NoLists { group: page.group.0, node: node.0 });
        }
        let mut flags = if page.kind == PageKind::Anon { State::ANON } else { 0 };
        if page.unevictable {
            flags |= State::UNEVICTABLE;
        }
        flags |= P::arrival(page.faulted);
        if let Some(shadow) = page.shadow {
            flags |= if page.kind == PageKind::Anon { State::SWAPPED } else { 0 };
            if let Some(vector) = self.vector(shadow.node(), shadow.group()) {
                flags = P::refault(self, vector, shadow, flags);
            }
        }
        words.state.store(State::new(flags, page.key).0, Ordering::Relaxed);
        words.links.store(0, Ordering::Relaxed);
        // Release: whoever finds the tag finds the state.
        words.owner.store(OwnerWord::batched(page.owner, node, zone, page.group).0, Ordering::Release);
        self.defer(pfn);
        Ok(())
    }

    /// Notes that a page was used through a descriptor (a `read`, a `write`). Accesses through mappings need no note: the owner
    /// tells of them when it is asked.
    ///
    /// Any context but NMI; the caller keeps the page from being removed meanwhile. A load; a compare-and-swap on the page's own
    /// word if this says something that was not known. The classic lists then also move the page on its second access.
    #[doc(alias = "folio_mark_accessed")]
    #[inline]
    pub fn mark_accessed(&self, pfn: Pfn) {
        let Some(words) = self.words(pfn) else { return };
        let mut found = words.state.load(Ordering::Relaxed);
        loop {
            let (to, moves) = match P::access(State(found)) {
                Access::Known => return,
                Access::Set(to) => (to, false),
                Access::Move(to) => (to, true),
            };
            match words.state.compare_exchange_weak(found, to.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if moves => return self.defer(pfn),
                Ok(_) => return,
                Err(now) => found = now,
            }
        }
    }

    /// Marks a page as recently used, whatever was known of it. Any context but NMI; as for [`mark_accessed`](Self::mark_accessed).
    #[doc(alias = "folio_activate")]
    pub fn activate(&self, pfn: Pfn) {
        if let Some(words) = self.words(pfn) {
            words.state.fetch_or(State::ACTIVE, Ordering::Relaxed);
            self.settle(&[pfn.0 as u32]);
        }
    }

    /// Makes a page the next one to be reclaimed: its owner knows that it will not be used again. Any context but NMI; takes
    /// the list lock.
    #[doc(alias("deactivate_file_folio", "folio_deactivate"))]
    pub fn deactivate(&self, pfn: Pfn) {
        if let Some(words) = self.words(pfn) {
            let forget = State::ACTIVE | State::WORKINGSET | State::REFS_MASK;
            words.state.fetch_and(!forget, Ordering::Relaxed);
            self.settle(&[pfn.0 as u32]);
            self.rearrive(pfn, super::policy::Arrival::Written);
        }
    }

    /// Brings a frame to the attention of whoever empties this CPU's batch; without a CPU, at once.
    fn defer(&self, pfn: Pfn) {
        match self.cpus.try_with(self.env.cpu(), |cpu, _| cpu.batch.push(pfn).then(|| cpu.take())) {
            Some(None) => {}
            Some(Some(full)) => self.settle_taken(full),
            None => self.settle(&[pfn.0 as u32]),
        }
    }

    /// Empties every CPU's batch. Slow: reaches into each CPU. Where sleeping is allowed.
    #[doc(alias = "lru_add_drain_all")]
    pub fn drain_all(&self) {
        for (_, slot) in self.cpus.iter() {
            self.settle_taken(slot.with_revoked(self.env.cpu(), CpuLists::take));
        }
    }

    /// Empties this CPU's batch. Any context but NMI.
    #[doc(alias = "lru_add_drain")]
    pub fn drain_local(&self) {
        if let Some(batch) = self.cpus.try_with(self.env.cpu(), |cpu, _| cpu.take()) {
            self.settle_taken(batch);
        }
    }

    /// Brings a batch that [`CpuLists::take`] has given to the lists.
    pub(crate) fn settle_taken(&self, batch: Batch) {
        self.settle(batch.pfns());
        self.end();
    }

    /// Brings frames to the lists they belong on; one lock for each run of frames of the same vector.
    pub(crate) fn settle(&self, mut pfns: &[u32]) {
        while let Some((&first, rest)) = pfns.split_first() {
            let word = self.owner_word(Pfn(first.into()));
            if word.whereabouts() == Whereabouts::Foreign {
                pfns = rest;
                continue;
            }
            let settled = self.section(word.node(), word.group(), |section| {
                pfns.iter().take_while(|&&pfn| section.settle(Pfn(pfn.into())) == Step::Done).count()
            });
            match settled {
                Some(n) => pfns = pfns.get(n..).unwrap_or(&[]),
                None => pfns = rest,
            }
        }
    }
}

/// How a page's frame words look to whoever asks; for views and tests.
impl<E: LruEnv, P: Policy> Lists<E, P> {
    /// Whether a frame is a page of these lists at the moment.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.env
            .frames()
            .words(pfn)
            .is_some_and(|words| OwnerWord(words.owner.load(Ordering::Relaxed)).whereabouts() != Whereabouts::Foreign)
    }
}
