//! The decision table of `krealloc`.

use crate::resize::{Resize, ResizeRequest};

const BLOCK: ResizeRequest =
    ResizeRequest { usable_bytes: 64, kept_bytes: 64, new_bytes: 64, address: 0x1040, align: 1, node_fits: true };

#[test]
fn a_block_that_fits_stays_however_large_it_is() {
    // KM-19
    assert_eq!(BLOCK.decide(), Resize::Keep);
    assert_eq!(ResizeRequest { new_bytes: 1, ..BLOCK }.decide(), Resize::Keep);
    assert_eq!(ResizeRequest { usable_bytes: 4 << 20, new_bytes: 8, ..BLOCK }.decide(), Resize::Keep);
    assert_eq!(ResizeRequest { align: 64, ..BLOCK }.decide(), Resize::Keep);
}

#[test]
fn growth_copies_all_that_the_old_block_had() {
    // KM-20
    assert_eq!(ResizeRequest { new_bytes: 65, ..BLOCK }.decide(), Resize::Move { copy_bytes: 64 });
    assert_eq!(
        ResizeRequest { kept_bytes: 50, new_bytes: 65, ..BLOCK }.decide(),
        Resize::Move { copy_bytes: 50 },
        "with tracking the original size is copied"
    );
}

#[test]
fn a_wrong_alignment_or_node_forces_a_move() {
    // KM-19, KM-23
    assert_eq!(ResizeRequest { align: 128, new_bytes: 40, ..BLOCK }.decide(), Resize::Move { copy_bytes: 40 });
    assert_eq!(ResizeRequest { node_fits: false, new_bytes: 64, ..BLOCK }.decide(), Resize::Move { copy_bytes: 64 });
}
