//! How bad a candidate is: the pages that its death frees, adjusted (O-08, O-09).

use crate::oom::{Candidate, CandidateFlags};

/// The adjustment that exempts a candidate.
pub const ADJ_MIN: i16 = -1000;
/// The adjustment that adds all memory.
pub const ADJ_MAX: i16 = 1000;

/// A candidate's standing; the greatest is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Badness {
    /// Never chosen.
    Exempt,
    /// Pages; may be negative.
    Points(i64),
    /// Chosen before all others.
    Origin,
}

/// Whether a candidate can be chosen at all.
pub(crate) fn is_unkillable(candidate: &Candidate<'_>) -> bool {
    candidate.flags.intersects(CandidateFlags::INIT.union(CandidateFlags::KTHREAD))
}

/// The badness of a candidate on a machine (or in a scope) of `total_pages`. Pure.
pub fn badness(candidate: &Candidate<'_>, total_pages: u64) -> Badness {
    let gone = CandidateFlags::NO_ADDRESS_SPACE.union(CandidateFlags::VFORK);
    if is_unkillable(candidate)
        || candidate.flags.intersects(gone)
        || candidate.adj <= ADJ_MIN
        || candidate.mark.is_skipped()
    {
        return Badness::Exempt;
    }
    if candidate.flags.contains(CandidateFlags::ORIGIN) {
        return Badness::Origin;
    }
    let pages = candidate.rss.saturating_add(candidate.swap).saturating_add(candidate.page_tables);
    let pages = i64::try_from(pages).unwrap_or(i64::MAX);
    // The division comes first: below 1000 pages the adjustment does nothing.
    let thousandth = i64::try_from(total_pages / 1000).unwrap_or(i64::MAX);
    Badness::Points(pages.saturating_add(i64::from(candidate.adj.min(ADJ_MAX)).saturating_mul(thousandth)))
}
