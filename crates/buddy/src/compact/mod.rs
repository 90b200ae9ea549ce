//! Compaction: large free blocks out of scattered free frames, by moving what lies between them.
//!
//! ```text
//! pageblocks of a zone   ▶ migrate scanner                                     free scanner ◀
//!                        [#.#.] [####] [..#.] [#...]   ...   [.##.] [####] [#..#] [###.]
//!                                        └──── window ───────────▶ targets ──┘
//! window   an aligned run of the wanted order in which every used frame can move, the one with the fewest of them
//!          1 take its free frames   2 move its used frames, keeping their places   3 it is one block, and nobody else's
//! ```
//!
//! A pageblock is eight words, so the migrate scanner does not collect page by page: a map of what is stuck in a pageblock
//! gives all windows at once, and the cheapest is evacuated. While that goes on the window belongs to the compactor,
//! frame by frame as they become free; so nobody allocates from it, and handing the block to the one who asked for it
//! (capture) is a matter of not freeing it. Nothing is locked: several may compact a zone at once.
//!
//! `index` says whether compaction can help, `defer` whether it is worth trying again, `targets` is the free scanner, `window` moves,
//! `scan` drives both through a zone; `direct`, `daemon` and `manual` are the ways in.

mod capture;
mod daemon;
mod defer;
mod direct;
pub(crate) mod index;
mod manual;
pub(crate) mod scan;
pub(crate) mod targets;
mod window;

pub use daemon::Kcompactd;
pub use index::{extfrag_percent, fragmentation_index};

pub(crate) use capture::Captures;
pub(crate) use defer::Progress;
