//! One pass over the classic lists of a vector.

use kmem_gfp::NodeId;
use kmem_sync::atomic::Ordering;

use super::balance::{self, Situation};
use super::{ClassicPolicy, list};
use crate::lru::evict::{Isolated, PORTION, helps};
use crate::lru::policy::{End, Place};
use crate::lru::word::State;
use crate::lru::{Lists, LruEnv, Page, PageKind};
use crate::{GroupId, Groups, Protection, Scan};

type ClassicLists<E> = Lists<E, ClassicPolicy>;

const KINDS: [PageKind; 2] = [PageKind::Anon, PageKind::File];

/// See [`PageLists::shrink`](crate::PageLists::shrink).
pub(super) fn shrink<E: LruEnv>(
    lists: &ClassicLists<E>,
    node: NodeId,
    group: GroupId,
    protection: Protection,
    scan: &mut Scan<'_>,
) {
    let Some(vector) = lists.vector(node, group) else { return };
    let (counts, balance) = (&vector.counts, &vector.shared);
    let may_deactivate = KINDS.map(|kind| scan.force_deactivate || balance.may_deactivate(counts, kind));
    if scan.priority == Scan::FIRST_PRIORITY {
        balance.see_refaults();
    }
    let (inactive_file, active_file) = balance::sizes(counts, PageKind::File);
    let (inactive_anon, _) = balance::sizes(counts, PageKind::Anon);
    let priority = u32::from(scan.priority);
    let can_swap = scan.limits.may_swap && lists.env.swap_free() > 0;
    let shares = balance.shares(Situation {
        can_swap,
        swappiness: balance::swappiness(&scan.limits, lists.env.groups().swappiness(group)),
        in_group: scan.limits.root != GroupId::ROOT,
        priority: scan.priority,
        file_is_tiny: scan.limits.root == GroupId::ROOT
            && inactive_file + active_file < lists.env.shortfall(node)
            && !may_deactivate[0]
            && inactive_anon >> priority > 0,
        cache_trim: inactive_file >> priority > 0 && !may_deactivate[1],
    });
    let online = lists.env.groups().is_online(group);
    // Inactive and active, by kind.
    let mut left = KINDS.map(|kind| {
        let (inactive, active) = balance::sizes(counts, kind);
        [inactive, active].map(|size| {
            let size = balance::unprotected(size, group, protection, scan).min(size);
            balance::amount(size, kind, shares, scan.priority, online)
        })
    });
    // Active anonymous pages alone are no reason to go on.
    while left[0][0] > 0 || left[1][0] > 0 || left[1][1] > 0 {
        for (kind, left) in KINDS.into_iter().zip(&mut left) {
            for (active, left) in [false, true].into_iter().zip(left) {
                let now = (*left).min(PORTION as u64);
                *left -= now;
                if now == 0 {
                } else if !active {
                    shrink_inactive(lists, node, group, kind, now as usize, scan);
                } else if may_deactivate.get(kind.index()) == Some(&true) {
                    deactivate_some(lists, node, group, kind, now as usize, scan);
                } else {
                    scan.spared_active = true;
                }
            }
        }
        if scan.is_done() && !scan.full_walk {
            break;
        }
    }
    if can_swap && balance::is_inactive_low(counts, PageKind::Anon) {
        deactivate(lists, node, group, PageKind::Anon, scan);
    }
}

/// Takes up to `most` pages off the tail of a list. Pages that do not help, or that their owners do not give, go to its head.
fn isolate<E: LruEnv>(
    lists: &ClassicLists<E>,
    node: NodeId,
    group: GroupId,
    from: usize,
    most: usize,
    scan: &mut Scan<'_>,
) -> Isolated {
    let mut isolated = Isolated::new();
    let looked = lists.section(node, group, |section| {
        let mut looked = 0;
        while looked < most
            && let Some(pfn) = section.tail(from)
            && let Some((words, word)) = section.listed(pfn)
        {
            looked += 1;
            let state = State(words.state.load(Ordering::Relaxed));
            if state.has(State::UNEVICTABLE) || state.has(State::ACTIVE) != (from % 2 == 1) {
                section.settle(pfn);
            } else if helps(word.zone(), scan.limits.ceiling) && section.isolate(pfn) {
                isolated.push(pfn);
            } else {
                section.relist(pfn, words, word, Place { list: from, end: End::Head, clear: 0 });
            }
        }
        looked
    });
    scan.scanned += looked.unwrap_or(0) as u64;
    isolated
}

fn shrink_inactive<E: LruEnv>(
    lists: &ClassicLists<E>,
    node: NodeId,
    group: GroupId,
    kind: PageKind,
    most: usize,
    scan: &mut Scan<'_>,
) {
    let isolated = isolate(lists, node, group, list(kind, false), most, scan);
    if isolated.len() == 0 {
        return;
    }
    let outcome = lists.reclaim(node, group, &isolated, scan);
    if let Some(vector) = lists.vector(node, group) {
        let rotated = (isolated.len() as u64).saturating_sub(outcome.freed);
        vector.shared.note_cost(&vector.counts, kind, outcome.writes, rotated);
    }
}

/// Deactivates a portion of the active pages of a kind.
pub(super) fn deactivate<E: LruEnv>(
    lists: &ClassicLists<E>,
    node: NodeId,
    group: GroupId,
    kind: PageKind,
    scan: &mut Scan<'_>,
) {
    deactivate_some(lists, node, group, kind, PORTION, scan);
}

fn deactivate_some<E: LruEnv>(
    lists: &ClassicLists<E>,
    node: NodeId,
    group: GroupId,
    kind: PageKind,
    most: usize,
    scan: &mut Scan<'_>,
) {
    let isolated = isolate(lists, node, group, list(kind, true), most, scan);
    let mut rotated = 0;
    for pfn in isolated.iter() {
        let Some(words) = lists.words(pfn) else { continue };
        let state = State(words.state.load(Ordering::Relaxed));
        let page = Page { pfn, key: state.key(), kind };
        let look = lists.env.owner(lists.owner_word(pfn).owner()).map(|owner| owner.look(page)).unwrap_or_default();
        if look.locked {
            words.state.fetch_or(State::UNEVICTABLE, Ordering::Relaxed);
        } else if look.accessed > 0 && look.executable && kind == PageKind::File {
            rotated += 1;
        } else {
            words.state.fetch_or(State::WORKINGSET, Ordering::Relaxed);
            words.state.fetch_and(!State::ACTIVE, Ordering::Relaxed);
        }
    }
    lists.put_back_all(node, group, &isolated);
    if rotated > 0
        && let Some(vector) = lists.vector(node, group)
    {
        vector.shared.note_cost(&vector.counts, kind, 0, rotated);
    }
}
