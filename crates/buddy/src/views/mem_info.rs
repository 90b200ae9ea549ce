//! The memory report that accompanies a failed allocation.

use core::fmt;

use kmem_gfp::{MigrateType, Order, PAGE_SIZE, Watermark, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::state::State;
use crate::zone::Zone;

/// A page in KiB.
const PAGE_KBYTES: u64 = PAGE_SIZE as u64 / 1024;

/// The memory report. See [`Buddy::mem_info`](crate::Buddy::mem_info).
#[derive(Clone, Copy, Debug)]
pub struct MemInfoDump<'a> {
    pub(crate) state: Option<&'a State>,
}

impl fmt::Display for MemInfoDump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(state) = self.state else { return Ok(()) };
        let mut result = Ok(());
        lines(state, &mut |line| result = result.and_then(|()| writeln!(f, "{line}")));
        result
    }
}

/// The levels of one zone, in KiB.
struct Levels<'a>(&'a State, &'a Zone);

impl fmt::Display for Levels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(state, zone) = self;
        write!(f, "Node {} {} free:{}kB", zone.node.0, zone.kind.name(), zone.free_pages() * PAGE_KBYTES)?;
        write!(f, " boost:{}kB", zone.boost_pages() * PAGE_KBYTES)?;
        for mark in [Watermark::Min, Watermark::Low, Watermark::High] {
            write!(f, " {}:{}kB", mark.name(), zone.watermark(mark) * PAGE_KBYTES)?;
        }
        write!(f, " reserved_highatomic:{}KB", zone.reserved_highatomic_pages() * PAGE_KBYTES)?;
        write!(f, " free_highatomic:{}KB", zone.free_of(MigrateType::HighAtomic) * PAGE_KBYTES)?;
        write!(f, " present:{}kB", zone.present_pages() * PAGE_KBYTES)?;
        write!(f, " managed:{}kB", zone.managed_pages() * PAGE_KBYTES)?;
        write!(f, " free_pcp:{}kB", state.zone_stats(zone).cached_pages * PAGE_KBYTES)?;
        write!(f, " free_cma:{}kB", zone.free_of(MigrateType::Cma) * PAGE_KBYTES)
    }
}

struct Reserves<'a>(&'a State, &'a Zone);

impl fmt::Display for Reserves<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lowmem_reserve[]:")?;
        for &kind in self.0.kinds.iter().take(self.0.nr_kinds) {
            write!(f, " {}", self.1.lowmem_reserve(kind))?;
        }
        Ok(())
    }
}

/// The free blocks of one zone: count, size and the letters of the types that have some.
struct Blocks<'a>(&'a Zone);

impl fmt::Display for Blocks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.free_blocks();
        write!(f, "Node {} {}:", self.0.node.0, self.0.kind.name())?;
        let mut total = 0;
        for order in Order::all() {
            let column = || counts.iter().filter_map(|row| row.get(order.index()));
            let blocks: u64 = column().sum();
            total += blocks << order.get();
            write!(f, " {blocks}*{}kB", PAGE_KBYTES << order.get())?;
            if blocks > 0 {
                write!(f, " (")?;
                for (letter, &nr) in "UMEHCI".chars().zip(column()) {
                    if nr > 0 {
                        write!(f, "{letter}")?;
                    }
                }
                write!(f, ")")?;
            }
        }
        write!(f, " = {}kB", total * PAGE_KBYTES)
    }
}

/// Calls `line` with each line of the report.
pub(crate) fn lines(state: &State, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let sum = |value: &dyn Fn(&Zone) -> u64| -> u64 { state.populated().map(value).sum() };
    line(format_args!("Mem-Info:"));
    line(format_args!(
        " free:{} free_pcp:{} free_cma:{}",
        sum(&Zone::free_pages),
        sum(&|zone| state.zone_stats(zone).cached_pages),
        sum(&|zone| zone.free_of(MigrateType::Cma))
    ));
    for zone in state.populated() {
        line(format_args!("{}", Levels(state, zone)));
        line(format_args!("{}", Reserves(state, zone)));
    }
    for zone in state.populated() {
        line(format_args!("{}", Blocks(zone)));
    }
    let present = sum(&Zone::present_pages);
    let movable = sum(&|zone| {
        if matches!(zone.kind, ZoneKind::HighMem | ZoneKind::Movable) { zone.present_pages() } else { 0 }
    });
    line(format_args!("{present} pages RAM"));
    line(format_args!("{movable} pages HighMem/MovableOnly"));
    line(format_args!("{} pages reserved", present - sum(&Zone::managed_pages).min(present)));
    line(format_args!("{} pages cma reserved", sum(&|zone| zone.cma_pages.load(Ordering::Relaxed))));
}
