//! Instructions per operation, beside what Linux 7.2 spends in the same emulator with the same options.
//!
//! With `-icount shift=0` one instruction is one tick of the time stamp counter, so the counts are the same every time. A batch
//! of operations is timed, the empty loop is subtracted, and the median over the batches is shown. "a+b" is the pair;
//! "batch 1000" is the one operation, a thousand in a row; "sustained" is the mean over all, with everything that is put
//! off counted.

mod meter;
mod objects;
mod pages;
mod virtual_areas;

use crate::{cmdline, sched};
use meter::Table;

super::tests![costs];

fn costs() {
    assert_eq!(cmdline::value("tick_us"), Some("0"), "boot with `cargo xtask boot --test costs`");
    sched::yield_now();
    let mut table = Table::new();
    meter::calibrate(&mut table);
    objects::measure(&mut table);
    pages::measure(&mut table);
    virtual_areas::measure(&mut table);
    table.finish();
}
