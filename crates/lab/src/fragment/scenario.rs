//! Asking a fragmented machine for large blocks: at once, behind a compaction, compacting on the way, and out of a contiguous area.

use super::fill::{Random, Tenants};
use super::sequence::Mix;
use crate::LabError;
use crate::target::TargetError;
use kmem::cma::AreaSpec;
use kmem::{Gfp, Order, PAGE_SIZE, Pfn};
use kmem_hosted::{Binding, CpuId, Machine, Reports, ZoneSplit};
use serde::Serialize;
use std::time::Instant;

/// In which order tenants leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Any, one by one.
    Random,
    /// The oldest first.
    Age,
    /// All of one owner after the other, in any order of owners.
    Owner,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Random, Self::Age, Self::Owner];

    /// What tables call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Age => "age",
            Self::Owner => "owner",
        }
    }
}

/// What came of asking for blocks until one was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Round {
    /// Blocks that were had.
    pub got: u64,
    /// Blocks that the free pages would make if they lay together.
    pub possible: u64,
    /// Pages moved for them.
    pub moved: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
}

impl Round {
    /// The share of what was possible.
    #[must_use]
    pub fn success(&self) -> f64 {
        self.got as f64 / self.possible.max(1) as f64
    }
}

/// One way of freeing, and what could be had after it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// In which order tenants left.
    pub way: Way,
    /// Pages in use then.
    pub used_pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
    /// 2 MiB and 4 MiB, without any compaction.
    pub before: [Round; 2],
    /// 2 MiB and 4 MiB, each request compacting if it must.
    pub direct: [Round; 2],
    /// The compaction of all memory: `got` counts free huge frames.
    pub compaction: Round,
    /// 2 MiB and 4 MiB after that.
    pub after: [Round; 2],
    /// Buffers of a sixteenth of the memory each, out of an area of a quarter.
    pub cma: Round,
    /// Movable pages whose contents were not theirs any more. Must be zero.
    pub broken: u64,
}

/// What a machine is like and how full it gets.
#[derive(Clone, Debug)]
pub(crate) struct Setting<'m> {
    pub(crate) cpus: u32,
    pub(crate) ram_bytes: u64,
    pub(crate) mix: &'m Mix,
    pub(crate) seed: u64,
}

/// The orders asked for: 2 MiB and 4 MiB.
const ORDERS: [Order; 2] = [Order::PAGEBLOCK, Order::MAX];

/// A machine and its tenants.
struct Stage {
    tenants: Option<Tenants>,
    machine: &'static Machine,
    cpus: u32,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The tenants leave first.
        self.tenants = None;
        // SAFETY: nothing of it is in use any more.
        unsafe { self.machine.shut_down() }
    }
}

