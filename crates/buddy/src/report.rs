//! Reports: an allocation that failed, an allocation that takes too long.

use kmem_gfp::{AllocContext, Gfp, Order, ZoneKind};
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::alloc::Request;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::slowpath::STALL_MS;
use crate::state::State;
use crate::views::mem_info;

/// At most one report of each sort in this time.
const REPORT_INTERVAL_MS: u64 = 10_000;

/// Whether it is time for another report.
fn may_report(last: &AtomicU64, now: u64) -> bool {
    // Zero stands for "never", so the time is kept one higher.
    let before = last.load(Ordering::Relaxed);
    if before != 0 && now.saturating_sub(before - 1) < REPORT_INTERVAL_MS {
        return false;
    }
    last.compare_exchange(before, now + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

impl<E: BuddyEnv> Buddy<E> {
    /// Reports a failed request, unless it said [`Gfp::NOWARN`], asked for a DMA zone that the machine does not have, or
    /// another one was reported just now.
    #[cold]
    pub(crate) fn report_failure(&self, state: &State, request: &Request) {
        let no_dma = request.gfp.contains(Gfp::DMA)
            && !(0..state.nr_nodes).any(|node| {
                state.zone(kmem_gfp::NodeId(node), ZoneKind::Dma).is_some_and(|zone| zone.managed_pages() > 0)
            });
        let context = self.env().context();
        if request.gfp.contains(Gfp::NOWARN) || no_dma || !may_report(&state.last_failure_report, context.now_ms()) {
            return;
        }
        self.report_body(state, format_args!("page allocation failure: "), request.order, request.gfp);
    }

    /// Reports a request that has been in the slow path for ten seconds.
    pub(crate) fn report_stall(&self, state: &State, request: &Request, started: u64) {
        let context = self.env().context();
        let now = context.now_ms();
        let waited = now.saturating_sub(started);
        if waited < STALL_MS || request.gfp.contains(Gfp::NOWARN) || !may_report(&state.last_stall_report, now) {
            return;
        }
        let seconds = waited / 1000;
        self.report_body(state, format_args!("page allocation stall for {seconds} secs: "), request.order, request.gfp);
    }

    fn report_body(&self, state: &State, what: core::fmt::Arguments<'_>, order: Order, gfp: Gfp) {
        let context = self.env().context();
        context.report(format_args!("{what}order:{}, mode:{:#x}({gfp}), nodemask=(null)", order.get(), gfp.bits()));
        mem_info::lines(state, &mut |line| context.report(line));
    }
}
