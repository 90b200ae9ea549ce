//! [`Machine`]: a machine that has booted.

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;

use kmem::{Kmem, KmemCell, Platform};
use kmem_gfp::{AllocContext, FrameTable, Gfp, MovableOwner, NodeId, Order, OwnerTag, PAGE_SIZE, Pfn, ZoneKind};
use kmem_sync::CpuId;

use crate::cpu::BindError;
use crate::grace::{EpochGrace, RcuReadGuard};
use crate::grow::Rest;
use crate::host::Host;
use crate::memory::{HostMemory, MemoryError, ReclaimOptions};
use crate::movable::{Compactor, MovableError, MovableMemory, MovableStats, MoveFailure};
use crate::ram::{Mapping, Ram};
use crate::release::release_free;
use crate::slots::{Slot, SlotTable};
use crate::space::{HostSpace, Space, SpaceStats};
use crate::{Binding, HostCpu, MachineBuilder, MemoryPlan, TaskFlags, in_context};

/// What a machine is made of, apart from the allocators: they refer to it for `'static`, so it is held by raw pointers.
///
/// # Invariants
/// The pointers come from `Box::into_raw` and belong to this value alone. Once it is dropped nothing refers to them:
/// boot has failed and left the cell empty, or the machine was shut down.
pub(crate) struct Parts {
    cell: *mut KmemCell<Host<HostCpu>>,
    ram: *mut Ram,
    slots: *mut [Slot],
    table: *mut SlotTable<'static>,
    /// The CPUs, once they are known to the process.
    pub(crate) cpu: Option<HostCpu>,
    /// The page allocator's bookkeeping memory.
    pub(crate) books: Option<Mapping>,
    /// Memory that the page allocator has not been given yet; null if it has all.
    rest: *mut Rest,
    /// The vmalloc window; null if there is none.
    space: *mut Space,
    /// Reclaim; null if there is none.
    memory: *mut HostMemory,
    /// Who compacts; null before the allocators have started.
    compactor: *mut Compactor,
}

impl Parts {
    pub(crate) fn new(ram: Ram, cpus: u32, binding: Binding) -> Self {
        let slots: *mut [Slot] = Box::into_raw((0..cpus).map(|_| Slot::new()).collect());
        let nr_free = if binding == Binding::OnDemand { cpus } else { 0 };
        // SAFETY: just leaked; freed after the table.
        let table = SlotTable::new(unsafe { &*slots }, nr_free);
        Self {
            cell: Box::into_raw(Box::new(KmemCell::new())),
            ram: Box::into_raw(Box::new(ram)),
            slots,
            table: Box::into_raw(Box::new(table)),
            cpu: None,
            books: None,
            rest: core::ptr::null_mut(),
            space: core::ptr::null_mut(),
            memory: core::ptr::null_mut(),
            compactor: core::ptr::null_mut(),
        }
    }

    /// Adds a window.
    ///
    /// # Safety
    /// The handle is not used once this value is dropped.
    pub(crate) unsafe fn add_space(&mut self, space: Space) -> HostSpace {
        self.space = Box::into_raw(Box::new(space));
        // SAFETY: just made; the caller sees to the end.
        HostSpace::new(unsafe { &*self.space })
    }

    /// Lets the page allocator have `rest` when it runs short.
    pub(crate) fn add_later(&mut self, kmem: &'static Kmem<Host<HostCpu>>, rest: Rest) {
        self.rest = Box::into_raw(Box::new(rest));
        // SAFETY: just made; it lives as long as the machine.
        kmem.platform().reclaimer().set_rest(unsafe { &*self.rest });
    }

    /// Adds reclaim and starts its threads.
    pub(crate) fn add_memory(
        &mut self,
        kmem: &'static Kmem<Host<HostCpu>>,
        options: &ReclaimOptions,
        compaction: bool,
    ) -> Result<(), MemoryError> {
        // SAFETY: dropped below, after the threads have stopped; by the contract of `shut_down` nothing is used any more.
        self.memory = Box::into_raw(unsafe { HostMemory::new(kmem, options, compaction) }?);
        // SAFETY: just made; it lives as long as the machine.
        unsafe { &*self.memory }.start(options)?;
        Ok(())
    }

