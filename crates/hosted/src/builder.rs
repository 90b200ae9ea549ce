//! [`MachineBuilder`]: what a machine is to be like, and its boot.

use core::fmt;

use kmem::InitError;
use kmem_buddy::{BuddyOptions, MemoryMap, Region, ZoneLimits};
use kmem_gfp::{Reclaimer, ZoneKind};
use kmem_kmalloc::KmallocConfig;
use kmem_slab::SlabConfig;

use crate::grow::{self, Rest};
use crate::host::{Host, HostOptions};
use crate::machine::{Machine, Parts};
use crate::memory::{MemoryError, ReclaimOptions};
use crate::movable::Compactor;
use crate::ram::{Mapping, Ram};
use crate::space::{Space, default_budget};
use crate::{
    Binding, HostCpu, MAX_CPUS, MapError, MemoryPlan, PlanError, RamBacking, Reports, ZoneSplit, barrier, sys,
};

/// The vmalloc window of a machine for which nothing else was asked: 16 GiB of addresses.
pub const VMALLOC_BYTES: u64 = 16 << 30;
/// Windows are multiples of this.
const WINDOW_UNIT: usize = 2 << 20;

/// Why a machine did not boot. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// No CPU, or too many.
    #[error("{0} CPUs: from 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// The memory cannot be laid out as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host refuses memory.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The host's pages are not 4 KiB.
    #[error("the host has pages of {0} bytes; machines need 4096")]
    HostPages(usize),
    /// A vmalloc window needs memory that can be mapped a second time.
    #[error("a vmalloc window of {0} bytes over private memory: it needs `RamBacking::Memfd`")]
    PrivateWindow(u64),
    /// The host offers no way to make a barrier on all CPUs.
    #[error("neither membarrier nor sched_setaffinity may be used here")]
    Barrier(#[source] std::io::Error),
    /// Reclaim could not be set up.
    #[error(transparent)]
    Reclaim(#[from] MemoryError),
    /// The host refuses a thread for background compaction.
    #[error("no thread for background compaction")]
    Thread(#[source] std::io::Error),
    /// The allocators did not start.
    #[error("the allocators did not start")]
    Kmem(#[from] InitError),
}

/// What a machine is to be like; made by [`Machine::builder`].
#[derive(Clone)]
#[must_use = "nothing happens before `boot`"]
pub struct MachineBuilder {
    cpus: u32,
    ram_bytes: u64,
    nodes: u32,
    zones: Option<ZoneSplit>,
    binding: Binding,
    backing: Option<RamBacking>,
    vmalloc_bytes: Option<u64>,
    mapping_budget: Option<usize>,
    lingering: bool,
    reports: Reports,
    reclaimer: Option<&'static (dyn Reclaimer + Sync)>,
    reclaim: Option<ReclaimOptions>,
    compaction: bool,
    kcompactd: bool,
    pub(crate) tunables: Tunables,
}

/// The allocators' own settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tunables {
    pub(crate) entropy: Option<u64>,
    pub(crate) pages: BuddyOptions,
    pub(crate) slabs: SlabConfig,
    pub(crate) kmalloc: Option<KmallocConfig>,
}

impl fmt::Debug for MachineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineBuilder")
            .field("cpus", &self.cpus)
            .field("ram_bytes", &self.ram_bytes)
            .field("nodes", &self.nodes)
            .field("zones", &self.zones)
            .field("binding", &self.binding)
            .field("backing", &self.backing)
            .field("vmalloc_bytes", &self.vmalloc_bytes)
            .field("reports", &self.reports)
            .finish_non_exhaustive()
    }
}

impl Default for MachineBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl MachineBuilder {
    /// Four CPUs, 512 MiB on one node, a bit of every zone, a vmalloc window of 16 GiB, reports to standard error.
    pub fn new() -> Self {
        Self {
            cpus: 4,
            ram_bytes: 512 << 20,
            nodes: 1,
            zones: None,
            binding: Binding::OnDemand,
            backing: None,
            vmalloc_bytes: None,
            mapping_budget: None,
            lingering: false,
            reports: Reports::Stderr,
            reclaimer: None,
            reclaim: None,
            compaction: true,
            kcompactd: false,
            tunables: Tunables::default(),
        }
    }

