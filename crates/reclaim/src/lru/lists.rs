//! The page lists of a machine, in memory that their owner gives.
//!
//! ```text
//! memory: │ Vector (node 0, group 0) │ (0, 1) │ ... │ (1, 0) │ ... │ NodeCounts 0, 1 │ a batch for each CPU │
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_gfp::{FrameTable, FrameWords, NodeId, PageAllocator, Pfn, ZoneKind};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, PerCpu};

use super::hands::CpuLists;
use super::policy::Policy;
use super::section::Section;
use super::vector::{Kind, NodeCounts, Tally, Vector};
use super::word::{GROUP_LIMIT, NODE_LIMIT, OwnerWord};
use super::{LruEnv, PageKind};
use crate::{GroupId, Groups, ListCounts, PageLists, Protection, Scan};

/// Why lists cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// No group, or more than the frame words can tell apart.
    #[error("{given} groups; there can be 1 to {limit}")]
    Groups {
        /// What was asked for.
        given: u32,
        /// What there can be.
        limit: u32,
    },
    /// No node, or more than the frame words can tell apart.
    #[error("{given} nodes; there can be 1 to {limit}")]
    Nodes {
        /// What the page source says.
        given: u32,
        /// What there can be.
        limit: u32,
    },
    /// The size does not fit the address space.
    #[error("the lists of {groups} groups on {nodes} nodes fit no address space")]
    TooLarge {
        /// Groups.
        groups: u32,
        /// Nodes.
        nodes: u32,
    },
}

/// The reclaimable pages of a machine under a replacement policy: [`Classic`](super::Classic) or
/// [`Generations`](super::Generations).
///
/// # Invariants
/// 1. `vectors` points to `nr_nodes * max_groups` and `nodes` to `nr_nodes` initialised values that live as long as this.
/// 2. A page whose owner word says `Listed` is linked in exactly the chain that the word names, once.
#[derive(Debug)]
pub struct Lists<E: LruEnv, P: Policy> {
    pub(crate) env: E,
    vectors: NonNull<Vector<P>>,
    nodes: NonNull<NodeCounts>,
    pub(crate) cpus: PerCpu<CpuLists>,
    /// Stretches begun and ended where no CPU could be had.
    pub(crate) off_cpu: (AtomicU64, AtomicU64),
    nr_nodes: u32,
    max_groups: u32,
    pub(crate) min_ttl_ms: AtomicU64,
}

// SAFETY: what the pointers lead to is `Sync` (locks and atomics, `P: Send`, `P::Shared: Sync`) and is reached by shared
// reference only (invariant 1).
unsafe impl<E: LruEnv, P: Policy> Sync for Lists<E, P> {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl<E: LruEnv + Send, P: Policy> Send for Lists<E, P> {}

struct Parts {
    whole: Layout,
    nodes: usize,
    batches: usize,
}

fn parts<P: Policy>(cpus: u32, nodes: u32, groups: u32) -> Option<Parts> {
    let vectors = Layout::array::<Vector<P>>((nodes as usize).checked_mul(groups as usize)?).ok()?;
    let (layout, nodes) = vectors.extend(Layout::array::<NodeCounts>(nodes as usize).ok()?).ok()?;
    let (layout, batches) = layout.extend(PerCpu::<CpuLists>::layout(cpus)?).ok()?;
    Some(Parts { whole: layout.pad_to_align(), nodes, batches })
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    fn checked(env: &E, max_groups: u32) -> Result<(Parts, u32), SetupError> {
        if max_groups == 0 || max_groups > GROUP_LIMIT {
            return Err(SetupError::Groups { given: max_groups, limit: GROUP_LIMIT });
        }
        let nodes = env.pages().nr_nodes();
        if nodes == 0 || nodes > NODE_LIMIT {
            return Err(SetupError::Nodes { given: nodes, limit: NODE_LIMIT });
        }
        match parts::<P>(env.cpu().nr_cpus(), nodes, max_groups) {
            Some(parts) => Ok((parts, nodes)),
            None => Err(SetupError::TooLarge { groups: max_groups, nodes }),
        }
    }

    /// The memory that lists for groups below `max_groups` need; 1 for a machine without groups.
    ///
    /// # Errors
    /// [`SetupError`] if there can be no such lists.
    pub fn layout(env: &E, max_groups: u32) -> Result<Layout, SetupError> {
        Ok(Self::checked(env, max_groups)?.0.whole)
    }

    /// Empty lists in `memory`.
    ///
    /// # Errors
    /// As for [`layout`](Self::layout).
    ///
    /// # Safety
    /// `memory` has the [`layout`](Self::layout) for the same arguments, is unused, and stays the lists' alone for as long as
    /// they live. No frame's words have the tag [`OwnerTag::Lru`](kmem_gfp::OwnerTag::Lru) but by way of these lists.
    pub unsafe fn new(env: E, memory: NonNull<u8>, max_groups: u32) -> Result<Self, SetupError> {
        let (parts, nr_nodes) = Self::checked(&env, max_groups)?;
        let vectors = memory.cast::<Vector<P>>();
        for at in 0..nr_nodes as usize * max_groups as usize {
            // SAFETY: inside the memory, by its layout.
            unsafe { vectors.add(at).write(Vector::new()) };
        }
        // SAFETY: as above.
        let nodes = unsafe { memory.add(parts.nodes) }.cast::<NodeCounts>();
        for at in 0..nr_nodes as usize {
            // SAFETY: as above.
            unsafe { nodes.add(at).write(NodeCounts::default()) };
        }
        // SAFETY: as above; the slots are this value's alone.
        let cpus = unsafe { PerCpu::init(memory.add(parts.batches), env.cpu().nr_cpus(), |_| CpuLists::default()) };
        // INVARIANT: everything has just been written (1); no page is listed (2).
        let off_cpu = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { env, vectors, nodes, cpus, off_cpu, nr_nodes, max_groups, min_ttl_ms: AtomicU64::new(0) })
    }

