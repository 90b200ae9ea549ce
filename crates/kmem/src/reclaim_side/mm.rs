//! [`Mm`]: the parts of reclaim of one machine, in memory that the caller gives.

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_gfp::PfnRange;
use kmem_reclaim::lru::{Generations, SetupError};
use kmem_reclaim::memcg::{GroupError, Memcg, MemcgConfig, PagePayers};
use kmem_reclaim::oom::Oom;
use kmem_reclaim::psi::{Pressure, Psi};
use kmem_reclaim::{Node, Reclaim, RegisterError, ShrinkerSlot};
use kmem_sync::Cpu;

use super::drains::{ObjectDrain, RangeDrain};
use super::platform::ReclaimPlatform;
use super::side::ReclaimSide;
use crate::Kmem;

/// What the parts are to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmConfig {
    /// Places for memory cgroups, the root's included; 1 for a machine without: it then charges nobody.
    pub groups: u32,
    /// The frames that may have payers: those of the machine's memory. 4 bytes each, with more than one group.
    pub frames: PfnRange,
    /// Whether memory is compacted.
    pub compaction: bool,
}

/// Why there is no [`Mm`]. The machine is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MmError {
    /// A part would be too large for the address space.
    #[error("the parts of reclaim for {groups} groups fit no address space")]
    TooLarge {
        /// Groups asked for.
        groups: u32,
    },
    /// The caller had no memory for a part.
    #[error("no {0} bytes of memory for reclaim's own state")]
    NoMemory(usize),
    /// The page lists.
    #[error(transparent)]
    Lists(#[from] SetupError),
    /// The groups.
    #[error("memory cgroups: {0}")]
    Groups(GroupError),
    /// A shrinker of the allocators themselves.
    #[error(transparent)]
    Shrinker(#[from] RegisterError),
}

/// Reclaim of one machine: made by [`set_up`](Self::set_up), installed in the platform's
/// [`MmReclaimer`](crate::MmReclaimer), there for good.
///
/// A platform runs [`Reclaim::kswapd_run`] of the [`engine`](Self::engine) in a thread for each node, and
/// [`Oom::reap`] in one for the machine.
#[derive(Debug)]
pub struct Mm<P: ReclaimPlatform> {
    pub(super) engine: Reclaim<ReclaimSide<P>>,
    pub(super) lists: Generations<ReclaimSide<P>>,
    pub(super) groups: Memcg<ReclaimSide<P>>,
    pub(super) killer: Oom<ReclaimSide<P>>,
    pub(super) pressure: Psi<P::Cpu>,
    pub(super) payers: PagePayers,
    pub(super) nodes: &'static [Node],
    pub(super) config: MmConfig,
    pub(super) side: ReclaimSide<P>,
    objects: ObjectDrain<P>,
    ranges: RangeDrain<P>,
}

/// Memory from the caller, piece by piece.
struct Memory<F>(F);

impl<F: FnMut(Layout) -> Option<NonNull<u8>>> Memory<F> {
    fn take(&mut self, layout: Option<Layout>, config: &MmConfig) -> Result<NonNull<u8>, MmError> {
        let layout = layout.ok_or(MmError::TooLarge { groups: config.groups })?;
        (self.0)(layout).ok_or(MmError::NoMemory(layout.size()))
    }

    /// Values made one by one.
    ///
    /// # Safety
    /// As for [`Mm::set_up`].
    unsafe fn slice<T>(
        &mut self,
        nr: u32,
        config: &MmConfig,
        make: impl Fn(u32) -> T,
    ) -> Result<&'static [T], MmError> {
        let memory = self.take(Layout::array::<T>(nr as usize).ok(), config)?.cast::<T>();
        for index in 0..nr {
            // SAFETY: inside the memory, by its layout.
            unsafe { memory.add(index as usize).write(make(index)) };
        }
        // SAFETY: all of it has been written; nobody else uses it (the caller's promise).
        Ok(unsafe { NonNull::slice_from_raw_parts(memory, nr as usize).as_ref() })
    }
}

