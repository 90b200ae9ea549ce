//! Collections on kmalloc memory, with fallible growth, through both versions of allocator-api2.

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
