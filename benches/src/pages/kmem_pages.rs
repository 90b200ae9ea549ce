//! kmem's page allocator in the page suite, on a hosted machine.

use kmem_gfp::{Gfp, Order, Pfn};

use super::{Pages, Workload, subject};
use crate::{
    machine::{self, HostedKmem},
    measure::{Role, Subject},
};

/// kmem's subjects for `workload`.
pub(crate) fn subjects(workload: Workload, seed: u64) -> Vec<Subject> {
    vec![subject::<KmemPages>("kmem", Role::Kmem, workload, seed)]
}

/// Pages of one machine. `MEMALLOC` lets the workloads have the last frame, as the peers do, who keep no reserve.
pub(crate) struct KmemPages(&'static HostedKmem);

const GFP: Gfp = Gfp::KERNEL.union(Gfp::MEMALLOC).union(Gfp::NOWARN).union(Gfp::NORETRY);

impl Pages for KmemPages {
    fn new(frames: usize, cpus: usize) -> Option<Self> {
        // The machine keeps a few frames for its own caches, and the thread that prepares it one of the CPUs.
        machine::boot((frames + 1024) * 4096, cpus + 1).map(|machine| Self(machine.kmem()))
    }
    #[inline(always)]
    fn alloc(&self, _cpu: usize, order: u32) -> Option<usize> {
        self.0.alloc_pages(GFP, Order::new(order)?).ok().map(|pfn| pfn.0 as usize)
    }
    #[inline(always)]
    fn free(&self, _cpu: usize, frame: usize, order: u32) {
        if let Some(order) = Order::new(order) {
            // SAFETY: the workloads free what they allocated, once.
            let freed = unsafe { self.0.free_pages(Pfn(frame as u64), order) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}
