//! A machine whose frames are entries of a table: tenants that move, tenants that do not, areas.

use std::alloc::{Layout, alloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::string::String;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{AllocContext, AllocError, ContigRange, FreeError, Gfp, Order, Pfn, PfnRange, TaskFlags};
use kmem_sync::{Cpu, CpuId, IrqState};

use crate::{AreaSpec, CmaEnv, Lender, layout};

/// One CPU that threads share: nothing here is per-CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ToyCpu;

// SAFETY: nothing is kept per CPU, so that nobody relies on (1) to (4); the fence is one (5).
unsafe impl Cpu for ToyCpu {
    fn nr_cpus(&self) -> u32 {
        1
    }
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(0))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {}
}

/// The running task.
#[derive(Default)]
pub(crate) struct ToyContext {
    pub(crate) flags: AtomicU32,
    pub(crate) now: AtomicU64,
    pub(crate) reports: Mutex<Vec<String>>,
}

impl AllocContext for ToyContext {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        self.task_flags()
    }
    fn yield_now(&self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        std::thread::yield_now();
    }
    fn now_ms(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.reports.lock().unwrap().push(std::format!("{line}"));
    }
}

/// What is in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Free,
    /// Somebody who does not move.
    Stuck,
    /// Somebody who moves, by name.
    Tenant(u64),
    /// An area's, or its user's.
    Taken,
    /// Not the page allocator's since boot.
    Reserved,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) frames: Vec<Frame>,
    /// Pageblocks that are lent.
    pub(crate) lent: Vec<bool>,
    /// Where the next place was found.
    cursor: usize,
    pub(crate) moves: u64,
    pub(crate) takes: u64,
    /// The attempt to move, counted from one, that fails; 0: none.
    pub(crate) fail_at: u64,
    /// No place for what moves.
    pub(crate) full: bool,
    /// The next tests of frames say that a fatal signal came.
    pub(crate) interrupted: bool,
}

/// The machine: frames from `first` on.
pub(crate) struct Toy {
    pub(crate) first: u64,
    pub(crate) zone_border: u64,
    pub(crate) context: ToyContext,
    pub(crate) state: Mutex<State>,
}

pub(crate) fn range(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn(start), Pfn(end))
}

/// Bookkeeping memory for an area, full of junk; for good.
pub(crate) fn books(spec: &AreaSpec<'_>) -> NonNull<u8> {
    memory(layout(spec).unwrap())
}

pub(crate) fn memory(layout: Layout) -> NonNull<u8> {
    // SAFETY: not empty.
    let memory = NonNull::new(unsafe { alloc(layout) }).unwrap();
    // SAFETY: just allocated.
    unsafe { memory.write_bytes(0xcc, layout.size()) };
    memory
}

#[cfg_attr(loom, expect(dead_code, reason = "the models need less"))]
impl Toy {
    pub(crate) fn new(nr_blocks: u64) -> Self {
        Self::at(0, nr_blocks)
    }

    pub(crate) fn at(first: u64, nr_blocks: u64) -> Self {
        let frames = std::vec![Frame::Free; nr_blocks as usize * 512];
        let lent = std::vec![false; nr_blocks as usize];
        let state = State { frames, lent, ..State::default() };
        Self { first, zone_border: u64::MAX, context: ToyContext::default(), state: Mutex::new(state) }
    }

    pub(crate) fn frame(&self, pfn: u64) -> Frame {
        self.state.lock().unwrap().frames[(pfn - self.first) as usize]
    }

    pub(crate) fn put(&self, pfn: u64, frame: Frame) {
        self.state.lock().unwrap().frames[(pfn - self.first) as usize] = frame;
    }

    pub(crate) fn count(&self, wanted: impl Fn(Frame) -> bool) -> usize {
        self.state.lock().unwrap().frames.iter().filter(|&&frame| wanted(frame)).count()
    }

    /// Every tenant with its place.
    pub(crate) fn tenants(&self) -> BTreeMap<u64, u64> {
        let state = self.state.lock().unwrap();
        let mut found = BTreeMap::new();
        for (at, frame) in state.frames.iter().enumerate() {
            if let Frame::Tenant(name) = frame {
                assert!(found.insert(*name, self.first + at as u64).is_none(), "{name} is in two places");
            }
        }
        found
    }

