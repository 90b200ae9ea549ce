//! What one machine's kmalloc is made with.

use core::ops::Range;

use kmem_gfp::Gfp;
use kmem_slab::SlabFlags;

use crate::MinAlign;

/// Properties of the machine that decide which caches exist. The default is right for a machine without a DMA zone,
/// without memory cgroups, and with coherent devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KmallocConfig {
    /// The alignment that every block has at least (`ARCH_KMALLOC_MINALIGN`). It removes the classes that cannot
    /// keep it.
    pub min_align: MinAlign,
    /// Whether the machine has a DMA zone: gives [`Gfp::DMA`] requests caches of their own.
    pub dma: bool,
    /// Whether memory is charged to groups: gives [`Gfp::ACCOUNT`] requests caches of their own.
    pub cgroup: bool,
    /// Whether normal requests that carry a [`PartitionToken`](crate::PartitionToken) are spread over fifteen more
    /// sets of caches.
    pub partitions: bool,
    /// Flags that every cache gets besides its own: debug options, say.
    pub flags: SlabFlags,
    /// The addresses of the kernel's constant data: [`kstrdup_const`](crate::Kmalloc::kstrdup_const) does not copy a
    /// string that lies in there.
    pub rodata: Range<usize>,
}

/// The flags that [`kmalloc_nolock`](crate::Kmalloc::kmalloc_nolock) permits.
pub(crate) const NOLOCK_FLAGS: Gfp = Gfp::ZERO.union(Gfp::ACCOUNT);
