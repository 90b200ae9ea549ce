//! What the generations show of themselves, and what can be asked of them by hand.

use kmem_gfp::NodeId;
use kmem_sync::atomic::Ordering;

use super::{GenerationsPolicy, MAX_GENS, age, list};
use crate::GroupId;
use crate::lru::{Lists, LruEnv, PageKind};

/// A generation of a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationInfo {
    /// Its number.
    pub seq: u64,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Its anonymous pages; `None` if the oldest one of that kind is younger.
    pub anon: Option<u64>,
    /// Its file pages; `None` if the oldest one of that kind is younger.
    pub file: Option<u64>,
}

/// The generations of a group on a node, oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorInfo {
    generations: [GenerationInfo; MAX_GENS as usize],
    len: usize,
}

impl VectorInfo {
    /// The generations, oldest first; at least two.
    pub fn generations(&self) -> &[GenerationInfo] {
        self.generations.get(..self.len).unwrap_or(&[])
    }
}

impl core::fmt::Display for VectorInfo {
    /// As `lru_gen` in debugfs shows it: number, age, anonymous pages, file pages.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for GenerationInfo { seq, age_ms, anon, file } in self.generations() {
            writeln!(f, " {seq:10} {age_ms:10} {:10} {:10} ", anon.unwrap_or(0), file.unwrap_or(0))?;
        }
        Ok(())
    }
}

impl<E: LruEnv> Lists<E, GenerationsPolicy> {
    /// The generations of a group on a node; `None` if there is no such group or node.
    #[doc(alias = "lru_gen")]
    pub fn generations(&self, node: NodeId, group: GroupId) -> Option<VectorInfo> {
        let now = self.env.now_ms();
        self.section(node, group, |section| {
            let policy = &section.inner.policy;
            let mut info = VectorInfo::default();
            let oldest = policy.min_seq(PageKind::Anon).min(policy.min_seq(PageKind::File));
            for (seq, entry) in (oldest..=policy.max_seq).zip(&mut info.generations) {
                let pages = |kind| (seq >= policy.min_seq(kind)).then(|| section.len(list(seq, kind)));
                let born = policy.born.get((seq % MAX_GENS) as usize).copied().unwrap_or(0);
                *entry = GenerationInfo {
                    seq,
                    age_ms: now.saturating_sub(born),
                    anon: pages(PageKind::Anon),
                    file: pages(PageKind::File),
                };
                info.len += 1;
            }
            info
        })
    }

    /// Opens a new generation for a group on a node (the `+` command of `lru_gen`). Walks its page tables.
    pub fn age_now(&self, node: NodeId, group: GroupId) {
        if let Some(max_seq) = self.section(node, group, |section| section.inner.policy.max_seq) {
            age::age(self, node, group, max_seq);
        }
    }

    /// Pages that were used in this time must not be evicted without a word: see [`is_thrashing`](Self::is_thrashing).
    /// 0, the default, for no such promise (`min_ttl_ms`).
    #[doc(alias = "min_ttl_ms")]
    pub fn set_min_ttl_ms(&self, ms: u64) {
        self.min_ttl_ms.store(ms, Ordering::Relaxed);
    }

    /// Whether the oldest pages that could be taken of every group in `groups` are younger than the minimum: whoever needs
    /// memory then had better end something than take the pages that everybody is using.
    pub fn is_thrashing(&self, node: NodeId, groups: impl IntoIterator<Item = GroupId>) -> bool {
        let ttl = self.min_ttl_ms.load(Ordering::Relaxed);
        if ttl == 0 {
            return false;
        }
        let mut any = false;
        for group in groups {
            let Some(info) = self.generations(node, group) else { continue };
            let oldest = info.generations().iter().find(|one| one.anon.unwrap_or(0) + one.file.unwrap_or(0) > 0);
            match oldest {
                Some(oldest) if oldest.age_ms >= ttl => return false,
                Some(_) => any = true,
                None => {}
            }
        }
        any
    }
}
