//! The machine as the OOM killer sees it.

use core::fmt;
use core::ops::ControlFlow;

use kmem_reclaim::GroupId;
use kmem_reclaim::memcg::Event;
use kmem_reclaim::oom::{Candidate, OomEnv, OomScope, PanicReason};

use super::platform::ReclaimPlatform;
use super::side::ReclaimSide;
use super::views::MemInfo;

impl<P: ReclaimPlatform> OomEnv for ReclaimSide<P> {
    type Context = P::Context;

    fn context(&self) -> &P::Context {
        self.platform().context()
    }
    fn for_each(&self, scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>) {
        let groups = &self.mm().groups;
        self.platform().for_each_candidate(scope, &mut |candidate| match scope {
            OomScope::Group(domain) if !groups.is_within(candidate.group, domain) => ControlFlow::Continue(()),
            _ => visit(candidate),
        });
    }
    fn current(&self, see: &mut dyn FnMut(&Candidate<'_>)) {
        self.platform().current_candidate(see);
    }
    fn kill(&self, candidate: &Candidate<'_>) {
        self.platform().kill(candidate);
    }
    fn reap(&self, victim: &Candidate<'_>) -> bool {
        self.platform().reap(victim)
    }
    fn ram_pages(&self) -> u64 {
        self.kmem.pages.managed_pages()
    }
    fn swap_pages(&self) -> u64 {
        self.platform().swap_total_pages()
    }
    fn group_pages(&self, group: GroupId) -> u64 {
        self.mm().groups.max(group).min(self.ram_pages().saturating_add(self.swap_pages()))
    }
    fn group_to_kill(&self, victim: GroupId, domain: GroupId) -> Option<GroupId> {
        self.mm().groups.oom_group(victim, domain)
    }
    fn killed(&self, group: GroupId, whole_group: bool) {
        self.mm().groups.record_event(group, if whole_group { Event::OomGroupKill } else { Event::OomKill });
    }
    fn panic(&self, reason: PanicReason) {
        self.platform().oom_panic(reason);
    }
    fn memory_lines(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        MemInfo::of(self.mm()).lines(line);
        line(format_args!("{}", self.kmem.pages.mem_info()));
        self.platform().memory_lines(line);
    }
}
