//! Collections on kmalloc and kvmalloc memory, with fallible growth, through both versions of allocator-api2.

use kmem::Gfp;
use kmem_tests::machine;

macro_rules! collections {
    ($module:ident, $api:ident, $map:ident) => {
        mod $module {
            use $api::boxed::Box;
            use $api::vec::Vec;
            use $map::HashMap;

            use super::*;

            #[test]
            fn a_box_lives_in_kmalloc_memory() {
                let kmem = machine().kmem();
                let alloc = kmem.gfp_alloc(Gfp::KERNEL);
                let boxed = Box::try_new_in([7_u64; 8], alloc).unwrap();
                let block = core::ptr::NonNull::from(&*boxed).cast();
                assert_eq!(kmem.slabs().cache_of(block).unwrap().name(), "kmalloc-64");
                assert_eq!(boxed.iter().sum::<u64>(), 56);
                let wide = Box::try_new_in(Aligned([1; 100]), alloc).unwrap();
                assert_eq!((&raw const *wide).addr() % 256, 0);
                assert_eq!(wide.0[99], 1);
                assert!(Box::try_new_in((), alloc).is_ok());
            }

            #[test]
            fn a_vec_grows_fallibly_and_keeps_its_contents() {
                let kmem = machine().kmem();
                let mut numbers = Vec::new_in(kmem.gfp_alloc(Gfp::KERNEL | Gfp::NOWARN));
                for n in 0..200_000_u32 {
                    numbers.try_reserve(1).unwrap();
                    numbers.push(n);
                }
                assert!(numbers.iter().copied().eq(0..200_000));
                // More than any block has is an error, and the vector is as it was.
                assert!(numbers.try_reserve(2 << 20).is_err());
                assert_eq!(numbers.len(), 200_000);
                numbers.truncate(10);
                numbers.shrink_to_fit();
                assert!(numbers.iter().copied().eq(0..10));
                drop(numbers);
                assert_eq!(kmem.kmalloc_layer().large_pages(), 0);
            }

            #[test]
            fn a_vec_grows_from_kmalloc_into_vmalloc_and_is_freed_by_kvfree() {
                let kmem = machine().kmem();
                let mut numbers = Vec::new_in(kmem.kv_alloc(Gfp::KERNEL));
                let in_area = |numbers: &Vec<u32, _>| kmem.is_vmalloc_addr(numbers.as_ptr().cast());
                let mut moved_at = None;
                for n in 0..3_000_000_u32 {
                    numbers.try_reserve(1).unwrap();
                    numbers.push(n);
                    if moved_at.is_none() && in_area(&numbers) {
                        moved_at = Some(n);
                    }
                }
                assert_eq!(moved_at, Some(1 << 20), "at 4 MiB kmalloc has given what it has");
                assert!(numbers.iter().copied().eq(0..3_000_000));
                // More than the machine has is an error, and the vector is as it was.
                assert!(numbers.try_reserve(256 << 20).is_err());
                numbers.truncate(10);
                numbers.shrink_to_fit();
                assert!(numbers.iter().copied().eq(0..10));
                assert!(in_area(&numbers), "never back");
                numbers.clear();
                numbers.shrink_to_fit();
                assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.kmalloc_layer().large_pages()), (0, 0));
                numbers.try_reserve(10).unwrap();
                assert!(!in_area(&numbers));
            }

            #[test]
            fn kvmalloc_memory_is_aligned_and_zeroed_as_asked() {
                use core::alloc::Layout;
                use core::ptr::NonNull;
                use $api::alloc::Allocator;

                let kmem = machine().kmem();
                let alloc = kmem.kv_alloc(Gfp::KERNEL);
                let layout = |size, align| Layout::from_size_align(size, align).unwrap();
                let steps = [
                    layout(24, 8),
                    layout(40, 64),
                    layout(5000, 64),
                    layout(5000, 4096),
                    layout(20_000, 16384),
                    layout(5 << 20, 16384),
                    layout(5 << 20, 1 << 20),
                    layout(7 << 20, 1 << 20),
                ];
                // SAFETY: what each call gives replaces what the one before gave; all of it is written before it is read.
                unsafe {
                    let mut memory: NonNull<u8> = alloc.allocate_zeroed(steps[0]).unwrap().cast();
                    for pair in steps.windows(2) {
                        memory.write_bytes(0xa5, pair[0].size());
                        memory = alloc.grow_zeroed(memory, pair[0], pair[1]).unwrap().cast();
                        assert!(memory.addr().get().is_multiple_of(pair[1].align()), "{:?}", pair[1]);
                        let bytes = NonNull::slice_from_raw_parts(memory, pair[1].size()).as_ref().to_vec();
                        let (old, new) = bytes.split_at(pair[0].size());
                        assert!(old.iter().all(|byte| *byte == 0xa5) && new.iter().all(|byte| *byte == 0));
                    }
                    for pair in steps.windows(2).rev() {
                        memory = alloc.shrink(memory, pair[1], pair[0]).unwrap().cast();
                        assert!(memory.addr().get().is_multiple_of(pair[0].align()), "{:?}", pair[0]);
                        assert_eq!(memory.read(), 0xa5);
                    }
                    alloc.deallocate(memory, steps[0]);
                }
                let nothing = alloc.allocate(layout(0, 256)).unwrap().cast::<u8>();
                assert_eq!(nothing.addr().get() % 256, 0);
                // SAFETY: given for that layout.
                unsafe { alloc.deallocate(nothing, layout(0, 256)) };
                assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.kmalloc_layer().large_pages()), (0, 0));
            }

            #[test]
            fn a_hash_map_grows_fallibly() {
                let machine = machine();
                let kmem = machine.kmem();
                let mut map = HashMap::new_in(kmem.gfp_alloc(Gfp::KERNEL | Gfp::NOWARN));
                for n in 0..10_000_u64 {
                    map.try_reserve(1).unwrap();
                    map.insert(n, n * n);
                }
                assert!((0..10_000).all(|n| map.get(&n) == Some(&(n * n))));
                let before = map.capacity();
                assert!(map.try_reserve(10_000_000).is_err());
                assert_eq!((map.len(), map.capacity()), (10_000, before));
                for n in 0..9_990 {
                    map.remove(&n);
                }
                map.shrink_to_fit();
                assert_eq!(map.len(), 10);
                drop(map);
                assert_eq!(kmem.kmalloc_layer().large_pages(), 0);
            }

            #[test]
            fn flags_travel_with_the_handle() {
                let alloc = machine().kmem().gfp_alloc(Gfp::ATOMIC);
                assert_eq!(alloc.gfp(), Gfp::ATOMIC);
                let numbers: Vec<u8, _> = Vec::new_in(alloc.with_gfp(Gfp::NOWAIT));
                assert_eq!(numbers.allocator().gfp(), Gfp::NOWAIT);
            }
        }
    };
}

/// More strictly aligned than large.
#[repr(align(256))]
struct Aligned([u8; 100]);

collections!(version_02, allocator_api2_02, hashbrown_015);
collections!(version_04, allocator_api2_04, hashbrown_017);
