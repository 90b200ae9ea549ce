//! Flipped bits in the metadata of verifying pools.

use std::vec::Vec;

use kmem_gfp::{FrameTable, Gfp, PAGE_SIZE};

use super::machine::Machine;
use super::objects::bytes;
use crate::meta::META_STATE;
use crate::{AccessError, Config, DebugFlags, Handle, Pool};

/// Uses everything in the pool. Whatever succeeds has told the truth; nothing crashes.
fn use_all(pool: &Pool<&Machine>, handles: &[(usize, Handle)]) -> usize {
    let mut errors = 0;
    let mut buffer = [0; PAGE_SIZE];
    for &(len, handle) in handles {
        match pool.read(handle, &mut buffer) {
            Ok(guard) => assert_eq!(*guard, *bytes(len, len)),
            Err(AccessError::Corrupt(_) | AccessError::Stale(_)) => errors += 1,
            Err(error) => panic!("{error}"),
        }
    }
    pool.compact();
    for &(len, _) in handles.iter().step_by(3) {
        match pool.store(&bytes(len, len), Gfp::KERNEL) {
            Ok(handle) => assert_eq!(*pool.read(handle, &mut buffer).unwrap(), *bytes(len, len)),
            Err(_) => errors += 1,
        }
    }
    for &(len, handle) in handles {
        match pool.read(handle, &mut buffer) {
            Ok(guard) => assert_eq!(*guard, *bytes(len, len)),
            Err(_) => errors += 1,
        }
        errors += usize::from(pool.free(handle).is_err());
    }
    errors
}

#[test]
fn a_flipped_bit_is_caught_and_not_followed() {
    let lens = [700, 2600, 2600, 4096, 100, 700];
    let (mut caught, mut tried) = (0, 0);
    for round in 0.. {
        // The pool is made anew for each flip. Damaged pools are forgotten, not dropped.
        let machine = Machine::new(80);
        let config = Config::new().with_debug(DebugFlags::VERIFY).with_moves_per_free(1);
        let pool = Pool::new(&*machine, config, Gfp::KERNEL).unwrap();
        let stored: Vec<_> = (0..30)
            .map(|i| lens[i % lens.len()])
            .map(|len| (len, pool.store(&bytes(len, len), Gfp::KERNEL).unwrap()))
            .collect();
        let (freed, kept): (Vec<_>, Vec<_>) = stored.into_iter().enumerate().partition(|(i, _)| i % 3 == 1);
        for (_, (_, handle)) in freed {
            pool.free(handle).unwrap();
        }
        let kept: Vec<_> = kept.into_iter().map(|(_, object)| object).collect();
        // Bytes of records in use and of the entries that have been used.
        let mut places = Vec::new();
        for pfn in machine.taken() {
            let Some(state) = pool.frame_state(pfn).filter(|state| state & META_STATE != 0) else { continue };
            let base = machine.address_of(pfn).unwrap();
            let size = (state & !META_STATE) as usize;
            if size != 0 {
                // A record's lock word (its first four bytes) is not metadata that is followed.
                places.extend((4..size).map(|i| base.as_ptr().wrapping_add(i)));
            }
        }
        let entries = pool.entry(0).unwrap().as_ptr().cast::<u8>();
        places.extend((0..31 * 8).map(|i| entries.wrapping_add(i)));
        let Some(&place) = places.get(round) else { break };
        tried += 1;
        // SAFETY: a byte of a metadata frame; all-bits-valid plain data and atomics, and nobody else runs.
        unsafe { *place ^= 1 << (round % 8) };
        caught += usize::from(use_all(&pool, &kept) != 0 || !machine.reports().is_empty());
        core::mem::forget(pool);
    }
    // The rest is bytes that nothing uses: ends of records, entries whose turn did not come.
    assert!(tried > 500 && caught * 3 > tried, "{caught} of {tried}");
}
