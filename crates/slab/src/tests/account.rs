//! Who pays for objects: charges add up to the objects in use, whatever way they come and go.

use core::num::NonZeroU32;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};
use proptest::prelude::*;

use super::env::run_on;
use super::ledger::{Ledger, OVERHEAD};
use super::with_flags;
use crate::{CacheArgs, KmemCache, RcuHead, SlabConfig, SlabEnv, SlabFlags, Slabs};

fn family(config: SlabConfig) -> Slabs<Ledger> {
    let slabs = Slabs::with_config(Ledger::new(4, 2048), config);
    slabs.init().unwrap();
    slabs
}

fn cost(cache: &KmemCache) -> i64 {
    cache.stride() as i64 + OVERHEAD
}

fn payer(slabs: &Slabs<Ledger>, object: NonNull<u8>) -> u32 {
    // SAFETY: tests ask about objects that they own.
    unsafe { slabs.payer_of(object) }.map_or(0, NonZeroU32::get)
}

fn free(slabs: &Slabs<Ledger>, cache: &KmemCache, object: NonNull<u8>) {
    // SAFETY: tests free what they own.
    unsafe { slabs.free(cache, object).unwrap() };
}

/// Everything is gone but the family's own pages.
fn end(slabs: &Slabs<Ledger>, caches: &[&KmemCache]) {
    for cache in caches {
        // SAFETY: the test does not use it any more.
        unsafe { slabs.destroy(cache).unwrap() };
    }
    slabs.shrink_all();
    assert_eq!(slabs.env().env.pages().in_use() as u64, slabs.stats().metadata_pages);
    let payers: Vec<i64> = (1..4).map(|payer| slabs.env().charged(payer)).collect();
    assert_eq!((payers, slabs.env().reclaimable.load(Ordering::Relaxed)), (vec![0, 0, 0], 0));
}

#[test]
fn every_object_of_an_accounted_cache_is_charged_and_a_plain_request_is_not() {
    // SL-15, SL-88, A-01, A-11
    let slabs = family(SlabConfig::DEFAULT);
    let accounted = slabs.create("accounted", 200, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    let plain = slabs.create("plain", 200, &CacheArgs::default()).unwrap();
    slabs.env().pays(1);
    let a = slabs.alloc(accounted, Gfp::KERNEL).unwrap();
    let b = slabs.alloc(plain, Gfp::KERNEL).unwrap();
    assert_eq!((payer(&slabs, a), payer(&slabs, b)), (1, 0));
    assert_eq!(slabs.env().charged(1), cost(accounted));
    let c = slabs.alloc(plain, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(slabs.env().charged(1), cost(accounted) + cost(plain));
    slabs.env().pays(2);
    let d = slabs.alloc(plain, Gfp::KERNEL_ACCOUNT).unwrap();
    slabs.env().pays(0);
    let e = slabs.alloc(accounted, Gfp::KERNEL).unwrap();
    assert_eq!([a, b, c, d, e].map(|object| payer(&slabs, object)), [1, 0, 1, 2, 0]);
    // Whoever frees, who paid gets it back.
    free(&slabs, accounted, a);
    assert_eq!((slabs.env().charged(1), slabs.env().charged(2)), (cost(plain), cost(plain)));
    free(&slabs, plain, c);
    free(&slabs, plain, d);
    assert_eq!((slabs.env().charged(1), slabs.env().charged(2)), (0, 0));
    free(&slabs, plain, b);
    free(&slabs, accounted, e);
    end(&slabs, &[accounted, plain]);
}

#[test]
fn objects_in_use_before_the_first_charge_of_a_cache_stay_free_of_charge() {
    let slabs = family(SlabConfig::DEFAULT);
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    slabs.env().pays(1);
    let before: Vec<_> = (0..50).map(|_| slabs.alloc(plain, Gfp::KERNEL).unwrap()).collect();
    let charged = slabs.alloc(plain, Gfp::KERNEL_ACCOUNT).unwrap();
    before.into_iter().for_each(|object| free(&slabs, plain, object));
    assert_eq!(slabs.env().charged(1), cost(plain));
    // SAFETY: ours.
    unsafe { slabs.free_known(plain, charged).unwrap() };
    assert_eq!(slabs.env().charged(1), 0);
    end(&slabs, &[plain]);
}

#[test]
fn a_refused_charge_frees_the_object_and_all_of_a_bulk() {
    // SL-88
    for flags in [SlabFlags::ACCOUNT, SlabFlags::ACCOUNT | SlabFlags::POISON | SlabFlags::RED_ZONE] {
        let slabs = family(SlabConfig::DEFAULT);
        let cache = slabs.create("things", 96, &with_flags(flags)).unwrap();
        slabs.env().pays(1);
        let over = Err(AllocError::OverLimit { order: kmem_gfp::Order::ZERO, gfp: Gfp::KERNEL });
        slabs.env().refuse_in.store(0, Ordering::Relaxed);
        assert_eq!(slabs.alloc(cache, Gfp::KERNEL), over);
        for nth in 0..40 {
            slabs.env().refuse_in.store(nth, Ordering::Relaxed);
            let mut objects = [None; 40];
            assert_eq!(slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects), over.map(|_| ()));
            assert_eq!((objects, slabs.env().charged(1)), ([None; 40], 0));
        }
        let mut objects = [None; 40];
        slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects).unwrap();
        assert_eq!(slabs.env().charged(1), 40 * cost(cache));
        // SAFETY: ours.
        unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
        end(&slabs, &[cache]);
    }
}

