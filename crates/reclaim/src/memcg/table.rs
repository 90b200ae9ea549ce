//! The table of groups: memory, creation, removal.
//!
//! ```text
//! caller's memory:  │ State │ slot 0 = root │ slot 1 │ ... │ CPU 0's stock │ CPU 1's stock │ ... │
//! ```
//!
//! Removing a group: it goes offline (no charge after this), every CPU's stock is drained, the page lists move its pages,
//! it leaves the tree, its bias is dropped. Its number is free again when the last payer word that names it has gone.

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kmem_sync::{Cpu, IrqLock, PerCpu, const_fn};

use crate::GroupId;
use crate::memcg::MemcgEnv;
use crate::memcg::slot::{BIAS, FREEING, LINGERS, NONE, ONLINE, Slot, TAKEN};
use crate::memcg::stock::{CpuStock, Flushed};
use crate::memcg::tree::Tree;
use crate::memcg::views::Stat;

/// A limit that nothing reaches: `max` in the files.
pub const PAGES_MAX: u64 = u64::MAX;

/// How large a table is, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcgConfig {
    /// Places for groups, the root's included. A group that has gone keeps its place until nothing refers to it.
    pub nr_groups: u32,
    /// Whether what a parent protects and no child claims is spread among the children (`memory_recursiveprot`).
    pub recursive_protection: bool,
    /// Whether kernel memory is charged; `false` is the boot option `cgroup.memory=nokmem`.
    pub kernel_memory: bool,
}

impl MemcgConfig {
    /// For `nr_groups` groups with the root: recursive protection, kernel memory charged.
    pub const fn new(nr_groups: u32) -> Self {
        Self { nr_groups, recursive_protection: true, kernel_memory: true }
    }
}

/// Why a group was not made, removed or configured. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The table has no memory yet.
    #[error("there is no table of memory cgroups")]
    NotReady,
    /// The table has got its memory before.
    #[error("the table of memory cgroups exists already")]
    AlreadyReady,
    /// A table has at least the root and at most `u32::MAX - 1` groups, and its size must be expressible.
    #[error("a table cannot have {0} groups")]
    BadSize(u32),
    /// No such group, or not any more.
    #[error("memory cgroup {} does not exist", .0.0)]
    NoSuchGroup(GroupId),
    /// Every place is taken.
    #[error("all {0} memory cgroups are in use")]
    TableFull(u32),
    /// A group with children stays.
    #[error("memory cgroup {} has children", .0.0)]
    HasChildren(GroupId),
    /// The root can be neither removed nor limited.
    #[error("the root memory cgroup has no limits and stays")]
    IsRoot,
    /// Swappiness is 0 to 200.
    #[error("swappiness {0} is not in 0..=200")]
    BadSwappiness(u8),
}

/// What an initialised table knows.
///
/// # Invariants
/// `slots` points to `config.nr_groups` initialised places that live as long as the table; place 0 is the root's and always
/// online.
#[derive(Debug)]
pub(crate) struct State {
    slots: NonNull<Slot>,
    pub(crate) config: MemcgConfig,
    pub(crate) stocks: PerCpu<CpuStock>,
    pub(crate) tree: IrqLock<Tree>,
    /// Where the search for a free place begins.
    hint: AtomicU32,
}

// SAFETY: gives out shared references to `Sync` types.
unsafe impl Sync for State {}

impl State {
    /// The place of a group; `None` if the table is smaller.
    #[inline(always)]
    pub(crate) fn slot(&self, group: GroupId) -> Option<&Slot> {
        if group.0 >= self.config.nr_groups {
            return None;
        }
        // SAFETY: below `nr_groups` (type invariant).
        Some(unsafe { self.slots.add(group.0 as usize).as_ref() })
    }

    /// A group and its ancestors, up to and with the root.
    pub(crate) fn up_from(&self, group: GroupId) -> impl Iterator<Item = (GroupId, &Slot)> {
        let mut at = Some(group);
        core::iter::from_fn(move || {
            let group = at?;
            let slot = self.slot(group)?;
            at = slot.parent();
            Some((group, slot))
        })
    }

    /// The levels that a charge to `group` counts in: as [`up_from`](Self::up_from) without the root, whose line every CPU
    /// would write.
    #[inline]
    pub(crate) fn levels_from(&self, group: GroupId) -> impl Iterator<Item = (GroupId, &Slot)> {
        self.up_from(group).take_while(|&(at, _)| at != GroupId::ROOT)
    }

