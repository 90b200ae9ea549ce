//! `/proc/pagetypeinfo`.

use core::fmt;

use kmem_gfp::{MigrateType, Order};

use crate::state::State;

/// Counts above this are not counted further.
const MOST: u64 = 100_000;

/// Free blocks by migratetype and order, and pageblocks by type. See [`Buddy::pagetypeinfo`](crate::Buddy::pagetypeinfo).
#[derive(Clone, Copy, Debug)]
pub struct PageTypeInfo<'a> {
    pub(crate) state: Option<&'a State>,
}

impl fmt::Display for PageTypeInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Page block order: {}", Order::PAGEBLOCK.get())?;
        writeln!(f, "Pages per block:  {}", Order::PAGEBLOCK.nr_pages())?;
        writeln!(f)?;
        write!(f, "{:<43} ", "Free pages count per migrate type at order")?;
        for order in 0..Order::COUNT {
            write!(f, "{order:6} ")?;
        }
        writeln!(f)?;
        for zone in self.state.into_iter().flat_map(State::populated) {
            let counts = zone.free_blocks();
            for (migratetype, row) in MigrateType::ALL.iter().zip(&counts) {
                let (node, kind) = (zone.node.0, zone.kind.name());
                write!(f, "Node {node:4}, zone {kind:>8}, type {:>12} ", migratetype.name())?;
                for &blocks in row {
                    if blocks >= MOST {
                        write!(f, ">{MOST:6} ")?;
                    } else {
                        write!(f, "{blocks:6} ")?;
                    }
                }
                writeln!(f)?;
            }
        }
        write!(f, "\n{:<23}", "Number of blocks type ")?;
        for migratetype in MigrateType::ALL {
            write!(f, "{:>12} ", migratetype.name())?;
        }
        writeln!(f)?;
        for zone in self.state.into_iter().flat_map(State::populated) {
            write!(f, "Node {}, zone {:>8} ", zone.node.0, zone.kind.name())?;
            for blocks in zone.pageblocks() {
                write!(f, "{blocks:12} ")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
