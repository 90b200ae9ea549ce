//! Threads at work on one pool, with compaction and migration going on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

use kmem_gfp::{Gfp, MovableOwner, Order, PageAllocator};

use super::machine::{Machine, run_on};
use super::objects::bytes;
use crate::{AccessError, Config, Pool};

#[test]
fn threads_share_a_pool() {
    let machine = Machine::new(3000);
    let pool = Pool::new(&*machine, Config::new().with_moves_per_free(1), Gfp::KERNEL).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3_u64)
            .map(|id| {
                let pool = &pool;
                scope.spawn(move || {
                    // One of them has no CPU.
                    run_on([Some(1), Some(2), None].get(id as usize).copied().flatten());
                    let mut live: Vec<(usize, usize, crate::Handle)> = Vec::new();
                    let mut buffer = [0; 4096];
                    let mut seed = id + 1;
                    for step in 0..20_000 {
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        let n = (seed >> 8) as usize;
                        if live.len() < 50 || seed & 3 == 0 && live.len() < 200 {
                            let len = n % 4096 + 1;
                            live.push((step, len, pool.store(&bytes(step, len), Gfp::KERNEL).unwrap()));
                            continue;
                        }
                        let at = n % live.len();
                        let (what, len, handle) = live[at];
                        assert_eq!(*pool.read(handle, &mut buffer).unwrap(), *bytes(what, len));
                        match seed & 3 {
                            1 => match pool.write(handle, &bytes(step, len)) {
                                Ok(()) => live[at].0 = step,
                                Err(error) => assert_eq!(error, AccessError::Busy),
                            },
                            2 => {
                                let guard = pool.read_parts(handle).unwrap();
                                pool.free(handle).unwrap();
                                assert_eq!([guard.parts().0, guard.parts().1].concat(), bytes(what, len));
                                live.swap_remove(at);
                            }
                            _ => {
                                pool.free(handle).unwrap();
                                live.swap_remove(at);
                            }
                        }
                    }
                    for (what, len, handle) in live {
                        assert_eq!(*pool.read(handle, &mut buffer).unwrap(), *bytes(what, len));
                        pool.free(handle).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            run_on(None);
            while !stop.load(Ordering::Relaxed) {
                pool.compact();
                for frame in machine.taken() {
                    if !pool.isolate(frame) {
                        continue;
                    }
                    let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
                    let moved = pool.migrate(frame, target).is_ok();
                    if !moved {
                        pool.put_back(frame);
                    }
                    // SAFETY: a migrated frame is ours again, and so is a target that was not taken.
                    unsafe { machine.free_pages(if moved { frame } else { target }, Order::ZERO) }.unwrap();
                }
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    pool.destroy().unwrap();
    assert_eq!(machine.nr_taken(), 0);
    assert!(machine.reports().is_empty(), "{:?}", machine.reports());
}
