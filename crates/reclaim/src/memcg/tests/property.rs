//! Random trees and random charges on several CPUs against a plain model: every page is somewhere, and every level counts
//! what lies below it.

use std::collections::BTreeMap;
use std::vec::Vec;

use kmem_gfp::Gfp;
use proptest::prelude::*;

use super::rig::{Table, TestEnv, run_on, table_over};
use crate::memcg::{MemcgConfig, Payer, Wait};
use crate::{GroupId, Groups};

const CPUS: u32 = 3;
const ROOT: GroupId = GroupId::ROOT;

#[derive(Clone, Debug)]
enum Op {
    Create { parent: usize },
    Remove { group: usize },
    Limit { group: usize, pages: u64 },
    Charge { cpu: u32, group: usize, pages: u64, gfp: Gfp },
    Uncharge { cpu: u32, nth: usize },
    Object { cpu: u32, group: usize, size: usize },
    FreeObject { cpu: u32, nth: usize },
    Listed { cpu: u32, group: usize, pages: u64 },
    Unlist { cpu: u32, nth: usize },
    Drain,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let gfp = prop_oneof![
        3 => Just(Gfp::KERNEL | Gfp::NORETRY),
        2 => Just(Gfp::NOWAIT),
        1 => Just(Gfp::ATOMIC),
        1 => Just(Gfp::empty())
    ];
    let cpu = 0..=CPUS;
    let op = prop_oneof![
        2 => any::<usize>().prop_map(|parent| Op::Create { parent }),
        1 => any::<usize>().prop_map(|group| Op::Remove { group }),
        1 => (any::<usize>(), 0u64..300).prop_map(|(group, pages)| Op::Limit { group, pages }),
        6 => (cpu.clone(), any::<usize>(), 1u64..90, gfp)
            .prop_map(|(cpu, group, pages, gfp)| Op::Charge { cpu, group, pages, gfp }),
        5 => (cpu.clone(), any::<usize>()).prop_map(|(cpu, nth)| Op::Uncharge { cpu, nth }),
        6 => (cpu.clone(), any::<usize>(), 1usize..9000)
            .prop_map(|(cpu, group, size)| Op::Object { cpu, group, size }),
        5 => (cpu.clone(), any::<usize>()).prop_map(|(cpu, nth)| Op::FreeObject { cpu, nth }),
        3 => (cpu.clone(), any::<usize>(), 1u64..70)
            .prop_map(|(cpu, group, pages)| Op::Listed { cpu, group, pages }),
        2 => (cpu, any::<usize>()).prop_map(|(cpu, nth)| Op::Unlist { cpu, nth }),
        1 => Just(Op::Drain),
    ];
    proptest::collection::vec(op, 1..120)
}

/// The plain model: a tree, and who holds what.
#[derive(Default)]
struct Model {
    groups: Vec<GroupId>,
    parent: BTreeMap<GroupId, GroupId>,
    pages: Vec<(Payer, GroupId, u64)>,
    objects: Vec<(Payer, GroupId, usize)>,
    listed: Vec<(GroupId, u64)>,
}

impl Model {
    fn pick(&self, n: usize) -> GroupId {
        if self.groups.is_empty() { ROOT } else { self.groups[n % self.groups.len()] }
    }

    fn is_below(&self, mut group: GroupId, top: GroupId) -> bool {
        while group != top {
            match self.parent.get(&group) {
                Some(&parent) => group = parent,
                None => return top == ROOT,
            }
        }
        true
    }

    /// Pages that a group must count when no stock holds any.
    fn usage(&self, top: GroupId) -> u64 {
        let pages: u64 = self.pages.iter().filter(|held| self.is_below(held.1, top)).map(|held| held.2).sum();
        let listed: u64 = self.listed.iter().filter(|held| self.is_below(held.0, top)).map(|held| held.1).sum();
        // Objects of each payer share its pages; a payer's group may have gone, its pages have not.
        let mut bytes: BTreeMap<(u32, GroupId), usize> = BTreeMap::new();
        for (payer, group, size) in &self.objects {
            if self.is_below(*group, top) {
                *bytes.entry((payer.to_raw(), *group)).or_default() += size + 8;
            }
        }
        pages + listed + bytes.values().map(|bytes| bytes.div_ceil(4096) as u64).sum::<u64>()
    }

    fn remove(&mut self, group: GroupId) {
        let heir = self.parent.remove(&group).unwrap_or(ROOT);
        self.groups.retain(|&other| other != group);
        self.pages.iter_mut().filter(|held| held.1 == group).for_each(|held| held.1 = heir);
        self.objects.iter_mut().filter(|held| held.1 == group).for_each(|held| held.1 = heir);
        self.listed.iter_mut().filter(|held| held.0 == group).for_each(|held| held.0 = heir);
    }
}

