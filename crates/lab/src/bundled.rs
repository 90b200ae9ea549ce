//! The traces and snapshots that are part of this program, so that a clone is enough.

use crate::proc::Snapshots;
use crate::program::CacheBook;
use crate::trace::Input;

/// The start of a kernel: 929 371 events.
pub const BOOT: Input = Input::Bundled("boot (Linux 7.2.13)", include_bytes!("../data/boot/trace.txt.zst"));

/// Its first 20 000 events.
pub const SAMPLE: Input = Input::Bundled("sample", include_bytes!("../data/sample/boot-20k.txt.zst"));

/// What `/proc` said when [`BOOT`] ended.
#[must_use]
pub fn boot_snapshots() -> Snapshots {
    Snapshots::parse(
        include_str!("../data/boot/proc/end-slabinfo.txt"),
        include_str!("../data/boot/proc/end-buddyinfo.txt"),
    )
}

/// The caches of the recorded kernel. Other traces of the same kernel have the same; of another kernel's, those with the same
/// name and the same sizes are taken to be alike.
#[must_use]
pub fn cache_book() -> CacheBook {
    CacheBook::with_facts(include_str!("../data/boot/proc/caches.tsv"))
}
