//! The address-space allocator against an interval oracle.

use std::collections::BTreeMap;

use kmem_gfp::{Gfp, PAGE_SIZE};
use proptest::prelude::*;

use super::machine::{BASE, Machine, on_cpu};
use crate::{VmFlags, VmallocError};

#[derive(Clone, Debug)]
enum Op {
    Alloc { pages: usize, align: u32, cpu: u32, guard: bool },
    Free { nth: usize, interior: usize, cpu: u32 },
    Purge,
    Shrink,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (prop_oneof![1_usize..6, 1_usize..300], 0_u32..8, 0_u32..3, any::<bool>())
            .prop_map(|(pages, align, cpu, guard)| Op::Alloc { pages, align, cpu, guard }),
        4 => (any::<usize>(), any::<usize>(), 0_u32..3).prop_map(|(nth, interior, cpu)| Op::Free { nth, interior, cpu }),
        1 => Just(Op::Purge),
        1 => Just(Op::Shrink),
    ]
}

/// Whether a request fits between live intervals: a run of size + align - 1 pages, or the window exactly.
fn fits(live: &BTreeMap<usize, usize>, window: usize, pages: usize, align: usize) -> bool {
    let need = if align > 1 && window != pages { pages + align - 1 } else { pages };
    let mut at = 0;
    for (&start, &len) in live {
        if start - at >= need {
            return true;
        }
        at = start + len;
    }
    window - at >= need
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn areas_never_overlap_and_space_ends_only_when_it_is_gone(
        window in 16_usize..2000,
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        // VM-01, VM-02, VM-03, VM-05, VM-33
        let machine = Machine::with_cpus(512, 3);
        machine.total_pages.store(1 << 30, core::sync::atomic::Ordering::Relaxed);
        let vmalloc = machine.window(window);
        let mut live: BTreeMap<usize, usize> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Alloc { pages, align, cpu, guard } => {
                    let flags = if guard { VmFlags::SPARSE } else { VmFlags::SPARSE | VmFlags::NO_GUARD };
                    let total = pages + usize::from(guard);
                    let align = 1_usize << align;
                    let made = on_cpu(cpu, || {
                        vmalloc.get_vm_area(pages * PAGE_SIZE, align * PAGE_SIZE, flags, None, Gfp::KERNEL)
                    });
                    match made {
                        Ok(at) => {
                            let at = at.addr().get();
                            prop_assert_eq!(at % (align * PAGE_SIZE), 0);
                            let page = (at - BASE) / PAGE_SIZE;
                            prop_assert!(page + total <= window);
                            if let Some((&start, &len)) = live.range(..page + total).next_back() {
                                prop_assert!(start + len <= page, "{}+{} overlaps {}+{}", page, total, start, len);
                            }
                            live.insert(page, total);
                        }
                        Err(VmallocError::NoSpace { .. }) => {
                            prop_assert!(!fits(&live, window, total, align), "{} pages at {}", total, align);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Op::Free { nth, interior, cpu } if !live.is_empty() => {
                    let (&page, &len) = live.iter().nth(nth % live.len()).unwrap();
                    let at = BASE + (page + interior % len) * PAGE_SIZE;
                    // SAFETY: not used.
                    on_cpu(cpu, || unsafe { vmalloc.vfree(at as *mut u8) }).unwrap();
                    // SAFETY: refused.
                    let again = unsafe { vmalloc.vfree(at as *mut u8) };
                    prop_assert!(again.is_err());
                    live.remove(&page);
                }
                Op::Free { .. } => prop_assert_eq!(vmalloc.live_areas(), 0),
                Op::Purge => { vmalloc.purge(); }
                Op::Shrink => { crate::PoolShrinker::scan_objects(&vmalloc); }
            }
            prop_assert_eq!(vmalloc.live_areas() as usize, live.len());
        }
        for (&page, &len) in &live {
            for i in 0..len {
                let info = vmalloc.find_vm_area((BASE + (page + i) * PAGE_SIZE) as *const u8).unwrap();
                prop_assert_eq!(info.range, BASE + page * PAGE_SIZE..BASE + (page + len) * PAGE_SIZE);
            }
            // SAFETY: not used.
            unsafe { vmalloc.vfree((BASE + page * PAGE_SIZE) as *mut u8) }.unwrap();
        }
        vmalloc.purge();
        crate::PoolShrinker::scan_objects(&vmalloc);
        prop_assert_eq!(vmalloc.stats().largest_free_bytes as usize, window * PAGE_SIZE, "all of it is back");
        drop(vmalloc);
        prop_assert_eq!(machine.in_use(), 0);
    }
}
