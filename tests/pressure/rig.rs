//! Machines under pressure, and how to bring them there.

use kmem_gfp::{Gfp, PAGE_SIZE, Watermark, ZoneKind};
use kmem_hosted::{Access, Machine, PageStore, ReclaimOptions, Reports, StoreError, ZoneSplit};
use kmem_tests::Kmem;

/// What pages of stores are allocated with.
pub(crate) const USER: Gfp = Gfp::HIGHUSER_MOVABLE;

/// A machine of `mib` MiB in one zone that reclaims.
pub(crate) fn machine(mib: u64, options: ReclaimOptions) -> &'static Machine {
    Machine::builder()
        .cpus(2)
        .ram_bytes(mib << 20)
        .zones(ZoneSplit::NORMAL_ONLY)
        .reports(Reports::Capture)
        .reclaim(options)
        .boot()
        .expect("the machine boots")
}

/// No threads of its own: all reclaim is direct.
pub(crate) fn quiet() -> ReclaimOptions {
    ReclaimOptions { kswapd: false, flusher: false, ..ReclaimOptions::default() }
}

/// What page `index` of a store should hold.
fn word(seed: u64, index: u64, at: usize) -> u64 {
    (seed ^ index.rotate_left(17) ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes page `index`.
pub(crate) fn write(store: &PageStore, index: u64, seed: u64) -> Result<(), StoreError> {
    store.with_page(index, Access::Write, USER, |page| {
        for (at, bytes) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = word(seed, index, at).to_ne_bytes();
        }
    })
}

/// Reads page `index` and checks every byte of it.
pub(crate) fn check(store: &PageStore, index: u64, seed: u64) -> Result<(), StoreError> {
    store.with_page(index, Access::Read, USER, |page| {
        for (at, bytes) in page.as_chunks::<8>().0.iter().enumerate() {
            assert_eq!(u64::from_ne_bytes(*bytes), word(seed, index, at), "page {index}, word {at}");
        }
    })
}

/// Fills the machine with clean pages of a file until requests reclaim.
pub(crate) fn fill_with_cache(machine: &Machine) -> &'static PageStore {
    let pages = machine.ram_bytes() / PAGE_SIZE as u64;
    let file = machine.file_pages(pages).expect("a file");
    for index in 0..pages {
        check_zero(file, index);
    }
    file
}

fn check_zero(store: &PageStore, index: u64) {
    let zero = store.with_page(index, Access::Read, USER, |page| page.iter().all(|&byte| byte == 0));
    assert!(zero.expect("a page of the cache"), "page {index}");
}

/// A mark of the machine's one zone, in pages.
pub(crate) fn mark(kmem: Kmem, mark: Watermark) -> u64 {
    kmem.pages().zone(kmem_gfp::NodeId(0), ZoneKind::Normal).map_or(0, |zone| zone.watermark(mark))
}

/// A counter of `/proc/vmstat`; `name` ends in a space.
pub(crate) fn vmstat(machine: &Machine, name: &str) -> u64 {
    let view = machine.kmem().vmstat().to_string();
    view.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}