    /// The surroundings that the lists were made with.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// Group numbers are below this.
    pub fn max_groups(&self) -> u32 {
        self.max_groups
    }

    /// The lists of a group on a node; `None` if there is no such node or group.
    pub(crate) fn vector(&self, node: NodeId, group: GroupId) -> Option<&Vector<P>> {
        if node.0 >= self.nr_nodes || group.0 >= self.max_groups {
            return None;
        }
        let at = node.index() * self.max_groups as usize + group.0 as usize;
        // SAFETY: below the number of vectors (invariant 1).
        Some(unsafe { self.vectors.add(at).as_ref() })
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<&NodeCounts> {
        // SAFETY: below the number of nodes (invariant 1).
        (node.0 < self.nr_nodes).then(|| unsafe { self.nodes.add(node.index()).as_ref() })
    }

    pub(crate) fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        self.env.frames().words(pfn)
    }

    pub(crate) fn owner_word(&self, pfn: Pfn) -> OwnerWord {
        // Acquire pairs with the releases that add, list and isolate a page.
        self.words(pfn).map_or(OwnerWord::NONE, |words| OwnerWord(words.owner.load(Ordering::Acquire)))
    }

    /// Runs `f` with a vector's lock held; `None` if there is no such vector.
    pub(crate) fn section<R>(
        &self,
        node: NodeId,
        group: GroupId,
        f: impl FnOnce(&mut Section<'_, E, P>) -> R,
    ) -> Option<R> {
        let vector = self.vector(node, group)?;
        Some(vector.lock.with(self.env.cpu(), |inner| {
            let mut section = Section { lists: self, vector, node, group, inner, tally: Tally::default() };
            let result = f(&mut section);
            section.tally.flush(&vector.counts, self.node(node));
            result
        }))
    }

    /// An isolated page is counted with another group.
    pub(crate) fn move_isolated(&self, node: NodeId, from: GroupId, to: GroupId, kind: PageKind) {
        for (group, n) in [(from, -1), (to, 1)] {
            if let Some(vector) = self.vector(node, group) {
                vector.counts.add(Kind::isolated(kind), n);
            }
        }
    }

    /// An isolated page has left the lists.
    pub(crate) fn uncount_isolated(&self, word: OwnerWord, kind: PageKind) {
        if let Some(vector) = self.vector(word.node(), word.group()) {
            vector.counts.add(Kind::isolated(kind), -1);
        }
        if let Some(zone) = self.node(word.node()).and_then(|node| node.0.get(word.zone())) {
            zone.add(Kind::isolated(kind), -1);
        }
    }
}

impl<E: LruEnv, P: Policy> Drop for Lists<E, P> {
    fn drop(&mut self) {
        for at in 0..self.nr_nodes as usize * self.max_groups as usize {
            // SAFETY: initialised (invariant 1), and nobody uses it after this.
            unsafe { self.vectors.add(at).drop_in_place() };
        }
    }
}

impl<E: LruEnv, P: Policy> PageLists for Lists<E, P> {
    fn shrink(&self, node: NodeId, group: GroupId, protection: Protection, scan: &mut Scan<'_>) {
        // What this CPU has just added counts as well.
        self.drain_local();
        P::shrink(self, node, group, protection, scan);
    }

    fn age(&self, node: NodeId, group: GroupId, scan: &mut Scan<'_>) {
        P::age(self, node, group, scan);
    }

    fn counts(&self, node: NodeId, zone: Option<ZoneKind>) -> ListCounts {
        let mut sum = ListCounts::default();
        let zones = self.node(node).map_or(&[][..], |node| &node.0);
        for (at, counts) in zones.iter().enumerate() {
            if zone.is_none_or(|zone| zone.index() == at) {
                counts.add_to(&mut sum);
            }
        }
        sum
    }

    fn group_counts(&self, node: NodeId, group: GroupId) -> ListCounts {
        let mut sum = ListCounts::default();
        if let Some(vector) = self.vector(node, group) {
            vector.counts.add_to(&mut sum);
        }
        sum
    }

    fn reparent(&self, group: GroupId, parent: GroupId) {
        self.reparent_pages(group, parent);
    }
}

/// Gives back the charge of one page.
pub(crate) fn uncharge<E: LruEnv>(env: &E, group: GroupId) {
    env.groups().uncharge(group, 1);
}
