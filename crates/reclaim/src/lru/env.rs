//! What the lists take from their surroundings.

use kmem_gfp::{FrameTable, NodeId, PageAllocator, Pfn, ZoneKind};
use kmem_sync::Cpu;

use super::{OwnerId, PageOwner};
use crate::{GroupId, Groups};

/// The platform as the page lists see it; usually a reference or a zero-sized type.
pub trait LruEnv: Sync {
    /// The platform's CPUs.
    type Cpu: Cpu;
    /// Where the frames' words are.
    type Frames: FrameTable;
    /// Where evicted frames go.
    type Pages: PageAllocator;
    /// The memory cgroups.
    type Groups: Groups;

    /// The platform's CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// Where the frames' words are.
    fn frames(&self) -> &Self::Frames;
    /// Where evicted frames go.
    fn pages(&self) -> &Self::Pages;
    /// The memory cgroups; [`NoGroups`](crate::NoGroups) if there are none.
    fn groups(&self) -> &Self::Groups;

    /// The owner with this number. `None` if there is none (any more): its pages stay where they are.
    fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner>;

    /// Which zone of which node a frame lies in. Constant for a frame.
    fn zone_of(&self, pfn: Pfn) -> (NodeId, ZoneKind);

    /// Free pages of swap; 0 if there is no swap. Any context.
    fn swap_free(&self) -> u64 {
        0
    }

    /// How many pages the sum of a node's high watermarks exceeds its free pages by: file lists smaller than that are "tiny"
    /// . Any context.
    fn shortfall(&self, node: NodeId) -> u64 {
        let _ = node;
        0
    }

    /// A monotonic clock in milliseconds.
    fn now_ms(&self) -> u64 {
        0
    }

    /// Walks the page tables of a group (with [`GroupId::ROOT`]: those of the tasks that are in no other group), clears the
    /// accessed marks, and calls `young` with every frame on `node` that had one. Without such a walk, the default,
    /// generations learn of accesses when they get to a page.
    ///
    /// Called with no lock held, on behalf of reclaim; it may leave out what it cannot have at once.
    fn walk_accessed(&self, node: NodeId, group: GroupId, young: &mut dyn FnMut(Pfn)) {
        let _ = (node, group, young);
    }
}

impl<E: LruEnv> LruEnv for &E {
    type Cpu = E::Cpu;
    type Frames = E::Frames;
    type Pages = E::Pages;
    type Groups = E::Groups;

    #[inline(always)]
    fn cpu(&self) -> &E::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn frames(&self) -> &E::Frames {
        (**self).frames()
    }
    #[inline(always)]
    fn pages(&self) -> &E::Pages {
        (**self).pages()
    }
    #[inline(always)]
    fn groups(&self) -> &E::Groups {
        (**self).groups()
    }
    #[inline(always)]
    fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        (**self).owner(id)
    }
    #[inline(always)]
    fn zone_of(&self, pfn: Pfn) -> (NodeId, ZoneKind) {
        (**self).zone_of(pfn)
    }
    fn swap_free(&self) -> u64 {
        (**self).swap_free()
    }
    fn shortfall(&self, node: NodeId) -> u64 {
        (**self).shortfall(node)
    }
    fn now_ms(&self) -> u64 {
        (**self).now_ms()
    }
    fn walk_accessed(&self, node: NodeId, group: GroupId, young: &mut dyn FnMut(Pfn)) {
        (**self).walk_accessed(node, group, young);
    }
}
