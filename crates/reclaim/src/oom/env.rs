//! What the OOM killer takes from the platform: the candidates, and the power to kill.

use core::fmt;
use core::ops::ControlFlow;

use kmem_gfp::{AllocContext, ReclaimRequest};

use crate::GroupId;
use crate::oom::{PanicReason, VictimMark};

/// The number of a candidate (a process), the platform's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CandidateId(pub u64);

bitflags::bitflags! {
    /// What a candidate is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CandidateFlags: u32 {
        /// The first process: never killed.
        const INIT = 1 << 0;
        /// A kernel thread: never killed.
        const KTHREAD = 1 << 1;
        /// It has no address space of its own (any more): killing it frees nothing.
        const NO_ADDRESS_SPACE = 1 << 2;
        /// It uses its parent's address space until it executes a program.
        const VFORK = 1 << 3;
        /// It asked to be killed first (it is about to take a lot: `swapoff`).
        const ORIGIN = 1 << 4;
        /// It is exiting, or a fatal signal is pending.
        const DYING = 1 << 5;
        /// It is writing its core.
        const DUMPING_CORE = 1 << 6;
    }
}

/// One that can be killed, as it is at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its number.
    pub id: CandidateId,
    /// Its name, for the report.
    pub name: &'a str,
    /// What it is.
    pub flags: CandidateFlags,
    /// Its address space: those with equal numbers share one and die together.
    pub address_space: u64,
    /// Its memory cgroup.
    pub group: GroupId,
    /// Resident pages.
    pub rss: u64,
    /// Swap entries, in pages.
    pub swap: u64,
    /// Pages of its page tables.
    pub page_tables: u64,
    /// `oom_score_adj`, -1000..=1000: thousandths of all memory added to its badness; -1000: never.
    pub adj: i16,
    /// Whether it has been chosen before. Lives as long as the candidate.
    pub mark: &'a VictimMark,
}

/// Why memory is short: of all, or of what the request may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Constraint {
    /// All memory.
    #[default]
    None,
    /// The nodes of a cpuset.
    Cpuset,
    /// The nodes of a memory policy.
    MemoryPolicy,
    /// A memory cgroup.
    Memcg(GroupId),
}

impl Constraint {
    /// The word in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "CONSTRAINT_NONE",
            Self::Cpuset => "CONSTRAINT_CPUSET",
            Self::MemoryPolicy => "CONSTRAINT_MEMORY_POLICY",
            Self::Memcg(_) => "CONSTRAINT_MEMCG",
        }
    }
}

/// Among whom to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomScope {
    /// All that have memory on the nodes that the constraint allows.
    Machine(Constraint),
    /// Those in the subtree of a group.
    Group(GroupId),
}

/// The platform of an [`Oom`](crate::oom::Oom). Called in sleepable context, with the turn held; must not allocate.
pub trait OomEnv {
    /// The running task.
    type Context: AllocContext;

    /// The running task.
    fn context(&self) -> &Self::Context;

    /// Visits the candidates in scope, one for each process, until told to stop. Always in the same order.
    fn for_each(&self, scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>);

    /// Shows the running task as a candidate; does not call `see` if it is none.
    fn current(&self, see: &mut dyn FnMut(&Candidate<'_>));

    /// Sends a fatal signal to all threads of a candidate. It may have exited.
    fn kill(&self, candidate: &Candidate<'_>);

    /// Unmaps the private memory of a victim that does not get to it itself; `false` if that cannot be done at the moment.
    fn reap(&self, victim: &Candidate<'_>) -> bool;

    /// All pages of memory.
    fn ram_pages(&self) -> u64;

    /// All pages of swap.
    fn swap_pages(&self) -> u64 {
        0
    }

    /// What limits the request to a part of the memory.
    fn constraint(&self, request: &ReclaimRequest) -> Constraint {
        let _ = request;
        Constraint::None
    }

    /// Pages present on the nodes that a constraint allows.
    fn allowed_pages(&self, constraint: Constraint) -> u64 {
        let _ = constraint;
        self.ram_pages()
    }

    /// What a group may have, in pages, with its swap.
    fn group_pages(&self, group: GroupId) -> u64 {
        let _ = group;
        self.ram_pages()
    }

    /// The group that dies as a whole if a candidate in `victim` is chosen, at or below `domain`
    /// (`Memcg::oom_group`).
    fn group_to_kill(&self, victim: GroupId, domain: GroupId) -> Option<GroupId> {
        let _ = (victim, domain);
        None
    }

    /// A candidate of `group` has been killed, alone or with its whole group (`Memcg::record_event`).
    fn killed(&self, group: GroupId, whole_group: bool) {
        let _ = (group, whole_group);
    }

    /// Carries out a verdict to stop the machine that came through the [`OomKiller`](crate::OomKiller) seam. If it returns,
    /// the request fails.
    fn panic(&self, reason: PanicReason) {
        let _ = reason;
    }

    /// Whether storage is suspended: nothing can be freed by killing now.
    fn storage_suspended(&self) -> bool {
        false
    }

    /// Sleeps for one tick: somebody else is killing.
    fn sleep_tick(&self) {
        self.context().yield_now();
    }

    /// Tells what the machine's memory looks like, line by line, for the report.
    fn memory_lines(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        let _ = line;
    }
}

impl<T: OomEnv> OomEnv for &T {
    type Context = T::Context;

    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    fn for_each(&self, scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>) {
        (**self).for_each(scope, visit);
    }
    fn current(&self, see: &mut dyn FnMut(&Candidate<'_>)) {
        (**self).current(see);
    }
    fn kill(&self, candidate: &Candidate<'_>) {
        (**self).kill(candidate);
    }
    fn reap(&self, victim: &Candidate<'_>) -> bool {
        (**self).reap(victim)
    }
    fn ram_pages(&self) -> u64 {
        (**self).ram_pages()
    }
    fn swap_pages(&self) -> u64 {
        (**self).swap_pages()
    }
    fn constraint(&self, request: &ReclaimRequest) -> Constraint {
        (**self).constraint(request)
    }
    fn allowed_pages(&self, constraint: Constraint) -> u64 {
        (**self).allowed_pages(constraint)
    }
    fn group_pages(&self, group: GroupId) -> u64 {
        (**self).group_pages(group)
    }
    fn group_to_kill(&self, victim: GroupId, domain: GroupId) -> Option<GroupId> {
        (**self).group_to_kill(victim, domain)
    }
    fn killed(&self, group: GroupId, whole_group: bool) {
        (**self).killed(group, whole_group);
    }
    fn panic(&self, reason: PanicReason) {
        (**self).panic(reason);
    }
    fn storage_suspended(&self) -> bool {
        (**self).storage_suspended()
    }
    fn sleep_tick(&self) {
        (**self).sleep_tick();
    }
    fn memory_lines(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        (**self).memory_lines(line);
    }
}
