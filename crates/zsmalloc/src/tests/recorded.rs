//! The recorded workload: the sizes of 102,912 real pages as a kernel's zram stored them.

use std::vec::Vec;
use std::{eprintln, vec};

use kmem_gfp::Gfp;

use super::machine::{Machine, run_on};
use crate::{Config, Handle, Pool, PoolStats};

const LZ4: &[u8] = include_bytes!("../../data/sizes-lz4.u16");
const ZSTD: &[u8] = include_bytes!("../../data/sizes-zstd.u16");

fn sizes(raw: &[u8]) -> Vec<usize> {
    raw.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect()
}

struct Stages {
    filled: PoolStats,
    half_freed: PoolStats,
    compacted: PoolStats,
    given_back: u64,
}

fn run(raw: &[u8], config: Config) -> Stages {
    run_across(raw, config, 1)
}

/// The workload with pages that come to CPUs in turn, and are freed on whichever CPU.
fn run_across(raw: &[u8], config: Config, cpus: usize) -> Stages {
    let machine = Machine::with_poison(90_000, false);
    let pool = Pool::new(&*machine, config, Gfp::KERNEL).unwrap();
    let page = vec![0x5a; 4096];
    let mut handles: Vec<Option<Handle>> = Vec::new();
    for (i, size) in sizes(raw).into_iter().enumerate() {
        run_on(Some((i % cpus) as u32));
        handles.push((size != 0).then(|| pool.store(&page[..size], Gfp::NOIO).unwrap()));
    }
    let filled = pool.stats();
    let mut s: u64 = 11;
    for (i, handle) in handles.into_iter().enumerate() {
        s ^= s >> 12;
        s ^= s << 25;
        s ^= s >> 27;
        let draw = s.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        if draw & 1 == 1
            && let Some(handle) = handle
        {
            run_on(Some((i / 3 % cpus) as u32));
            pool.free(handle).unwrap();
        }
    }
    run_on(Some(0));
    let half_freed = pool.stats();
    let given_back = pool.compact();
    Stages { filled, half_freed, compacted: pool.stats(), given_back }
}

/// The most that classes 16 bytes apart allow: every object rounded up, nothing else lost.
fn bound(raw: &[u8]) -> f64 {
    let sizes = sizes(raw);
    sizes.iter().sum::<usize>() as f64 / sizes.iter().map(|size| size.next_multiple_of(16)).sum::<usize>() as f64
}

fn show(name: &str, stages: &Stages, raw: &[u8]) {
    let figures = |stats: &PoolStats| std::format!("{:.4} ({:.4})", stats.density(), stats.density_with_metadata());
    eprintln!(
        "{name}: filled {}, half freed {}, compacted {}, {} frames given back; bound {:.4}",
        figures(&stages.filled),
        figures(&stages.half_freed),
        figures(&stages.compacted),
        stages.given_back,
        bound(raw)
    );
}

#[test]
fn density_on_the_recorded_workload() {
    // P03. A kernel's zsmalloc: 0.9782, 0.5637, 0.9738 with lz4; 0.9761, 0.5674, 0.9704 with zstd.
    for (name, raw, objects, bytes) in [
        ("lz4", LZ4, [102_490, 51_503], [253_978_947, 127_787_060]),
        ("zstd", ZSTD, [102_490, 51_503], [198_617_031, 99_956_169]),
    ] {
        let stages = run(raw, Config::new());
        show(name, &stages, raw);
        assert_eq!([stages.filled.objects, stages.compacted.objects], objects);
        assert_eq!([stages.filled.bytes_stored, stages.compacted.bytes_stored], bytes);
        assert!(stages.filled.density() >= 0.985);
        assert!(stages.half_freed.density() > 0.64);
        assert!(stages.compacted.density() >= 0.985);
        // Even with all metadata counted, more than the kernel's frames alone.
        assert!(stages.filled.density_with_metadata() > if name == "lz4" { 0.9782 } else { 0.9761 });

        let stages = run(raw, Config::new().with_moves_per_free(1));
        show(name, &stages, raw);
        assert!(stages.half_freed.density() >= 0.93);
        assert!(stages.compacted.density() >= 0.985);

        // Chains of eight frames, as the kernel has them.
        let stages = run(raw, Config::new().with_chain(8));
        show(name, &stages, raw);
        assert!(stages.filled.density() >= 0.983 && stages.half_freed.density() > 0.64);
        assert!(stages.compacted.density() >= 0.982);
    }
}

#[test]
fn density_on_several_cpus() {
    // Every CPU has a growing edge in each class; compaction makes zspages with room shared ones, and loses nothing to CPUs.
    for (cpus, filled, half_freed) in [(2, 0.985, 0.64), (4, 0.984, 0.64)] {
        for (name, raw) in [("lz4", LZ4), ("zstd", ZSTD)] {
            let stages = run_across(raw, Config::new(), cpus);
            show(&std::format!("{name}, {cpus} CPUs"), &stages, raw);
            assert!(stages.filled.density() >= filled && stages.half_freed.density() >= half_freed);
            assert!(stages.compacted.density() >= 0.985);
        }
    }
}
