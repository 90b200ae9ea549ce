//! Saturating size arithmetic against exact arithmetic.

use proptest::prelude::*;

use crate::{
    size::{array_size, array3_size, flex_array_size, is_saturated, size_add, size_mul, size_sub},
    struct_size,
};

const MAX: usize = usize::MAX;

#[repr(C)]
struct Message {
    sender: u32,
    body: [u16; 0],
}

// KM-12: constant counts fold to plain numbers.
const MESSAGE: usize = struct_size!(Message, body, 100);

#[test]
fn constants_fold() {
    // KM-12
    assert_eq!(MESSAGE, 204);
    const { assert!(array3_size(3, 4, 5) == 60) };
    const { assert!(flex_array_size::<u64>(8) == 64) };
}

#[test]
fn saturation_is_sticky() {
    // KM-12
    assert_eq!(size_add(MAX, 0), MAX);
    assert_eq!(size_sub(MAX, 1), MAX, "an overflowed size does not shrink");
    assert_eq!(size_sub(1, MAX), MAX);
    assert_eq!(size_sub(MAX, MAX), MAX);
    assert_eq!(size_mul(MAX, 1), MAX);
    assert_eq!(size_sub(size_add(array_size(MAX, 2), 8), 100), MAX);
    assert!(is_saturated(struct_size!(Message, body, MAX)) && !is_saturated(MAX - 1));
    let count = std::hint::black_box(MAX / 2);
    assert_eq!(struct_size!(Message, body, count), MAX);
}

#[test]
fn nothing_times_anything_is_nothing() {
    assert_eq!(size_mul(0, MAX), 0);
    assert_eq!(array3_size(0, MAX, MAX), 0);
    assert_eq!(array3_size(MAX, MAX, 0), 0);
}

/// Exact arithmetic, cut at `usize::MAX`.
fn cut(exact: u128) -> usize {
    usize::try_from(exact).unwrap_or(MAX)
}

/// Sizes near zero, near the top and anywhere.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![0_usize..16, any::<usize>(), (MAX - 16)..=MAX, (0_u32..64).prop_map(|bit| 1 << bit)]
}

proptest! {
    // KM-12
    #[test]
    fn arithmetic_is_exact_or_saturated(a in sizes(), b in sizes(), c in sizes()) {
        let (x, y) = (a as u128, b as u128);
        prop_assert_eq!(size_add(a, b), cut(x + y));
        prop_assert_eq!(size_mul(a, b), cut(x * y));
        prop_assert_eq!(array_size(a, b), cut(x * y));
        prop_assert_eq!(array3_size(a, b, c), cut(cut(x * y) as u128 * c as u128));
        prop_assert_eq!(flex_array_size::<[u8; 24]>(a), cut(x * 24));
        let plain = a != MAX && b != MAX && a >= b;
        prop_assert_eq!(size_sub(a, b), if plain { a.wrapping_sub(b) } else { MAX });
    }
}
