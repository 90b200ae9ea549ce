//! A device against a map.

use proptest::prelude::*;

use super::machine;
use crate::tests::pagers::{Cut, Pairs, page_of, paired_page_of};
use crate::zram::{Recompress, Which, Zram, ZramError, ZramOptions};
use kmem_zsmalloc::Config;

const PAGES: u64 = 48;

#[derive(Clone, Debug)]
enum Op {
    Write { page: u64, len: usize, seed: u64, paired: bool },
    Fill { page: u64, byte: u8 },
    Read { page: u64 },
    Discard { page: u64, nr: u64 },
    Recompress { which: Which },
    MarkIdle,
    Compact,
    Limit { frames: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES;
    let which = prop_oneof![Just(Which::All), Just(Which::Idle), Just(Which::Huge), Just(Which::HugeIdle)];
    prop_oneof![
        8 => (page.clone(), 1..=4096_usize, any::<u64>(), any::<bool>())
            .prop_map(|(page, len, seed, paired)| Op::Write { page, len, seed, paired }),
        1 => (page.clone(), any::<u8>()).prop_map(|(page, byte)| Op::Fill { page, byte }),
        3 => page.clone().prop_map(|page| Op::Read { page }),
        3 => (page, 1..8_u64).prop_map(|(page, nr)| Op::Discard { page, nr }),
        1 => which.prop_map(|which| Op::Recompress { which }),
        1 => Just(Op::MarkIdle),
        1 => Just(Op::Compact),
        1 => prop_oneof![Just(0), 4..40_u64].prop_map(|frames| Op::Limit { frames }),
    ]
}

fn run(ops: &[Op], moves_per_free: u8) {
    let options =
        ZramOptions::new(PAGES * 4096, Cut).secondary(Pairs).pool(Config::new().with_moves_per_free(moves_per_free));
    let device = Zram::new(machine(), options).unwrap();
    let mut model: Vec<Option<[u8; 4096]>> = vec![None; PAGES as usize];
    let mut data = [0; 4096];
    for op in ops {
        match *op {
            Op::Write { page, len, seed, paired } => {
                let data = if paired { paired_page_of(len, seed) } else { page_of(len, seed) };
                match device.write_page(page, &data) {
                    Ok(()) => model[page as usize] = Some(data),
                    Err(ZramError::OverLimit { used, limit }) => assert!(used > limit),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Fill { page, byte } => {
                device.write_page(page, &[byte; 4096]).unwrap();
                model[page as usize] = Some([byte; 4096]);
            }
            Op::Read { page } => {
                device.read_page(page, &mut data).unwrap();
                assert_eq!(data, model[page as usize].unwrap_or([0; 4096]));
            }
            Op::Discard { page, nr } => {
                device.discard(page..page + nr);
                model.iter_mut().skip(page as usize).take(nr as usize).for_each(|held| *held = None);
            }
            Op::Recompress { which } => {
                let result = device.recompress(Recompress { which, ..Recompress::default() });
                assert!(matches!(result, Ok(_) | Err(ZramError::OverLimit { .. })), "{result:?}");
            }
            Op::MarkIdle => device.mark_idle(),
            Op::Compact => drop(device.compact()),
            Op::Limit { frames } => device.set_limit(frames * 4096),
        }
        let stat = device.mm_stat();
        assert_eq!(stat.orig_data_size, model.iter().flatten().count() as u64 * 4096);
        let pool = device.pool_stats();
        assert_eq!((stat.compr_data_size, stat.mem_used_total), (pool.bytes_stored, pool.object_frames * 4096));
        let same = model.iter().flatten().filter(|page| crate::compress::same_filled(page).is_some()).count();
        assert_eq!(stat.same_pages, same as u64);
        assert_eq!(pool.objects + stat.same_pages, stat.orig_data_size / 4096);
        assert!(stat.mem_used_max >= stat.mem_used_total && stat.huge_pages <= stat.huge_pages_since);
    }
    for (page, held) in model.iter().enumerate() {
        device.read_page(page as u64, &mut data).unwrap();
        assert_eq!(data, held.unwrap_or([0; 4096]), "page {page}");
    }
    device.reset();
    assert_eq!((device.pool_stats().objects, device.mm_stat().orig_data_size), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_device_is_a_map_from_numbers_to_pages(ops in proptest::collection::vec(op(), 1..120), moves in 0..=1_u8) {
        run(&ops, moves);
    }
}
