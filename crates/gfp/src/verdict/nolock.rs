//! The any-context request: what it may ask for, and when it is refused outright.
//!
//! Code that may have interrupted anything, an allocator's own critical section included, asks here. It names no flag
//! but ACCOUNT: that it reports nothing, gets zeroed memory, touches no reserve and cannot reclaim is implied. Every
//! lock is only tried, and the caller learns only that there was nothing, not whether for want of memory or of a lock.

use super::{GfpError, Interface};
use crate::{context::TaskFlags, flags::Gfp};

/// The one flag that the caller of an any-context request may give.
pub const ALLOWED: Gfp = Gfp::ACCOUNT;

/// The flags that every any-context request carries. None of them is a reclaim flag, which is what marks it for the
/// layers above the page allocator (see [`Gfp::allows_spinning`]).
pub const IMPLIED: Gfp = Gfp::NOWARN.union(Gfp::ZERO).union(Gfp::NOMEMALLOC).union(Gfp::COMP);

/// The complete flags of an any-context request. Pure; any context.
///
/// # Errors
///
/// [`GfpError::Refused`] names the flags that such a request must not carry.
pub const fn request(gfp: Gfp) -> Result<Gfp, GfpError> {
    let refused = gfp.difference(ALLOWED);
    if !refused.is_empty() {
        return Err(GfpError::Refused { gfp, refused, interface: Interface::NoLock });
    }
    Ok(gfp.union(IMPLIED))
}

/// Why an any-context request cannot be served now, however much memory is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// On a real-time kernel spin locks sleep, so they cannot be tried in an NMI or a hardware interrupt.
    #[error("a real-time kernel cannot try its locks in this interrupt")]
    RealTimeInterrupt,
    /// On a single CPU spin locks are empty, so a try in an NMI would succeed inside a critical section.
    #[error("a single CPU cannot try its locks in an NMI")]
    SingleCpuNmi,
    /// The order is none that per-CPU page sets keep.
    #[error("the order is not kept per CPU")]
    OrderNotCached,
    /// Part of memory is not initialised yet, and doing so takes a lock.
    #[error("memory is still being initialised")]
    StillInitialising,
}

/// What the answer depends on besides the context: properties of the machine, and of the order asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Spin locks may sleep on this kernel.
    pub realtime_kernel: bool,
    /// Locks on this machine do nothing, because it has one CPU.
    pub empty_locks: bool,
    /// Per-CPU page sets keep blocks of the order.
    pub order_is_cached: bool,
    /// All of memory is initialised.
    pub initialised: bool,
}

impl Conditions {
    /// Whether a request is refused outright in this context. Pure; any context.
    #[must_use]
    pub const fn refusal(&self, task: TaskFlags) -> Option<Refusal> {
        let in_nmi = task.contains(TaskFlags::IN_NMI);
        if self.realtime_kernel && (in_nmi || task.contains(TaskFlags::IN_IRQ)) {
            Some(Refusal::RealTimeInterrupt)
        } else if self.empty_locks && in_nmi {
            Some(Refusal::SingleCpuNmi)
        } else if !self.order_is_cached {
            Some(Refusal::OrderNotCached)
        } else if !self.initialised {
            Some(Refusal::StillInitialising)
        } else {
            None
        }
    }
}
