//! Direct compaction: on behalf of a request in the slow path.
//!
//! ```text
//! slow path ─▶ Reclaimer::compact (the embedder's) ─▶ compact_zones ─▶ zone by zone: deferred? ─▶ run ─▶ the best outcome
//! ```

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{AllocContext, CompactOutcome, CompactPriority, Gfp, MigrateMode, ReclaimRequest, TaskFlags};

use crate::alloc::Request;
use crate::buddy::Buddy;
use crate::compact::index::Wish;
use crate::compact::scan::{Outcome, Run};
use crate::env::BuddyEnv;

impl<E: BuddyEnv> Buddy<E> {
    /// Compacts the zones that may serve a request until one can, nearest first. This is what an embedder's
    /// [`Reclaimer::compact`](kmem_gfp::Reclaimer::compact) forwards to; its
    /// [`can_compact`](kmem_gfp::Reclaimer::can_compact) then says `true`. Only where the request may sleep.
    ///
    /// If the request waits for the outcome in the allocator's slow path, the block goes straight to it.
    #[doc(alias = "try_to_compact_pages")]
    pub fn compact_zones(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        let Some(state) = self.state().filter(|_| self.is_ready()) else { return CompactOutcome::Skipped };
        if !request.gfp.contains(Gfp::IO) || request.order.get() == 0 {
            return CompactOutcome::Skipped;
        }
        let hasty = priority == CompactPriority::Async;
        let thorough = priority == CompactPriority::SyncFull;
        let task = context.task_flags();
        let flags = AllocFlags::slow_path(request.gfp, request.order, request.migratetype, task, self.defrag_mode());
        let run = Run {
            order: Some(request.order),
            migratetype: request.migratetype,
            mode: if hasty { MigrateMode::Async } else { MigrateMode::SyncLight },
            request: Some(request),
            wish: Some(Wish { order: request.order, ceiling: request.ceiling, flags, hasty }),
            enter_fs: request.gfp.contains(Gfp::FS),
            thorough,
            ignore_skips: thorough,
            whole: thorough,
            daemon: false,
            until_score: None,
        };
        let asked = Request::of_reclaim(request, task);
        let before = context.update_task_flags(TaskFlags::MEMALLOC, TaskFlags::empty());
        let mut best = Outcome::Skipped;
        for zone in self.allowed_zones(state, &asked) {
            if self.options().cpusets && !self.env().node_allowed(zone.node, request.gfp) {
                continue;
            }
            if !thorough && zone.progress.is_deferred(request.order) {
                best = best.max(Outcome::Deferred);
                continue;
            }
            let outcome = self.compact_zone(state, zone, &run);
            best = best.max(outcome);
            match outcome {
                Outcome::Success => {
                    zone.progress.succeeded(request.order, false);
                    break;
                }
                Outcome::Complete | Outcome::PartialSkipped if !hasty => zone.progress.failed(request.order),
                Outcome::Contended if hasty => break,
                _ => {}
            }
            if self.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                break;
            }
        }
        if !before.contains(TaskFlags::MEMALLOC) {
            context.update_task_flags(TaskFlags::empty(), TaskFlags::MEMALLOC);
        }
        match best {
            Outcome::Skipped => CompactOutcome::Skipped,
            Outcome::Deferred => CompactOutcome::Deferred,
            Outcome::Complete | Outcome::PartialSkipped => CompactOutcome::Complete,
            Outcome::Contended => CompactOutcome::Contended,
            Outcome::Success => CompactOutcome::Success,
        }
    }
}
