//! What the object allocators are asked to do.
//!
//! Every object is written to (its first word), as any user would; beyond that the workloads touch no payload.

use std::{
    alloc::{GlobalAlloc, Layout},
    hint::black_box,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    measure::{Run, Sample},
    random::Random,
    ring::{BATCH, Ring},
    threads,
};

/// A workload with fixed parameters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Workload {
    Pair,
    Fifo,
    Uniform,
    LogUniform,
    Larson,
    Handoff,
    Grow,
}

impl Workload {
    pub(crate) const ALL: [Self; 7] =
        [Self::Pair, Self::Fifo, Self::Uniform, Self::LogUniform, Self::Larson, Self::Handoff, Self::Grow];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair of 64 B",
            Self::Fifo => "batches of 256 B",
            Self::Uniform => "uniform sizes",
            Self::LogUniform => "log-uniform sizes",
            Self::Larson => "larson, 2 threads",
            Self::Handoff => "one allocates, another frees",
            Self::Grow => "growing to 1 MiB",
        }
    }

    pub(crate) fn parameters(self) -> String {
        match self {
            Self::Pair => "per pair; allocate 64 B and free it at once".into(),
            Self::Fifo => "per pair; 1000 allocated, then freed first in, first out".into(),
            Self::Uniform => format!("per pair; 16..=1024 B, {UNIFORM_LIVE} live, a random one replaced"),
            Self::LogUniform => format!("per pair; 16 B..=64 KiB, {LOG_LIVE} live, a random one replaced"),
            Self::Larson => format!(
                "per pair; 8..=1000 B, {LARSON_LIVE} live a thread, {GENERATIONS} generations of threads inherit each \
                 other's objects"
            ),
            Self::Handoff => format!("per object; 64 B, batches of {BATCH}"),
            Self::Grow => "per growth; 64 B doubled to 1 MiB by realloc, each new part written, then freed".into(),
        }
    }
}

/// Live objects of the uniform workload.
pub(crate) const UNIFORM_LIVE: usize = 10_000;
/// Live objects of the log-uniform workload.
pub(crate) const LOG_LIVE: usize = 2_000;
const LARSON_LIVE: usize = 5_000;
const GENERATIONS: usize = 4;

/// How sizes are drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sizes {
    /// Every size from the first to the second, alike.
    Uniform(usize, usize),
    /// Every power of two from the first exponent to the second alike, evenly between powers.
    LogUniform(u32, u32),
}

impl Sizes {
    /// Draws one size in bytes.
    #[inline(always)]
    pub(crate) fn draw(self, random: &mut Random) -> usize {
        match self {
            Self::Uniform(low, high) => low + random.below(high - low + 1),
            Self::LogUniform(low, high) => {
                let base = 1_usize << (low + random.below((high - low) as usize) as u32);
                base + random.below(base + 1)
            }
        }
    }
}

/// The uniform workload's sizes.
pub(crate) const UNIFORM: Sizes = Sizes::Uniform(16, 1024);
/// The log-uniform workload's sizes.
pub(crate) const LOG_UNIFORM: Sizes = Sizes::LogUniform(4, 16);

/// An allocated object; the addresses travel between threads as numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    address: *mut u8,
    size: usize,
}

// SAFETY: an object is owned by whoever holds this value, and heap memory may change hands between threads.
unsafe impl Send for Object {}

impl Object {
    #[inline(always)]
    pub(crate) fn new<A: GlobalAlloc>(allocator: &A, size: usize) -> Self {
        // SAFETY: no size drawn here is zero.
        let address = unsafe { allocator.alloc(layout(size)) };
        assert!(!address.is_null(), "out of memory");
        // SAFETY: at least eight bytes, aligned to 8.
        unsafe { address.cast::<u64>().write(size as u64) };
        Self { address, size }
    }

    #[inline(always)]
    pub(crate) fn free<A: GlobalAlloc>(self, allocator: &A) {
        // SAFETY: allocated by `allocator` with this very layout; the value is consumed.
        unsafe { allocator.dealloc(self.address, layout(self.size)) };
    }