#[test]
fn what_cannot_note_its_payer_goes_out_uncharged() {
    // A-12, SL-88: at every page request of the first charges
    for flags in [SlabFlags::ACCOUNT, SlabFlags::empty()] {
        let mut refused = 0;
        let mut uncharged = 0;
        for nth in 0..12 {
            let slabs = family(SlabConfig { max_order: 0, ..SlabConfig::DEFAULT });
            let cache = slabs.create("things", 8, &with_flags(flags)).unwrap();
            slabs.env().pays(1);
            slabs.env().env.pages().fail_from(nth);
            let mut live = Vec::new();
            for _ in 0..3 {
                match slabs.alloc(cache, Gfp::KERNEL_ACCOUNT) {
                    Ok(object) => live.push(object),
                    Err(error) => {
                        assert!(matches!(error, AllocError::NoMemory { .. }), "{error}");
                        refused += 1;
                    }
                }
            }
            let charged = live.iter().filter(|&&object| payer(&slabs, object) == 1).count();
            uncharged += live.len() - charged;
            assert_eq!(slabs.env().charged(1), charged as i64 * cost(cache));
            live.into_iter().for_each(|object| free(&slabs, cache, object));
            slabs.env().env.pages().fail_from(-1);
            end(&slabs, &[cache]);
        }
        assert!(uncharged > 0, "no failure met a vector ({refused} met an object)");
    }
}

#[test]
fn objects_set_aside_are_charged_when_taken_beyond_any_limit() {
    // SL-60
    let slabs = family(SlabConfig::DEFAULT);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    slabs.env().pays(1);
    let mut sheaf = slabs.prefill(cache, Gfp::KERNEL, 10).unwrap();
    assert_eq!(slabs.env().charged(1), 0);
    slabs.env().for_good.store(true, Ordering::Relaxed);
    slabs.env().refuse_in.store(0, Ordering::Relaxed);
    let taken: Vec<_> = (0..4).map(|_| sheaf.alloc(Gfp::ACCOUNT).unwrap()).collect();
    assert_eq!(slabs.env().charged(1), 4 * cost(cache));
    drop(sheaf);
    taken.into_iter().for_each(|object| free(&slabs, cache, object));
    end(&slabs, &[cache]);
}

