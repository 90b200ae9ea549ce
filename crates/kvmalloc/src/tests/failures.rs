//! Every allocation of a run fails in turn, of either allocator: nothing is lost, and what was there stays as it was.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE};

use super::toys::Toys;
use crate::{Kvmalloc, RcuHead};

const KERNEL: Gfp = Gfp::KERNEL;
const HEAD: usize = 64;

/// Allocates, grows, shrinks and frees in each way; whatever fails is given up. Returns how many calls failed.
fn run(kv: &Kvmalloc<Toys>) -> usize {
    let mut failed = 0;
    let mut all: Vec<(*mut u8, usize)> = Vec::new();
    for size in [10, PAGE_SIZE, 2 * PAGE_SIZE, 5 * PAGE_SIZE, 100] {
        match kv.kvmalloc(size, KERNEL) {
            Ok(memory) => {
                // SAFETY: ours, of that size.
                unsafe { memory.write_bytes(size as u8 | 1, size) };
                all.push((memory.as_ptr(), size));
            }
            Err(_) => failed += 1,
        }
    }
    for (memory, size) in &mut all {
        for new in [*size * 3, *size + PAGE_SIZE, *size * 2] {
            let byte = *size as u8 | 1;
            // SAFETY: ours; a call that fails leaves it so.
            match unsafe { kv.kvrealloc(*memory, new, KERNEL) } {
                // SAFETY: ours, of the new size.
                Ok(grown) => unsafe {
                    let grown = grown.expect("not of size zero").as_ptr();
                    assert!((0..(*size).min(new)).all(|i| grown.add(i).read() == byte));
                    grown.write_bytes(new as u8 | 1, new);
                    (*memory, *size) = (grown, new);
                },
                Err(_) => {
                    failed += 1;
                    // SAFETY: still ours, as it was.
                    assert!((0..*size).all(|i| unsafe { memory.add(i).read() } == byte));
                }
            }
        }
    }
    for (i, (memory, size)) in all.into_iter().enumerate() {
        // SAFETY: ours, freed once; every one has room for a head at `HEAD`.
        unsafe {
            match i % 5 {
                0 => kv.kvfree(memory).unwrap(),
                1 => kv.kvfree_rcu_mightsleep(memory).unwrap(),
                2 if size >= HEAD + size_of::<RcuHead>() => {
                    kv.kvfree_rcu(memory, core::ptr::NonNull::new_unchecked(memory.add(HEAD)).cast()).unwrap();
                }
                3 => kv.kvfree_sensitive(memory, size).unwrap(),
                _ => kv.kvfree_atomic(memory).unwrap(),
            }
        }
    }
    kv.kvfree_rcu_barrier();
    kv.env().areas.run_deferred();
    assert_eq!(kv.env().in_use(), (0, 0), "nothing is lost");
    failed
}

#[test]
fn whichever_allocation_fails_nothing_is_lost() {
    let kv = Kvmalloc::new(Toys::new(256));
    let (objects, areas) = (&kv.env().objects.faults, &kv.env().areas.faults);
    objects.none();
    areas.none();
    assert_eq!(run(&kv), 0);
    let (nr_objects, nr_areas) = (objects.calls(), areas.calls());
    assert!(nr_objects > 5 && nr_areas > 2, "{nr_objects}, {nr_areas}");
    let mut failures = 0;
    for n in 0..nr_objects {
        // One block; that one and all areas; everything from there on.
        for (fail, fail_areas) in [(n..n + 1, 0..0), (n..n + 1, 0..usize::MAX), (n..usize::MAX, 0..usize::MAX)] {
            objects.fail(fail);
            areas.fail(fail_areas);
            failures += run(&kv);
        }
        for m in 0..nr_areas {
            objects.fail(n..usize::MAX);
            areas.fail(m..m + 1);
            failures += run(&kv);
        }
    }
    assert!(failures > nr_objects);
}
