//! The killer at the places where others ask for it: a request of the page allocator, a charge to a group.

use kmem_gfp::{AllocContext, Gfp, OomOutcome, Order, ReclaimRequest};

use crate::oom::{Oom, OomEnv, OomSource, OomVerdict, PanicReason};
use crate::{GroupId, OomKiller};

impl OomVerdict {
    /// What the asker does; a verdict to stop the machine is handed to `panic`, and means no victim if that returns.
    pub fn outcome(self, panic: impl FnOnce(PanicReason)) -> OomOutcome {
        match self {
            Self::Progress(_) => OomOutcome::Progress,
            Self::NoVictim(_) => OomOutcome::NoVictim,
            Self::Panic(reason) => {
                panic(reason);
                OomOutcome::NoVictim
            }
        }
    }
}

impl<E: OomEnv> Oom<E> {
    /// For `MemcgEnv::out_of_memory`: `has_room` says whether the charge would fit by now.
    pub fn group_out_of_memory(
        &self,
        group: GroupId,
        gfp: Gfp,
        order: Order,
        has_room: impl FnOnce() -> bool,
    ) -> OomVerdict {
        self.decide_after(OomSource::Group { group, gfp, order }, has_room)
    }
}

impl<E: OomEnv + Sync> OomKiller for Oom<E> {
    /// A verdict to stop the machine goes to [`OomEnv::panic`].
    fn out_of_memory(&self, _context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        self.decide(OomSource::Allocation(*request)).outcome(|reason| self.env.panic(reason))
    }
}
