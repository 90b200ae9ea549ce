//! Pairs of page allocations and frees on a machine above its watermarks, with reclaim linked in (`with`) or without: for
//! counting instructions.
//!
//! ```text
//! valgrind --tool=callgrind target/release/examples/reclaim_cost with 200000
//! ```

use kmem_gfp::{Gfp, Order};
use kmem_hosted::{Machine, ReclaimOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let with = arguments.next().is_some_and(|first| first == "with");
    let pairs: u64 = arguments.next().unwrap_or_default().parse()?;
    let builder = Machine::builder().cpus(1).ram_bytes(256 << 20);
    let quiet = ReclaimOptions { groups: 1, kswapd: false, flusher: false, ..ReclaimOptions::default() };
    let machine = if with { builder.reclaim(quiet).boot()? } else { builder.boot()? };
    let kmem = machine.kmem();
    for _ in 0..pairs {
        let page = std::hint::black_box(kmem.alloc_pages(Gfp::KERNEL, Order::ZERO)?);
        // SAFETY: allocated above.
        unsafe { kmem.free_pages(page, Order::ZERO) }?;
    }
    Ok(())
}
