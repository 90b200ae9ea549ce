//! Reclaim within one memory cgroup: for a charge over its limit, and for whoever asks ahead of time.
//!
//! Proactive reclaim frees a given number of pages in rounds of a quarter of what is left, and gives up at the 17th round
//! that freed nothing.

use kmem_gfp::{AllocContext, Gfp, NoReclaimScope, NodeId, Order, PAGE_SIZE, TaskFlags, ZoneKind, current_gfp_context};

use crate::balance::CLUSTER;
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, StallKind};
use crate::events::ReclaimEvent;
use crate::{GroupId, Scan, ScanLimits, Swappiness};

/// Empty rounds that proactive reclaim bears.
const MAX_EMPTY_ROUNDS: u32 = 16;

/// How a group is to be reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupReclaim {
    /// Whether anonymous pages may go to swap (not when memory and swap are limited together).
    pub may_swap: bool,
    /// In place of the groups' own and the machine's.
    pub swappiness: Option<Swappiness>,
    /// Whether this is proactive: it says nothing about pressure.
    pub proactive: bool,
}

impl Default for GroupReclaim {
    fn default() -> Self {
        Self { may_swap: true, swappiness: None, proactive: false }
    }
}

/// Reclaims within a group: what charging calls when a group is over its limit.
pub trait GroupReclaimer {
    /// Frees about `pages` pages (at least 32) of the subtree of `group` and returns how many were freed, possibly more or
    /// fewer. 0 from within reclaim. Only where sleeping is allowed.
    fn reclaim_group(&self, context: &dyn AllocContext, group: GroupId, pages: u64, gfp: Gfp, how: GroupReclaim)
    -> u64;
}

impl<R: GroupReclaimer> GroupReclaimer for &R {
    fn reclaim_group(
        &self,
        context: &dyn AllocContext,
        group: GroupId,
        pages: u64,
        gfp: Gfp,
        how: GroupReclaim,
    ) -> u64 {
        (**self).reclaim_group(context, group, pages, gfp, how)
    }
}

impl<E: ReclaimEnv> GroupReclaimer for Reclaim<E> {
    #[doc(alias = "try_to_free_mem_cgroup_pages")]
    fn reclaim_group(
        &self,
        context: &dyn AllocContext,
        group: GroupId,
        pages: u64,
        gfp: Gfp,
        how: GroupReclaim,
    ) -> u64 {
        let flags = context.task_flags();
        if flags.contains(TaskFlags::MEMALLOC) {
            return 0;
        }
        let limits = ScanLimits {
            gfp: current_gfp_context(gfp, flags),
            order: Order::ZERO,
            ceiling: ZoneKind::Movable,
            target: pages.max(CLUSTER),
            root: group,
            background: false,
            may_write: true,
            may_unmap: true,
            may_swap: how.may_swap,
            swappiness: self.swappiness(),
        };
        let counted = if how.proactive {
            (ReclaimEvent::ScanProactive, ReclaimEvent::StealProactive)
        } else {
            (ReclaimEvent::ScanDirect, ReclaimEvent::StealDirect)
        };
        let _reserves = NoReclaimScope::enter(context);
        self.stalled(context, StallKind::DirectReclaim, || {
            let mut scan = Scan::new(limits, context);
            (scan.proactive, scan.swappiness) = (how.proactive, how.swappiness);
            self.free_pages(None, context.local_node(), &mut scan, counted)
        })
    }
}

/// Why proactive reclaim ended early. What was freed stays freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProactiveError {
    /// Too many rounds freed nothing (`-EAGAIN`).
    #[error("only {freed} of {wanted} pages could be freed")]
    Again {
        /// Pages freed.
        freed: u64,
        /// Pages asked for.
        wanted: u64,
    },
    /// A fatal signal is pending (`-ERESTARTSYS`).
    #[error("interrupted with {freed} of {wanted} pages freed")]
    Interrupted {
        /// Pages freed.
        freed: u64,
        /// Pages asked for.
        wanted: u64,
    },
    /// Somebody else reclaims that node (`-EBUSY`).
    #[error("node {node} is being reclaimed with {freed} pages freed")]
    Busy {
        /// The node.
        node: NodeId,
        /// Pages freed.
        freed: u64,
    },
}

