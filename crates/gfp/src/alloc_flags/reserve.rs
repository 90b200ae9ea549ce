//! [`Reserve`]: who may go below the min watermark for the sake of getting memory freed.
//!
//! The decision is a list, first match wins:
//!
//! ```text
//! 1  NOMEMALLOC                                 none
//! 2  MEMALLOC                                   everything
//! 3  task in reclaim, serving a softirq         everything
//! 4  task in reclaim, not in any interrupt      everything
//! 5  OOM victim, not in any interrupt           half of the min mark
//! 6  else                                       none
//! ```
//!
//! In a hard interrupt or an NMI the interrupted task's state says nothing about the code that runs, so rows 3 to 5 do
//! not apply there.

use super::AllocFlags;
use crate::{context::TaskFlags, flags::Gfp};

/// The emergency reserve that a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reserve {
    /// None: watermarks hold as derived.
    None,
    /// Half of the min watermark, and the highatomic reserve: an OOM victim on its way out.
    OomVictim,
    /// All of it: no watermark is checked.
    Everything,
}

impl Reserve {
    /// Decides for `gfp`, asked for by `task`. Pure and constant-time.
    #[doc(alias("__gfp_pfmemalloc_flags", "gfp_pfmemalloc_allowed"))]
    #[must_use]
    pub const fn decide(gfp: Gfp, task: TaskFlags) -> Self {
        if gfp.contains(Gfp::NOMEMALLOC) {
            return Self::None;
        }
        if gfp.contains(Gfp::MEMALLOC) {
            return Self::Everything;
        }
        if task.intersects(TaskFlags::IN_IRQ.union(TaskFlags::IN_NMI)) {
            return Self::None;
        }
        if task.contains(TaskFlags::MEMALLOC) {
            return Self::Everything;
        }
        if task.contains(TaskFlags::OOM_VICTIM) && !task.contains(TaskFlags::IN_SOFTIRQ) {
            return Self::OomVictim;
        }
        Self::None
    }

    /// Whether there is any reserve to use; the node mask is dropped then, too.
    #[must_use]
    pub const fn is_granted(self) -> bool {
        !matches!(self, Self::None)
    }
}

impl AllocFlags {
    /// The flags of an attempt that uses `reserve`. A granted reserve *replaces* the flags: only
    /// [`CMA`](Self::CMA) and [`KSWAPD`](Self::KSWAPD) survive, and the mark becomes the min mark.
    #[must_use]
    pub const fn with_reserve(self, reserve: Reserve) -> Self {
        let granted = match reserve {
            Reserve::None => return self,
            Reserve::OomVictim => Self::OOM,
            Reserve::Everything => Self::NO_WATERMARKS,
        };
        granted.union(self.intersection(Self::CMA.union(Self::KSWAPD)))
    }
}