#[test]
fn an_object_may_be_charged_later() {
    // SL-89
    let slabs = family(SlabConfig::DEFAULT);
    let cache = slabs.create("sockets", 64, &CacheArgs::default()).unwrap();
    let class = slabs.create("kmalloc-96", 96, &with_flags(SlabFlags::KMALLOC)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let block = slabs.alloc(class, Gfp::KERNEL).unwrap();
    // SAFETY: both are ours.
    unsafe {
        slabs.charge_later(object, Gfp::KERNEL).unwrap();
        assert_eq!(payer(&slabs, object), 0, "nobody pays");
        slabs.env().pays(1);
        slabs.env().refuse_in.store(0, Ordering::Relaxed);
        assert!(matches!(slabs.charge_later(object, Gfp::KERNEL), Err(AllocError::OverLimit { .. })));
        slabs.charge_later(object, Gfp::KERNEL).unwrap();
        slabs.env().pays(2);
        slabs.charge_later(object, Gfp::KERNEL).unwrap();
        slabs.charge_later(block, Gfp::KERNEL).unwrap();
        assert_eq!(slabs.charge_later(NonNull::from(&mut 0_u8), Gfp::KERNEL), Err(AllocError::BadFlags(Gfp::KERNEL)));
    }
    assert_eq!((payer(&slabs, object), payer(&slabs, block)), (1, 0));
    assert_eq!((slabs.env().charged(1), slabs.env().charged(2)), (cost(cache), 0));
    free(&slabs, cache, object);
    free(&slabs, class, block);
    end(&slabs, &[cache, class]);
}

#[test]
fn a_freed_object_is_not_given_back_twice() {
    let slabs = family(SlabConfig::DEFAULT);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    slabs.env().pays(1);
    let other = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    free(&slabs, cache, object);
    // SAFETY: refused, that is the point.
    assert!(unsafe { slabs.free(cache, object) }.is_err());
    assert_eq!(slabs.env().charged(1), cost(cache));
    free(&slabs, cache, other);
    end(&slabs, &[cache]);
}

#[test]
fn accounted_objects_come_from_sheaves_as_others_do() {
    let slabs = family(SlabConfig::DEFAULT);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    slabs.env().pays(1);
    let warm = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    free(&slabs, cache, warm);
    let calls = slabs.env().env.pages().calls.load(Ordering::Relaxed);
    for _ in 0..1000 {
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        free(&slabs, cache, object);
    }
    assert_eq!(slabs.env().env.pages().calls.load(Ordering::Relaxed), calls);
    end(&slabs, &[cache]);
}

#[derive(Clone, Debug)]
enum Op {
    Pays { payer: u32 },
    Alloc { cache: usize, cpu: u32, account: bool },
    Free { nth: usize, cpu: u32 },
    Bulk { cache: usize, count: usize, cpu: u32, account: bool },
    FreeMany { nth: usize, count: usize, cpu: u32 },
    Nolock { cache: usize, cpu: u32 },
    FreeNolock { nth: usize },
    Rcu { nth: usize, cpu: u32 },
    Barrier,
    Prefill { cache: usize, count: u32, used: u32 },
    Shrink { cache: usize },
    FailPages { after: i64 },
    Refuse { after: i64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (cache, cpu, nth) = (0..5_usize, 0..4_u32, 0..10_000_usize);
    let op = prop_oneof![
        2 => (0..4_u32).prop_map(|payer| Op::Pays { payer }),
        8 => (cache.clone(), cpu.clone(), any::<bool>())
            .prop_map(|(cache, cpu, account)| Op::Alloc { cache, cpu, account }),
        8 => (nth.clone(), cpu.clone()).prop_map(|(nth, cpu)| Op::Free { nth, cpu }),
        3 => (cache.clone(), 0..120_usize, cpu.clone(), any::<bool>())
            .prop_map(|(cache, count, cpu, account)| Op::Bulk { cache, count, cpu, account }),
        4 => (nth.clone(), 0..120_usize, cpu.clone()).prop_map(|(nth, count, cpu)| Op::FreeMany { nth, count, cpu }),
        2 => (cache.clone(), cpu.clone()).prop_map(|(cache, cpu)| Op::Nolock { cache, cpu }),
        2 => nth.clone().prop_map(|nth| Op::FreeNolock { nth }),
        5 => (nth, cpu).prop_map(|(nth, cpu)| Op::Rcu { nth, cpu }),
        1 => Just(Op::Barrier),
        1 => (cache.clone(), 1..60_u32, 0..60_u32).prop_map(|(cache, count, used)| Op::Prefill { cache, count, used }),
        1 => cache.prop_map(|cache| Op::Shrink { cache }),
        1 => (0..6_i64).prop_map(|after| Op::FailPages { after }),
        2 => (0..40_i64).prop_map(|after| Op::Refuse { after }),
    ];
    proptest::collection::vec(op, 1..100)
}

/// The oracle: which object is in use, and what it cost whom.
struct Model<'s> {
    slabs: &'s Slabs<Ledger>,
    caches: Vec<&'s KmemCache>,
    live: BTreeMap<usize, (usize, u32)>,
    /// Bytes of each payer's objects that may still wait for readers.
    waiting: [i64; 4],
    payer: u32,
    fails: bool,
}

impl Model<'_> {
    fn add(&mut self, cache: usize, gfp: Gfp, object: NonNull<u8>) {
        let due = self.caches[cache].flags().contains(SlabFlags::ACCOUNT) || gfp.contains(Gfp::ACCOUNT);
        let expected = if due { self.payer } else { 0 };
        let noted = payer(self.slabs, object);
        assert!(noted == expected || (self.fails && noted == 0), "{noted} pays instead of {expected}");
        assert!(self.live.insert(object.addr().get(), (cache, noted)).is_none());
    }

    fn remove(&mut self, nth: usize) -> Option<(usize, NonNull<u8>)> {
        let address = *self.live.keys().nth(nth % self.live.len().max(1))?;
        let (cache, noted) = self.live.remove(&address)?;
        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).unwrap();
        assert_eq!(payer(self.slabs, object), noted);
        Some((cache, object))
    }

    fn run(&mut self, op: &Op) {
        let slabs = self.slabs;
        let flags = |account| if account { Gfp::KERNEL_ACCOUNT } else { Gfp::KERNEL };
        match *op {
            Op::Pays { payer } => {
                self.payer = payer;
                slabs.env().pays(payer);
            }
            Op::Alloc { cache, cpu, account } => {
                run_on(Some(cpu));
                if let Ok(object) = slabs.alloc(self.caches[cache], flags(account)) {
                    self.add(cache, flags(account), object);
                }
            }
            Op::Nolock { cache, cpu } => {
                run_on(if cpu == 0 { None } else { Some(cpu) });
                if let Ok(object) = slabs.alloc_nolock(self.caches[cache], Gfp::ACCOUNT, None) {
                    self.add(cache, Gfp::ACCOUNT, object);
                }
            }
            Op::Bulk { cache, count, cpu, account } => {
                run_on(Some(cpu));
                let mut objects = vec![None; count];
                if slabs.alloc_bulk(self.caches[cache], flags(account), &mut objects).is_ok() {
                    for object in objects {
                        self.add(cache, flags(account), object.unwrap());
                    }
                }
            }
            Op::Free { nth, cpu } => {
                run_on(Some(cpu));
                if let Some((cache, object)) = self.remove(nth) {
                    free(slabs, self.caches[cache], object);
                }
            }
            Op::FreeNolock { nth } => {
                run_on(if nth % 3 == 0 { None } else { Some(nth as u32 % 4) });
                if let Some((_, object)) = self.remove(nth) {
                    // SAFETY: in use until now.
                    unsafe { slabs.free_nolock(object).unwrap() };
                }
            }
            Op::FreeMany { nth, count, cpu } => {
                run_on(Some(cpu));
                let mut objects: Vec<_> =
                    (0..count).map_while(|_| self.remove(nth)).map(|(_, object)| Some(object)).collect();
                // SAFETY: in use until now.
                unsafe { slabs.free_bulk_any(&mut objects).unwrap() };
            }
            Op::Rcu { nth, cpu } => {
                run_on(Some(cpu));
                if let Some((cache, object)) = self.remove(nth) {
                    self.waiting[payer(slabs, object) as usize] += cost(self.caches[cache]);
                    let head = object.cast::<RcuHead>();
                    // SAFETY: in use until now, aligned, and as large as a head.
                    unsafe { slabs.free_rcu(object, head).unwrap() };
                }
            }
            Op::Barrier => {
                run_on(Some(0));
                slabs.rcu_barrier();
                self.waiting = [0; 4];
            }
            Op::Prefill { cache, count, used } => {
                run_on(Some(1));
                if let Ok(mut sheaf) = slabs.prefill(self.caches[cache], Gfp::KERNEL, count) {
                    for _ in 0..used {
                        if let Some(object) = sheaf.alloc(Gfp::ACCOUNT) {
                            self.add(cache, Gfp::ACCOUNT, object);
                        }
                    }
                }
            }
            Op::Shrink { cache } => {
                run_on(Some(0));
                slabs.shrink(self.caches[cache]);
            }
            Op::FailPages { after } => {
                self.fails = true;
                slabs.env().env.pages().fail_in(after);
            }
            Op::Refuse { after } => slabs.env().refuse_in.store(after, Ordering::Relaxed),
        }
    }

    fn check(&self) {
        for payer in 1..4 {
            let live: i64 = self
                .live
                .values()
                .filter(|(_, noted)| *noted == payer)
                .map(|(cache, _)| cost(self.caches[*cache]))
                .sum();
            let charged = self.slabs.env().charged(payer);
            let waiting = self.waiting[payer as usize];
            assert!((live..=live + waiting).contains(&charged), "{charged} charged for {live}, {waiting} waiting");
        }
    }
}