/// A request for proactive reclaim, as written to `memory.reclaim`: `<bytes> [swappiness=<0..200|max>]`.
///
/// ```
/// use kmem_reclaim::{ProactiveRequest, Swappiness};
///
/// let request: ProactiveRequest = "1M swappiness=max".parse()?;
/// assert_eq!(request.pages, 256);
/// assert_eq!(request.swappiness, Some(Swappiness::AnonOnly));
/// # Ok::<(), kmem_reclaim::ParseProactiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProactiveRequest {
    /// Pages to free.
    pub pages: u64,
    /// In place of the groups' own and the machine's.
    pub swappiness: Option<Swappiness>,
}

/// What is wrong with the text of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseProactiveError {
    /// The amount is missing or no number with an optional K, M, G or T.
    #[error("the amount is not a number of bytes")]
    Amount,
    /// The swappiness is not 0..=200 or `max`.
    #[error("swappiness is 0 to 200 or max")]
    Swappiness,
    /// There is something else.
    #[error("unknown option")]
    UnknownOption,
}

impl core::str::FromStr for ProactiveRequest {
    type Err = ParseProactiveError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_ascii_whitespace();
        let amount = words.next().ok_or(ParseProactiveError::Amount)?;
        let (digits, shift) = match amount.char_indices().last() {
            Some((at, 'k' | 'K')) => (amount.split_at(at).0, 10),
            Some((at, 'm' | 'M')) => (amount.split_at(at).0, 20),
            Some((at, 'g' | 'G')) => (amount.split_at(at).0, 30),
            Some((at, 't' | 'T')) => (amount.split_at(at).0, 40),
            _ => (amount, 0u32),
        };
        let number: u64 = digits.parse().map_err(|_| ParseProactiveError::Amount)?;
        let bytes = number.checked_mul(1 << shift).ok_or(ParseProactiveError::Amount)?;
        let mut swappiness = None;
        for word in words {
            let value = word.strip_prefix("swappiness=").ok_or(ParseProactiveError::UnknownOption)?;
            swappiness = Some(match value {
                "max" => Swappiness::AnonOnly,
                _ => match value.parse() {
                    Ok(share) if share <= 200 => Swappiness::Share(share),
                    _ => return Err(ParseProactiveError::Swappiness),
                },
            });
        }
        Ok(Self { pages: bytes / PAGE_SIZE as u64, swappiness })
    }
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Frees `request.pages` pages of a group before anybody needs them (R-46); returns how many it was, possibly more.
    /// Where sleeping is allowed.
    ///
    /// # Errors
    /// [`ProactiveError::Again`], [`ProactiveError::Interrupted`].
    #[doc(alias("memory.reclaim", "user_proactive_reclaim"))]
    pub fn reclaim_proactively(
        &self,
        context: &dyn AllocContext,
        group: GroupId,
        request: ProactiveRequest,
    ) -> Result<u64, ProactiveError> {
        let how = GroupReclaim { may_swap: true, swappiness: request.swappiness, proactive: true };
        proactive_rounds(context, request.pages, |batch| {
            Ok(self.reclaim_group(context, group, batch, Gfp::KERNEL, how))
        })
    }

    /// As [`reclaim_proactively`](Self::reclaim_proactively) for a node (its `reclaim` file).
    ///
    /// # Errors
    /// As there, and [`ProactiveError::Busy`] while somebody else reclaims the node.
    pub fn reclaim_node_proactively(
        &self,
        context: &dyn AllocContext,
        node: NodeId,
        request: ProactiveRequest,
    ) -> Result<u64, ProactiveError> {
        let how = GroupReclaim { may_swap: true, swappiness: request.swappiness, proactive: true };
        proactive_rounds(context, request.pages, |batch| {
            self.reclaim_one_node(context, node, batch, how).ok_or(ProactiveError::Busy { node, freed: 0 })
        })
    }
}

fn proactive_rounds(
    context: &dyn AllocContext,
    wanted: u64,
    mut round: impl FnMut(u64) -> Result<u64, ProactiveError>,
) -> Result<u64, ProactiveError> {
    let (mut freed, mut empty) = (0u64, 0);
    while freed < wanted {
        if context.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
            return Err(ProactiveError::Interrupted { freed, wanted });
        }
        let batch = ((wanted - freed) / 4).max(CLUSTER);
        let now = round(batch).map_err(|error| match error {
            ProactiveError::Busy { node, .. } => ProactiveError::Busy { node, freed },
            other => other,
        })?;
        if now == 0 {
            empty += 1;
            if empty > MAX_EMPTY_ROUNDS {
                return Err(ProactiveError::Again { freed, wanted });
            }
        }
        freed = freed.saturating_add(now);
    }
    Ok(freed)
}