    /// How many CPUs, up to [`MAX_CPUS`].
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory, in bytes; rounded down to 4 MiB. The host's memory is taken as it is used.
    pub fn ram_bytes(mut self, bytes: u64) -> Self {
        self.ram_bytes = bytes;
        self
    }

    /// How many nodes the memory and the CPUs are spread over, up to [`MAX_NODES`](crate::MAX_NODES).
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// How memory is divided among zones; [`ZoneSplit::every_zone`] unless given.
    pub fn zones(mut self, zones: ZoneSplit) -> Self {
        self.zones = Some(zones);
        self
    }

    /// Which threads become CPUs.
    pub fn binding(mut self, binding: Binding) -> Self {
        self.binding = binding;
        self
    }

    /// What is behind the frames: a file unless given, or private memory if there is to be no vmalloc window.
    pub fn ram_backing(mut self, backing: RamBacking) -> Self {
        self.backing = Some(backing);
        self
    }

    /// How many bytes of addresses vmalloc has; rounded up to 2 MiB. 0 is a machine without virtual memory. Unless given:
    /// [`VMALLOC_BYTES`], or none if the memory is to be [`Private`](RamBacking::Private), which cannot be mapped twice.
    /// Addresses cost nothing.
    pub fn vmalloc_bytes(mut self, bytes: u64) -> Self {
        self.vmalloc_bytes = Some(bytes);
        self
    }

    /// How many mappings of the host the vmalloc windows of all machines in the process may consist of before this machine
    /// refuses to map more ([`TooManyMappings`](kmem_vmalloc::MapError::TooManyMappings)). Unless given: 32768, or half of
    /// the host's limit (`vm.max_map_count`) if that is less.
    pub fn mapping_budget(mut self, mappings: usize) -> Self {
        self.mapping_budget = Some(mappings);
        self
    }

    /// Whether freed areas stay reachable until vmalloc flushes them, as they do through the translation caches of a real
    /// machine, and a range that was handed out again without a flush still leads to its old frames. Otherwise a freed area
    /// is a fault at once.
    pub fn lingering_translations(mut self, lingering: bool) -> Self {
        self.lingering = lingering;
        self
    }

    /// Where diagnostic lines go.
    pub fn reports(mut self, reports: Reports) -> Self {
        self.reports = reports;
        self
    }

    /// What is asked when pages run short; nobody unless given.
    pub fn reclaimer(mut self, reclaimer: &'static (dyn Reclaimer + Sync)) -> Self {
        self.reclaimer = Some(reclaimer);
        self
    }

    /// Reclaims for real: page lists, kswapd, swap, memory cgroups, the OOM killer. Unless given, nobody does. A
    /// [reclaimer](Self::reclaimer) that is given as well goes first.
    pub fn reclaim(mut self, options: ReclaimOptions) -> Self {
        self.reclaim = Some(options);
        self
    }

    /// Whether requests that may sleep compact zones when no block is large enough: on, unless said otherwise. A
    /// [reclaimer](Self::reclaimer) that compacts does it instead.
    pub fn compaction(mut self, on: bool) -> Self {
        self.compaction = on;
        self
    }

    /// Whether a thread of the host compacts in the background: when somebody has asked for large blocks, and twice a second if
    /// free memory is scattered. Off unless said otherwise; without it [`Machine::poll_kcompactd`] does that work.
    pub fn kcompactd(mut self, on: bool) -> Self {
        self.kcompactd = on;
        self
    }

    /// The number behind freelist secrets and random orders. A constant unless given, so that runs repeat.
    pub fn entropy(mut self, entropy: u64) -> Self {
        self.tunables.entropy = Some(entropy);
        self
    }

    /// The page allocator's choices.
    pub fn pages(mut self, options: BuddyOptions) -> Self {
        self.tunables.pages = options;
        self
    }

    /// The object caches' tunables.
    pub fn slabs(mut self, config: SlabConfig) -> Self {
        self.tunables.slabs = config;
        self
    }

    /// Which kmalloc caches there are; those for DMA exist if the zone does, unless given.
    pub fn kmalloc(mut self, config: KmallocConfig) -> Self {
        self.tunables.kmalloc = Some(config);
        self
    }