    /// Adds whoever compacts: on behalf of requests if that is `asked`, and in the background when it is started.
    pub(crate) fn add_compactor(
        &mut self,
        kmem: &'static Kmem<Host<HostCpu>>,
        compactor: Compactor,
        asked: bool,
    ) -> &'static Compactor {
        self.compactor = Box::into_raw(Box::new(compactor));
        // SAFETY: just made; it lives as long as the machine.
        let compactor = unsafe { &*self.compactor };
        if asked {
            kmem.platform().reclaimer().set_compactor(compactor);
        }
        compactor
    }

    /// The parts that the allocators refer to.
    ///
    /// # Safety
    /// The references are not used once this value is dropped.
    pub(crate) unsafe fn borrow(
        &self,
    ) -> (&'static KmemCell<Host<HostCpu>>, &'static Ram, &'static SlotTable<'static>) {
        // SAFETY: live boxes (type invariant); the caller sees to the end.
        unsafe { (&*self.cell, &*self.ram, &*self.table) }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: boxes of ours that nothing refers to any more (type invariant). A cell does not drop what is in it.
        unsafe {
            if let Some(memory) = self.memory.as_ref() {
                memory.stop();
            }
            if let Some(compactor) = self.compactor.as_ref() {
                compactor.stop();
            }
            if let Some(cpu) = self.cpu {
                cpu.retire();
            }
            drop(Box::from_raw(self.cell));
            if !self.memory.is_null() {
                drop(Box::from_raw(self.memory));
            }
            drop(Box::from_raw(self.table));
            drop(Box::from_raw(self.slots));
            // Refers to the memory.
            if !self.space.is_null() {
                drop(Box::from_raw(self.space));
            }
            drop(Box::from_raw(self.ram));
            if !self.rest.is_null() {
                drop(Box::from_raw(self.rest));
            }
            if !self.compactor.is_null() {
                drop(Box::from_raw(self.compactor));
            }
        }
    }
}

/// A machine in this process: memory, CPUs, and the allocators running on them.
///
/// Booted by [`Machine::builder`]. It stays for the rest of the process, so that everything in it can refer to everything
/// else for `'static`; [`shut_down`](Self::shut_down) ends one early.
pub struct Machine {
    kmem: &'static Kmem<Host<HostCpu>>,
    parts: UnsafeCell<ManuallyDrop<Parts>>,
}

