//! A machine of processes that do what a test says.

use std::boxed::Box;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::vec::Vec;

use core::fmt::Arguments;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use kmem_gfp::{AllocContext, Gfp, MigrateType, NodeId, Order, ReclaimRequest, TaskFlags, ZoneKind};

use crate::GroupId;
use crate::oom::{
    Candidate, CandidateFlags, CandidateId, Constraint, Oom, OomEnv, OomScope, OomSource, PanicReason, VictimMark,
};

/// A process.
pub(crate) struct Process {
    pub(crate) id: u64,
    pub(crate) flags: CandidateFlags,
    pub(crate) address_space: u64,
    pub(crate) group: GroupId,
    pub(crate) rss: u64,
    pub(crate) adj: i16,
    pub(crate) mark: VictimMark,
}

impl Process {
    pub(crate) fn new(id: u64, rss: u64) -> Self {
        Self {
            id,
            flags: CandidateFlags::empty(),
            address_space: id,
            group: GroupId::ROOT,
            rss,
            adj: 0,
            mark: VictimMark::new(),
        }
    }

    pub(crate) fn flags(self, flags: CandidateFlags) -> Self {
        Self { flags, ..self }
    }

    pub(crate) fn adj(self, adj: i16) -> Self {
        Self { adj, ..self }
    }

    pub(crate) fn group(self, group: u32) -> Self {
        Self { group: GroupId(group), ..self }
    }

    pub(crate) fn shares(self, address_space: u64) -> Self {
        Self { address_space, ..self }
    }

    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            id: CandidateId(self.id),
            name: "process",
            flags: self.flags,
            address_space: self.address_space,
            group: self.group,
            rss: self.rss,
            swap: 0,
            page_tables: 0,
            adj: self.adj,
            mark: &self.mark,
        }
    }
}

/// A clock, and what was reported.
#[derive(Default)]
pub(crate) struct Context {
    pub(crate) now_ms: AtomicU64,
    pub(crate) lines: Mutex<Vec<String>>,
}

impl AllocContext for Context {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }
    fn report(&self, line: Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }
}

/// The machine. Group 2 lies in group 1.
pub(crate) struct Machine {
    pub(crate) context: Context,
    pub(crate) processes: Vec<Process>,
    pub(crate) current: Option<u64>,
    pub(crate) ram: u64,
    pub(crate) swap: u64,
    pub(crate) constraint: Constraint,
    pub(crate) whole_group: Option<GroupId>,
    pub(crate) suspended: bool,
    pub(crate) reapable: bool,
    pub(crate) killed: Mutex<Vec<u64>>,
    pub(crate) events: Mutex<Vec<(GroupId, bool)>>,
    pub(crate) reaped: AtomicU64,
    pub(crate) panics: Mutex<Vec<PanicReason>>,
}

impl Machine {
    pub(crate) fn with(processes: Vec<Process>) -> Self {
        Self {
            context: Context::default(),
            processes,
            current: None,
            ram: 100_000,
            swap: 0,
            constraint: Constraint::None,
            whole_group: None,
            suspended: false,
            reapable: false,
            killed: Mutex::default(),
            events: Mutex::default(),
            reaped: AtomicU64::new(0),
            panics: Mutex::default(),
        }
    }

    pub(crate) fn oom(self) -> Oom<&'static Self> {
        Oom::new(Box::leak(Box::new(self)))
    }

    pub(crate) fn process(&self, id: u64) -> &Process {
        self.processes.iter().find(|process| process.id == id).unwrap()
    }

    pub(crate) fn take_killed(&self) -> Vec<u64> {
        core::mem::take(&mut *self.killed.lock().unwrap())
    }
}

impl OomEnv for Machine {
    type Context = Context;

    fn context(&self) -> &Context {
        &self.context
    }
    fn for_each(&self, scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>) {
        let within = |process: &&Process| match scope {
            OomScope::Machine(_) => true,
            OomScope::Group(group) => {
                process.group == group || (group, process.group) == (GroupId(1), GroupId(2)) || group == GroupId::ROOT
            }
        };
        let _ = self.processes.iter().filter(within).try_for_each(|process| visit(&process.candidate()));
    }
    fn current(&self, see: &mut dyn FnMut(&Candidate<'_>)) {
        if let Some(id) = self.current {
            see(&self.process(id).candidate());
        }
    }
    fn kill(&self, candidate: &Candidate<'_>) {
        self.killed.lock().unwrap().push(candidate.id.0);
    }
    fn reap(&self, _victim: &Candidate<'_>) -> bool {
        self.reaped.fetch_add(1, Ordering::Relaxed);
        self.reapable
    }
    fn ram_pages(&self) -> u64 {
        self.ram
    }
    fn swap_pages(&self) -> u64 {
        self.swap
    }
    fn constraint(&self, _request: &ReclaimRequest) -> Constraint {
        self.constraint
    }
    fn allowed_pages(&self, _constraint: Constraint) -> u64 {
        10_000
    }
    fn group_pages(&self, _group: GroupId) -> u64 {
        5_000
    }
    fn group_to_kill(&self, _victim: GroupId, _domain: GroupId) -> Option<GroupId> {
        self.whole_group
    }
    fn killed(&self, group: GroupId, whole_group: bool) {
        self.events.lock().unwrap().push((group, whole_group));
    }
    fn panic(&self, reason: PanicReason) {
        self.panics.lock().unwrap().push(reason);
    }
    fn storage_suspended(&self) -> bool {
        self.suspended
    }
    fn memory_lines(&self, line: &mut dyn FnMut(Arguments<'_>)) {
        line(format_args!("Mem-Info: {} pages", self.ram));
    }
}

/// A request of the page allocator.
pub(crate) fn request(gfp: Gfp, order: u32) -> ReclaimRequest {
    ReclaimRequest {
        gfp,
        order: Order::new(order).unwrap(),
        ceiling: ZoneKind::Normal,
        node: NodeId(0),
        this_node_only: false,
        migratetype: MigrateType::Unmovable,
    }
}

pub(crate) fn pages(gfp: Gfp) -> OomSource {
    OomSource::Allocation(request(gfp, 0))
}

pub(crate) fn group(group: u32, order: u32) -> OomSource {
    OomSource::Group { group: GroupId(group), gfp: Gfp::KERNEL, order: Order::new(order).unwrap() }
}
