//! Tasks: who can be killed, and which group pays.
//!
//! ```text
//! TaskList ─▶ TaskState ─▶ TaskState ...     append-only: states live as long as the process, so nobody locks to look
//! thread:  CURRENT ─▶ TaskState              while inside `Task::run`
//! killer:  sets signals in the state         the thread takes them up when it yields, sleeps or asks
//! ```

use core::cell::Cell;
use core::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kmem::reclaim::GroupId;
use kmem::reclaim::oom::{Candidate, CandidateFlags, CandidateId, VictimMark};
use kmem_gfp::TaskFlags;
use kmem_sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::store::PageStore;
use crate::Machine;
use crate::thread;

std::thread_local! {
    static CURRENT: Cell<Option<&'static TaskState>> = const { Cell::new(None) };
}

/// One task, for as long as the process lives.
#[derive(Debug)]
pub(crate) struct TaskState {
    pub(crate) id: u64,
    name: String,
    group: AtomicU32,
    adj: AtomicI64,
    pub(crate) mark: VictimMark,
    /// Flags that its threads have to take up.
    signals: AtomicU32,
    pub(crate) backlog: AtomicU64,
    gone: AtomicBool,
    /// What it has in anonymous memory.
    pub(crate) stores: Mutex<Vec<&'static PageStore>>,
    next: AtomicPtr<TaskState>,
}

/// All tasks of a machine.
///
/// # Invariants
/// The list is of leaked states and only grows.
#[derive(Debug, Default)]
pub(crate) struct TaskList {
    head: AtomicPtr<TaskState>,
    next_id: AtomicU64,
}

impl TaskList {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), next_id: AtomicU64::new(1) }
    }

    fn add(&self, name: &str) -> &'static TaskState {
        let state = Box::leak(Box::new(TaskState {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            group: AtomicU32::new(GroupId::ROOT.0),
            adj: AtomicI64::new(0),
            mark: VictimMark::new(),
            signals: AtomicU32::new(0),
            backlog: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            stores: Mutex::new(Vec::new()),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        let state: &'static TaskState = state;
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            state.next.store(head, Ordering::Relaxed);
            let new = ptr::from_ref(state).cast_mut();
            match self.head.compare_exchange(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return state,
                Err(now) => head = now,
            }
        }
    }

    /// The tasks that have not ended, newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static TaskState> {
        let mut next = self.head.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: null, or a leaked state (type invariant).
            let state: &'static TaskState = unsafe { next.as_ref() }?;
            next = state.next.load(Ordering::Acquire);
            Some(state)
        })
        .filter(|state| !state.gone.load(Ordering::Acquire))
    }

    pub(crate) fn find(&self, id: CandidateId) -> Option<&'static TaskState> {
        self.iter().find(|state| state.id == id.0)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskState {
    pub(crate) fn group(&self) -> GroupId {
        GroupId(self.group.load(Ordering::Relaxed))
    }

    /// The task as the killer sees it.
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        let (rss, swap) = match self.stores.try_lock() {
            Ok(stores) => stores.iter().fold((0, 0), |(rss, swap), store| {
                let stats = store.stats();
                (rss + stats.resident, swap + stats.swapped)
            }),
            Err(_) => (0, 0),
        };
        let dying = self.signals.load(Ordering::Relaxed) & TaskFlags::FATAL_SIGNAL.bits() != 0;
        Candidate {
            id: CandidateId(self.id),
            name: &self.name,
            flags: if dying { CandidateFlags::DYING } else { CandidateFlags::empty() },
            address_space: self.id,
            group: self.group(),
            rss,
            swap,
            page_tables: 0,
            adj: self.adj.load(Ordering::Relaxed) as i16,
            mark: &self.mark,
        }
    }

    /// A fatal signal; the memory of whoever has it is wanted.
    pub(crate) fn kill(&'static self) {
        self.signals.fetch_or(TaskFlags::FATAL_SIGNAL.bits(), Ordering::Release);
        if current().is_some_and(|current| ptr::eq(current, self)) {
            deliver_signals();
        }
    }

    /// Takes what anonymous memory can be taken; whether that was all.
    pub(crate) fn reap(&self) -> bool {
        let Ok(stores) = self.stores.try_lock() else { return false };
        stores.iter().filter(|store| !store.try_clear()).count() == 0
    }
}

