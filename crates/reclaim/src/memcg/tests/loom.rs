//! Models: two or three threads on CPUs of their own, one race each. Run with `cargo xtask loom --crate reclaim`.

use std::vec::Vec;

use kmem_gfp::Gfp;
use kmem_sync::atomic::Ordering;
use loom::thread;

use super::rig::{Table, TestEnv, run_on, table_over, task};
use crate::GroupId;
use crate::memcg::{MemcgConfig, Wait};

const ROOT: GroupId = GroupId::ROOT;

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(2);
    }
    builder.check(run);
}

fn quiet(cpus: u32, groups: u32) -> Table {
    let mut env = TestEnv::new(cpus);
    env.quiet = true;
    table_over(env, MemcgConfig::new(groups))
}

/// Runs `what` on a CPU of its own.
fn on(cpu: u32, what: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        run_on(Some(cpu));
        task(kmem_gfp::TaskFlags::empty());
        what();
    })
}

#[test]
fn a_new_limit_and_a_charge_see_each_other() {
    //
    model(|| {
        let memcg = quiet(2, 2);
        let g = memcg.create(ROOT).unwrap();
        let charger = on(1, move || {
            // Without a batch: exactly the pages asked for.
            let _ = memcg.charge(g, Gfp::empty(), 3);
        });
        let change = memcg.set_max(g, 2, Wait::No).unwrap();
        charger.join().unwrap();
        let usage = memcg.usage(g);
        assert!(usage <= 2 || !change.fits(), "the setter was told that {usage} pages fit into 2");
    });
}

#[test]
fn charges_uncharges_and_drains_conserve_pages() {
    //
    model(|| {
        let memcg = quiet(2, 3);
        let a = memcg.create(ROOT).unwrap();
        let b = memcg.create(a).unwrap();
        let payer = memcg.charge(b, Gfp::KERNEL, 1).unwrap().unwrap();
        let other = on(1, move || {
            let mine = memcg.charge(b, Gfp::KERNEL, 2).unwrap().unwrap();
            memcg.uncharge(payer, 1);
            memcg.uncharge(mine, 1);
        });
        memcg.drain_stocks();
        other.join().unwrap();
        memcg.drain_stocks();
        assert_eq!([a, b].map(|group| memcg.usage(group)), [1, 1]);
    });
}

#[test]
fn a_charge_and_the_removal_of_its_group_agree_on_who_pays() {
    //
    model(|| {
        let memcg = quiet(2, 3);
        let a = memcg.create(ROOT).unwrap();
        let b = memcg.create(a).unwrap();
        let charger = thread::spawn(move || {
            run_on(Some(1));
            task(kmem_gfp::TaskFlags::empty());
            memcg.charge(b, Gfp::KERNEL, 1).unwrap()
        });
        memcg.remove(b).unwrap();
        // Nobody pays if the number was free already.
        let Some(payer) = charger.join().unwrap() else { return };
        assert!(payer.group() == a || !memcg.is_free(b), "a number that a payer names is not free");
        memcg.drain_stocks();
        assert_eq!(memcg.usage(a), 1, "one page, nothing left in a stock of the group that went");
        memcg.uncharge(payer, 1);
        memcg.drain_stocks();
        assert_eq!(memcg.usage(a), 0);
        assert!(memcg.is_free(b));
    });
}

#[test]
fn an_uncharge_and_the_removal_of_its_group_lose_nothing() {
    //
    model(|| {
        let memcg = quiet(2, 3);
        let a = memcg.create(ROOT).unwrap();
        let b = memcg.create(a).unwrap();
        let payer = memcg.charge(b, Gfp::empty(), 2).unwrap().unwrap();
        let other = on(1, move || memcg.uncharge(payer, 2));
        memcg.remove(b).unwrap();
        other.join().unwrap();
        memcg.drain_stocks();
        assert_eq!(memcg.usage(a), 0);
        assert!(memcg.is_free(b), "its last page has gone, whoever was later");
    });
}

#[test]
fn of_two_last_pages_one_frees_the_number() {
    //
    model(|| {
        let memcg = quiet(2, 2);
        let g = memcg.create(ROOT).unwrap();
        let payers: Vec<_> = (0..2).map(|_| memcg.charge(g, Gfp::empty(), 1).unwrap().unwrap()).collect();
        memcg.remove(g).unwrap();
        let (first, second) = (payers[0], payers[1]);
        let other = on(1, move || memcg.uncharge(first, 1));
        memcg.uncharge(second, 1);
        other.join().unwrap();
        assert!(memcg.is_free(g));
        let next = memcg.create(ROOT).unwrap();
        assert_eq!((next, memcg.usage(next)), (g, 0));
    });
}

#[test]
fn a_late_charge_never_counts_in_the_numbers_next_group() {
    //
    model(|| {
        let memcg = quiet(2, 3);
        let a = memcg.create(ROOT).unwrap();
        let b = memcg.create(a).unwrap();
        let charger = on(1, move || {
            // A task that read its group just before it was moved.
            if let Some(payer) = memcg.charge(b, Gfp::empty(), 1).unwrap() {
                memcg.uncharge(payer, 1);
            }
        });
        memcg.remove(b).unwrap();
        let next = memcg.create(a).ok();
        charger.join().unwrap();
        memcg.drain_stocks();
        assert_eq!(memcg.usage(a), 0);
        if let Some(next) = next {
            assert_eq!(memcg.usage(next), 0);
            memcg.remove(next).unwrap();
        }
        assert!(memcg.is_free(b));
    });
}

#[test]
fn the_last_bytes_of_a_gone_group_give_back_its_last_page() {
    //
    model(|| {
        let memcg = quiet(2, 2);
        let g = memcg.create(ROOT).unwrap();
        let payers: Vec<_> = (0..2).map(|_| memcg.charge_object_to(g, Gfp::empty(), 2040).unwrap().unwrap()).collect();
        memcg.remove(g).unwrap();
        let (first, second) = (payers[0], payers[1]);
        let other = on(1, move || memcg.uncharge_object(first, 2040));
        memcg.uncharge_object(second, 2040);
        other.join().unwrap();
        let state = memcg.state().unwrap();
        assert_eq!(state.slot(g).map(|slot| slot.rest_bytes.load(Ordering::Relaxed)), Some(0));
        assert!(memcg.is_free(g));
    });
}
