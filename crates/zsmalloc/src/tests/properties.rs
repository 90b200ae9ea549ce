//! Random operations against a map.

use std::collections::BTreeMap;
use std::vec::Vec;

use kmem_gfp::{Gfp, MovableOwner, Order, PageAllocator};
use proptest::prelude::*;

use super::machine::{CPUS, Machine, run_on};
use super::objects::bytes;
use crate::{AccessError, Config, DebugFlags, Pool};

#[derive(Clone, Debug)]
enum Op {
    Store {
        len: usize,
    },
    Free {
        nth: usize,
    },
    Write {
        nth: usize,
    },
    Read {
        nth: usize,
    },
    Compact,
    Migrate {
        nth: usize,
    },
    FreeUnderReader {
        nth: usize,
    },
    /// Goes on with another CPU, or with none.
    Run {
        on: Option<u32>,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![1..=4096_usize, Just(3000), 900..1100_usize, Just(4096)];
    let op = prop_oneof![
        6 => len.prop_map(|len| Op::Store { len }),
        4 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        1 => any::<usize>().prop_map(|nth| Op::Write { nth }),
        2 => any::<usize>().prop_map(|nth| Op::Read { nth }),
        1 => Just(Op::Compact),
        2 => any::<usize>().prop_map(|nth| Op::Migrate { nth }),
        1 => any::<usize>().prop_map(|nth| Op::FreeUnderReader { nth }),
        2 => prop::option::weighted(0.8, 0..CPUS).prop_map(|on| Op::Run { on }),
    ];
    prop::collection::vec(op, 1..300)
}

fn check(config: Config, ops: &[Op]) {
    run_on(Some(0));
    let machine = Machine::new(1500);
    let pool = Pool::new(&*machine, config, Gfp::KERNEL).unwrap();
    let mut model = BTreeMap::new();
    let mut buffer = [0; 4096];
    for (step, op) in ops.iter().enumerate() {
        let nth = |nth: usize| model.keys().nth(nth % model.len().max(1)).copied();
        match *op {
            Op::Store { len } => {
                let handle = pool.store(&bytes(step, len), Gfp::KERNEL).unwrap();
                assert!(model.insert(handle.to_bits(), (handle, bytes(step, len))).is_none());
            }
            Op::Free { nth: n } => {
                let Some((handle, _)) = nth(n).and_then(|key| model.remove(&key)) else { continue };
                pool.free(handle).unwrap();
                assert_eq!(pool.free(handle), Err(AccessError::Stale(handle)));
            }
            Op::Write { nth: n } => {
                let Some((handle, data)) = nth(n).and_then(|key| model.get_mut(&key)) else { continue };
                *data = bytes(step, data.len());
                pool.write(*handle, data).unwrap();
            }
            Op::Read { nth: n } => {
                let Some((handle, data)) = nth(n).and_then(|key| model.get(&key)) else { continue };
                assert_eq!(*pool.read(*handle, &mut buffer).unwrap(), **data);
            }
            Op::Compact => {
                pool.settle_frees();
                let before = pool.total_pages();
                assert_eq!(pool.compact(), before - pool.total_pages());
            }
            Op::Migrate { nth: n } => {
                let frames = machine.taken();
                let frame = frames[n % frames.len()];
                let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
                let moved = pool.isolate(frame) && {
                    let moved = n % 3 != 0 && pool.migrate(frame, target).is_ok();
                    if !moved {
                        pool.put_back(frame);
                    }
                    moved
                };
                // SAFETY: a migrated frame is ours again, and so is a target that was not taken.
                unsafe { machine.free_pages(if moved { frame } else { target }, Order::ZERO) }.unwrap();
            }
            Op::Run { on } => run_on(on),
            Op::FreeUnderReader { nth: n } => {
                let Some((handle, data)) = nth(n).and_then(|key| model.remove(&key)) else { continue };
                let guard = pool.read_parts(handle).unwrap();
                pool.free(handle).unwrap();
                let another = pool.store(&data, Gfp::KERNEL).unwrap();
                assert_eq!([guard.parts().0, guard.parts().1].concat(), data);
                drop(guard);
                model.insert(another.to_bits(), (another, data));
            }
        }
        let stats = pool.stats();
        assert_eq!(stats.objects, model.len() as u64);
        assert_eq!(stats.bytes_stored, model.values().map(|(_, data)| data.len() as u64).sum::<u64>());
        assert_eq!(machine.nr_taken() as u64, stats.object_frames + stats.metadata_frames);
        assert_eq!(pool.total_pages(), stats.object_frames);
    }
    for (handle, data) in model.values() {
        assert_eq!(*pool.read(*handle, &mut buffer).unwrap(), **data);
    }
    for (handle, _) in model.into_values() {
        pool.free(handle).unwrap();
    }
    pool.settle_frees();
    assert_eq!(pool.total_pages(), 0);
    pool.destroy().unwrap();
    assert_eq!(machine.nr_taken(), 0);
    assert!(machine.reports().is_empty(), "{:?}", machine.reports());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_is_a_map(ops in ops(), chain in 4..=16_u8, granule in 0..4_u32, moves in 0..3_u8, verify in any::<bool>()) {
        // P03
        let debug = if verify { DebugFlags::VERIFY } else { DebugFlags::empty() };
        let config = Config::new()
            .with_chain(chain)
            .with_granule(16 << (2 * granule))
            .with_moves_per_free(moves)
            .with_slack_percent(3)
            .with_debug(debug);
        check(config, &ops);
    }
}
