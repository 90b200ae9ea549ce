//! What the OOM killer says: who asked, what memory looks like, who could die, who does. Line by line, without allocating,
//! at most ten reports in five seconds.

use core::ops::ControlFlow;

use kmem_gfp::{AllocContext, Gfp, Order, PAGE_SIZE};
use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kmem_sync::const_fn;

use crate::oom::{Candidate, Constraint, Oom, OomEnv, OomScope};

const INTERVAL_MS: u64 = 5000;
const BURST: u32 = 10;

/// Lets ten reports through in five seconds. Used with the turn held.
#[derive(Debug)]
pub(crate) struct ReportLimit {
    begun_ms: AtomicU64,
    printed: AtomicU32,
    missed: AtomicU32,
}

impl ReportLimit {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self { begun_ms: AtomicU64::new(0), printed: AtomicU32::new(0), missed: AtomicU32::new(0) }
        }
    }

    /// Whether to report at `now`, and how many were kept back before.
    pub(crate) fn allow(&self, now: u64) -> Option<u32> {
        if now.saturating_sub(self.begun_ms.load(Ordering::Relaxed)) >= INTERVAL_MS {
            self.begun_ms.store(now, Ordering::Relaxed);
            self.printed.store(0, Ordering::Relaxed);
        }
        if self.printed.load(Ordering::Relaxed) >= BURST {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.printed.fetch_add(1, Ordering::Relaxed);
        Some(self.missed.swap(0, Ordering::Relaxed))
    }
}

const fn kb(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64 / 1024)
}

impl<E: OomEnv> Oom<E> {
    /// The long report: before a kill, or when there is nobody to kill.
    pub(crate) fn report(&self, gfp: Gfp, order: Order, scope: OomScope) {
        let context = self.env.context();
        let Some(missed) = self.reports.allow(context.now_ms()) else { return };
        if missed > 0 {
            context.report(format_args!("oom-killer: {missed} reports suppressed"));
        }
        let mut told = false;
        self.env.current(&mut |current| {
            told = true;
            context.report(format_args!(
                "{} invoked oom-killer: gfp_mask={:#x}({gfp}), order={}, oom_score_adj={}",
                current.name,
                gfp.bits(),
                order.get(),
                current.adj
            ));
        });
        if !told {
            context.report(format_args!(
                "oom-killer invoked: gfp_mask={:#x}({gfp}), order={}",
                gfp.bits(),
                order.get()
            ));
        }
        self.env.memory_lines(&mut |line| context.report(line));
        context.report(format_args!("Tasks state (memory values in pages):"));
        context.report(format_args!("[     id]       rss  swapents  pgtables oom_score_adj name"));
        self.env.for_each(scope, &mut |candidate| {
            context.report(format_args!(
                "[{:>7}] {:>9} {:>9} {:>9} {:>13} {}",
                candidate.id.0, candidate.rss, candidate.swap, candidate.page_tables, candidate.adj, candidate.name
            ));
            ControlFlow::Continue(())
        });
    }

    /// One line for each that is killed.
    pub(crate) fn report_kill(&self, victim: &Candidate<'_>, constraint: Constraint) {
        let what = match constraint {
            Constraint::Memcg(_) => "Memory cgroup out of memory",
            _ => "Out of memory",
        };
        self.env.context().report(format_args!(
            "{what}: Killed process {} ({}) {} rss:{}kB swap:{}kB pgtables:{}kB oom_score_adj:{}",
            victim.id.0,
            victim.name,
            constraint.name(),
            kb(victim.rss),
            kb(victim.swap),
            kb(victim.page_tables),
            victim.adj
        ));
    }
}
