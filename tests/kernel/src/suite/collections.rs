//! Rust's collections with kmem underneath: the global allocator.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::random::Random;
use crate::platform::kmem;
use crate::thread;

super::tests![
    vectors_grow_and_shrink,
    maps_strings_and_formatting_work,
    alignments_above_the_smallest_are_kept,
    shared_values_cross_threads,
    a_reservation_too_large_is_an_error,
];

fn vectors_grow_and_shrink() {
    let mut numbers: Vec<u64> = (0..200_000).rev().collect();
    numbers.sort_unstable();
    assert!(numbers.iter().enumerate().all(|(i, &number)| number == i as u64));
    numbers.truncate(10);
    numbers.shrink_to_fit();
    assert_eq!(numbers, vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let address = numbers.as_ptr().cast();
    assert!(kmem().virt_to_pfn(address).is_some(), "kmem's memory");
}

fn maps_strings_and_formatting_work() {
    let mut random = Random::new(1);
    let mut map = BTreeMap::new();
    for i in 0..5000_u64 {
        map.insert(random.next(), format!("{i} {:.3}", i as f64 / 7.0));
    }
    let keys: Vec<_> = map.keys().copied().collect();
    assert!(keys.is_sorted());
    for key in keys.iter().step_by(2) {
        map.remove(key);
    }
    assert_eq!(map.len(), 2500);
    let text: String = map.values().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    assert!(text.contains(", "));
    let mut queue: VecDeque<_> = map.into_values().collect();
    queue.rotate_left(100);
    assert_eq!(queue.len(), 2500);
}

#[repr(align(512))]
struct Aligned([u8; 700]);

fn alignments_above_the_smallest_are_kept() {
    let boxes: Vec<_> = (0..100).map(|i| Box::new(Aligned([i; 700]))).collect();
    for (i, aligned) in boxes.iter().enumerate() {
        assert_eq!((&raw const **aligned).addr() % 512, 0);
        assert!(aligned.0.iter().all(|&byte| byte == i as u8));
    }
}

fn shared_values_cross_threads() {
    let shared = Arc::new((0..1000).collect::<Vec<u32>>());
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn("shares", None, move || assert_eq!(shared.iter().sum::<u32>(), 499_500))
        })
        .collect();
    for thread in threads {
        assert!(thread.join());
    }
    assert_eq!(Arc::strong_count(&shared), 1);
}

fn a_reservation_too_large_is_an_error() {
    let mut numbers = Vec::<u64>::new();
    let (refused, _) = crate::context::capture(|| numbers.try_reserve(1 << 40).is_err());
    assert!(refused);
}