    /// The first of a group and its ancestors that is online. The caller holds a reference to the group.
    pub(crate) fn online_from(&self, group: GroupId) -> GroupId {
        self.up_from(group).find(|(_, slot)| slot.is_online()).map_or(GroupId::ROOT, |(group, _)| group)
    }

    /// A group and its place, if it takes charges.
    pub(crate) fn online(&self, group: GroupId) -> Option<&Slot> {
        self.slot(group).filter(|slot| slot.is_online())
    }

    /// Drops references. The last one of a group that has left the tree frees its number.
    pub(crate) fn put_refs(&self, group: GroupId, refs: u64) {
        let Some(slot) = self.slot(group) else { return };
        if refs == 0 {
            return;
        }
        // Release: what the holder did to the group comes before its end. Acquire in `finish` pairs.
        let left = slot.life.fetch_sub(refs, Ordering::AcqRel).wrapping_sub(refs);
        if left == TAKEN {
            self.finish(group);
        }
    }

    /// Frees the place of a group without references, and then its parent's if this was the last reference to that.
    #[cold]
    fn finish(&self, group: GroupId) {
        let mut at = group;
        while let Some(slot) = self.slot(at) {
            if slot.life.compare_exchange(TAKEN, FREEING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                return;
            }
            let parent = slot.parent();
            if let Some(above) = parent.filter(|&parent| parent != GroupId::ROOT).and_then(|parent| self.slot(parent)) {
                // Whatever a change under way told the parent after the group had gone offline.
                above.children_min.fetch_sub(slot.protected_min.swap(0, Ordering::Relaxed), Ordering::Relaxed);
                above.children_low.fetch_sub(slot.protected_low.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
            self.move_stats(slot, parent);
            slot.life.fetch_sub(FREEING, Ordering::Release);
            self.hint.store(at.0, Ordering::Relaxed);
            let Some(parent) = parent else { return };
            let Some(above) = self.slot(parent) else { return };
            if above.life.fetch_sub(1, Ordering::AcqRel).wrapping_sub(1) != TAKEN {
                return;
            }
            at = parent;
        }
    }

    /// Adds what is left of a gone group's statistics to the nearest group above that lives.
    fn move_stats(&self, slot: &Slot, parent: Option<GroupId>) {
        let Some(heir) = parent.map(|parent| self.online_from(parent)).and_then(|heir| self.slot(heir)) else { return };
        for stat in Stat::ALL {
            let left = slot.stats.get(stat as usize).map_or(0, |count| count.swap(0, Ordering::Relaxed));
            if left != 0 {
                heir.add_stat(stat, left);
            }
        }
    }

    /// Takes a free place; its life is [`TAKEN`] with a bias.
    fn take_place(&self) -> Option<GroupId> {
        let nr = self.config.nr_groups;
        let start = self.hint.load(Ordering::Relaxed);
        let found = (0..nr)
            .map(|i| GroupId((start % nr).wrapping_add(i) % nr))
            .filter(|&id| id != GroupId::ROOT)
            .find(|&id| {
                // Acquire pairs with the release in `finish`.
                self.slot(id).is_some_and(|slot| {
                    slot.life.compare_exchange(0, TAKEN | BIAS, Ordering::AcqRel, Ordering::Relaxed).is_ok()
                })
            })?;
        self.hint.store(found.0.wrapping_add(1) % nr, Ordering::Relaxed);
        Some(found)
    }

    /// Tells a group what an entry of a stock held.
    pub(crate) fn settle(&self, flushed: Flushed) {
        let group = GroupId(flushed.group);
        let Some(slot) = self.slot(group) else { return };
        if flushed.pages != 0 {
            self.uncount(group, flushed.pages);
        }
        if flushed.refs != 0 {
            slot.add_stat(Stat::Kernel, flushed.refs);
            // The group is in the tree as long as a stock has an entry for it, so its bias is there: no last reference.
            slot.life.fetch_add(flushed.refs as u64, Ordering::AcqRel);
        }
    }

    /// Gives back everything that the CPUs have in stock. Sleepable contexts with interrupts on; a barrier on all CPUs for
    /// each of them.
    #[cold]
    pub(crate) fn drain<C: Cpu>(&self, cpu: &C) {
        for (_, slot) in self.stocks.iter() {
            slot.with_revoked(cpu, |stock| {
                while let Some((group, bytes)) = stock.flush_any_bytes() {
                    self.settle_bytes(GroupId(group), bytes);
                }
                while let Some(flushed) = stock.flush_any() {
                    self.settle(flushed);
                }
            });
        }
    }
}

/// The memory cgroups of a machine.
///
/// Made empty, for statics; [`init`](Self::init) gives it memory. All methods may be called at any time, by several CPUs at
/// once, in the contexts that they name.
#[derive(Debug)]
pub struct Memcg<E: MemcgEnv> {
    pub(crate) env: E,
    state: AtomicPtr<State>,
}

impl<E: MemcgEnv> Memcg<E> {
    const_fn! {
        /// No groups: everybody is in the root, nothing is charged.
        pub fn new(env: E) -> Self {
            Self { env, state: AtomicPtr::new(core::ptr::null_mut()) }
        }
    }

    /// The memory that a table needs; `None` if there cannot be one of that size.
    pub fn layout(config: &MemcgConfig, nr_cpus: u32) -> Option<Layout> {
        Self::parts(config, nr_cpus).map(|(layout, ..)| layout)
    }

    fn parts(config: &MemcgConfig, nr_cpus: u32) -> Option<(Layout, usize, usize)> {
        if config.nr_groups == 0 || config.nr_groups == NONE {
            return None;
        }
        let slots = Layout::array::<Slot>(config.nr_groups as usize).ok()?;
        let (layout, slots_at) = Layout::new::<State>().extend(slots).ok()?;
        let (layout, stocks_at) = layout.extend(PerCpu::<CpuStock>::layout(nr_cpus)?).ok()?;
        Some((layout.pad_to_align(), slots_at, stocks_at))
    }

    /// Gives the table its memory and makes the root group. O(groups + CPUs).
    ///
    /// # Errors
    /// [`GroupError::BadSize`] for a size that no table can have; [`GroupError::AlreadyReady`] the second time.
    ///
    /// # Safety
    /// `memory` has the size and alignment of [`layout`](Self::layout) for this `config` and the environment's CPUs, and is
    /// the table's alone for as long as the table is used.
    pub unsafe fn init(&self, memory: NonNull<u8>, config: MemcgConfig) -> Result<(), GroupError> {
        let nr_cpus = self.env.cpu().nr_cpus();
        let (_, slots_at, stocks_at) = Self::parts(&config, nr_cpus).ok_or(GroupError::BadSize(config.nr_groups))?;
        if self.state().is_some() {
            return Err(GroupError::AlreadyReady);
        }
        // SAFETY: inside the memory, by the layout that `parts` has just computed; each part is aligned by it.
        let (slots, stocks) = unsafe { (memory.add(slots_at).cast::<Slot>(), memory.add(stocks_at)) };
        for index in 0..config.nr_groups as usize {
            // SAFETY: as above.
            unsafe { slots.add(index).write(Slot::new()) };
        }
        // SAFETY: as above; the caller leaves the memory to the table.
        let stocks = unsafe { PerCpu::init(stocks, nr_cpus, |_| CpuStock::new()) };
        // INVARIANT: all places have just been written.
        let state = State { slots, config, stocks, tree: IrqLock::new(Tree::new()), hint: AtomicU32::new(1) };
        if let Some(root) = state.slot(GroupId::ROOT) {
            root.linked.store(true, Ordering::Relaxed);
            root.life.store(ONLINE | TAKEN | BIAS, Ordering::Relaxed);
        }
        let place = memory.cast::<State>();
        // SAFETY: at the start of the memory, aligned by the layout.
        unsafe { place.write(state) };
        // Release pairs with the acquire in `state`.
        self.state
            .compare_exchange(core::ptr::null_mut(), place.as_ptr(), Ordering::Release, Ordering::Relaxed)
            .map(|_| ())
            .map_err(|_| GroupError::AlreadyReady)
    }

    /// What the table knows; `None` before `init`.
    #[inline(always)]
    pub(crate) fn state(&self) -> Option<&State> {
        // SAFETY: null, or written by `init` and left alone since; acquire pairs with the release there.
        unsafe { self.state.load(Ordering::Acquire).as_ref() }
    }

    /// The table's surroundings.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// Whether the table has memory.
    pub fn is_ready(&self) -> bool {
        self.state().is_some()
    }

    /// Makes a group under `parent`, without limits or protection. Sleepable contexts; O(groups) at worst.
    ///
    /// # Errors
    /// [`GroupError::NoSuchGroup`] for a parent that is not there; [`GroupError::TableFull`].
    pub fn create(&self, parent: GroupId) -> Result<GroupId, GroupError> {
        let state = self.state().ok_or(GroupError::NotReady)?;
        let full = GroupError::TableFull(state.config.nr_groups);
        let group = match state.take_place() {
            Some(group) => group,
            None => {
                self.reap();
                state.take_place().ok_or(full)?
            }
        };
        let slot = state.slot(group).ok_or(full)?;
        // Whoever gives the place up again has no parent to tell.
        slot.reset(None, 0, 0);
        let made = state.tree.with(self.env.cpu(), |tree| {
            let above = state.online(parent)?;
            // The place's reference to its parent, which is online and stays so under the lock.
            above.life.fetch_add(1, Ordering::Relaxed);
            slot.reset(Some(parent), above.depth.load(Ordering::Relaxed).wrapping_add(1), tree.next_serial());
            tree.link(state, parent, group);
            // Release pairs with the acquire in `is_online`.
            slot.life.fetch_or(ONLINE, Ordering::Release);
            Some(group)
        });
        made.ok_or_else(|| {
            state.put_refs(group, BIAS);
            GroupError::NoSuchGroup(parent)
        })
    }

    /// Takes a group away. What is still charged to it counts in its ancestors alone from now on, and is uncharged there;
    /// its number is given out again when nothing refers to it. The platform has moved its tasks. May sleep, interrupts on.
    ///
    /// # Errors
    /// [`GroupError::IsRoot`], [`GroupError::NoSuchGroup`], [`GroupError::HasChildren`].
    pub fn remove(&self, group: GroupId) -> Result<(), GroupError> {
        let state = self.state().ok_or(GroupError::NotReady)?;
        if group == GroupId::ROOT {
            return Err(GroupError::IsRoot);
        }
        let cpu = self.env.cpu();
        let (slot, parent) = state.tree.with(cpu, |_| {
            let slot = state.online(group).ok_or(GroupError::NoSuchGroup(group))?;
            let parent = slot.parent().ok_or(GroupError::IsRoot)?;
            if slot.first_child.load(Ordering::Relaxed) != NONE {
                return Err(GroupError::HasChildren(group));
            }
            slot.life.fetch_and(!ONLINE, Ordering::AcqRel);
            Ok((slot, parent))
        })?;
        slot.max.store(PAGES_MAX, Ordering::Relaxed);
        slot.min.store(0, Ordering::Relaxed);
        slot.low.store(0, Ordering::Relaxed);
        state.tell(group, 0);
        // Offline first: a section that opens after its CPU has been drained sees it and makes no entry.
        state.drain(cpu);
        self.env.reparent(group, parent);
        state.move_stats(slot, Some(parent));
        state.tree.with(cpu, |tree| tree.unlink(state, group));
        self.let_go(state, group);
        Ok(())
    }

    /// Drops the bias of a group that has left the tree, as soon as the lists have forgotten it.
    fn let_go(&self, state: &State, group: GroupId) {
        if self.env.forget(group) {
            state.put_refs(group, BIAS);
        } else if let Some(slot) = state.slot(group) {
            slot.life.fetch_or(LINGERS, Ordering::AcqRel);
        }
    }

    /// Asks again after groups that have gone but whose pages were in somebody's hands. Done by [`create`](Self::create) when
    /// the table is full. Sleepable contexts; O(groups).
    pub fn reap(&self) {
        let Some(state) = self.state() else { return };
        for group in (0..state.config.nr_groups).map(GroupId) {
            let lingers = |slot: &Slot| slot.life.load(Ordering::Relaxed) & LINGERS != 0;
            let Some(slot) = state.slot(group).filter(|slot| lingers(slot)) else { continue };
            // One claims it.
            if slot.life.fetch_and(!LINGERS, Ordering::AcqRel) & LINGERS != 0 {
                self.let_go(state, group);
            }
        }
    }

    /// Gives back what all CPUs have in stock, so that usage is exact. May sleep, interrupts on.
    pub fn drain_stocks(&self) {
        if let Some(state) = self.state() {
            state.drain(self.env.cpu());
        }
    }

    /// Whether the number is free: no group, and nothing refers to the one that had it last. Any context.
    pub fn is_free(&self, group: GroupId) -> bool {
        self.state().and_then(|state| state.slot(group)).is_none_or(|slot| slot.life.load(Ordering::Relaxed) == 0)
    }

    /// The group above; `None` for the root and for a group that does not exist. Any context.
    pub fn parent(&self, group: GroupId) -> Option<GroupId> {
        self.state()?.online(group)?.parent()
    }

    /// The nearest group at or above `group` that takes charges: where pages of a group that has gone belong. Any context.
    /// The caller keeps the number alive (a payer word names it, or a task is in it).
    pub fn resolve(&self, group: GroupId) -> GroupId {
        self.state().map_or(GroupId::ROOT, |state| state.online_from(group))
    }
}
