//! `/proc/buddyinfo`.

use core::fmt;

use crate::state::State;

/// Free blocks by order, a line for each zone with memory. See [`Buddy::buddyinfo`](crate::Buddy::buddyinfo).
#[derive(Clone, Copy, Debug)]
pub struct BuddyInfo<'a> {
    pub(crate) state: Option<&'a State>,
}

impl fmt::Display for BuddyInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for zone in self.state.into_iter().flat_map(State::populated) {
            write!(f, "Node {}, zone {:>8} ", zone.node.0, zone.kind.name())?;
            let counts = zone.free_blocks();
            for order in 0..kmem_gfp::Order::COUNT {
                let blocks: u64 = counts.iter().filter_map(|row| row.get(order)).sum();
                write!(f, "{blocks:6} ")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