// SAFETY: `parts` is used by `shut_down` alone, which nobody else may be inside of.
unsafe impl Sync for Machine {}
// SAFETY: nothing is tied to the thread that booted it.
unsafe impl Send for Machine {}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("cpu", self.cpu()).field("memory", self.plan()).finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine to be: see [`MachineBuilder`].
    pub fn builder() -> MachineBuilder {
        MachineBuilder::new()
    }

    pub(crate) fn new(kmem: &'static Kmem<Host<HostCpu>>, parts: Parts) -> &'static Self {
        Box::leak(Box::new(Self { kmem, parts: UnsafeCell::new(ManuallyDrop::new(parts)) }))
    }

    /// The allocators.
    #[inline(always)]
    pub fn kmem(&self) -> &'static Kmem<Host<HostCpu>> {
        self.kmem
    }

    fn host(&self) -> &'static Host<HostCpu> {
        self.kmem.platform()
    }

    /// The CPUs.
    #[inline(always)]
    pub fn cpu(&self) -> &'static HostCpu {
        self.host().cpu()
    }

    /// Grace periods, and the readers that they wait for.
    pub fn grace(&self) -> &'static EpochGrace<HostCpu> {
        self.host().grace()
    }

    /// Begins a read-side section: see [`EpochGrace::read_lock`].
    #[inline]
    pub fn rcu_read_lock(&self) -> RcuReadGuard<'static> {
        self.grace().read_lock()
    }

    /// Runs `f` with the calling thread as CPU `cpu`: see [`HostCpu::on_cpu`].
    ///
    /// # Safety
    /// As for [`HostCpu::on_cpu`]: no pin and no read-side guard made inside outlives the call.
    ///
    /// # Errors
    /// Those of [`HostCpu::on_cpu`].
    #[inline]
    pub unsafe fn on_cpu<R>(&self, cpu: CpuId, f: impl FnOnce() -> R) -> Result<R, BindError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.cpu().on_cpu(cpu, f) }
    }

    /// Which memory is where.
    pub fn plan(&self) -> &'static MemoryPlan {
        self.host().ram.plan()
    }

    /// Bytes of memory that the machine has.
    pub fn ram_bytes(&self) -> u64 {
        self.plan().nr_frames().saturating_mul(PAGE_SIZE as u64)
    }

    /// Bytes of memory that the page allocator will be given when it runs short: machines above 16 GiB boot with a part.
    pub fn pending_bytes(&self) -> u64 {
        // SAFETY: nobody changes the parts before `shut_down`.
        let parts: &Parts = unsafe { &*self.parts.get() };
        // SAFETY: null, or a live box (invariant of `Parts`).
        unsafe { parts.rest.as_ref() }.map_or(0, |rest| rest.frames().saturating_mul(PAGE_SIZE as u64))
    }

    /// The file behind the memory, if it is [`RamBacking::Memfd`](crate::RamBacking::Memfd); see
    /// [`file_offset`](Self::file_offset).
    pub fn ram_file(&self) -> Option<BorrowedFd<'static>> {
        self.host().ram.file()
    }

    /// Where a frame lies in [`ram_file`](Self::ram_file), in bytes; `None` for a number that is no frame's.
    pub fn file_offset(&self, pfn: Pfn) -> Option<u64> {
        self.host().table.address_of(pfn)?;
        Some(pfn.checked_sub(self.plan().span().start)? * PAGE_SIZE as u64)
    }

    /// Bytes of the host's memory behind the machine's at the moment. Slow: walks the host's page tables.
    pub fn resident_bytes(&self) -> u64 {
        self.host().ram.resident_below(self.plan().span().end).saturating_mul(PAGE_SIZE as u64)
    }

    /// Gives free memory back to the host: at least `bytes`, or as much as there is. Returns how much it was, in bytes.
    ///
    /// Slow: walks the host's page tables. Other threads may allocate meanwhile.
    pub fn release_free(&self, bytes: u64) -> u64 {
        self.kmem.slabs().shrink_all();
        self.kmem.pages().drain_all_pages();
        release_free(self.kmem.pages(), self.host().ram, self.plan().span().end, bytes)
    }

    /// Gives free memory back until at most `bytes` are resident, if that is possible; returns how many are.
    pub fn keep_resident_below(&self, bytes: u64) -> u64 {
        let resident = self.resident_bytes();
        if resident > bytes {
            self.release_free(resident - bytes);
        }
        self.resident_bytes()
    }

    /// What has been reported since the last call, if reports are [captured](crate::Reports::Capture).
    pub fn take_reports(&self) -> String {
        self.host().context.take_reports()
    }

    /// Plays an interrupt on the calling thread's CPU: runs `f` [in that context](in_context), and then, as a machine does
    /// when it is back in a task, what was put off in it: areas that [`vfree`](kmem_vmalloc::Vmalloc::vfree) could not free
    /// there. An interrupt inside of another leaves that to the outer one.
    ///
    /// ```
    /// use kmem_hosted::{Gfp, Machine};
    ///
    /// let machine = Machine::builder().boot()?;
    /// let vmalloc = machine.kmem().vmalloc_layer();
    /// let memory = vmalloc.vmalloc(100_000)?.as_ptr();
    /// machine.in_interrupt(|| {
    ///     // SAFETY: not used any more.
    ///     unsafe { vmalloc.vfree(memory) }.unwrap();
    ///     assert_eq!(vmalloc.stats().lazy_pages, 0, "not yet");
    /// });
    /// assert_eq!(vmalloc.stats().lazy_pages, 26);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_interrupt<R>(&self, f: impl FnOnce() -> R) -> R {
        let result = in_context(TaskFlags::IN_IRQ, f);
        if crate::task_flags().in_task() {
            self.kmem.vmalloc_layer().run_deferred();
        }
        result
    }

    /// How the vmalloc window stands; all zero without one.
    pub fn space_stats(&self) -> SpaceStats {
        self.host().space.stats()
    }

    /// Makes the `nth` page request from now on fail, once; zero: none. Requests that must not fail are not counted, nor
    /// those that other threads have begun. Until it is called with zero, page requests take the slower path, which counts them.
    pub fn fail_page_request(&self, nth: u64) {
        self.host().fail_page_request(nth);
        self.kmem.pages().set_injecting(nth != 0);
    }

    /// Whether a failure asked for by [`fail_page_request`](Self::fail_page_request) is still to come.
    pub fn failure_pending(&self) -> bool {
        self.host().failure_pending()
    }

    /// Pages that may be moved while they are in use, mapped a second time at addresses that stay the same. `gfp` says where
    /// they may lie; [`Gfp::HIGHUSER_MOVABLE`] is anywhere. Each run of neighbouring frames is a mapping of the host, as with vmalloc.
    ///
    /// # Errors
    /// [`MovableError`]; nothing has changed.
    pub fn movable_area(&self, nr_pages: usize, gfp: Gfp) -> Result<MovableMemory, MovableError> {
        MovableMemory::new(self.kmem, nr_pages, gfp, true)
    }

    /// As [`movable_area`](Self::movable_area) without a second mapping: pages are reached by the direct map, through guards only. Any
    /// number of them costs the host no mappings.
    ///
    /// # Errors
    /// [`MovableError`]; nothing has changed.
    pub fn movable_pages(&self, nr_pages: usize, gfp: Gfp) -> Result<MovableMemory, MovableError> {
        MovableMemory::new(self.kmem, nr_pages, gfp, false)
    }

    /// What the machine's movable pages went through.
    pub fn movable_stats(&self) -> MovableStats {
        self.host().movable.stats()
    }

    /// Names the owner of all frames whose words have `tag`, whom compaction asks to move them; `false` if somebody
    /// has been named already. Movable memory of the machine itself and the pools of compressed objects are known without.
    pub fn set_movable_owner(&self, tag: OwnerTag, owner: &'static dyn MovableOwner) -> bool {
        self.host().set_movable_owner(tag, owner)
    }

    /// Makes the `nth` occasion of a failed migration from now on one, once; zero: none.
    pub fn fail_migration(&self, nth: u32, failure: MoveFailure) {
        self.host().movable.injection.set(nth, failure);
    }

    /// Whether a failure asked for by [`fail_migration`](Self::fail_migration) is still to come.
    pub fn migration_failure_pending(&self) -> bool {
        self.host().movable.injection.pending()
    }

    fn compactor(&self) -> Option<&Compactor> {
        // SAFETY: nobody changes the parts before `shut_down`.
        let parts: &Parts = unsafe { &*self.parts.get() };
        // SAFETY: null, or a live box (invariant of `Parts`).
        unsafe { parts.compactor.as_ref() }
    }

    /// Asks the compaction daemon of a node for blocks of `order` in zones up to `ceiling`. Any context but NMI, and not in a
    /// signal handler.
    #[doc(alias = "wakeup_kcompactd")]
    pub fn wake_kcompactd(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        if let Some(compactor) = self.compactor() {
            compactor.wake(node, order, ceiling);
        }
    }

    /// Does the work of the compaction daemons on the calling thread, one at a time; returns when to do so again, in
    /// milliseconds of the machine's clock. For machines without the [thread](MachineBuilder::kcompactd).
    pub fn poll_kcompactd(&self) -> Option<u64> {
        self.compactor()?.poll(self.host().context.now_ms())
    }

    /// Ends the machine and returns all its memory to the host. (The few words of this value itself stay.)
    ///
    /// # Safety
    /// Called once; nothing of the machine is used any more, by any thread: no memory, cache or guard, and no reference to
    /// any of its parts.
    pub unsafe fn shut_down(&'static self) {
        // SAFETY: nobody else is here, by the caller's promise, and nobody looks at the parts afterwards.
        unsafe { ManuallyDrop::drop(&mut *self.parts.get()) };
    }
}