    /// Writes every byte.
    pub(crate) fn fill(&self) {
        // SAFETY: the object is ours and this long.
        unsafe { self.address.write_bytes(0x5a, self.size) };
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

#[inline(always)]
fn layout(size: usize) -> Layout {
    // SAFETY: 8 is a power of two, and the sizes are far from overflowing.
    unsafe { Layout::from_size_align_unchecked(size, 8) }
}

/// Sets the workload up on `allocator`.
pub(crate) fn start<A: GlobalAlloc + Sync>(allocator: &'static A, workload: Workload, seed: u64) -> Run {
    match workload {
        Workload::Pair => timed(move |count| {
            for _ in 0..count {
                black_box(Object::new(allocator, black_box(64))).free(allocator);
            }
        }),
        Workload::Fifo => {
            let mut batch: Vec<Object> = Vec::with_capacity(1000);
            Box::new(move |count| {
                let batches = count / 1000 + 1;
                let start = Instant::now();
                for _ in 0..batches {
                    batch.extend((0..1000).map(|_| Object::new(allocator, black_box(256))));
                    for object in batch.drain(..) {
                        object.free(allocator);
                    }
                }
                Sample::Time { elapsed: start.elapsed(), operations: batches * 1000 }
            })
        }
        Workload::Uniform => replace(Live::new(allocator, UNIFORM, UNIFORM_LIVE, seed)),
        Workload::LogUniform => replace(Live::new(allocator, LOG_UNIFORM, LOG_LIVE, seed)),
        Workload::Larson => larson(allocator, seed),
        Workload::Handoff => Box::new(move |count| handoff(allocator, count)),
        Workload::Grow => timed(move |count| {
            for _ in 0..count {
                grow(allocator);
            }
        }),
    }
}

fn timed(mut work: impl FnMut(u64) + 'static) -> Run {
    Box::new(move |count| {
        let start = Instant::now();
        work(count);
        Sample::Time { elapsed: start.elapsed(), operations: count }
    })
}

/// A set of live objects of which random ones are replaced.
pub(crate) struct Live<A: GlobalAlloc + 'static> {
    allocator: &'static A,
    sizes: Sizes,
    objects: Vec<Object>,
    random: Random,
}

impl<A: GlobalAlloc> Live<A> {
    /// No objects yet, but a list with room, already touched, for `room` of them.
    pub(crate) fn empty(allocator: &'static A, sizes: Sizes, room: usize, seed: u64) -> Self {
        let nothing = Object { address: std::ptr::dangling_mut(), size: 0 };
        let mut objects = vec![nothing; room];
        objects.clear();
        Self { allocator, sizes, objects, random: Random::new(seed, 0) }
    }

    /// Allocates `count` objects.
    pub(crate) fn populate(&mut self, count: usize) {
        for _ in 0..count {
            let size = self.sizes.draw(&mut self.random);
            self.objects.push(Object::new(self.allocator, size));
        }
    }

    /// A set of `count` objects.
    pub(crate) fn new(allocator: &'static A, sizes: Sizes, count: usize, seed: u64) -> Self {
        let mut set = Self::empty(allocator, sizes, count, seed);
        set.populate(count);
        set
    }

    /// Replaces random objects, `count` times.
    #[inline(always)]
    pub(crate) fn replace(&mut self, count: u64) {
        for _ in 0..count {
            let slot = self.random.below(self.objects.len());
            let size = self.sizes.draw(&mut self.random);
            let old = &mut self.objects[slot];
            old.free(self.allocator);
            *old = Object::new(self.allocator, size);
        }
    }

    /// The objects now live.
    pub(crate) fn objects(&self) -> &[Object] {
        &self.objects
    }
}

impl<A: GlobalAlloc> Drop for Live<A> {
    fn drop(&mut self) {
        for object in self.objects.drain(..) {
            object.free(self.allocator);
        }
    }
}

fn replace<A: GlobalAlloc>(mut live: Live<A>) -> Run {
    timed(move |count| live.replace(count))
}

fn larson<A: GlobalAlloc + Sync>(allocator: &'static A, seed: u64) -> Run {
    let sizes = Sizes::Uniform(8, 1000);
    let lineages: [Mutex<Live<A>>; 2] =
        [0, 1].map(|stream| Mutex::new(Live::new(allocator, sizes, LARSON_LIVE, seed ^ stream)));
    Box::new(move |count| {
        let each = count / (2 * GENERATIONS as u64) + 1;
        let start = Instant::now();
        for generation in 0..GENERATIONS {
            // New threads every time, and each takes over what a thread of the other lineage left.
            std::thread::scope(|scope| {
                for cpu in 0..2 {
                    let lineage = &lineages[(cpu + generation) % 2];
                    scope.spawn(move || {
                        threads::become_cpu(cpu);
                        lineage.lock().expect("no panics").replace(each);
                    });
                }
            });
        }
        Sample::Time { elapsed: start.elapsed(), operations: each * 2 * GENERATIONS as u64 }
    })
}

fn handoff<A: GlobalAlloc + Sync>(allocator: &A, count: u64) -> Sample {
    let batches = (count as usize / BATCH).max(8);
    let ring = Ring::new();
    let spans: Vec<Duration> = threads::gang(2, 2, |cpu, phase| {
        let batches = if phase == 0 { batches / 8 } else { batches };
        for _ in 0..batches {
            if cpu == 0 {
                ring.give(|words| {
                    for word in words {
                        *word = Object::new(allocator, 64).address.expose_provenance();
                    }
                });
            } else {
                ring.take(|words| {
                    for word in words {
                        let address = std::ptr::with_exposed_provenance_mut(*word);
                        Object { address, size: 64 }.free(allocator);
                    }
                });
            }
        }
    });
    Sample::Time { elapsed: spans[1], operations: (batches * BATCH) as u64 }
}

fn grow<A: GlobalAlloc>(allocator: &A) {
    let mut object = Object::new(allocator, 64);
    while object.size < 1 << 20 {
        let doubled = object.size * 2;
        // SAFETY: `object` is live with this layout, and the new size is neither zero nor near overflow.
        let address = unsafe { allocator.realloc(object.address, layout(object.size), doubled) };
        assert!(!address.is_null(), "out of memory");
        // SAFETY: the object is now `doubled` bytes long; this is its new half.
        unsafe { address.add(object.size).write_bytes(0x5a, object.size) };
        object = Object { address: black_box(address), size: doubled };
    }
    object.free(allocator);
}
