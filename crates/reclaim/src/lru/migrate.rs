//! Pages on the lists can be moved: compaction and contiguous areas isolate, migrate and put back.
//!
//! The target takes over the source's words before the owner repoints anything, so that the owner may use the target at once.

use kmem_gfp::{MigrateError, MigrateMode, MovableOwner, OwnerTag, Pfn};
use kmem_sync::atomic::Ordering;

use super::chain::PFN_LIMIT;
use super::policy::Policy;
use super::vector::Kind;
use super::word::{OwnerWord, State, Whereabouts};
use super::{Lists, LruEnv, Page};

// SAFETY: (1) an isolated page is neither evicted (only whoever isolated a page asks its owner) nor freed: `remove` marks it
// dead and leaves it to `put_back`. (2) By promise 2 of `PageOwner` nothing refers to the source; its words are cleared, so
// the lists know nothing of it. (3) `Section::isolate` decides under the list lock, by the owner word.
unsafe impl<E: LruEnv, P: Policy> MovableOwner for Lists<E, P> {
    fn isolate(&self, pfn: Pfn) -> bool {
        Lists::isolate(self, pfn)
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        self.migrate_with(source, target, MigrateMode::SyncLight)
    }

    fn put_back(&self, pfn: Pfn) {
        Lists::put_back(self, pfn);
    }

    fn migrate_with(&self, source: Pfn, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        let (Some(from), Some(to)) = (self.words(source), self.words(target)) else {
            return Err(MigrateError::Permanent(source));
        };
        let word = OwnerWord(from.owner.load(Ordering::Acquire));
        let state = State(from.state.load(Ordering::Relaxed));
        if word.whereabouts() != Whereabouts::Isolated || word.is_dead() || target.0 >= PFN_LIMIT {
            return Err(MigrateError::Permanent(source));
        }
        if state.has(State::WRITEBACK) && mode != MigrateMode::Sync {
            return Err(MigrateError::Again(source));
        }
        let Some(owner) = self.env.owner(word.owner()) else { return Err(MigrateError::Permanent(source)) };
        let found = to.owner.load(Ordering::Relaxed);
        if found != OwnerTag::None as u64 {
            return Err(MigrateError::Permanent(target));
        }
        let (node, zone) = self.env.zone_of(target);
        if self.vector(node, word.group()).is_none() {
            return Err(MigrateError::Permanent(target));
        }
        let moved = OwnerWord::batched(word.owner(), node, zone, word.group()).listed(word.list()).isolated();
        to.links.store(0, Ordering::Relaxed);
        to.state.store(state.0, Ordering::Relaxed);
        self.count_isolated(moved, state.kind());
        to.owner.store(moved.0, Ordering::Release);
        let page = Page { pfn: source, key: state.key(), kind: state.kind() };
        if let Err(error) = owner.migrate(page, target, mode) {
            // Nothing refers to the target, so nobody else has written its words.
            self.uncount_isolated(moved, state.kind());
            to.state.store(0, Ordering::Relaxed);
            to.owner.store(OwnerWord::NONE.0, Ordering::Release);
            return Err(error);
        }
        // What was noted of the source meanwhile.
        let late =
            from.state.load(Ordering::Relaxed) & !state.0 & (State::ACTIVE | State::WORKINGSET | State::UNEVICTABLE);
        if late != 0 {
            to.state.fetch_or(late, Ordering::Relaxed);
        }
        // The word may say another group by now: it is the one that counts it.
        let word = OwnerWord(from.owner.load(Ordering::Acquire));
        self.uncount_isolated(word, state.kind());
        from.state.store(0, Ordering::Relaxed);
        from.owner.store(OwnerWord::NONE.0, Ordering::Release);
        Lists::put_back(self, target);
        Ok(())
    }
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    fn count_isolated(&self, word: OwnerWord, kind: super::PageKind) {
        if let Some(vector) = self.vector(word.node(), word.group()) {
            vector.counts.add(Kind::isolated(kind), 1);
        }
        if let Some(zone) = self.node(word.node()).and_then(|node| node.0.get(word.zone())) {
            zone.add(Kind::isolated(kind), 1);
        }
    }
}
