//! Random calls against an oracle: contents, who is asked, what fails.

use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_kmalloc::ZERO_SIZE_PTR;
use proptest::prelude::*;

use super::toys::{LARGEST_BLOCK, Toys};
use crate::{Kvmalloc, RcuHead};

const ARENA_PAGES: usize = 48;

#[derive(Clone, Debug)]
enum Step {
    Alloc { size: usize, zero: bool, kmalloc_fails: bool },
    Resize { which: usize, size: usize, kmalloc_fails: bool },
    Free { which: usize, how: u8 },
    Grace,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..300_usize,
        PAGE_SIZE - 2..PAGE_SIZE + 3,
        0..8 * PAGE_SIZE,
        Just(LARGEST_BLOCK),
        Just(LARGEST_BLOCK + 1)
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (size(), any::<bool>(), any::<bool>())
            .prop_map(|(size, zero, kmalloc_fails)| Step::Alloc { size, zero, kmalloc_fails }),
        4 => (any::<usize>(), size(), any::<bool>())
            .prop_map(|(which, size, kmalloc_fails)| Step::Resize { which, size, kmalloc_fails }),
        3 => (any::<usize>(), 0..5_u8).prop_map(|(which, how)| Step::Free { which, how }),
        1 => Just(Step::Grace),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the model knows of memory in use: its bytes, whether each byte behind them may be assumed zero, and whose it is.
struct Held {
    memory: *mut u8,
    bytes: Vec<u8>,
    zero: bool,
    area: bool,
}

impl Held {
    fn check(&self) {
        // SAFETY: in use, that many bytes, all of them written.
        let now = unsafe { core::slice::from_raw_parts(self.memory, self.bytes.len()) };
        assert!(now == self.bytes, "{} bytes", self.bytes.len());
    }

    /// Writes new contents.
    fn fill(&mut self, seed: u8) {
        for (i, byte) in self.bytes.iter_mut().enumerate() {
            *byte = seed.wrapping_add(i as u8);
        }
        // SAFETY: in use, that many bytes.
        unsafe { self.memory.copy_from_nonoverlapping(self.bytes.as_ptr(), self.bytes.len()) };
    }
}

fn gfp(zero: bool) -> Gfp {
    if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL }
}

/// Whether the first try gives `size` bytes.
fn kmalloc_gives(size: usize, fails: bool) -> bool {
    size == 0 || (size <= LARGEST_BLOCK && !fails)
}

fn play(steps: Vec<Step>) {
    let kv = Kvmalloc::new(Toys::new(ARENA_PAGES));
    let toys = kv.env();
    let mut held: Vec<Held> = Vec::new();
    for (seed, step) in (1_u8..).zip(steps) {
        match step {
            Step::Alloc { size, zero, kmalloc_fails } => {
                toys.objects.faults.fail(0..usize::from(kmalloc_fails));
                let gives = kmalloc_gives(size, kmalloc_fails);
                match kv.kvmalloc(size, gfp(zero)) {
                    Ok(memory) => {
                        let area = kv.is_vmalloc_addr(memory.as_ptr());
                        assert_eq!(area, !gives);
                        assert!(!area || size > PAGE_SIZE);
                        assert_eq!(memory == ZERO_SIZE_PTR, size == 0);
                        let natural = (1 << size.trailing_zeros().min(12)).min(PAGE_SIZE);
                        assert!(size == 0 || memory.addr().get().is_multiple_of(natural));
                        let mut new = Held { memory: memory.as_ptr(), bytes: std::vec![0; size], zero, area };
                        if zero {
                            new.check();
                        }
                        new.fill(seed);
                        held.push(new);
                    }
                    // Only where both say no; the arena can be full.
                    Err(_) => assert!(!gives),
                }
            }
            Step::Resize { which, size, kmalloc_fails } => {
                let Some(nr) = which.checked_rem(held.len()) else { continue };
                let old = &mut held[nr];
                toys.objects.faults.fail(0..usize::from(kmalloc_fails));
                // SAFETY: the model's own memory.
                match unsafe { kv.kvrealloc(old.memory, size, gfp(old.zero)) } {
                    Ok(None) => {
                        assert!(old.area && size == 0);
                        held.swap_remove(nr);
                    }
                    Ok(Some(memory)) => {
                        assert!(!(old.area && size == 0));
                        let area = kv.is_vmalloc_addr(memory.as_ptr());
                        assert!(area || !old.area, "never back");
                        assert!(area == old.area || size > PAGE_SIZE);
                        old.memory = memory.as_ptr();
                        old.area = area;
                        let kept = old.bytes.len().min(size);
                        // With the zero flag from the first call on, what is gained is zero.
                        let zeroed = old.zero && !old.area;
                        old.bytes.truncate(kept);
                        old.check();
                        old.bytes.resize(size, 0);
                        if zeroed {
                            old.check();
                        }
                        old.fill(seed);
                    }
                    Err(_) => {
                        assert!(size > 0);
                        old.check();
                    }
                }
            }
            Step::Free { which, how } => {
                let Some(nr) = which.checked_rem(held.len()) else { continue };
                let old = held.swap_remove(nr);
                old.check();
                let len = old.bytes.len();
                // SAFETY: the model's own memory, freed once; a head fits where it is put.
                let freed = unsafe {
                    match how {
                        0 => kv.kvfree_atomic(old.memory),
                        1 => kv.kvfree_sensitive(old.memory, len),
                        2 => kv.kvfree_rcu_mightsleep(old.memory),
                        3 if len >= size_of::<RcuHead>() => {
                            kv.kvfree_rcu(old.memory, core::ptr::NonNull::new_unchecked(old.memory).cast())
                        }
                        _ => kv.kvfree(old.memory),
                    }
                };
                freed.unwrap();
            }
            Step::Grace => {
                toys.grace.pass();
                kv.reap();
                toys.areas.run_deferred();
            }
        }
        held.iter().for_each(Held::check);
    }
    for old in held {
        // SAFETY: the model's own memory, freed once.
        unsafe { kv.kvfree(old.memory) }.unwrap();
    }
    kv.kvfree_rcu_barrier();
    toys.areas.run_deferred();
    assert_eq!(toys.in_use(), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    // V02, F05
    #[test]
    fn any_sequence_of_calls_keeps_contents_and_loses_nothing(steps in steps()) {
        play(steps);
    }
}
