//! The decision: whether anything is killed, and what (O-01..O-15).

use core::ops::ControlFlow;

use kmem_gfp::{AllocContext, Gfp, Order, ReclaimRequest, ZoneKind};
use kmem_sync::atomic::{AtomicBool, AtomicU8, Ordering};
use kmem_sync::{UnsafeCell, const_fn};

use crate::GroupId;
use crate::oom::badness::is_unkillable;
use crate::oom::notifier::Link;
use crate::oom::report::ReportLimit;
use crate::oom::{
    ADJ_MIN, Badness, Candidate, CandidateFlags, CandidateId, Constraint, OomEnv, OomScope, REAP_DELAY_MS, Victims,
    badness,
};

/// Who is out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomSource {
    /// A request for pages of the machine.
    Allocation(ReclaimRequest),
    /// A charge to a group.
    Group {
        /// The group over its limit.
        group: GroupId,
        /// The charge's flags.
        gfp: Gfp,
        /// Its order.
        order: Order,
    },
    /// Somebody at the console: kills without asking for a shortage, and never panics.
    SysRq,
}

/// When the machine is to stop instead of killing (`panic_on_oom`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum PanicPolicy {
    /// Never.
    #[default]
    Never = 0,
    /// When all memory is short, not for a cpuset, a memory policy or a group.
    Unconstrained = 1,
    /// Whenever anything is short, a group included.
    Always = 2,
}

/// What the decision came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomVerdict {
    /// Try again.
    Progress(Progress),
    /// Nothing has been done.
    NoVictim(NoVictim),
    /// The platform is to stop the machine.
    Panic(PanicReason),
}

/// Why trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Somebody else has the turn; a tick has been slept.
    Busy,
    /// The last look found memory.
    Found,
    /// Notifiers freed this many pages.
    Notified(u64),
    /// The caller is dying; it is a victim now and may use reserves.
    CallerDying,
    /// The request may not enter a filesystem: nothing is killed for it, others' progress is waited for.
    NoFilesystem,
    /// A victim has not exited yet.
    VictimPending,
    /// Killed, with all that share its address space, or with its whole group.
    Killed(CandidateId),
}

/// Why nothing has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVictim {
    /// The request may not have anything killed.
    Ineligible,
    /// Killing is disabled.
    Disabled,
    /// There is nobody to kill.
    Nobody,
}

/// Why the machine is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicReason {
    /// The policy says so.
    Policy(PanicPolicy),
    /// Memory is short and there is nobody to kill.
    Nobody,
}

/// The OOM killer of a machine. `const`-made, for statics.
///
/// # Invariants
/// `notifiers` and the links of registered notifiers are touched by the holder of `turn` only.
pub struct Oom<E> {
    pub(crate) env: E,
    turn: AtomicBool,
    disabled: AtomicBool,
    panic_policy: AtomicU8,
    kill_allocating_task: AtomicBool,
    pub(crate) victims: Victims,
    pub(crate) notifiers: UnsafeCell<Link>,
    pub(crate) reports: ReportLimit,
}

// SAFETY: `notifiers` is touched by the holder of the turn only (type invariant), whose changes its successor sees (acquire
// and release of the turn); the rest is `Sync` if the environment is.
unsafe impl<E: Sync> Sync for Oom<E> {}
// SAFETY: nothing is tied to the creating thread.
unsafe impl<E: Send> Send for Oom<E> {}

impl<E> core::fmt::Debug for Oom<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Oom").field("victims", &self.victims).finish_non_exhaustive()
    }
}

/// What a scan of the candidates came to.
enum Choice {
    Pending,
    Nobody,
    Worst(CandidateId),
}

impl<E> Oom<E> {
    const_fn! {
        /// A killer that is enabled and never panics.
        pub fn new(env: E) -> Self {
            Self {
                env,
                turn: AtomicBool::new(false),
                disabled: AtomicBool::new(false),
                panic_policy: AtomicU8::new(0),
                kill_allocating_task: AtomicBool::new(false),
                victims: Victims::new(),
                notifiers: UnsafeCell::new(None),
                reports: ReportLimit::new(),
            }
        }
    }

    /// The victims; the platform tells them of exits.
    pub fn victims(&self) -> &Victims {
        &self.victims
    }

    /// Sets `panic_on_oom`. Any context.
    pub fn set_panic_policy(&self, policy: PanicPolicy) {
        self.panic_policy.store(policy as u8, Ordering::Relaxed);
    }

    /// Sets `oom_kill_allocating_task`: the caller is killed if it can be, instead of the worst candidate. Any context.
    pub fn set_kill_allocating_task(&self, yes: bool) {
        self.kill_allocating_task.store(yes, Ordering::Relaxed);
    }

