//! The recorded workload: the sizes of 102,912 real pages as a kernel's zram stored them.

use std::vec::Vec;
use std::{eprintln, vec};

use kmem_gfp::Gfp;

use super::machine::Machine;
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
    let machine = Machine::with_poison(90_000, false);
    let pool = Pool::new(&*machine, config, Gfp::KERNEL).unwrap();
    let page = vec![0x5a; 4096];
    let handles: Vec<Option<Handle>> = sizes(raw)
        .into_iter()
        .map(|size| (size != 0).then(|| pool.store(&page[..size], Gfp::NOIO).unwrap()))
        .collect();
    let filled = pool.stats();
    let mut s: u64 = 11;
    for handle in handles {
        s ^= s >> 12;
        s ^= s << 25;
        s ^= s >> 27;
        let draw = s.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        if draw & 1 == 1
            && let Some(handle) = handle
        {
            pool.free(handle).unwrap();
        }
    }
    let half_freed = pool.stats();
    let given_back = pool.compact();
    Stages { filled, half_freed, compacted: pool.stats(), given_back }
}

#[test]
fn density_print() {
    for (name, raw) in [("lz4", LZ4), ("zstd", ZSTD)] {
        for config in [Config::new(), Config::new().with_chain(8), Config::new().with_chain(16),
            Config::new().with_moves_per_free(1), Config::new().with_moves_per_free(1).with_slack_percent(5), Config::new().with_moves_per_free(1).with_slack_percent(4), Config::new().with_moves_per_free(1).with_chain(8).with_slack_percent(5), Config::new().with_moves_per_free(2).with_slack_percent(5)] {
            let stages = run(raw, config);
            let show = |s: PoolStats| std::format!("{:.4}/{:.4}", s.density(), s.density_with_metadata());
            eprintln!("{name} chain {} moves {} slack {}: filled {} half {} compacted {} back {} freeable {}", config.chain, config.moves_per_free, config.slack_percent,
                show(stages.filled), show(stages.half_freed), show(stages.compacted), stages.given_back, stages.compacted.freeable_frames);
        }
    }
}
