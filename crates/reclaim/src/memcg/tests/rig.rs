//! A table over leaked memory, CPUs chosen by the thread, and surroundings that a test scripts.

use std::boxed::Box;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use core::cell::Cell;
use core::fmt::Arguments;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use kmem_gfp::{AllocContext, Gfp, OomOutcome, Order, TaskFlags};
use kmem_sync::{Cpu, CpuId, IrqState};

use crate::memcg::{Event, Memcg, MemcgConfig, MemcgEnv};
use crate::{GroupId, ListCounts};

#[cfg(not(loom))]
std::thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(Some(0)) };
    static FLAGS: Cell<TaskFlags> = const { Cell::new(TaskFlags::empty()) };
    static BACKLOG: Cell<u64> = const { Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static CPU: Cell<Option<u32>> = Cell::new(Some(0));
    static FLAGS: Cell<TaskFlags> = Cell::new(TaskFlags::empty());
    static BACKLOG: Cell<u64> = Cell::new(0);
}

/// Makes this thread run on the given CPU, or on none.
pub(crate) fn run_on(cpu: Option<u32>) {
    CPU.with(|id| id.set(cpu));
}

/// Sets the running task's flags.
pub(crate) fn task(flags: TaskFlags) {
    FLAGS.with(|task| task.set(flags));
}

/// CPUs that tests choose by [`run_on`].
#[derive(Debug)]
pub(crate) struct TestCpu(u32);

#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
fn membarrier(command: usize) -> isize {
    let result: isize;
    // SAFETY: the system call takes numbers and touches no memory of ours.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") 324_isize => result, in("rdi") command, in("rsi") 0, in("rdx") 0,
            out("rcx") _, out("r11") _);
    }
    result
}

// SAFETY: tests run at most one thread on each CPU number at a time (1, 3) and handlers run nested on the same thread (2);
// there are no interrupts (4); the barrier is the system's, or loom's fence (5).
unsafe impl Cpu for TestCpu {
    fn nr_cpus(&self) -> u32 {
        self.0
    }
    fn try_pin(&self) -> Option<CpuId> {
        CPU.with(|id| id.get().map(CpuId))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    #[cfg(not(loom))]
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        #[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
        {
            // Register, then the expedited private barrier; the slow global one where that is missing.
            membarrier(16);
            if membarrier(8) != 0 {
                membarrier(1);
            }
        }
        kmem_sync::atomic::fence(kmem_sync::atomic::Ordering::SeqCst);
    }
}

/// The running task.
#[derive(Debug, Default)]
pub(crate) struct TestContext {
    now_ms: AtomicU64,
    pub(crate) reports: Mutex<Vec<String>>,
}

impl AllocContext for TestContext {
    fn task_flags(&self) -> TaskFlags {
        FLAGS.with(Cell::get)
    }
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let before = self.task_flags();
        task(before.union(set).difference(clear));
        before
    }
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }
    fn report(&self, line: Arguments<'_>) {
        self.reports.lock().unwrap().push(line.to_string());
    }
}

/// Something that a group's limit made happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Reclaim(GroupId, u64),
    Oom(GroupId, Order),
    Reparent(GroupId, GroupId),
    Sleep(u64),
    Notify(GroupId, Event),
    DeferHigh(GroupId),
}

type ReclaimFn = dyn Fn(GroupId, u64) -> u64 + Send + Sync;
type OomFn = dyn Fn(GroupId) -> OomOutcome + Send + Sync;

/// The surroundings.
pub(crate) struct TestEnv {
    cpu: TestCpu,
    pub(crate) context: TestContext,
    pub(crate) group: AtomicU64,
    pub(crate) active: Mutex<Option<GroupId>>,
    pub(crate) in_oom: Mutex<bool>,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) reclaim: Mutex<Option<Arc<ReclaimFn>>>,
    pub(crate) oom: Mutex<Option<Arc<OomFn>>>,
    pub(crate) counts: Mutex<ListCounts>,
    pub(crate) forgets: Mutex<bool>,
    /// Whether calls are noted: not in stress.
    pub(crate) quiet: bool,
}

