//! [`KernelReclaim`]: whom the page allocator asks in a shortage. Step 5 of a port.
//!
//! [`MM`], once it is installed (`daemons`); before that nobody. A test can lend pages and say how many each round frees: then
//! its script is followed and nothing else.

use kmem::MmReclaimer;
use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, NodeId, OomOutcome, Order, ReclaimRequest, Reclaimer, ZoneKind,
};
use kmem_sync::SpinLock;
use kmem_sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cpu::KernelCpu;
use crate::page_list::PageList;
use crate::platform::{Machine, kmem};

/// Who reclaims.
pub(crate) static MM: MmReclaimer<Machine> = MmReclaimer::new();

/// What a test lets reclaim do.
#[derive(Debug)]
struct Script {
    hoard: PageList,
    per_round: usize,
    rounds: usize,
    last_resort: usize,
}

static PLAYING: AtomicBool = AtomicBool::new(false);
static SCRIPT: SpinLock<Script> =
    SpinLock::new(Script { hoard: PageList::new(), per_round: 0, rounds: 0, last_resort: 0 });
static WAKES: AtomicUsize = AtomicUsize::new(0);
static ROUNDS: AtomicUsize = AtomicUsize::new(0);
static OOMS: AtomicUsize = AtomicUsize::new(0);

/// Reclaim on this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelReclaim;

/// Starts a script: each of `rounds` rounds frees `per_round` pages of `hoard`, the last resort `last_resort` pages.
pub(crate) fn play(hoard: PageList, rounds: usize, per_round: usize, last_resort: usize) {
    for counter in [&WAKES, &ROUNDS, &OOMS] {
        counter.store(0, Ordering::Relaxed);
    }
    SCRIPT.with(&KernelCpu, |script| *script = Script { hoard, per_round, rounds, last_resort });
    PLAYING.store(true, Ordering::Relaxed);
}

/// What a script has heard, and the pages that it has not freed.
#[derive(Debug)]
pub(crate) struct Heard {
    /// How often background reclaim was woken.
    pub(crate) wakes: usize,
    /// Rounds of direct reclaim.
    pub(crate) rounds: usize,
    /// How often it came to the last resort.
    pub(crate) ooms: usize,
    /// The pages left.
    pub(crate) hoard: PageList,
}

/// Ends the script.
pub(crate) fn stop() -> Heard {
    PLAYING.store(false, Ordering::Relaxed);
    let hoard = SCRIPT.with(&KernelCpu, |script| core::mem::replace(&mut script.hoard, PageList::new()));
    Heard {
        wakes: WAKES.load(Ordering::Relaxed),
        rounds: ROUNDS.load(Ordering::Relaxed),
        ooms: OOMS.load(Ordering::Relaxed),
        hoard,
    }
}

fn free(pages: usize) -> usize {
    let mut freed = 0;
    while freed < pages {
        let Some(page) = SCRIPT.with(&KernelCpu, |script| script.hoard.pop()) else { break };
        // SAFETY: the test lent it.
        if unsafe { kmem().free_pages(page, Order::ZERO) }.is_ok() {
            freed += 1;
        }
    }
    freed
}

impl Reclaimer for KernelReclaim {
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        if !PLAYING.load(Ordering::Relaxed) {
            return MM.wake_background(node, request);
        }
        WAKES.fetch_add(1, Ordering::Relaxed);
    }

    fn can_reclaim(&self) -> bool {
        PLAYING.load(Ordering::Relaxed) || MM.can_reclaim()
    }

    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        if !PLAYING.load(Ordering::Relaxed) {
            return MM.reclaim(context, request);
        }
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        let pages = SCRIPT.with(&KernelCpu, |script| match script.rounds.checked_sub(1) {
            Some(rounds) => {
                script.rounds = rounds;
                script.per_round
            }
            None => 0,
        });
        free(pages)
    }

    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        if PLAYING.load(Ordering::Relaxed) { CompactOutcome::Skipped } else { MM.compact(context, request, priority) }
    }

    fn can_compact(&self) -> bool {
        !PLAYING.load(Ordering::Relaxed) && MM.can_compact()
    }

    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        if PLAYING.load(Ordering::Relaxed) {
            SCRIPT.with(&KernelCpu, |script| script.hoard.len() as u64)
        } else {
            MM.reclaimable_pages(node, zone)
        }
    }

    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        if !PLAYING.load(Ordering::Relaxed) {
            return MM.out_of_memory(context, request);
        }
        OOMS.fetch_add(1, Ordering::Relaxed);
        let pages = SCRIPT.with(&KernelCpu, |script| script.last_resort);
        if free(pages) > 0 { OomOutcome::Progress } else { OomOutcome::NoVictim }
    }
}