    pub(crate) fn try_turn(&self) -> bool {
        // Acquire pairs with the release in `end_turn`.
        self.turn.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn end_turn(&self) {
        self.turn.store(false, Ordering::Release);
    }

    fn panic_policy(&self) -> PanicPolicy {
        match self.panic_policy.load(Ordering::Relaxed) {
            0 => PanicPolicy::Never,
            1 => PanicPolicy::Unconstrained,
            _ => PanicPolicy::Always,
        }
    }
}

impl<E: OomEnv> Oom<E> {
    /// Switches killing off: for suspending the machine. May sleep. Nobody is killed after it returns; the platform then
    /// waits until [`Victims::count`] is zero.
    #[doc(alias = "oom_killer_disable")]
    pub fn disable(&self) {
        self.wait_for_turn();
        self.disabled.store(true, Ordering::Relaxed);
        self.end_turn();
    }

    /// Switches killing on again.
    #[doc(alias = "oom_killer_enable")]
    pub fn enable(&self) {
        self.disabled.store(false, Ordering::Relaxed);
    }

    /// Decides without a last look. See [`decide_after`](Self::decide_after).
    pub fn decide(&self, source: OomSource) -> OomVerdict {
        self.decide_after(source, || false)
    }

    /// Decides what happens for `source`. Once the turn is had, `last_look` tries for the last time whether there is memory
    /// (for pages: a pass at the high mark; for a group: its margin), since somebody may have been killed meanwhile.
    ///
    /// Sleepable contexts; O(candidates).
    #[doc(alias("out_of_memory", "mem_cgroup_out_of_memory"))]
    pub fn decide_after(&self, source: OomSource, last_look: impl FnOnce() -> bool) -> OomVerdict {
        if !self.is_eligible(source) {
            return OomVerdict::NoVictim(NoVictim::Ineligible);
        }
        if !self.try_turn() {
            self.env.sleep_tick();
            return OomVerdict::Progress(Progress::Busy);
        }
        let verdict = if last_look() { OomVerdict::Progress(Progress::Found) } else { self.with_turn(source) };
        self.end_turn();
        verdict
    }

    /// Whether the request may have anything killed (O-03).
    fn is_eligible(&self, source: OomSource) -> bool {
        match source {
            OomSource::SysRq => true,
            OomSource::Group { order, .. } => !order.is_costly(),
            OomSource::Allocation(request) => {
                let mut dumping = false;
                self.env.current(&mut |current| dumping = current.flags.contains(CandidateFlags::DUMPING_CORE));
                !dumping
                    && !request.order.is_costly()
                    && !request.gfp.intersects(Gfp::RETRY_MAYFAIL.union(Gfp::THISNODE))
                    && request.ceiling >= ZoneKind::Normal
                    && !self.env.storage_suspended()
            }
        }
    }

    /// The list of O-06.
    fn with_turn(&self, source: OomSource) -> OomVerdict {
        if self.disabled.load(Ordering::Relaxed) {
            return OomVerdict::NoVictim(NoVictim::Disabled);
        }
        let (gfp, order, constraint) = match source {
            OomSource::Allocation(request) => (request.gfp, request.order, self.env.constraint(&request)),
            OomSource::Group { group, gfp, order } => (gfp, order, Constraint::Memcg(group)),
            OomSource::SysRq => (Gfp::KERNEL, Order::ZERO, Constraint::None),
        };
        let is_global = !matches!(source, OomSource::Group { .. });
        if is_global {
            let freed = self.notify();
            if freed > 0 && source != OomSource::SysRq {
                return OomVerdict::Progress(Progress::Notified(freed));
            }
        }
        if self.mark_dying_caller() {
            return OomVerdict::Progress(Progress::CallerDying);
        }
        if matches!(source, OomSource::Allocation(_)) && !gfp.contains(Gfp::FS) {
            return OomVerdict::Progress(Progress::NoFilesystem);
        }
        let scope = match constraint {
            Constraint::Memcg(group) => OomScope::Group(group),
            constraint => OomScope::Machine(constraint),
        };
        if let Some(policy) = self.must_panic(source, constraint) {
            self.report(gfp, order, scope);
            return OomVerdict::Panic(PanicReason::Policy(policy));
        }
        if is_global && self.kill_allocating_task.load(Ordering::Relaxed) {
            let mut killed = None;
            self.env.current(&mut |current| {
                if can_be_killed(current) {
                    self.report(gfp, order, scope);
                    self.kill_with_others(current, constraint);
                    killed = Some(current.id);
                }
            });
            if let Some(id) = killed {
                return OomVerdict::Progress(Progress::Killed(id));
            }
        }
        match self.select(scope, constraint, source) {
            Choice::Pending => OomVerdict::Progress(Progress::VictimPending),
            Choice::Worst(id) => {
                self.report(gfp, order, scope);
                self.kill_chosen(scope, id, constraint);
                OomVerdict::Progress(Progress::Killed(id))
            }
            Choice::Nobody => {
                self.report(gfp, order, scope);
                if matches!(source, OomSource::Allocation(_)) {
                    OomVerdict::Panic(PanicReason::Nobody)
                } else {
                    OomVerdict::NoVictim(NoVictim::Nobody)
                }
            }
        }
    }

