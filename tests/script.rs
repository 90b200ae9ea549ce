//! A reclaimer that does what a test told it, and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, NodeId, OomOutcome, Order, Pfn, ReclaimRequest, Reclaimer, ZoneKind,
};

use crate::Kmem;

/// What a reclaimer was asked, in order.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// How often background reclaim was woken.
    pub wakes: usize,
    /// The requests behind each round of direct reclaim.
    pub reclaims: Vec<ReclaimRequest>,
    /// How often compaction was asked for.
    pub compactions: usize,
    /// How often it came to the last resort.
    pub ooms: usize,
}

/// A reclaimer that frees pages of a hoard, as many each round as the script says.
#[derive(Debug, Default)]
pub struct Script {
    kmem: OnceLock<Kmem>,
    heard: Mutex<Heard>,
    /// Pages that it may free.
    hoard: Mutex<Vec<Pfn>>,
    /// How many to free in each round to come, and how many to say it was; nothing when it is at its end.
    rounds: Mutex<VecDeque<(usize, usize)>>,
    /// What the last resort frees.
    last_resort: Mutex<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    /// An empty script, for good.
    pub fn new() -> &'static Self {
        Box::leak(Box::default())
    }

    pub(crate) fn serve(&self, kmem: Kmem) {
        let _ = self.kmem.set(kmem);
    }

    /// Gives the script pages to free.
    pub fn hoard(&self, pages: Vec<Pfn>) {
        lock(&self.hoard).extend(pages);
    }

    /// Takes the pages back that it has not freed.
    pub fn take_hoard(&self) -> Vec<Pfn> {
        core::mem::take(&mut lock(&self.hoard))
    }

    /// Writes the rounds to come: each frees `pages` and says that it did.
    pub fn rounds(&self, pages: &[usize]) {
        lock(&self.rounds).extend(pages.iter().map(|pages| (*pages, *pages)));
    }

    /// Writes rounds to come that claim progress and free nothing.
    pub fn hollow_rounds(&self, rounds: usize) {
        lock(&self.rounds).extend((0..rounds).map(|_| (0, 1)));
    }

    /// Strikes the rounds to come.
    pub fn forget_rounds(&self) {
        lock(&self.rounds).clear();
    }

    /// Lets the last resort free that many pages.
    pub fn last_resort(&self, pages: usize) {
        *lock(&self.last_resort) = pages;
    }

    /// What it has been asked since the last call.
    pub fn take_heard(&self) -> Heard {
        core::mem::take(&mut lock(&self.heard))
    }

    fn free(&self, pages: usize) -> usize {
        let mut hoard = lock(&self.hoard);
        let at = hoard.len().saturating_sub(pages);
        let freed = hoard.split_off(at);
        drop(hoard);
        let Some(kmem) = self.kmem.get() else { return 0 };
        // SAFETY: the test gave the pages to the hoard.
        freed.into_iter().filter(|page| unsafe { kmem.free_pages(*page, Order::ZERO) }.is_ok()).count()
    }
}

impl Reclaimer for Script {
    fn wake_background(&self, _node: NodeId, _request: &ReclaimRequest) {
        lock(&self.heard).wakes += 1;
    }

    fn reclaim(&self, _context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        lock(&self.heard).reclaims.push(*request);
        let Some((pages, claimed)) = lock(&self.rounds).pop_front() else { return 0 };
        self.free(pages);
        claimed
    }

    fn compact(
        &self,
        _context: &dyn AllocContext,
        _request: &ReclaimRequest,
        _priority: CompactPriority,
    ) -> CompactOutcome {
        lock(&self.heard).compactions += 1;
        CompactOutcome::Skipped
    }

    fn reclaimable_pages(&self, _node: NodeId, _zone: ZoneKind) -> u64 {
        lock(&self.hoard).len() as u64
    }

    fn out_of_memory(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> OomOutcome {
        lock(&self.heard).ooms += 1;
        let pages = *lock(&self.last_resort);
        if self.free(pages) > 0 { OomOutcome::Progress } else { OomOutcome::NoVictim }
    }
}
