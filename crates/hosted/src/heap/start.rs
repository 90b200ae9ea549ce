//! Making the heap: on the first allocation of the process, without allocating.

use core::sync::atomic::{AtomicU8, Ordering};

use kmem_slab::{CacheArgs, SlabFlags};

use super::alloc::{HostedAlloc, publish};
use super::class::{SIZES, SMALL_CLASSES};
use super::cpu::{self, HeapCpu};
use super::env::{HOST, MEDIUM, RAM, SLABS};
use super::{fork, grow, limit, row};
use crate::builder::Tunables;
use crate::host::{Host, HostOptions};
use crate::ram::Ram;
use crate::thread::relax;
use crate::{MemoryPlan, RamBacking, Reports, ZoneSplit, barrier, sys};

/// Nobody has asked yet.
const NEW: u8 = 0;
/// Somebody is making it.
const STARTING: u8 = 1;
/// It is there.
const READY: u8 = 2;
/// It cannot be had.
const FAILED: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(NEW);

/// The most memory that the heap is laid out for.
const MAX_BYTES: u64 = 1 << 40;
/// The environment variable with the heap's size in bytes.
const SIZE_VARIABLE: &core::ffi::CStr = c"KMEM_HEAP_BYTES";

/// Whether the heap is up.
pub(super) fn ready() -> bool {
    STATE.load(Ordering::Acquire) == READY
}

/// Makes the heap if nobody has; `false` if it cannot be had.
pub(super) fn ensure(settings: &HostedAlloc) -> bool {
    loop {
        match STATE.load(Ordering::Acquire) {
            READY => return true,
            FAILED => return false,
            NEW if STATE.compare_exchange(NEW, STARTING, Ordering::Acquire, Ordering::Relaxed).is_ok() => {
                let made = make(settings).is_some();
                STATE.store(if made { READY } else { FAILED }, Ordering::Release);
            }
            _ => relax(),
        }
    }
}

fn make(settings: &HostedAlloc) -> Option<()> {
    if sys::page_size() != sys::HOST_PAGE {
        return None;
    }
    barrier::prepare().ok()?;
    let nr_cpus = cpu::prepare(settings.cpus.unwrap_or_else(|| (4 * sys::nr_cpus()).max(16)));
    let bytes = settings.ram_bytes.or_else(size_variable).unwrap_or_else(sys::ram_bytes).min(MAX_BYTES);
    let plan = MemoryPlan::new(bytes, 1, ZoneSplit::NORMAL_ONLY).ok()?;
    let normal = plan.ranges().first()?.frames;
    let ram = Ram::map(plan, RamBacking::Private).ok()?;
    let tunables = Tunables { entropy: Some(sys::entropy()), ..Tunables::default() };
    let options = HostOptions { nodes: 1, reports: Reports::Stderr, reclaimer: None, tunables };
    // SAFETY: only the thread that moved the state to `STARTING` comes here, once.
    unsafe {
        RAM.set(ram);
        HOST.set(Host::new(HeapCpu::new(), RAM.get(), options));
    }
    grow::start(normal)?;
    SLABS.init().ok()?;
    MEDIUM.init().ok()?;
    for (class, &size) in SIZES.iter().enumerate() {
        let args = CacheArgs {
            align: natural_align(size),
            sheaf_capacity: sheaf_capacity(size),
            ..CacheArgs::with_flags(SlabFlags::NO_MERGE)
        };
        let mut name = [0; 12];
        let family = if class < SMALL_CLASSES { &SLABS } else { &MEDIUM };
        let cache = family.create(class_name(size, &mut name), size, &args).ok()?;
        // A program's heap gives empty slabs back sooner than a kernel would.
        cache.set_min_partial(1);
        publish(class, cache);
        if class < SMALL_CLASSES {
            // SAFETY: one thread makes the heap (`ensure`), and threads become CPUs after `serve` below.
            unsafe { row::enter(class, cache, nr_cpus) };
        }
    }
    limit::set(settings.resident_limit.unwrap_or(0));
    fork::register();
    cpu::serve();
    Some(())
}

/// The largest power of two that divides a class's size, at most a page.
fn natural_align(size: usize) -> usize {
    1 << size.trailing_zeros().min(12)
}

/// Objects in a sheaf: more than a kernel has, because programs allocate in bursts. With the header a sheaf fills 17, 9
/// or fewer cache lines.
fn sheaf_capacity(size: usize) -> u32 {
    match size {
        ..=128 => 132,
        129..=256 => 68,
        257..=1024 => 28,
        _ => 0,
    }
}

/// `heap-<size>`.
fn class_name(size: usize, space: &mut [u8; 12]) -> &str {
    let mut at = space.len();
    let mut left = size;
    while left > 0 && at > 0 {
        at -= 1;
        space[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    for &byte in b"-paeh" {
        at = at.saturating_sub(1);
        space[at] = byte;
    }
    space.get(at..).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("heap")
}

/// The size that the environment asks for.
fn size_variable() -> Option<u64> {
    let value = sys::environment(SIZE_VARIABLE)?;
    value.to_str().ok()?.parse().ok()
}
