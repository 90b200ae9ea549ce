//! Values, composites, masks and the text form.

use std::string::ToString;

use proptest::prelude::*;

use crate::{Gfp, ParseGfpError};

#[test]
fn single_flags_have_their_values() {
    let values = [
        (Gfp::DMA, 0x1),               // G-01
        (Gfp::HIGHMEM, 0x2),           // G-02
        (Gfp::DMA32, 0x4),             // G-03
        (Gfp::MOVABLE, 0x8),           // G-04
        (Gfp::RECLAIMABLE, 0x10),      // G-05
        (Gfp::HIGH, 0x20),             // G-06
        (Gfp::IO, 0x40),               // G-07
        (Gfp::FS, 0x80),               // G-08
        (Gfp::ZERO, 0x100),            // G-09
        (Gfp::DIRECT_RECLAIM, 0x400),  // G-10
        (Gfp::KSWAPD_RECLAIM, 0x800),  // G-11
        (Gfp::WRITE, 0x1000),          // G-12
        (Gfp::NOWARN, 0x2000),         // G-13
        (Gfp::RETRY_MAYFAIL, 0x4000),  // G-14
        (Gfp::NOFAIL, 0x8000),         // G-15
        (Gfp::NORETRY, 0x10000),       // G-16
        (Gfp::MEMALLOC, 0x20000),      // G-17
        (Gfp::COMP, 0x40000),          // G-18
        (Gfp::NOMEMALLOC, 0x80000),    // G-19
        (Gfp::HARDWALL, 0x10_0000),    // G-20
        (Gfp::THISNODE, 0x20_0000),    // G-21
        (Gfp::ACCOUNT, 0x40_0000),     // G-22
        (Gfp::ZEROTAGS, 0x80_0000),    // G-23
        (Gfp::NO_OBJ_EXT, 0x100_0000), // G-26
    ];
    for (flag, value) in values {
        assert_eq!(flag.bits(), value, "{flag}");
        assert_eq!(flag.bits().count_ones(), 1, "{flag}");
    }
    assert_eq!(Gfp::all().bits(), 0x1ff_fdff, "bit 0x200 is unused, nothing else is"); // G-10
}

#[test]
fn flags_of_absent_facilities_have_no_bits() {
    // G-24, G-25
    assert_eq!(Gfp::SKIP_ZERO | Gfp::SKIP_KASAN | Gfp::NOLOCKDEP, Gfp::empty());
}

#[test]
fn composites_have_their_values() {
    let values = [
        (Gfp::RECLAIM, 0xc00),              // G-27
        (Gfp::ATOMIC, 0x820),               // G-28
        (Gfp::KERNEL, 0xcc0),               // G-29
        (Gfp::KERNEL_ACCOUNT, 0x40_0cc0),   // G-30
        (Gfp::NOWAIT, 0x2800),              // G-31
        (Gfp::NOIO, 0xc00),                 // G-32
        (Gfp::NOFS, 0xc40),                 // G-33
        (Gfp::USER, 0x10_0cc0),             // G-34
        (Gfp::DMA, 0x1),                    // G-35
        (Gfp::DMA32, 0x4),                  // G-35
        (Gfp::HIGHUSER, 0x10_0cc2),         // G-36
        (Gfp::HIGHUSER_MOVABLE, 0x10_0cca), // G-37
        (Gfp::TRANSHUGE_LIGHT, 0x1c_20ca),  // G-38
        (Gfp::TRANSHUGE, 0x1c_24ca),        // G-39
    ];
    for (composite, value) in values {
        assert_eq!(composite.bits(), value, "{composite}");
    }
    assert!(!Gfp::TRANSHUGE.wakes_kswapd()); // G-39
}

#[test]
fn dma_alone_neither_sleeps_nor_wakes_kswapd() {
    // G-35
    for gfp in [Gfp::DMA, Gfp::DMA32] {
        assert!(!gfp.allows_blocking() && !gfp.wakes_kswapd() && !gfp.allows_spinning());
    }
}

#[test]
fn nested_layers_inherit_only_how_to_reclaim_and_fail() {
    // G-40
    let everything = Gfp::all();
    let inherited = Gfp::KERNEL
        | Gfp::HIGH
        | Gfp::NOWARN
        | Gfp::RETRY_MAYFAIL
        | Gfp::NOFAIL
        | Gfp::NORETRY
        | Gfp::MEMALLOC
        | Gfp::NOMEMALLOC;
    assert_eq!(everything.inherited(), inherited);
    assert_eq!((Gfp::HIGHUSER_MOVABLE | Gfp::ZERO | Gfp::ACCOUNT).inherited(), Gfp::KERNEL);
}

#[test]
fn constraints_are_hardwall_and_thisnode() {
    // G-41
    assert_eq!(Gfp::CONSTRAINT_MASK.bits(), 0x30_0000);
}

#[test]
fn nothing_reclaims_during_boot() {
    // G-42
    assert_eq!(Gfp::BOOT_MASK | Gfp::KERNEL, Gfp::all());
    assert_eq!(Gfp::BOOT_MASK & Gfp::KERNEL, Gfp::empty());
    assert_eq!((Gfp::KERNEL | Gfp::ZERO) & Gfp::BOOT_MASK, Gfp::ZERO);
}

#[test]
fn slab_refuses_zones_it_cannot_address_and_unknown_bits() {
    // G-43
    assert_eq!(Gfp::all().slab_bugs(), Gfp::DMA32 | Gfp::HIGHMEM);
    let unknown = Gfp::from_bits_retain(0x200 | 0x8000_0000);
    assert_eq!((Gfp::KERNEL | unknown).slab_bugs(), unknown);
    assert!((Gfp::KERNEL | Gfp::DMA).slab_bugs().is_empty());
}

