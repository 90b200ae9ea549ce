//! Runs of bits against a list of booleans.

use proptest::prelude::*;
use std::vec::Vec;

use crate::bitmap::{Wish, assign, count, each_clear, find_clear, next};

proptest! {
    #[test]
    fn runs_are_found_where_a_list_of_booleans_has_them(
        changes in prop::collection::vec((0_u64..200, 0_u64..70, any::<bool>()), 0..12),
        nr_bits in 1_u64..200, from in 0_u64..200, nr in 1_u64..40, align in 0_u32..5, offset in 0_u64..16,
    ) {
        let mut words = [0_u64; 5];
        let mut list = [false; 320];
        for (start, len, set) in changes {
            assign(&mut words, start, start + len, set);
            list[start as usize..(start + len) as usize].fill(set);
        }
        let bits = &list[..nr_bits as usize];
        prop_assert_eq!(count(&words, nr_bits), bits.iter().filter(|&&bit| bit).count() as u64);
        for set in [false, true] {
            let first = bits.iter().enumerate().skip(from as usize).find(|&(_, &bit)| bit == set);
            prop_assert_eq!(next(&words, from, nr_bits, set), first.map(|(at, _)| at as u64));
        }
        // M-04: the alignment counts from the frame below the area, not from its first bit.
        let mask = (1 << align) - 1;
        let wish = Wish { nr, mask, offset: offset & mask };
        let place = (from..nr_bits).find(|&at| {
            (at + wish.offset) & mask == 0
                && at + nr <= nr_bits
                && bits[at as usize..(at + nr) as usize].iter().all(|bit| !bit)
        });
        prop_assert_eq!(find_clear(&words, nr_bits, from, wish), place);
        let mut runs = Vec::new();
        each_clear(&words, nr_bits, |start, end| runs.push((start, end)));
        let clear: u64 = runs.iter().map(|(start, end)| end - start).sum();
        prop_assert_eq!(clear, nr_bits - count(&words, nr_bits));
        for &(start, end) in &runs {
            prop_assert!(start < end && bits[start as usize..end as usize].iter().all(|bit| !bit));
            prop_assert!(end == nr_bits || bits[end as usize]);
        }
    }
}
