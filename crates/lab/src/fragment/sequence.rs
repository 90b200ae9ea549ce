//! The page events of a trace, and the mix of requests that they are.

use super::subjects::HUGE;
use crate::bundled;
use crate::proc::Snapshots;
use crate::program::{Level, OpKind, Program};
use crate::replay::feed;
use crate::trace::{Input, Trace, TraceError, TraceGfp};
use std::io::Read;
use std::path::Path;

/// One request for pages, or a free. Blocks are named by slots, which are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageEvent {
    /// `1 << order` pages.
    Alloc {
        /// The trace's CPU.
        cpu: u16,
        /// The block.
        slot: u32,
        /// Its order.
        order: u8,
        /// How it was asked for.
        gfp: TraceGfp,
    },
    /// `1 << order` pages of a block, from page `offset` on.
    Free {
        /// The trace's CPU.
        cpu: u16,
        /// The block.
        slot: u32,
        /// Where the part begins.
        offset: u32,
        /// How large it is.
        order: u8,
        /// Nothing of the block is left.
        last: bool,
    },
}

/// The page events of a trace.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// The trace.
    pub name: String,
    /// CPUs that occur.
    pub cpus: u32,
    /// In the trace's order.
    pub events: Vec<PageEvent>,
    /// Which frames were in use when the trace began, if a snapshot beside it tells.
    pub in_use: Option<Vec<bool>>,
    /// Free huge frames that Linux showed when the trace began, and when it ended.
    pub linux_huge: (Option<u64>, Option<u64>),
}

/// Free blocks of at least 2 MiB in a `buddyinfo`, in huge frames.
fn huge_of(text: &str) -> Option<u64> {
    let zones = Snapshots::parse("", text).free_blocks;
    let blocks = |zone: &crate::target::ZoneFree| {
        (9_usize..11).filter_map(|at| Some(zone.blocks.get(at)? << (at - 9))).sum::<u64>()
    };
    (!zones.is_empty()).then(|| zones.iter().map(blocks).sum())
}

/// The frames that `/proc/kpageflags` did not call free.
fn used_frames(file: &Path) -> Option<Vec<bool>> {
    const BUDDY: u64 = 1 << 10;
    let mut bytes = Vec::new();
    zstd::stream::read::Decoder::new(std::fs::File::open(file).ok()?).ok()?.read_to_end(&mut bytes).ok()?;
    let word = |chunk: &[u8]| chunk.try_into().ok().map(u64::from_le_bytes);
    let used: Vec<bool> = bytes.chunks_exact(8).filter_map(word).map(|flags| flags & BUDDY == 0).collect();
    (used.len() >= HUGE).then_some(used)
}

impl Sequence {
    /// Reads a trace, and the snapshots in the folder `proc` beside it.
    ///
    /// # Errors
    /// [`TraceError`] if it cannot be read.
    pub fn read(input: &Input) -> Result<Self, TraceError> {
        let Trace { name, chunks, .. } = input.open()?;
        let mut program = Program::new(Level::Pages, bundled::cache_book());
        let (mut ops, mut events) = (Vec::new(), Vec::new());
        for chunk in chunks {
            feed(&name, &mut program, &chunk?)?;
            program.drain(&mut ops, false);
            take(&mut ops, &mut events);
        }
        program.finish(&mut ops);
        take(&mut ops, &mut events);
        let cpu = |event: &PageEvent| match *event {
            PageEvent::Alloc { cpu, .. } | PageEvent::Free { cpu, .. } => u32::from(cpu) + 1,
        };
        let mut sequence = Self { cpus: events.iter().map(cpu).max().unwrap_or(1), name, events, ..Self::default() };
        match input {
            Input::File(path) => {
                let folder = path.parent().unwrap_or(Path::new(".")).join("proc");
                let huge = |name| huge_of(&std::fs::read_to_string(folder.join(name)).unwrap_or_default());
                sequence.in_use = used_frames(&folder.join("start-kpageflags.u64.zst"));
                sequence.linux_huge = (huge("start-buddyinfo.txt"), huge("end-buddyinfo.txt"));
            }
            Input::Bundled(..) | Input::Stdin => {}
        }
        Ok(sequence)
    }

    /// The most pages in use at once.
    #[must_use]
    pub fn peak_pages(&self) -> u64 {
        let (mut live, mut peak) = (0_u64, 0);
        for event in &self.events {
            match *event {
                PageEvent::Alloc { order, .. } => live += 1 << order,
                PageEvent::Free { order, .. } => live = live.saturating_sub(1 << order),
            }
            peak = peak.max(live);
        }
        peak
    }
}

fn take(ops: &mut Vec<crate::program::Op>, events: &mut Vec<PageEvent>) {
    for op in ops.drain(..) {
        let cpu = op.cpu;
        match op.kind {
            OpKind::PageAlloc { block, order, gfp, .. } => {
                events.push(PageEvent::Alloc { cpu, slot: block.slot, order, gfp });
            }
            OpKind::PageAllocBulk { blocks, gfp, .. } => {
                events.extend(blocks.iter().map(|block| PageEvent::Alloc { cpu, slot: block.slot, order: 0, gfp }));
            }
            OpKind::PageFree { block, offset, order, last } => {
                events.push(PageEvent::Free { cpu, slot: block.slot, offset, order, last });
            }
            _ => {}
        }
    }
}

/// What kinds of requests a sequence consists of.
#[derive(Clone, Debug, Default)]
pub struct Mix(Vec<(u8, TraceGfp)>);

impl Mix {
    /// The requests of a sequence; each is as likely as it is frequent.
    #[must_use]
    pub fn of(sequence: &Sequence) -> Self {
        let request = |event: &PageEvent| match *event {
            PageEvent::Alloc { order, gfp, .. } => Some((order, gfp)),
            PageEvent::Free { .. } => None,
        };
        Self(sequence.events.iter().filter_map(request).collect())
    }

    /// One of them, by a random number.
    #[must_use]
    pub fn pick(&self, random: u64) -> Option<(u8, TraceGfp)> {
        self.0.get((random % self.0.len().max(1) as u64) as usize).copied()
    }

    /// The share of pages that can move.
    #[must_use]
    pub fn movable_share(&self) -> f64 {
        let pages = |movable: bool| -> u64 {
            self.0
                .iter()
                .filter(|(_, gfp)| gfp.contains(TraceGfp::MOVABLE) == movable)
                .map(|(order, _)| 1 << order)
                .sum()
        };
        let (movable, fixed) = (pages(true), pages(false));
        movable as f64 / (movable + fixed).max(1) as f64
    }
}
