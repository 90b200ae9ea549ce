//! What is timed.

use std::time::{Duration, Instant};

use super::stores::Store;
use crate::{
    measure::{Run, Sample},
    random::Random,
    threads,
};

/// The bundled sizes: pages that compress to nothing are zero, and are not stored.
pub(crate) const LZ4: &[u8] = include_bytes!("../../../crates/zsmalloc/data/sizes-lz4.u16");
/// As [`LZ4`], for zstd.
pub(crate) const ZSTD: &[u8] = include_bytes!("../../../crates/zsmalloc/data/sizes-zstd.u16");

/// The sizes in a recording, page by page.
pub(crate) fn sizes(raw: &[u8]) -> Vec<usize> {
    raw.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect()
}

/// For each page of a recording, whether it is freed in the half-freed stage.
pub(crate) fn half() -> impl FnMut() -> bool {
    let mut s: u64 = 11;
    move || {
        s ^= s >> 12;
        s ^= s << 25;
        s ^= s >> 27;
        s.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32 & 1 == 1
    }
}

/// A timed workload.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Workload {
    Pair,
    Fill,
    FreeHalf,
    Random,
    RandomOnTwo,
}

impl Workload {
    pub(crate) const ALL: [Self; 5] = [Self::Pair, Self::Fill, Self::FreeHalf, Self::Random, Self::RandomOnTwo];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair of 100 B",
            Self::Fill => "fill",
            Self::FreeHalf => "free half",
            Self::Random => "random lifetimes",
            Self::RandomOnTwo => "random lifetimes, 2 threads",
        }
    }

    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Pair => "a blob of 100 B is stored and dropped, beside five others",
            Self::Fill => "the recorded sizes (lz4) are stored in order, copies included; a blob",
            Self::FreeHalf => "half of them, drawn at random, are dropped; a dropped blob",
            Self::Random => "blobs of 500..=3500 B are stored and dropped at random, 1,000 to 2,000 live; an operation",
            Self::RandomOnTwo => "as before, on two threads with blobs of their own; an operation of either",
        }
    }

    pub(crate) fn is_fixed(self) -> bool {
        matches!(self, Self::Fill | Self::FreeHalf)
    }

    pub(crate) fn threads(self) -> usize {
        if matches!(self, Self::RandomOnTwo) { 2 } else { 1 }
    }
}

/// Builds a workload's state on a store.
pub(crate) fn start<S: Store>(make: fn() -> Option<S>, workload: Workload, seed: u64) -> Option<Run> {
    let page = [0x5a; 4096];
    match workload {
        Workload::Pair => {
            let store = make()?;
            for _ in 0..5 {
                store.put(&page[..100])?;
            }
            Some(Box::new(move |operations| {
                let start = Instant::now();
                for _ in 0..operations {
                    let name = store.put(std::hint::black_box(&page[..100])).expect("memory");
                    // SAFETY: just stored.
                    unsafe { store.drop_blob(std::hint::black_box(name), 100) };
                }
                Sample::Time { elapsed: start.elapsed(), operations }
            }))
        }
        Workload::Fill | Workload::FreeHalf => {
            let sizes = sizes(LZ4);
            Some(Box::new(move |_| {
                let store = make().expect("a store that could be made before");
                let (fill, free) = fill_and_free(&store, &sizes, &page);
                if matches!(workload, Workload::Fill) { fill } else { free }
            }))
        }
        Workload::Random | Workload::RandomOnTwo => {
            let store = make()?;
            let threads = workload.threads();
            Some(Box::new(move |operations| {
                let each = operations / threads as u64 + 1;
                let spans = threads::gang(threads, 2, |cpu, phase| {
                    let operations = if phase == 0 { 3_000 } else { each };
                    churn(&store, &page, operations, Random::new(seed, cpu as u64));
                });
                let elapsed = spans.last().copied().unwrap_or_default();
                Sample::Time { elapsed, operations: each * threads as u64 }
            }))
        }
    }
}

fn fill_and_free<S: Store>(store: &S, sizes: &[usize], page: &[u8]) -> (Sample, Sample) {
    let mut names = Vec::with_capacity(sizes.len());
    let start = Instant::now();
    for &size in sizes {
        names.push((size != 0).then(|| store.put(&page[..size]).expect("memory")));
    }
    let fill = Sample::Time { elapsed: start.elapsed(), operations: names.iter().flatten().count() as u64 };
    let mut is_freed = half();
    let (freed, kept): (Vec<_>, Vec<_>) =
        names.into_iter().zip(sizes).map(|(name, &size)| (is_freed(), name, size)).partition(|(freed, ..)| *freed);
    let drop_all = |blobs: &[(bool, Option<S::Name>, usize)]| {
        let mut nr = 0;
        for &(_, name, size) in blobs {
            if let Some(name) = name {
                // SAFETY: each blob is in one of the lists, once.
                unsafe { store.drop_blob(name, size) };
                nr += 1;
            }
        }
        nr
    };
    let start = Instant::now();
    let operations = drop_all(&freed);
    let elapsed: Duration = start.elapsed();
    drop_all(&kept);
    (fill, Sample::Time { elapsed, operations })
}

fn churn<S: Store>(store: &S, page: &[u8], operations: u64, mut random: Random) {
    let mut live: Vec<(S::Name, usize)> = Vec::with_capacity(2_000);
    for _ in 0..operations {
        let draw = random.next();
        if live.len() < 1_000 || draw & 1 == 0 && live.len() < 2_000 {
            let len = (draw >> 8) as usize % 3_001 + 500;
            live.push((store.put(&page[..len]).expect("memory"), len));
        } else {
            let (name, len) = live.swap_remove((draw >> 8) as usize % live.len());
            // SAFETY: it was live, and has just left the list.
            unsafe { store.drop_blob(name, len) };
        }
    }
    for (name, len) in live {
        // SAFETY: what is on the list is live.
        unsafe { store.drop_blob(name, len) };
    }
}
