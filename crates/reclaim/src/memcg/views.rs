//! What a group uses, in the kernel's words: `memory.current`, `memory.stat`, `memory.events`.

use core::fmt;

use kmem_gfp::PAGE_SIZE;
use kmem_sync::atomic::Ordering;

use crate::memcg::{Event, Events, Memcg, MemcgEnv};
use crate::{GroupId, ListCounts};

/// A statistic that is kept per group, beside what lies on the page lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stat {
    /// Pages with a payer: all kernel memory. Kept by the charges themselves.
    Kernel,
    /// Kernel stacks.
    KernelStack,
    /// Page tables.
    PageTables,
    /// Per-CPU memory.
    PerCpu,
    /// Network buffers.
    Sock,
    /// Virtually contiguous memory.
    Vmalloc,
    /// Objects that a shrinker can free.
    SlabReclaimable,
    /// Other objects.
    SlabUnreclaimable,
}

impl Stat {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of `memory.stat`.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Kernel,
        Self::KernelStack,
        Self::PageTables,
        Self::PerCpu,
        Self::Sock,
        Self::Vmalloc,
        Self::SlabReclaimable,
        Self::SlabUnreclaimable,
    ];

    /// The name in `memory.stat`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelStack => "kernel_stack",
            Self::PageTables => "pagetables",
            Self::PerCpu => "percpu",
            Self::Sock => "sock",
            Self::Vmalloc => "vmalloc",
            Self::SlabReclaimable => "slab_reclaimable",
            Self::SlabUnreclaimable => "slab_unreclaimable",
        }
    }
}

impl<E: MemcgEnv> Memcg<E> {
    /// What is charged to a group and its descendants, in pages, with what the CPUs have in stock (at most 64 pages a CPU
    /// and group). The root's is the sum over its children. Zero for a group that does not exist. Any context; for the root
    /// O(children).
    pub fn usage(&self, group: GroupId) -> u64 {
        let Some(state) = self.state() else { return 0 };
        let load = |group| state.online(group).map_or(0, |slot| slot.usage.load(Ordering::Relaxed));
        if group != GroupId::ROOT {
            return load(group);
        }
        state.tree.with(self.env.cpu(), |_| {
            let mut sum: u64 = 0;
            let mut child = state.slot(group).map(|slot| GroupId(slot.first_child.load(Ordering::Relaxed)));
            while let Some((id, slot)) = child.and_then(|id| state.slot(id).map(|slot| (id, slot))) {
                sum = sum.wrapping_add(load(id));
                child = Some(GroupId(slot.next.load(Ordering::Relaxed)));
            }
            sum
        })
    }

    /// The highest usage so far, in pages. Any context.
    pub fn peak(&self, group: GroupId) -> u64 {
        self.state().and_then(|state| state.online(group)).map_or(0, |slot| slot.peak.load(Ordering::Relaxed))
    }

    /// How often a charge met the group's own limit, retries included. Any context.
    pub fn limit_hits(&self, group: GroupId) -> u64 {
        self.state().and_then(|state| state.online(group)).map_or(0, |slot| slot.failures.load(Ordering::Relaxed))
    }

    /// Adds to a statistic of a group, in bytes ([`Stat::Kernel`]: in pages); of the nearest one above if it has gone. The
    /// caller keeps the number alive. Any context; an atomic add on the group's line.
    pub fn account(&self, group: GroupId, stat: Stat, delta: i64) {
        let Some(state) = self.state() else { return };
        let held = state.hold(group, 1);
        if let Some(slot) = state.slot(held) {
            slot.add_stat(stat, delta);
        }
        if held != GroupId::ROOT {
            state.put_refs(held, 1);
        }
    }

    /// A statistic of a group with its descendants, in bytes. [`Stat::Kernel`] lags behind by what the CPUs' stocks have not
    /// told. Sleepable contexts; O(groups below).
    pub fn stat(&self, group: GroupId, stat: Stat) -> u64 {
        let Some(state) = self.state() else { return 0 };
        let sum: i64 = self
            .subtree(group)
            .filter_map(|group| state.slot(group)?.stats.get(stat as usize).map(|count| count.load(Ordering::Relaxed)))
            .fold(0, i64::wrapping_add);
        let sum = u64::try_from(sum).unwrap_or(0);
        if stat == Stat::Kernel { sum.saturating_mul(PAGE_SIZE as u64) } else { sum }
    }

    /// Writes `memory.events` (or `memory.events.local`): a name and a count a line.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write_events(&self, group: GroupId, which: Events, out: &mut dyn fmt::Write) -> fmt::Result {
        for event in Event::ALL {
            writeln!(out, "{} {}", event.name(), self.events(group, event, which))?;
        }
        Ok(())
    }

    /// Writes `memory.stat`: a name and a number of bytes a line, for the group with its descendants. Sleepable contexts.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write_stat(&self, group: GroupId, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut lists = ListCounts::default();
        for group in self.subtree(group) {
            let more = self.env.list_counts(group);
            lists.inactive_anon = lists.inactive_anon.saturating_add(more.inactive_anon);
            lists.active_anon = lists.active_anon.saturating_add(more.active_anon);
            lists.inactive_file = lists.inactive_file.saturating_add(more.inactive_file);
            lists.active_file = lists.active_file.saturating_add(more.active_file);
            lists.unevictable = lists.unevictable.saturating_add(more.unevictable);
            lists.isolated_anon = lists.isolated_anon.saturating_add(more.isolated_anon);
            lists.isolated_file = lists.isolated_file.saturating_add(more.isolated_file);
        }
        let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE as u64);
        let anon = lists.inactive_anon.saturating_add(lists.active_anon).saturating_add(lists.isolated_anon);
        let file = lists.inactive_file.saturating_add(lists.active_file).saturating_add(lists.isolated_file);
        writeln!(out, "anon {}", bytes(anon))?;
        writeln!(out, "file {}", bytes(file))?;
        for stat in [Stat::Kernel, Stat::KernelStack, Stat::PageTables, Stat::PerCpu, Stat::Sock, Stat::Vmalloc] {
            writeln!(out, "{} {}", stat.name(), self.stat(group, stat))?;
        }
        writeln!(out, "inactive_anon {}", bytes(lists.inactive_anon))?;
        writeln!(out, "active_anon {}", bytes(lists.active_anon))?;
        writeln!(out, "inactive_file {}", bytes(lists.inactive_file))?;
        writeln!(out, "active_file {}", bytes(lists.active_file))?;
        writeln!(out, "unevictable {}", bytes(lists.unevictable))?;
        let slab = [Stat::SlabReclaimable, Stat::SlabUnreclaimable].map(|stat| self.stat(group, stat));
        for (stat, bytes) in [Stat::SlabReclaimable, Stat::SlabUnreclaimable].iter().zip(slab) {
            writeln!(out, "{} {bytes}", stat.name())?;
        }
        writeln!(out, "slab {}", slab.iter().fold(0u64, |sum, &bytes| sum.saturating_add(bytes)))
    }
}