    /// The page allocator serves a request: a movable one from anywhere, from a place given by `hint`, another from pageblocks that
    /// are not lent.
    pub(crate) fn alloc(&self, movable: Option<u64>, hint: u64) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        let nr = state.frames.len();
        let at = (0..nr)
            .map(|i| (i + hint as usize) % nr)
            .find(|&at| state.frames[at] == Frame::Free && (movable.is_some() || !state.lent[at / 512]))?;
        state.frames[at] = movable.map_or(Frame::Stuck, Frame::Tenant);
        Some(self.first + at as u64)
    }

    /// Fills every free frame with tenants named from `name` on.
    pub(crate) fn fill(&self, mut name: u64) -> u64 {
        while self.alloc(Some(name), 0).is_some() {
            name += 1;
        }
        name
    }

    fn check(&self, range: PfnRange) -> Result<(), AllocError> {
        let state = self.state.lock().unwrap();
        for pfn in range.iter() {
            let frame = pfn.0.checked_sub(self.first).and_then(|at| state.frames.get(at as usize));
            let one_zone = (pfn.0 < self.zone_border) == (range.start.0 < self.zone_border);
            if !one_zone || !matches!(frame, Some(Frame::Free | Frame::Tenant(_))) {
                return Err(AllocError::Busy(pfn));
            }
        }
        Ok(())
    }

    fn take(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError> {
        self.check(range)?;
        let mut state = self.state.lock().unwrap();
        state.takes += 1;
        if state.interrupted {
            return Err(AllocError::Interrupted);
        }
        let inside = |at: usize| range.contains(Pfn(self.first + at as u64));
        for at in (range.start.0 - self.first) as usize..(range.end.0 - self.first) as usize {
            if let Frame::Tenant(name) = state.frames[at] {
                if state.fail_at > 0 {
                    state.fail_at -= 1;
                    if state.fail_at == 0 {
                        return Err(AllocError::Busy(Pfn(self.first + at as u64)));
                    }
                }
                let full = state.full;
                let (nr, cursor) = (state.frames.len(), state.cursor);
                let mut targets = (0..nr).map(|to| (to + cursor) % nr);
                let target = targets.find(|&to| !full && state.frames[to] == Frame::Free && !inside(to));
                let Some(target) = target else { return Err(AllocError::NoMemory { order: Order::ZERO, gfp }) };
                state.cursor = target;
                state.frames[target] = Frame::Tenant(name);
                state.frames[at] = Frame::Free;
                state.moves += 1;
            }
        }
        for pfn in range.iter() {
            state.frames[(pfn.0 - self.first) as usize] = Frame::Taken;
        }
        Ok(())
    }
}

impl CmaEnv for Toy {
    type Cpu = ToyCpu;
    type Context = ToyContext;
    type Source = Self;

    fn cpu(&self) -> &ToyCpu {
        &ToyCpu
    }
    fn context(&self) -> &ToyContext {
        &self.context
    }
    fn source(&self) -> &Self {
        self
    }
}

// SAFETY: a frame has one entry.
unsafe impl ContigRange for Toy {
    fn take_range(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError> {
        {
            let state = self.state.lock().unwrap();
            let lent = |pfn: Pfn| state.lent[((pfn.0 - self.first) / 512) as usize];
            assert!(range.iter().all(lent), "an area takes what it has lent, and nothing else");
        }
        self.take(range, gfp)
    }

    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError> {
        let mut state = self.state.lock().unwrap();
        for pfn in range.iter() {
            match state.frames.get((pfn.0 - self.first) as usize) {
                Some(Frame::Taken) => {}
                Some(_) => return Err(FreeError::AlreadyFree(pfn)),
                None => return Err(FreeError::Foreign(pfn)),
            }
        }
        for pfn in range.iter() {
            state.frames[(pfn.0 - self.first) as usize] = Frame::Free;
        }
        Ok(())
    }
}

// SAFETY: (1) as above; (2) see `alloc`.
unsafe impl Lender for Toy {
    fn span(&self) -> PfnRange {
        range(self.first, self.first + self.state.lock().unwrap().frames.len() as u64)
    }

    fn reserve(&self, range: PfnRange) -> Result<(), AllocError> {
        self.take(range, Gfp::KERNEL)
    }

    unsafe fn adopt(&self, range: PfnRange) -> Result<(), AllocError> {
        for pfn in range.iter() {
            if self.frame(pfn.0) != Frame::Reserved {
                return Err(AllocError::Busy(pfn));
            }
        }
        range.iter().for_each(|pfn| self.put(pfn.0, Frame::Free));
        self.reserve(range)
    }

    unsafe fn lend(&self, range: PfnRange) {
        {
            let mut state = self.state.lock().unwrap();
            for block in (range.start.0 - self.first) / 512..(range.end.0 - self.first) / 512 {
                state.lent[block as usize] = true;
            }
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.give_up(range) };
    }

    unsafe fn give_up(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.return_range(range) }.unwrap();
    }
}