fn run(config: SlabConfig, ops: &[Op]) {
    let slabs = family(config);
    let arg = |flags| with_flags(flags);
    let caches = [
        slabs.create("a", 64, &arg(SlabFlags::ACCOUNT)).unwrap(),
        slabs.create("b", 192, &CacheArgs::default()).unwrap(),
        slabs.create("c", 2048, &arg(SlabFlags::ACCOUNT | SlabFlags::RECLAIM_ACCOUNT)).unwrap(),
        slabs.create("d", 256, &arg(SlabFlags::ACCOUNT | SlabFlags::TYPESAFE_BY_RCU)).unwrap(),
        slabs.create("e", 40, &arg(SlabFlags::ACCOUNT | SlabFlags::RED_ZONE | SlabFlags::POISON)).unwrap(),
    ];
    let mut model = Model {
        slabs: &slabs,
        caches: caches.to_vec(),
        live: BTreeMap::new(),
        waiting: [0; 4],
        payer: 0,
        fails: false,
    };
    for op in ops {
        model.run(op);
        model.check();
    }
    slabs.env().env.pages().fail_in(-1);
    model.run(&Op::Barrier);
    model.check();
    while let Some((cache, object)) = model.remove(0) {
        run_on(Some(3));
        free(&slabs, model.caches[cache], object);
    }
    model.check();
    run_on(Some(0));
    end(&slabs, &caches);
}