impl<P: ReclaimPlatform> Mm<P> {
    /// Sets reclaim up over running allocators. `memory` is asked for each part's memory by its layout, which may come from
    /// the machine's page allocator. May sleep as far as that does. The caller then
    /// [installs](crate::MmReclaimer::install) it.
    ///
    /// # Errors
    /// [`MmError`]. What `memory` gave is not used any more.
    ///
    /// # Safety
    /// Memory that `memory` returns has the layout asked for and is used by nobody else for as long as the machine exists.
    /// Called once for a machine.
    pub unsafe fn set_up(
        kmem: &'static Kmem<P>,
        config: MmConfig,
        memory: impl FnMut(Layout) -> Option<NonNull<u8>>,
    ) -> Result<&'static Self, MmError> {
        let mut memory = Memory(memory);
        let platform = &kmem.platform;
        let nr_cpus = platform.cpu().nr_cpus();
        let nr_nodes = kmem_gfp::PageAllocator::nr_nodes(&kmem.pages);
        let place = memory.take(Some(Layout::new::<Self>()), &config)?.cast::<Self>();
        // INVARIANT: `place` is written below, before any part is used.
        let side = ReclaimSide::new(kmem, place);

        // SAFETY: the caller's promise, here and below.
        let nodes = unsafe { memory.slice(nr_nodes, &config, |_| Node::new()) }?;
        let lists_at = memory.take(Some(Generations::layout(&side, config.groups)?), &config)?;
        // SAFETY: memory of that layout, given for good; no page has been added to other lists.
        let lists = unsafe { Generations::new(side, lists_at, config.groups) }?;
        let pressure_at = memory.take(Psi::<P::Cpu>::layout(nr_cpus), &config)?;
        // SAFETY: as above.
        let pressure = unsafe { Psi::new(*platform.cpu(), pressure_at, platform.now_us()) };
        let groups = Memcg::new(side);
        let mut payers = PagePayers::empty();
        if config.groups > 1 {
            let table = MemcgConfig::new(config.groups);
            let table_at = memory.take(Memcg::<ReclaimSide<P>>::layout(&table, nr_cpus), &config)?;
            // SAFETY: as above.
            unsafe { groups.init(table_at, table) }.map_err(MmError::Groups)?;
            let payers_at = memory.take(PagePayers::layout(config.frames.len()), &config)?;
            // SAFETY: as above.
            payers = unsafe { PagePayers::new(payers_at, config.frames.start, config.frames.len()) };
        }
        let parts = Self {
            engine: Reclaim::new(side),
            lists,
            groups,
            killer: Oom::new(side),
            pressure,
            payers,
            nodes,
            config,
            side,
            objects: ObjectDrain::new(kmem),
            ranges: RangeDrain::new(kmem),
        };
        // SAFETY: memory for this type.
        unsafe { place.write(parts) };
        // SAFETY: just written, and only shared from here on.
        let mm: &'static Self = unsafe { place.as_ref() };
        // SAFETY: as above.
        let slots = unsafe {
            memory.slice(2, &config, |index| match index {
                0 => ShrinkerSlot::new("slab-empty", &mm.objects),
                _ => ShrinkerSlot::new("vmap-node", &mm.ranges),
            })
        }?;
        for slot in slots {
            mm.engine.register_shrinker(slot)?;
        }
        Ok(mm)
    }

    /// kswapd, direct and proactive reclaim, shrinkers, counters.
    pub fn engine(&self) -> &Reclaim<ReclaimSide<P>> {
        &self.engine
    }

    /// The pages that reclaim may take.
    pub fn lists(&self) -> &Generations<ReclaimSide<P>> {
        &self.lists
    }

    /// The memory cgroups.
    pub fn groups(&self) -> &Memcg<ReclaimSide<P>> {
        &self.groups
    }

    /// The OOM killer.
    pub fn killer(&self) -> &Oom<ReclaimSide<P>> {
        &self.killer
    }

    /// The allocators that all this is over.
    pub fn kmem(&self) -> &'static Kmem<P> {
        self.side.kmem
    }

    /// Stalls up to this moment: `/proc/pressure/memory`.
    #[doc(alias = "/proc/pressure/memory")]
    pub fn pressure(&self) -> Pressure {
        self.pressure.update(self.side.platform().now_us())
    }
}