fn step(memcg: Table, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    let on = |cpu: u32| run_on((cpu < CPUS).then_some(cpu));
    match *op {
        Op::Create { parent } => {
            let parent = if parent % 3 == 0 { ROOT } else { model.pick(parent) };
            if let Ok(group) = memcg.create(parent) {
                prop_assert!(!model.groups.contains(&group));
                model.groups.push(group);
                model.parent.insert(group, parent);
            }
        }
        Op::Remove { group } => {
            let group = model.pick(group);
            if memcg.remove(group).is_ok() {
                prop_assert!(!model.parent.values().any(|&parent| parent == group));
                model.remove(group);
            }
        }
        Op::Limit { group, pages } => {
            let group = model.pick(group);
            if group != ROOT {
                memcg.set_max(group, pages, Wait::No).unwrap();
            }
        }
        Op::Charge { cpu, group, pages, gfp } => {
            on(cpu);
            let group = model.pick(group);
            let before = memcg.usage(group);
            match memcg.charge(group, gfp, pages) {
                Ok(Some(payer)) => {
                    prop_assert_eq!(payer.group(), group);
                    model.pages.push((payer, group, pages));
                    let forced = gfp.contains(Gfp::HIGH);
                    prop_assert!(forced || memcg.usage(group) <= memcg.max(group).max(before), "over its limit");
                }
                Ok(None) => prop_assert_eq!(group, ROOT),
                Err(over) => prop_assert!(!gfp.contains(Gfp::HIGH) && model.is_below(group, over.group)),
            }
        }
        Op::Uncharge { cpu, nth } if !model.pages.is_empty() => {
            on(cpu);
            let (payer, _, pages) = model.pages.swap_remove(nth % model.pages.len());
            memcg.uncharge(payer, pages);
        }
        Op::Object { cpu, group, size } => {
            on(cpu);
            let group = model.pick(group);
            if let Ok(Some(payer)) = memcg.charge_object_to(group, Gfp::NOWAIT, size) {
                model.objects.push((payer, group, size));
            }
        }
        Op::FreeObject { cpu, nth } if !model.objects.is_empty() => {
            on(cpu);
            let (payer, _, size) = model.objects.swap_remove(nth % model.objects.len());
            memcg.uncharge_object(payer, size);
        }
        Op::Listed { cpu, group, pages } => {
            on(cpu);
            let group = model.pick(group);
            if let Ok(charged) = memcg.charge_listed(group, Gfp::NOWAIT, pages)
                && charged != ROOT
            {
                prop_assert_eq!(charged, group);
                model.listed.push((group, pages));
            }
        }
        Op::Unlist { cpu, nth } if !model.listed.is_empty() => {
            on(cpu);
            let (group, pages) = model.listed.swap_remove(nth % model.listed.len());
            Groups::uncharge(memcg, group, pages);
        }
        Op::Drain => memcg.drain_stocks(),
        _ => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_page_is_counted_in_every_level_exactly_once(ops in ops()) {
        let mut env = TestEnv::new(CPUS);
        env.quiet = true;
        let memcg = table_over(env, MemcgConfig::new(12));
        let mut model = Model::default();
        for op in &ops {
            step(memcg, &mut model, op)?;
        }
        run_on(Some(0));
        memcg.drain_stocks();
        for &group in &model.groups {
            prop_assert_eq!(memcg.usage(group), model.usage(group), "{:?}", group);
        }
        for (payer, _, pages) in core::mem::take(&mut model.pages) {
            memcg.uncharge(payer, pages);
        }
        for (payer, _, size) in core::mem::take(&mut model.objects) {
            memcg.uncharge_object(payer, size);
        }
        for (group, pages) in core::mem::take(&mut model.listed) {
            Groups::uncharge(memcg, group, pages);
        }
        memcg.drain_stocks();
        let walk: Vec<_> = memcg.subtree(ROOT).collect();
        prop_assert_eq!(walk.len(), model.groups.len() + 1);
        for &group in walk.iter().rev() {
            prop_assert_eq!(memcg.usage(group), 0);
            if group != ROOT {
                memcg.remove(group).unwrap();
            }
        }
        prop_assert!((1..12).all(|id| memcg.is_free(GroupId(id))), "an emptied table looks new");
    }

    #[test]
    fn a_limit_is_never_exceeded_except_by_force(
        limits in proptest::collection::vec(0u64..200, 4),
        charges in proptest::collection::vec((0usize..4, 1u64..80, any::<bool>()), 1..60),
    ) {
        //
        let mut env = TestEnv::new(1);
        env.quiet = true;
        let memcg = table_over(env, MemcgConfig::new(8));
        let mut chain = std::vec![ROOT];
        for &limit in &limits {
            let group = memcg.create(*chain.last().unwrap()).unwrap();
            memcg.set_max(group, limit, Wait::No).unwrap();
            chain.push(group);
        }
        let mut held: Vec<(Payer, u64)> = Vec::new();
        let mut model = [0u64; 4];
        for (level, pages, back) in charges {
            if back && !held.is_empty() {
                let (payer, pages) = held.swap_remove(level % held.len());
                memcg.uncharge(payer, pages);
                let at = chain.iter().position(|&group| group == payer.group()).unwrap() - 1;
                model[..=at].iter_mut().for_each(|usage| *usage -= pages);
                continue;
            }
            let fits = (0..=level).all(|above| model[above] + pages <= limits[above]);
            let charged = memcg.charge(chain[level + 1], Gfp::KERNEL | Gfp::NORETRY, pages);
            prop_assert_eq!(charged.is_ok(), fits, "a drained stock leaves no false refusal");
            if let Ok(Some(payer)) = charged {
                held.push((payer, pages));
                model[..=level].iter_mut().for_each(|usage| *usage += pages);
            }
            for (level, &limit) in limits.iter().enumerate() {
                prop_assert!(memcg.usage(chain[level + 1]) <= limit);
            }
        }
    }
}