#[test]
fn the_family_takes_the_tree_of_payers_along() {
    let ledger = Ledger::new(1, 2048);
    let slabs = Slabs::new(&ledger);
    slabs.init().unwrap();
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    ledger.pays(1);
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert_eq!(ledger.charged(1), cost(cache));
    // SAFETY: ours; then nobody uses the cache.
    unsafe {
        slabs.free(cache, object).unwrap();
        slabs.destroy(cache).unwrap();
    }
    drop(slabs);
    assert_eq!(ledger.env.pages().in_use(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn charges_are_what_is_in_use(ops in ops()) {
        run(SlabConfig { merge: false, ..SlabConfig::DEFAULT }, &ops);
    }

    #[test]
    fn without_sheaves_they_are_too(ops in ops()) {
        run(SlabConfig { merge: false, ..super::BARE }, &ops);
    }
}

#[test]
fn threads_charge_and_free_each_others_objects() {
    let slabs = family(SlabConfig { max_order: 0, ..SlabConfig::DEFAULT });
    let cache = slabs.create("things", 128, &with_flags(SlabFlags::ACCOUNT)).unwrap();
    let plain = slabs.create("plain", 512, &CacheArgs { align: 512, ..CacheArgs::default() }).unwrap();
    slabs.env().pays(1);
    let exchange = std::sync::Mutex::new(Vec::<usize>::new());
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (slabs, exchange) = (&slabs, &exchange);
            scope.spawn(move || {
                run_on(Some(cpu));
                for round in 0..3000_usize {
                    let from = if round % 2 == 0 { cache } else { plain };
                    let object = slabs.alloc(from, Gfp::KERNEL_ACCOUNT).unwrap();
                    let other = {
                        let mut exchange = exchange.lock().unwrap();
                        exchange.push(object.as_ptr().expose_provenance());
                        let nth = round * 7 % exchange.len();
                        (exchange.len() > 60).then(|| exchange.swap_remove(nth))
                    };
                    if let Some(other) = other {
                        let other = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(other)).unwrap();
                        assert_eq!(payer(slabs, other), 1);
                        // SAFETY: taken out of the exchange by us alone.
                        unsafe { slabs.free_any(other).unwrap() };
                    }
                    if round % 500 == 499 {
                        slabs.shrink(from);
                    }
                }
            });
        }
    });
    run_on(Some(0));
    for object in exchange.into_inner().unwrap() {
        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(object)).unwrap();
        // SAFETY: left in the exchange.
        unsafe { slabs.free_any(object).unwrap() };
    }
    assert_eq!(slabs.env().charged(1), 0);
    end(&slabs, &[cache, plain]);
}
