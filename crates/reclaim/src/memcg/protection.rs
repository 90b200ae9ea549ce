//! `memory.min` and `memory.low` after the ancestors' shares (A-16).
//!
//! ```text
//! target of the reclaim         has none itself
//!  └─ first level below         its own setting
//!      └─ further below         min(setting, usage), scaled down if the siblings together claim more than the parent has;
//!                               what the parent has and nobody claims is spread by unprotected usage
//! ```

use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::memcg::slot::Slot;
use crate::memcg::table::State;
use crate::{GroupId, Protection};

/// What is known of a parent when one of its children's protection is worked out, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParentShare {
    /// The parent's own effective protection.
    pub effective: u64,
    /// The parent's usage.
    pub usage: u64,
    /// The sum over its children of `min(setting, usage)`.
    pub claimed: u64,
}

/// The effective protection of a child that uses `usage` pages and is set to `setting`. `recursive`: what no child claims
/// of the parent's is spread. Pure; a few multiplications.
pub fn effective_protection(usage: u64, setting: u64, parent: ParentShare, recursive: bool) -> u64 {
    let claim = usage.min(setting);
    if parent.claimed > parent.effective {
        return share(claim, parent.effective, parent.claimed);
    }
    let free = parent.effective - parent.claimed;
    if recursive && free > 0 && parent.usage > parent.claimed && usage > claim {
        return claim.saturating_add(share(free, usage - claim, parent.usage - parent.claimed));
    }
    claim
}

/// `whole * part / of`, rounded down; the whole if nothing divides it.
fn share(whole: u64, part: u64, of: u64) -> u64 {
    if of == 0 {
        return whole;
    }
    u64::try_from(u128::from(whole) * u128::from(part) / u128::from(of)).unwrap_or(u64::MAX)
}

/// One of the two settings.
type Field = fn(&Slot) -> (&AtomicU64, &AtomicU64);

const MIN: Field = |slot| (&slot.min, &slot.children_min);
const LOW: Field = |slot| (&slot.low, &slot.children_low);

impl State {
    /// The protection of `group` against reclaim in `root`. O(depth²), no lock.
    pub(crate) fn protection(&self, root: GroupId, group: GroupId) -> Protection {
        let Some(slot) = self.online(group) else { return Protection::default() };
        let usage = slot.usage.load(Ordering::Relaxed);
        if group == root {
            return Protection { min: 0, low: 0, usage };
        }
        let (Some(above), depth) = (self.slot(root), slot.depth.load(Ordering::Relaxed)) else {
            return Protection::default();
        };
        let levels = depth.saturating_sub(above.depth.load(Ordering::Relaxed));
        if self.up_from(group).nth(levels as usize).is_none_or(|(top, _)| top != root) {
            return Protection::default();
        }
        Protection { min: self.effective(group, levels, MIN), low: self.effective(group, levels, LOW), usage }
    }

    /// Works down the path from the level below the target, `levels` above and with `group`.
    fn effective(&self, group: GroupId, levels: u32, field: Field) -> u64 {
        let mut effective = 0;
        let mut parent: Option<&Slot> = None;
        for up in (0..levels).rev() {
            let Some((_, slot)) = self.up_from(group).nth(up as usize) else { return 0 };
            let setting = field(slot).0.load(Ordering::Relaxed);
            effective = match parent {
                None => setting,
                Some(parent) => effective_protection(
                    slot.usage.load(Ordering::Relaxed),
                    setting,
                    ParentShare {
                        effective,
                        usage: parent.usage.load(Ordering::Relaxed),
                        claimed: field(parent).1.load(Ordering::Relaxed),
                    },
                    self.config.recursive_protection,
                ),
            };
            parent = Some(slot);
        }
        effective
    }
}
