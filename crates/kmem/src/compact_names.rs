//! Compaction under its names, and [`CompactOnly`], the reclaimer of a machine that compacts and does not reclaim.

use core::fmt;

use kmem_buddy::{Kcompactd, TuneError};
use kmem_gfp::{AllocContext, CompactOutcome, CompactPriority, NodeId, ReclaimRequest, Reclaimer};

use crate::{Kmem, Platform};

/// # Compaction
///
/// What lies between free pages moves if the platform says who moves it ([`Platform::movable_owner`]); the pools of compressed
/// objects do by themselves.
impl<P: Platform> Kmem<P> {
    /// Compacts all memory (`vm.compact_memory`, which is written as 1). Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`TuneError::OutOfRange`] for any other value.
    #[doc(alias = "/proc/sys/vm/compact_memory")]
    pub fn compact_memory(&self, value: u32) -> Result<(), TuneError> {
        self.pages().compact_memory(value)
    }

    /// Compacts one node. Only where sleeping is allowed.
    pub fn compact_node(&self, node: NodeId) {
        self.pages().compact_node(node);
    }

    /// Does the work of a node's compaction daemon; returns when to poll it again, in milliseconds of the same clock, if
    /// nobody [wakes](Kcompactd::wake) it before. Only where sleeping is allowed, one poll of a daemon at a time.
    pub fn kcompactd_poll(&self, daemon: &Kcompactd, now_ms: u64) -> Option<u64> {
        daemon.poll(self.pages(), now_ms)
    }
}

/// The reclaimer of a machine that compacts on behalf of requests but reclaims nothing: a kernel without page cache and
/// swap, whose movable memory has owners all the same.
///
/// ```
/// use kmem::sync::SingleCpu;
/// # use kmem::gfp::{FlatFrameTable, PlainContext};
/// # use kmem::sync::NoReaders;
/// use kmem::{CompactOnly, KmemCell, NoAddressSpace, Platform};
///
/// struct Board {
///     reclaimer: CompactOnly<Board>,
/// #   cpu: SingleCpu, context: PlainContext, grace: NoReaders, frames: FlatFrameTable, space: NoAddressSpace,
/// }
/// static KMEM: KmemCell<Board> = KmemCell::new();
///
/// impl Platform for Board {
///     type Reclaimer = CompactOnly<Board>;
///     fn reclaimer(&self) -> &CompactOnly<Board> { &self.reclaimer }
/// #   type Cpu = SingleCpu;
/// #   type Context = PlainContext;
/// #   type Grace = NoReaders;
/// #   type Frames = FlatFrameTable;
/// #   type Space = NoAddressSpace;
/// #   fn cpu(&self) -> &SingleCpu { &self.cpu }
/// #   fn context(&self) -> &PlainContext { &self.context }
/// #   fn grace(&self) -> &NoReaders { &self.grace }
/// #   fn frames(&self) -> &FlatFrameTable { &self.frames }
/// #   fn space(&self) -> &NoAddressSpace { &self.space }
///     // ...
/// }
///
/// let reclaimer: CompactOnly<Board> = CompactOnly::new(|| KMEM.get());
/// # let _ = reclaimer;
/// ```
pub struct CompactOnly<P: Platform>(fn() -> Option<&'static Kmem<P>>);

impl<P: Platform> CompactOnly<P> {
    /// `machine` tells whose memory is compacted, once there is such a machine.
    pub const fn new(machine: fn() -> Option<&'static Kmem<P>>) -> Self {
        Self(machine)
    }
}

impl<P: Platform> fmt::Debug for CompactOnly<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompactOnly").finish_non_exhaustive()
    }
}

impl<P: Platform> Reclaimer for CompactOnly<P> {
    fn can_reclaim(&self) -> bool {
        false
    }
    fn wake_background(&self, _node: NodeId, _request: &ReclaimRequest) {}
    fn reclaim(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> usize {
        0
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        (self.0)().map_or(CompactOutcome::Skipped, |kmem| kmem.pages().compact_zones(context, request, priority))
    }
    fn can_compact(&self) -> bool {
        (self.0)().is_some()
    }
}