/// The task that the calling thread runs as.
pub(crate) fn current() -> Option<&'static TaskState> {
    CURRENT.with(Cell::get)
}

/// Takes up what has been sent to the running task.
pub(crate) fn deliver_signals() {
    if let Some(state) = current() {
        let signals = state.signals.load(Ordering::Acquire) | state.mark.task_flags().bits();
        if signals != 0 {
            thread::with(|thread| thread.task.set(thread.task.get() | signals));
        }
    }
}

/// Whether the task that the calling thread runs as has been killed: it should return from [`Task::run`].
pub fn current_task_killed() -> bool {
    current().is_some_and(|state| state.signals.load(Ordering::Relaxed) & TaskFlags::FATAL_SIGNAL.bits() != 0)
}

/// What a task has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskStats {
    /// Resident anonymous pages.
    pub resident: u64,
    /// Pages on swap.
    pub swapped: u64,
}

/// A task of a machine: something the OOM killer can choose, in a memory cgroup. It ends when this is dropped: its memory
/// goes, and it is no candidate any more.
///
/// Made by [`Machine::task`]. Several threads may [`run`](Self::run) in it.
#[derive(Debug)]
pub struct Task {
    machine: &'static Machine,
    state: &'static TaskState,
}

impl Task {
    pub(crate) fn new(machine: &'static Machine, tasks: &TaskList, name: &str) -> Self {
        Self { machine, state: tasks.add(name) }
    }

    /// Its number, as reports show it.
    pub fn id(&self) -> u64 {
        self.state.id
    }

    /// Moves it to a group, which pays for what it allocates from here on. What it has stays where it is.
    #[must_use]
    pub fn in_group(self, group: GroupId) -> Self {
        self.state.group.store(group.0, Ordering::Relaxed);
        self
    }

    /// Sets `oom_score_adj`, -1000..=1000.
    #[must_use]
    pub fn with_oom_score_adj(self, adj: i16) -> Self {
        self.state.adj.store(i64::from(adj), Ordering::Relaxed);
        self
    }

    /// Anonymous memory of this task, `pages` pages without contents; gone with the task. It is reused by later tasks.
    ///
    /// # Errors
    /// As for [`Machine::anonymous_pages`].
    pub fn anonymous_pages(&self, pages: u64) -> Result<&'static PageStore, super::MemoryError> {
        let store = self.machine.anonymous_pages(pages)?;
        locked(&self.state.stores).push(store);
        Ok(store)
    }

    /// Runs `f` as this task: its group pays, its death reaches the thread.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        /// Puts back what the thread was; also when the closure panics.
        struct Back(Option<&'static TaskState>, u32);
        impl Drop for Back {
            fn drop(&mut self) {
                CURRENT.with(|current| current.set(self.0));
                thread::with(|thread| thread.task.set(self.1));
            }
        }
        let before = CURRENT.with(|current| current.replace(Some(self.state)));
        let _back = Back(before, thread::with(|thread| thread.task.get()));
        deliver_signals();
        f()
    }

    /// Whether it has been killed.
    pub fn is_killed(&self) -> bool {
        self.state.signals.load(Ordering::Relaxed) & TaskFlags::FATAL_SIGNAL.bits() != 0
    }

    /// What it has.
    pub fn stats(&self) -> TaskStats {
        let candidate = self.state.candidate();
        TaskStats { resident: candidate.rss, swapped: candidate.swap }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let stores = core::mem::take(&mut *locked(&self.state.stores));
        for store in stores {
            store.clear();
            self.machine.give_back_store(store);
        }
        self.state.gone.store(true, Ordering::Release);
        if let Some(mm) = self.machine.mm() {
            mm.killer().victims().exit(&self.state.mark);
        }
    }
}