impl Setting<'_> {
    /// A machine filled to nine tenths and thinned out to half. With an `area` of so many pages, which lends them.
    fn stage(&self, way: Way, area: Option<u64>) -> Result<Stage, LabError> {
        let refused = |what: String| LabError::Target(TargetError(what));
        let machine = Machine::builder()
            .cpus(self.cpus)
            .ram_bytes(self.ram_bytes)
            .zones(ZoneSplit::NORMAL_ONLY)
            .binding(Binding::ByName)
            .reports(Reports::Discard)
            .boot()
            .map_err(|error| refused(error.to_string()))?;
        let mut stage = Stage { tenants: None, machine, cpus: self.cpus };
        if let Some(pages) = area {
            let declared = machine.kmem().cma_declare_contiguous(&AreaSpec::new("lab", pages));
            declared.map_err(|error| refused(error.to_string()))?;
        }
        let mut random = Random::new(self.seed);
        let total = self.ram_bytes / PAGE_SIZE as u64;
        let mut tenants = Tenants::fill(machine, self.cpus, self.mix, total * 9 / 10, &mut random);
        tenants.thin(way, total / 2, &mut random);
        stage.tenants = Some(tenants);
        machine.kmem().pages().drain_all_pages();
        Ok(stage)
    }

    /// Everything for one way.
    pub(crate) fn run(&self, way: Way) -> Result<Outcome, LabError> {
        let stage = self.stage(way, None)?;
        let used_pages = stage.tenants.as_ref().map_or(0, Tenants::pages);
        let free_pages = stage.free_pages();
        let before = ORDERS.map(|order| stage.ask(order, Gfp::TRANSHUGE_LIGHT));
        let compaction = stage.compact();
        let after = ORDERS.map(|order| stage.ask(order, Gfp::TRANSHUGE_LIGHT));
        let mut broken = stage.broken();
        drop(stage);
        let mut direct = [Round::default(); 2];
        for (round, order) in direct.iter_mut().zip(ORDERS) {
            let stage = self.stage(way, None)?;
            *round = stage.ask(order, Gfp::TRANSHUGE_LIGHT | Gfp::DIRECT_RECLAIM | Gfp::RETRY_MAYFAIL);
            broken += stage.broken();
        }
        let stage = self.stage(way, Some(self.ram_bytes / PAGE_SIZE as u64 / 4))?;
        let cma = stage.buffers(self.ram_bytes / PAGE_SIZE as u64 / 16);
        broken += stage.broken();
        Ok(Outcome { way, used_pages, free_pages, before, direct, compaction, after, cma, broken })
    }
}

impl Stage {
    fn free_pages(&self) -> u64 {
        let pages = self.machine.kmem().pages();
        pages.drain_all_pages();
        pages.free_page_count()
    }

    fn broken(&self) -> u64 {
        self.tenants.as_ref().map_or(0, Tenants::broken)
    }

    /// Runs `work` on a CPU, and says what it moved and how long it took.
    fn measured(&self, possible: u64, work: impl FnOnce() -> u64) -> Round {
        let before = self.machine.movable_stats().moved;
        let start = Instant::now();
        // SAFETY: no pin or read-side section outlives the call.
        let got = unsafe { self.machine.on_cpu(CpuId(0), work) }.unwrap_or(0);
        let micros = start.elapsed().as_micros() as u64;
        Round { got, possible, moved: self.machine.movable_stats().moved - before, micros }
    }

    /// Asks for blocks until one is refused, and gives them back.
    fn ask(&self, order: Order, gfp: Gfp) -> Round {
        let pages = self.machine.kmem();
        let mut blocks: Vec<Pfn> = Vec::new();
        let possible = self.free_pages() / order.nr_pages() as u64;
        let round = self.measured(possible, || {
            while let Ok(pfn) = pages.alloc_pages(gfp, order) {
                blocks.push(pfn);
            }
            blocks.len() as u64
        });
        for pfn in blocks {
            // SAFETY: ours, and nobody has used it.
            let _ = unsafe { pages.free_pages(pfn, order) };
        }
        pages.pages().drain_all_pages();
        round
    }

    /// Compacts everything.
    fn compact(&self) -> Round {
        let possible = self.free_pages() / Order::PAGEBLOCK.nr_pages() as u64;
        let round = self.measured(possible, || {
            let _ = self.machine.kmem().compact_memory(1);
            0
        });
        self.machine.kmem().pages().drain_all_pages();
        let zones = self.machine.kmem().pages().zones().map(|zone| zone.free_blocks());
        let huge = |row: &[u64]| row.get(9).copied().unwrap_or(0) + 2 * row.get(10).copied().unwrap_or(0);
        Round { got: zones.flatten().map(|row| huge(&row)).sum(), ..round }
    }

    /// Asks for buffers out of the area.
    fn buffers(&self, pages: u64) -> Round {
        let Some(area) = self.machine.kmem().cma_layer().area("lab") else { return Round::default() };
        let mut buffers = Vec::new();
        let _ = self.cpus;
        self.measured(area.nr_pages() / pages.max(1), || {
            buffers.extend((0..).map_while(|_| area.alloc(pages, 0).ok()));
            buffers.len() as u64
        })
    }
}