impl TestEnv {
    pub(crate) fn new(cpus: u32) -> Self {
        Self {
            cpu: TestCpu(cpus),
            context: TestContext::default(),
            group: AtomicU64::new(0),
            active: Mutex::new(None),
            in_oom: Mutex::new(false),
            calls: Mutex::default(),
            reclaim: Mutex::new(None),
            oom: Mutex::new(None),
            counts: Mutex::default(),
            forgets: Mutex::new(true),
            quiet: false,
        }
    }

    fn call(&self, call: Call) {
        if !self.quiet {
            self.calls.lock().unwrap().push(call);
        }
    }

    pub(crate) fn on_reclaim(&self, reclaim: impl Fn(GroupId, u64) -> u64 + Send + Sync + 'static) {
        *self.reclaim.lock().unwrap() = Some(Arc::new(reclaim));
    }

    pub(crate) fn on_oom(&self, oom: impl Fn(GroupId) -> OomOutcome + Send + Sync + 'static) {
        *self.oom.lock().unwrap() = Some(Arc::new(oom));
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        core::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl MemcgEnv for TestEnv {
    type Cpu = TestCpu;
    type Context = TestContext;

    fn cpu(&self) -> &TestCpu {
        &self.cpu
    }
    fn context(&self) -> &TestContext {
        &self.context
    }
    fn task_group(&self) -> GroupId {
        GroupId(self.group.load(Ordering::Relaxed) as u32)
    }
    fn active_group(&self) -> Option<GroupId> {
        *self.active.lock().unwrap()
    }
    fn in_group_oom(&self) -> bool {
        *self.in_oom.lock().unwrap()
    }
    fn reclaim(&self, group: GroupId, pages: u64, _gfp: Gfp) -> u64 {
        self.call(Call::Reclaim(group, pages));
        let reclaim = self.reclaim.lock().unwrap().clone();
        reclaim.map_or(0, |reclaim| reclaim(group, pages))
    }
    fn out_of_memory(&self, group: GroupId, _gfp: Gfp, order: Order) -> OomOutcome {
        self.call(Call::Oom(group, order));
        let oom = self.oom.lock().unwrap().clone();
        oom.map_or(OomOutcome::NoVictim, |oom| oom(group))
    }
    fn reparent(&self, group: GroupId, parent: GroupId) {
        self.call(Call::Reparent(group, parent));
    }
    fn forget(&self, _group: GroupId) -> bool {
        *self.forgets.lock().unwrap()
    }
    fn add_backlog(&self, pages: u64) -> u64 {
        BACKLOG.with(|backlog| {
            backlog.set(backlog.get() + pages);
            backlog.get()
        })
    }
    fn take_backlog(&self) -> u64 {
        BACKLOG.with(|backlog| backlog.replace(0))
    }
    fn defer_high(&self, group: GroupId) {
        self.call(Call::DeferHigh(group));
    }
    fn sleep_ms(&self, ms: u64) {
        self.call(Call::Sleep(ms));
    }
    fn notify(&self, group: GroupId, event: Event) {
        self.call(Call::Notify(group, event));
    }
    fn list_counts(&self, _group: GroupId) -> ListCounts {
        *self.counts.lock().unwrap()
    }
}

/// A table that is never freed.
pub(crate) type Table = &'static Memcg<TestEnv>;

/// A table over `env`, which this thread uses on CPU 0.
pub(crate) fn table_over(env: TestEnv, config: MemcgConfig) -> Table {
    run_on(Some(0));
    task(TaskFlags::empty());
    BACKLOG.with(|backlog| backlog.set(0));
    let memcg = Memcg::new(env);
    let layout = Memcg::<TestEnv>::layout(&config, memcg.env().cpu().nr_cpus()).unwrap();
    // SAFETY: the layout has a size.
    let memory = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with the layout asked for, and leaked.
    unsafe { memcg.init(memory, config) }.unwrap();
    Box::leak(Box::new(memcg))
}

/// A table of `groups` places for `cpus` CPUs.
pub(crate) fn table(cpus: u32, groups: u32) -> Table {
    table_over(TestEnv::new(cpus), MemcgConfig::new(groups))
}
