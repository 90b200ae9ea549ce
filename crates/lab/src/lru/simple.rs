//! Replacement as in textbooks, one page at a time: the yardsticks.

use super::References;
use std::collections::BTreeSet;

/// No place.
const NONE: u32 = u32::MAX;

/// Misses of replacing the page that was used longest ago, for all memory sizes at once: the distances of each reference in the
/// stack of recently used pages, counted.
#[derive(Debug)]
pub(crate) struct StackDistances {
    /// By distance: references to a page with that many others used since.
    counts: Vec<u64>,
    total: u64,
}

impl StackDistances {
    pub(crate) fn of(trace: &References) -> Self {
        // A tree of sums over the references tells how many pages have been used since.
        let n = trace.list.len();
        let mut tree = vec![0u32; n + 1];
        let add = |tree: &mut [u32], at: usize, one: bool| {
            let mut at = at + 1;
            while let Some(sum) = tree.get_mut(at) {
                *sum = if one { sum.wrapping_add(1) } else { sum.wrapping_sub(1) };
                at += at & at.wrapping_neg();
            }
        };
        let upto = |tree: &[u32], at: usize| {
            let (mut at, mut sum) = (at + 1, 0u32);
            while at > 0 {
                sum = sum.wrapping_add(tree.get(at).copied().unwrap_or(0));
                at &= at - 1;
            }
            sum
        };
        let mut last = vec![NONE; trace.pages as usize];
        let mut counts = vec![0; trace.pages as usize + 1];
        for (now, reference) in trace.list.iter().enumerate() {
            let Some(last) = last.get_mut(reference.page as usize) else { continue };
            if *last != NONE {
                let since = upto(&tree, now) - upto(&tree, *last as usize);
                if let Some(count) = counts.get_mut(since as usize) {
                    *count += 1;
                }
                add(&mut tree, *last as usize, false);
            }
            add(&mut tree, now, true);
            *last = now as u32;
        }
        Self { counts, total: n as u64 }
    }

    pub(crate) fn misses(&self, frames: u32) -> u64 {
        let hits: u64 = self.counts.iter().take(frames as usize).sum();
        self.total - hits
    }
}

/// Misses of CLOCK: a hand goes round the frames and takes the first that was not used since it came by.
pub(crate) fn clock(trace: &References, frames: u32) -> u64 {
    let mut place = vec![NONE; trace.pages as usize];
    let mut ring: Vec<(u32, bool)> = Vec::with_capacity(frames as usize);
    let (mut hand, mut misses) = (0usize, 0);
    for reference in &trace.list {
        let Some(&at) = place.get(reference.page as usize) else { continue };
        if let Some(frame) = ring.get_mut(at as usize) {
            frame.1 = true;
            continue;
        }
        misses += 1;
        let at = if ring.len() < frames as usize {
            ring.push((reference.page, true));
            ring.len() - 1
        } else {
            while let Some(frame) = ring.get_mut(hand)
                && frame.1
            {
                frame.1 = false;
                hand = (hand + 1) % frames as usize;
            }
            let at = hand;
            hand = (hand + 1) % frames as usize;
            if let Some(frame) = ring.get_mut(at) {
                if let Some(place) = place.get_mut(frame.0 as usize) {
                    *place = NONE;
                }
                *frame = (reference.page, true);
            }
            at
        };
        if let Some(place) = place.get_mut(reference.page as usize) {
            *place = at as u32;
        }
    }
    misses
}

/// Misses of Belady's optimum, which takes the page that will be used last: no replacement has fewer.
pub(crate) fn optimum(trace: &References, frames: u32) -> u64 {
    // When each reference's page is used again.
    let mut next = vec![NONE; trace.list.len()];
    let mut seen = vec![NONE; trace.pages as usize];
    for (at, reference) in trace.list.iter().enumerate().rev() {
        if let (Some(next), Some(seen)) = (next.get_mut(at), seen.get_mut(reference.page as usize)) {
            *next = *seen;
            *seen = at as u32;
        }
    }
    // Pages in memory by their next use.
    let mut resident = BTreeSet::new();
    let mut due = vec![None; trace.pages as usize];
    let mut misses = 0;
    for (reference, &next) in trace.list.iter().zip(&next) {
        let Some(due) = due.get_mut(reference.page as usize) else { continue };
        match *due {
            Some(at) if resident.remove(&(at, reference.page)) => {}
            _ => {
                misses += 1;
                if resident.len() >= frames as usize {
                    resident.pop_last();
                }
            }
        }
        *due = Some(next);
        resident.insert((next, reference.page));
    }
    misses
}

#[cfg(test)]
mod tests {
    use super::super::Reference;
    use super::*;

    fn trace(pages: &[u32]) -> References {
        let mut trace = References::default();
        pages.iter().for_each(|&page| trace.push(Reference { page, write: false }));
        trace
    }

    #[test]
    fn the_textbook_example_has_the_textbook_numbers() {
        let belady = trace(&[7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1]);
        assert_eq!(optimum(&belady, 3), 9);
        assert_eq!(StackDistances::of(&belady).misses(3), 12);
        assert_eq!(StackDistances::of(&belady).misses(8), 6);
        assert_eq!((optimum(&belady, 8), clock(&belady, 8)), (6, 6));
        let anomaly = trace(&[1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]);
        assert_eq!((StackDistances::of(&anomaly).misses(3), StackDistances::of(&anomaly).misses(4)), (10, 8));
        assert_eq!((optimum(&anomaly, 3), optimum(&anomaly, 4)), (7, 6));
        assert!(clock(&anomaly, 3) >= 7);
    }

    #[test]
    fn nothing_beats_the_optimum_and_counting_distances_is_lru() {
        let mut x = 1u64;
        let pages: Vec<u32> = (0..3000)
            .map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((x >> 33) % 60).min((x >> 45) % 60) as u32
            })
            .collect();
        let trace = trace(&pages);
        let distances = StackDistances::of(&trace);
        for frames in [1, 2, 7, 20, 59, 60] {
            let mut stack: Vec<u32> = Vec::new();
            let mut misses = 0;
            for page in &pages {
                match stack.iter().position(|p| p == page) {
                    Some(at) => drop(stack.remove(at)),
                    None => misses += 1,
                }
                stack.insert(0, *page);
                stack.truncate(frames as usize);
            }
            assert_eq!(distances.misses(frames), misses, "{frames}");
            let best = optimum(&trace, frames);
            assert!(best <= misses && best <= clock(&trace, frames));
        }
    }
}
