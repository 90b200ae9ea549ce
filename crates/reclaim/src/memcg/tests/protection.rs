//! Effective protection: the tree of the kernel's documentation, and what must hold for any.

use kmem_gfp::Gfp;
use proptest::prelude::*;

use super::rig::{TestEnv, table, table_over};
use crate::memcg::{MemcgConfig, ParentShare, effective_protection};
use crate::{GroupId, Groups, Protection};

const ROOT: GroupId = GroupId::ROOT;

#[test]
fn the_first_level_has_its_own_setting_and_the_target_none() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    memcg.charge_listed(b, Gfp::empty(), 50).unwrap();
    memcg.set_min(a, 100).unwrap();
    memcg.set_low(a, 200).unwrap();
    memcg.set_low(b, 30).unwrap();
    assert_eq!(memcg.protection(ROOT, a), Protection { min: 100, low: 200, usage: 50 });
    assert_eq!(memcg.protection(a, a), Protection { min: 0, low: 0, usage: 50 });
    assert_eq!(memcg.protection(a, b), Protection { min: 0, low: 30, usage: 50 }, "below the target");
    assert_eq!(memcg.protection(b, a), Protection::default(), "not in the subtree");
    assert_eq!((memcg.min(a), memcg.low(b)), (100, 30));
}

#[test]
fn siblings_that_overcommit_share_in_proportion() {
    // A-16, T-07
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let children = [0; 4].map(|_| memcg.create(a).unwrap());
    let (usage, setting) = ([50, 50, 50, 50], [75, 25, 0, 500]);
    for ((child, usage), setting) in children.into_iter().zip(usage).zip(setting) {
        memcg.charge_listed(child, Gfp::empty(), usage).unwrap();
        memcg.set_min(child, setting).unwrap();
    }
    memcg.set_min(a, 50).unwrap();
    let effective = children.map(|child| memcg.protection(ROOT, child).min);
    assert_eq!(effective, [20, 10, 0, 20], "claims of 50, 25, 0 and 50 share 50");
}

#[test]
fn what_nobody_claims_is_spread_by_unprotected_usage_if_protection_is_recursive() {
    //
    for (recursive, expected) in [(true, [40, 20]), (false, [10, 0])] {
        let config = MemcgConfig { recursive_protection: recursive, ..MemcgConfig::new(8) };
        let memcg = table_over(TestEnv::new(1), config);
        let a = memcg.create(ROOT).unwrap();
        let [x, y] = [0; 2].map(|_| memcg.create(a).unwrap());
        memcg.charge_listed(x, Gfp::empty(), 40).unwrap();
        memcg.charge_listed(y, Gfp::empty(), 20).unwrap();
        memcg.set_low(x, 10).unwrap();
        memcg.set_low(a, 60).unwrap();
        assert_eq!([x, y].map(|child| memcg.protection(ROOT, child).low), expected);
    }
}

#[test]
fn protection_follows_the_usage() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let [x, y] = [0; 2].map(|_| memcg.create(a).unwrap());
    for child in [x, y] {
        memcg.set_min(child, 100).unwrap();
    }
    memcg.set_min(a, 100).unwrap();
    memcg.charge_listed(x, Gfp::empty(), 100).unwrap();
    assert_eq!(memcg.protection(ROOT, x).min, 100, "the other uses nothing and claims nothing");
    memcg.charge_listed(y, Gfp::empty(), 300).unwrap();
    assert_eq!([x, y].map(|child| memcg.protection(ROOT, child).min), [50, 50]);
    Groups::uncharge(memcg, x, 100);
    memcg.drain_stocks();
    assert_eq!(memcg.protection(ROOT, y).min, 100);
}

proptest! {
    #[test]
    fn children_never_get_more_than_their_parent_has(
        usages in proptest::collection::vec(0u64..1000, 1..6),
        settings in proptest::collection::vec(0u64..1500, 6),
        parent_effective in 0u64..4000,
        recursive: bool,
    ) {
        //
        let claimed = usages.iter().zip(&settings).map(|(&usage, &setting)| usage.min(setting)).sum();
        let usage = usages.iter().sum();
        let parent = ParentShare { effective: parent_effective, usage, claimed };
        let given: std::vec::Vec<u64> = usages
            .iter()
            .zip(&settings)
            .map(|(&usage, &setting)| effective_protection(usage, setting, parent, recursive))
            .collect();
        prop_assert!(given.iter().sum::<u64>() <= parent_effective);
        for ((&given, &usage), &setting) in given.iter().zip(&usages).zip(&settings) {
            prop_assert!(given <= usage || parent_effective > parent.usage, "nobody is protected beyond its usage");
            if claimed <= parent_effective {
                prop_assert!(given >= usage.min(setting), "claims that fit are honoured");
            }
            if !recursive {
                prop_assert!(given <= setting);
            }
        }
    }
}