    /// A caller that is about to exit gets the victim's reserve instead of anybody being killed.
    fn mark_dying_caller(&self) -> bool {
        let mut dying = false;
        let later = self.env.context().now_ms().saturating_add(REAP_DELAY_MS);
        self.env.current(&mut |current| {
            let has_memory = !current.flags.intersects(CandidateFlags::NO_ADDRESS_SPACE | CandidateFlags::DUMPING_CORE);
            if current.flags.contains(CandidateFlags::DYING) && has_memory && !current.mark.is_skipped() {
                // It may be a victim already: then it knows of its reserve.
                dying = self.victims.mark(current.mark, later) || current.mark.is_pending();
            }
        });
        dying
    }

    fn must_panic(&self, source: OomSource, constraint: Constraint) -> Option<PanicPolicy> {
        let policy = self.panic_policy();
        let applies = match policy {
            PanicPolicy::Never => false,
            PanicPolicy::Unconstrained => constraint == Constraint::None,
            PanicPolicy::Always => true,
        };
        (applies && source != OomSource::SysRq).then_some(policy)
    }

    /// What badness is measured against (O-11).
    fn total_pages(&self, constraint: Constraint) -> u64 {
        match constraint {
            Constraint::None => self.env.ram_pages().saturating_add(self.env.swap_pages()),
            Constraint::Memcg(group) => self.env.group_pages(group).max(1),
            other => self.env.allowed_pages(other).saturating_add(self.env.swap_pages()),
        }
    }

    /// The worst candidate; the later one of two that are equal. Stops at a victim that is still to exit (O-10).
    fn select(&self, scope: OomScope, constraint: Constraint, source: OomSource) -> Choice {
        let total = self.total_pages(constraint);
        let mut worst: Option<(Badness, CandidateId)> = None;
        let mut pending = false;
        self.env.for_each(scope, &mut |candidate| {
            if is_unkillable(candidate) {
                return ControlFlow::Continue(());
            }
            if candidate.mark.is_pending() && source != OomSource::SysRq {
                pending = true;
                return ControlFlow::Break(());
            }
            let points = badness(candidate, total);
            if points != Badness::Exempt && worst.is_none_or(|(most, _)| points >= most) {
                worst = Some((points, candidate.id));
            }
            ControlFlow::Continue(())
        });
        match worst {
            _ if pending => Choice::Pending,
            Some((_, id)) => Choice::Worst(id),
            None => Choice::Nobody,
        }
    }

    /// Kills the candidate with this number, or the group that dies with it.
    fn kill_chosen(&self, scope: OomScope, id: CandidateId, constraint: Constraint) {
        let domain = match constraint {
            Constraint::Memcg(group) => group,
            _ => GroupId::ROOT,
        };
        let mut whole = None;
        self.env.for_each(scope, &mut |candidate| {
            if candidate.id != id {
                return ControlFlow::Continue(());
            }
            whole = self.env.group_to_kill(candidate.group, domain);
            self.kill_with_others(candidate, constraint);
            ControlFlow::Break(())
        });
        let Some(group) = whole else { return };
        self.env.killed(group, true);
        self.env.for_each(OomScope::Group(group), &mut |candidate| {
            if candidate.id != id && can_be_killed(candidate) {
                self.kill_with_others(candidate, constraint);
            }
            ControlFlow::Continue(())
        });
    }

    /// Kills a candidate and every other one that shares its address space, but for init and kernel threads (O-12).
    fn kill_with_others(&self, victim: &Candidate<'_>, constraint: Constraint) {
        // The signal first: a victim that does not know of its death must not eat the reserve.
        self.env.kill(victim);
        let due = self.env.context().now_ms().saturating_add(REAP_DELAY_MS);
        if self.victims.mark(victim.mark, due) {
            self.report_kill(victim, constraint);
            self.env.killed(victim.group, false);
        }
        let mut shared_with_init = false;
        self.env.for_each(OomScope::Machine(Constraint::None), &mut |other| {
            if other.address_space == victim.address_space && other.id != victim.id {
                if other.flags.contains(CandidateFlags::INIT) {
                    shared_with_init = true;
                } else if !is_unkillable(other) {
                    self.env.kill(other);
                }
            }
            ControlFlow::Continue(())
        });
        if shared_with_init {
            // Its memory will not be freed: do not wait for that.
            victim.mark.skip();
        }
    }
}

/// Whether a candidate may be killed without being compared with others.
fn can_be_killed(candidate: &Candidate<'_>) -> bool {
    !is_unkillable(candidate)
        && !candidate.flags.contains(CandidateFlags::NO_ADDRESS_SPACE)
        && candidate.adj > ADJ_MIN
        && !candidate.mark.is_pending()
}