#[test]
fn bookkeeping_inside_an_allocation_gives_up_early_and_quietly() {
    // G-44
    let light = Gfp::NORETRY | Gfp::NOMEMALLOC | Gfp::NOWARN;
    assert_eq!((Gfp::HIGHUSER_MOVABLE | Gfp::NOFAIL | Gfp::ZERO).nested(), Gfp::KERNEL | light);
    assert_eq!(Gfp::ATOMIC.nested(), Gfp::ATOMIC | light);
    assert_eq!(Gfp::empty().nested(), light);
}

#[test]
fn blocking_and_spinning_follow_from_the_reclaim_bits() {
    // G-63
    for gfp in super::subsets(Gfp::RECLAIM | Gfp::HIGH | Gfp::IO | Gfp::NOWARN) {
        assert_eq!(gfp.allows_blocking(), gfp.bits() & 0x400 != 0);
        assert_eq!(gfp.allows_spinning(), gfp.bits() & 0xc00 != 0);
    }
}

#[test]
fn noio_requests_never_compact() {
    // G-64
    assert!(Gfp::KERNEL.allows_compaction() && Gfp::NOFS.allows_compaction());
    assert!(!Gfp::NOIO.allows_compaction());
}

#[test]
fn address_interfaces_drop_highmem() {
    // G-61
    assert_eq!(Gfp::HIGHUSER.addressable(), Gfp::USER);
}

#[test]
fn the_injector_spares_nofail() {
    // G-91
    assert!(!(Gfp::KERNEL | Gfp::NOFAIL).may_be_injected());
    assert!(Gfp::KERNEL.may_be_injected());
}

#[test]
fn every_text_of_a_real_trace_survives_the_round_trip() {
    for text in include_str!("trace_flags.txt").lines() {
        let gfp: Gfp = text.parse().unwrap();
        assert_eq!(gfp.to_string(), text);
    }
}

#[test]
fn the_text_form_names_composites_first() {
    let texts = [
        (Gfp::empty(), "none"),
        (Gfp::KERNEL | Gfp::ZERO, "GFP_KERNEL|__GFP_ZERO"),
        (Gfp::KERNEL_ACCOUNT, "GFP_KERNEL_ACCOUNT"),
        (Gfp::NOIO, "GFP_NOIO"),
        (Gfp::ATOMIC | Gfp::NOWARN, "GFP_ATOMIC|__GFP_NOWARN"),
        (Gfp::TRANSHUGE, "GFP_TRANSHUGE"),
        (Gfp::DMA | Gfp::KERNEL, "GFP_KERNEL|GFP_DMA"),
        (Gfp::DIRECT_RECLAIM, "__GFP_DIRECT_RECLAIM"),
        (Gfp::from_bits_retain(0x2000_0200) | Gfp::ZERO, "__GFP_ZERO|0x20000200"),
    ];
    for (gfp, text) in texts {
        assert_eq!(gfp.to_string(), text);
    }
    assert_eq!(std::format!("{:?}", Gfp::ZERO), "Gfp(0x100: __GFP_ZERO)");
}

#[test]
fn parsing_takes_every_spelling() {
    let parse = |text: &str| text.parse::<Gfp>();
    assert_eq!(parse("__GFP_DMA|__GFP_DMA32"), Ok(Gfp::DMA | Gfp::DMA32));
    assert_eq!(parse(" GFP_KERNEL | __GFP_ZERO "), Ok(Gfp::KERNEL | Gfp::ZERO));
    assert_eq!(parse("__GFP_ZERO|GFP_KERNEL"), Ok(Gfp::KERNEL | Gfp::ZERO));
    assert_eq!(parse("GFP_KERNEL|__GFP_SKIP_KASAN|__GFP_NOLOCKDEP"), Ok(Gfp::KERNEL));
    assert_eq!(parse("0xcc0"), Ok(Gfp::KERNEL));
    assert_eq!(parse(" none "), Ok(Gfp::empty()));
}

#[test]
fn a_text_that_makes_no_sense_is_an_error_with_a_place() {
    let parse = |text: &str| text.parse::<Gfp>().unwrap_err();
    assert_eq!(parse(""), ParseGfpError::MissingName { at: 0 });
    assert_eq!(parse("GFP_KERNEL|"), ParseGfpError::MissingName { at: 11 });
    assert_eq!(parse("GFP_KERNEL| GFP_KERNAL"), ParseGfpError::UnknownName { at: 12, len: 10 });
    assert_eq!(parse("0x1_0000_0000"), ParseGfpError::BadNumber { at: 0 });
    assert_eq!(parse("0x100000000"), ParseGfpError::BadNumber { at: 0 });
    assert_eq!(parse("0x+1"), ParseGfpError::BadNumber { at: 0 });
    assert_eq!(parse("none|GFP_KERNEL"), ParseGfpError::UnknownName { at: 0, len: 4 });
    assert_eq!(parse("a|bcd").to_string(), "bytes 0..1 name no GFP flag");
}

proptest! {
    #[test]
    fn printing_and_parsing_are_inverse(bits: u32) {
        let gfp = Gfp::from_bits_retain(bits);
        prop_assert_eq!(gfp.to_string().parse(), Ok(gfp));
    }

    #[test]
    fn parsing_never_panics(text in "[ |_A-Zx0-9a-f€]{0,40}") {
        let _ = text.parse::<Gfp>();
    }
}
