//! A sequence of page events on one allocator, from an empty machine or from the frames that Linux had in use, and the huge frames
//! that are free behind it.

use super::sequence::{PageEvent, Sequence};
use super::subjects::{HUGE, Pages};
use crate::trace::TraceGfp;
use serde::Serialize;
use std::collections::HashMap;

/// Flags of memory for programs: movable, from any zone.
const PROGRAMS: TraceGfp = TraceGfp::MOVABLE.union(TraceGfp::HIGHMEM);

/// How an allocator has packed what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packing {
    /// The allocator.
    pub name: &'static str,
    /// Requests that it refused.
    pub failed: u64,
    /// Pages in use at the end.
    pub used_pages: u64,
    /// Huge frames of which nothing was in use before the first event.
    pub free_before: u64,
    /// The least of them at any time, looked at every thousand events.
    pub free_least: u64,
    /// Huge frames of which nothing is in use after the last event.
    pub free_after: u64,
    /// Blocks of 2 MiB that it then hands out before it refuses.
    pub obtained: u64,
}

/// Which frames are in use, counted by huge frame.
struct Frames(Vec<u16>);

impl Frames {
    fn change(&mut self, frame: u64, order: u8, by: impl Fn(u16) -> u16) {
        for frame in frame..frame + (1 << order) {
            if let Some(count) = self.0.get_mut(frame as usize / HUGE) {
                *count = by(*count);
            }
        }
    }

    fn take(&mut self, frame: u64, order: u8) {
        self.change(frame, order, |n| n.saturating_add(1));
    }

    fn give(&mut self, frame: u64, order: u8) {
        self.change(frame, order, |n| n.saturating_sub(1));
    }

    fn free(&self) -> u64 {
        self.0.iter().filter(|count| **count == 0).count() as u64
    }
}

/// A block that is live.
struct Live {
    frame: u64,
    order: u8,
}

/// Replays a sequence. The machine has as many frames as `in_use` says, if it does.
pub(crate) fn pack(subject: &mut dyn Pages, sequence: &Sequence, frames: usize, in_use: Option<&[bool]>) -> Packing {
    let mut used = Frames(vec![0; frames / HUGE]);
    if let Some(in_use) = in_use {
        begin(subject, &mut used, in_use);
    }
    let free_before = used.free();
    let (mut failed, mut free_least) = (0, free_before);
    let mut blocks: HashMap<u32, Live> = HashMap::new();
    for (nth, event) in sequence.events.iter().enumerate() {
        match *event {
            PageEvent::Alloc { cpu, slot, order, gfp } => match subject.alloc(cpu.into(), order, gfp) {
                Some(frame) => {
                    used.take(frame, order);
                    blocks.insert(slot, Live { frame, order });
                }
                None => failed += 1,
            },
            PageEvent::Free { cpu, slot, offset, order, last } => {
                let Some(block) = blocks.get(&slot) else { continue };
                let (first, whole) = (block.frame, order == block.order);
                if whole || subject.takes_parts() {
                    subject.free(cpu.into(), first + u64::from(offset), order, whole);
                } else if last {
                    subject.free(cpu.into(), first, block.order, true);
                }
                // The same for everybody: when a part is freed, it is not in use any more.
                used.give(first + u64::from(offset), order);
                if last {
                    blocks.remove(&slot);
                }
            }
        }
        if nth % 1000 == 0 {
            free_least = free_least.min(used.free());
        }
    }
    let free_after = used.free();
    let used_pages = used.0.iter().map(|count| u64::from(*count)).sum();
    subject.settle();
    let huge = (0..).map_while(|_| subject.alloc(0, 9, PROGRAMS)).count() as u64;
    Packing {
        name: subject.name(),
        failed,
        used_pages,
        free_before,
        free_least: free_least.min(free_after),
        free_after,
        obtained: huge,
    }
}

/// Brings an empty machine to where the given frames are in use: takes all, gives the others back. Frames that it keeps for itself
/// are in use, too.
fn begin(subject: &mut dyn Pages, used: &mut Frames, in_use: &[bool]) {
    let (mut taken, mut seen) = (Vec::new(), vec![false; used.0.len() * HUGE]);
    while let Some(frame) = subject.alloc(0, 0, PROGRAMS) {
        used.take(frame, 0);
        taken.push(frame);
        if let Some(seen) = seen.get_mut(frame as usize) {
            *seen = true;
        }
    }
    (0..).zip(seen).filter(|(_, seen)| !seen).for_each(|(frame, _)| used.take(frame, 0));
    taken.sort_unstable();
    for frame in taken {
        if in_use.get(frame as usize) == Some(&false) {
            used.give(frame, 0);
            subject.free(0, frame, 0, true);
        }
    }
    subject.settle();
}
