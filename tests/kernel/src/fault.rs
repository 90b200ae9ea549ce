//! Page faults: probing an address that may not be there, guard pages and whose they are, stacks that overflow.

use core::panic::Location;

use kmem_sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use kmem_vmalloc::AreaInfo;

use crate::asm;
use crate::percpu;
use crate::sched;
use crate::trap::Frame;
use crate::vm::vmalloc;

unsafe extern "C" {
    fn probe_byte(address: usize, write: u32) -> u32;
    static probe_read: [u8; 0];
    static probe_write: [u8; 0];
    static probe_failed: [u8; 0];
}

/// Faults caught at guard pages so far.
pub(crate) static GUARD_HITS: AtomicU64 = AtomicU64::new(0);
/// Stacks that overflowed into their guard page so far.
pub(crate) static STACK_OVERFLOWS: AtomicU64 = AtomicU64::new(0);
/// The address of the last fault that was caught.
static LAST: AtomicUsize = AtomicUsize::new(0);

/// What an access is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads a byte.
    Read,
    /// Writes a byte.
    Write,
}

/// Touches an address that may not be mapped: what it reads, or `None` if the access faults.
pub(crate) fn probe(address: usize, access: Access) -> Option<u8> {
    // SAFETY: a fault at these instructions is caught; writes go to memory of the caller's, or nowhere.
    let byte = unsafe { probe_byte(address, u32::from(access == Access::Write)) };
    u8::try_from(byte).ok()
}

/// The address of the last fault that was caught.
pub(crate) fn last_address() -> usize {
    LAST.load(Ordering::Relaxed)
}

/// The area whose guard page an address is in, and who made the area.
pub(crate) fn guard_of(address: usize) -> Option<(AreaInfo, &'static Location<'static>)> {
    let area = vmalloc().find_vm_area(core::ptr::without_provenance(address))?;
    let end_of_use = area.range.start + area.usable_size();
    (address >= end_of_use).then(|| {
        let caller = area.caller;
        (area, caller)
    })
}

/// Deals with a page fault; `false` if it is nobody's. In its exception.
pub(crate) fn page_fault(frame: &mut Frame) -> bool {
    let address = asm::fault_address();
    let rip = frame.rip as usize;
    let expected = rip == (&raw const probe_read).addr() || rip == (&raw const probe_write).addr();
    // SAFETY: the running thread lives.
    let thread = unsafe { percpu::this().current.load(Ordering::Relaxed).as_ref() };
    if let Some(thread) = thread.filter(|thread| thread.has_guard_at(address)) {
        STACK_OVERFLOWS.fetch_add(1, Ordering::Relaxed);
        println!("stack overflow: thread `{}` touched {address:#x}, below its stack", thread.name);
        if expected || percpu::pins() != 0 || !percpu::flags().in_task() || frame.rflags & 0x200 == 0 {
            return false;
        }
        // The thread ends where it began, on the stack that it needs no more.
        frame.rip = sched::die as *const () as u64;
        frame.rsp = thread.stack_top() as u64 - 8;
        frame.rflags &= !0x200;
        return true;
    }
    let what = if frame.error & 2 != 0 { "write to" } else { "read of" };
    if let Some((area, caller)) = guard_of(address) {
        GUARD_HITS.fetch_add(1, Ordering::Relaxed);
        println!(
            "page fault: {what} {address:#x}, the guard page of the area of {} bytes at {:#x} made at {caller}",
            area.requested_size, area.range.start
        );
    } else if !expected {
        println!("page fault: {what} {address:#x}, which is nobody's");
    }
    if expected {
        LAST.store(address, Ordering::Relaxed);
        frame.rip = (&raw const probe_failed).addr() as u64;
    }
    expected
}
