//! What virtual areas need from the machine below them.
//!
//! ```text
//! Vmalloc<E> ──▶ E: VmallocEnv ─┬─ cpu()      which CPU, interrupts off              kmem_sync::Cpu
//!                               ├─ pages()    frames: singly, in bulk, in parts      kmem_gfp::{BulkPages, ExactPages}
//!                               ├─ frames()   where bookkeeping frames are mapped    kmem_gfp::FrameTable
//!                               ├─ context()  may it sleep, scopes, reports          kmem_gfp::AllocContext
//!                               └─ space()    page tables of the window              AddressSpace
//! ```

use kmem_gfp::{AllocContext, BulkPages, ExactPages, FrameTable, PAGE_SIZE};
use kmem_sync::Cpu;

use crate::{AddressSpace, CpuSet};

/// Work that vmalloc wants done soon, in a context that may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// [`Vmalloc::run_deferred`](crate::Vmalloc::run_deferred): areas were freed where that could not be finished.
    Free,
    /// [`Vmalloc::purge`](crate::Vmalloc::purge): more pages than the threshold are freed lazily.
    Purge,
}

/// Told when no addresses are left, before the allocation fails.
pub trait ExhaustionNotifier {
    /// Frees virtual areas that can be done without; returns how many pages of address space came free. Zero ends the
    /// retries. Task context; may sleep.
    fn address_space_exhausted(&self, nr_pages: u64) -> u64;
}

/// Nobody to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNotifier;

impl ExhaustionNotifier for NoNotifier {
    fn address_space_exhausted(&self, _nr_pages: u64) -> u64 {
        0
    }
}

/// Ranges that can be taken back from vmalloc's pools: the shape of a shrinker.
pub trait PoolShrinker {
    /// How many entries the pools hold.
    fn count_objects(&self) -> usize;

    /// Empties the pools into the free space and returns how many entries that were. Task context; may sleep.
    fn scan_objects(&self) -> usize;
}

/// The parts that a [`Vmalloc`](crate::Vmalloc) is built over, and questions with defaults.
///
/// Usually a zero-sized type or a reference to the structure that holds the parts. Each method returns the same part, or
/// for constants the same answer, every time.
pub trait VmallocEnv {
    /// The machine's CPUs.
    type Cpu: Cpu;
    /// Where frames come from: for areas, page tables and bookkeeping.
    type Pages: BulkPages + ExactPages;
    /// Where those frames are mapped. Only bookkeeping frames are accessed.
    type Frames: FrameTable;
    /// The running context.
    type Context: AllocContext;
    /// The window's page tables.
    type Space: AddressSpace;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The page source.
    fn pages(&self) -> &Self::Pages;
    /// The frame table.
    fn frames(&self) -> &Self::Frames;
    /// The running context.
    fn context(&self) -> &Self::Context;
    /// The page tables.
    fn space(&self) -> &Self::Space;

    /// How many pages of RAM there are: no area can have more.
    #[inline(always)]
    fn total_pages(&self) -> u64 {
        u64::MAX
    }

    /// How many CPUs are online; decides how much may be freed lazily. Read when the window is set up.
    fn online_cpus(&self) -> u32 {
        self.cpu().nr_cpus()
    }

    /// The CPUs whose translations are to be flushed.
    fn flush_cpus(&self) -> CpuSet<'_> {
        CpuSet::All
    }

    /// Asks for work to be done by somebody who may sleep; `false` if nobody will, and then vmalloc does it itself the next
    /// time it runs where it may. Any context but NMI; must not call back.
    fn schedule(&self, work: Work) -> bool {
        let _ = work;
        false
    }

    /// Whom to ask for areas when no addresses are left.
    fn notifier(&self) -> &dyn ExhaustionNotifier {
        &NoNotifier
    }

    /// The alignment of memory that user space maps as well (`SHMLBA`), in bytes; a power of two.
    #[doc(alias = "SHMLBA")]
    fn shared_alignment(&self) -> usize {
        PAGE_SIZE
    }

    /// Whether bytes that an allocation gives up are cleared at once (`init_on_free`, `init_on_alloc`).
    fn clears_memory(&self) -> bool {
        false
    }
}

impl<E: VmallocEnv + ?Sized> VmallocEnv for &E {
    type Cpu = E::Cpu;
    type Pages = E::Pages;
    type Frames = E::Frames;
    type Context = E::Context;
    type Space = E::Space;

    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn pages(&self) -> &Self::Pages {
        (**self).pages()
    }
    #[inline(always)]
    fn frames(&self) -> &Self::Frames {
        (**self).frames()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    #[inline(always)]
    fn space(&self) -> &Self::Space {
        (**self).space()
    }
    #[inline(always)]
    fn total_pages(&self) -> u64 {
        (**self).total_pages()
    }
    fn online_cpus(&self) -> u32 {
        (**self).online_cpus()
    }
    fn flush_cpus(&self) -> CpuSet<'_> {
        (**self).flush_cpus()
    }
    fn schedule(&self, work: Work) -> bool {
        (**self).schedule(work)
    }
    fn notifier(&self) -> &dyn ExhaustionNotifier {
        (**self).notifier()
    }
    fn shared_alignment(&self) -> usize {
        (**self).shared_alignment()
    }
    fn clears_memory(&self) -> bool {
        (**self).clears_memory()
    }
}