    /// Boots the machine. It exists until [`Machine::shut_down`], or as long as the process. A few milliseconds, whatever
    /// its size.
    ///
    /// # Errors
    /// [`BootError`], which names the value that does not fit or what the host refused.
    pub fn boot(self) -> Result<&'static Machine, BootError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(BootError::Cpus(self.cpus));
        }
        if sys::page_size() != sys::HOST_PAGE {
            return Err(BootError::HostPages(sys::page_size()));
        }
        barrier::prepare().map_err(BootError::Barrier)?;
        let split = self.zones.unwrap_or_else(|| ZoneSplit::every_zone(self.ram_bytes));
        let plan = MemoryPlan::new(self.ram_bytes, self.nodes, split)?;
        let regions: Vec<Region> = plan
            .ranges()
            .iter()
            .map(|range| Region { range: range.frames, node: range.node, zone: Some(range.zone) })
            .collect();
        let limits = limits(&regions);
        let (regions, rest) = grow::divide(regions);
        let mut tunables = self.tunables;
        tunables
            .kmalloc
            .get_or_insert_with(|| KmallocConfig { dma: limits.dma_end.is_some(), ..KmallocConfig::default() });
        let private = self.backing == Some(RamBacking::Private);
        let window = self.vmalloc_bytes.unwrap_or(if private { 0 } else { VMALLOC_BYTES });
        if window > 0 && private {
            return Err(BootError::PrivateWindow(window));
        }
        let backing = self.backing.unwrap_or(if window > 0 { RamBacking::Memfd } else { RamBacking::Private });
        let mut parts = Parts::new(Ram::map(plan, backing)?, self.cpus, self.binding);
        // SAFETY: the parts live until boot fails or the machine ends, and nothing refers to them after either.
        let (cell, ram, table) = unsafe { parts.borrow() };
        let cpu = HostCpu::new(table, self.binding);
        parts.cpu = Some(cpu);
        let options = HostOptions { nodes: self.nodes, reports: self.reports, reclaimer: self.reclaimer, tunables };
        let mut host = Host::new(cpu, ram, options);
        if window > 0 {
            let bytes = usize::try_from(window).unwrap_or(usize::MAX).saturating_add(WINDOW_UNIT - 1) / WINDOW_UNIT;
            let budget = self.mapping_budget.unwrap_or_else(default_budget);
            let space = Space::new(cpu, ram, bytes.saturating_mul(WINDOW_UNIT), budget, self.lingering)?;
            // SAFETY: as above.
            host = host.with_space(unsafe { parts.add_space(space) });
        }
        let map = MemoryMap { regions: &regions, reserved: &[], limits, nr_nodes: self.nodes, ..MemoryMap::default() };
        let mut refused = None;
        let metadata = |layout: core::alloc::Layout| match Mapping::sparse("page metadata", layout.size()) {
            Ok(mapping) => Some(parts.books.insert(mapping).start()),
            Err(error) => {
                refused = Some(error);
                None
            }
        };
        // SAFETY: (1) a fresh mapping of the size asked for, page-aligned, which lives as long as the machine; (2) the
        // frames are a fresh mapping's, ours alone; (3) the table covers the plan's span; (4) the window is a fresh mapping.
        let started = unsafe { cell.init(host, &map, metadata) };
        match (started, refused) {
            (Ok(kmem), _) => {
                if !rest.is_empty() {
                    parts.add_later(kmem, Rest::new(kmem.pages(), limits, rest));
                }
                let compactor = parts.add_compactor(kmem, Compactor::new(kmem.pages(), self.nodes), self.compaction);
                if self.kcompactd {
                    compactor.start().map_err(BootError::Thread)?;
                }
                if let Some(options) = &self.reclaim {
                    parts.add_memory(kmem, options, self.compaction)?;
                }
                Ok(Machine::new(kmem, parts))
            }
            (Err(_), Some(error)) => Err(error.into()),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// The limits by which the machine's zones exist. Regions name their zones themselves.
fn limits(regions: &[Region]) -> ZoneLimits {
    let has = |zone| regions.iter().any(|region| region.zone == Some(zone));
    let x86 = ZoneLimits::X86_64;
    ZoneLimits {
        dma_end: x86.dma_end.filter(|_| has(ZoneKind::Dma)),
        dma32_end: x86.dma32_end.filter(|_| has(ZoneKind::Dma32)),
        ..ZoneLimits::NONE
    }
}
