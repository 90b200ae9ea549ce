//! Behaviour on one thread and under real threads.

extern crate std;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::boxed::Box;
use std::cell::Cell;
use std::vec::Vec;

use crate::{
    Cpu, CpuId, CpuSlot, Grace, GracePeriod, IrqLock, IrqState, LocalCounter, LocalLock, NoReaders, PerCpu, Pinned,
    ShardedCounter, SingleCpu, SpinLock, TicketLock,
};

std::thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(None) };
}

/// CPUs are whatever number a test thread gives itself; no two threads of a test give themselves the same.
#[derive(Debug)]
struct Threads;

static BARRIERS: AtomicU32 = AtomicU32::new(0);

// SAFETY: every test below gives each of its threads a number of its own (1, 3); nothing interrupts (2, 4); see
// `barrier_all_cpus` for (5).
unsafe impl Cpu for Threads {
    const REENTRANT: bool = true;

    fn nr_cpus(&self) -> u32 {
        2
    }
    fn try_pin(&self) -> Option<CpuId> {
        CPU.with(|cpu| cpu.get().map(CpuId))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        BARRIERS.fetch_add(1, Ordering::SeqCst);
    }
}

fn slots<T>(nr: u32, init: impl FnMut(CpuId) -> T) -> PerCpu<T> {
    let storage: Vec<core::mem::MaybeUninit<CpuSlot<T>>> = (0..nr).map(|_| core::mem::MaybeUninit::uninit()).collect();
    let memory = NonNull::from(Box::leak(storage.into_boxed_slice())).cast();
    // SAFETY: leaked storage for `nr` slots, used by nobody else.
    unsafe { PerCpu::init(memory, nr, init) }
}

fn run_on<R>(cpu: Option<u32>, f: impl FnOnce() -> R) -> R {
    CPU.with(|current| current.set(cpu));
    let result = f();
    CPU.with(|current| current.set(None));
    result
}

#[test]
fn a_section_reaches_its_own_cpus_value_only() {
    let values = slots(2, |id| id.0 * 10);
    run_on(Some(1), || {
        assert_eq!(values.try_with(&Threads, |value, id| (core::mem::replace(value, 7), id)), Some((10, CpuId(1))))
    });
    run_on(Some(1), || assert_eq!(values.try_with(&Threads, |value, _| *value), Some(7)));
    run_on(Some(0), || assert_eq!(values.try_with(&Threads, |value, _| *value), Some(0)));
}

#[test]
fn a_thread_without_a_cpu_and_a_cpu_without_a_slot_are_turned_away() {
    let values = slots(1, |_| ());
    assert_eq!(run_on(None, || values.try_with(&Threads, |_, _| ())), None);
    assert_eq!(run_on(Some(1), || values.try_with(&Threads, |_, _| ())), None);
    let none = PerCpu::<u8>::empty();
    assert!(none.is_empty());
    assert_eq!(run_on(Some(0), || none.try_with(&Threads, |_, _| ())), None);
}

#[test]
fn re_entering_a_section_fails_and_the_outer_one_goes_on() {
    let values = slots(1, |_| 1);
    let outer = run_on(Some(0), || {
        values.try_with(&Threads, |value, _| {
            assert_eq!(values.try_with(&Threads, |_, _| ()), None, "an interrupt finds the section taken");
            *value += 1;
            *value
        })
    });
    assert_eq!(outer, Some(2));
    assert_eq!(run_on(Some(0), || values.try_with(&Threads, |value, _| *value)), Some(2));
}

#[test]
fn a_revoked_slot_turns_its_owner_away_until_it_is_given_back() {
    let values = slots(1, |_| 5);
    let slot = values.slot(CpuId(0)).expect("slot 0");
    let before = BARRIERS.load(Ordering::SeqCst);
    let drained = slot.with_revoked(&Threads, |value| {
        assert_eq!(run_on(Some(0), || values.try_with(&Threads, |_, _| ())), None);
        core::mem::take(value)
    });
    assert!(BARRIERS.load(Ordering::SeqCst) > before, "the revoker pays for the barrier");
    assert_eq!(drained, 5);
    assert_eq!(run_on(Some(0), || values.try_with(&Threads, |value, _| *value)), Some(0));
}

#[test]
fn layouts_grow_by_whole_cache_lines_and_refuse_overflow() {
    let one = PerCpu::<u8>::layout(1).expect("one slot");
    assert_eq!((one.size(), one.align()), (64, 64));
    assert_eq!(PerCpu::<u8>::layout(3).expect("three slots").size(), 192);
    assert_eq!(PerCpu::<[u64; 1 << 40]>::layout(u32::MAX), None);
}

#[test]
fn locks_exclude_and_try_locks_do_not_wait() {
    let (spin, ticket, irq) = (SpinLock::new(0), TicketLock::new(0), IrqLock::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    spin.with(&Threads, |n| *n += 1);
                    ticket.with(|n| *n += 1);
                    irq.with(&Threads, |n| *n += 1);
                }
            });
        }
    });
    assert_eq!(spin.with(&Threads, |n| *n), 4000);
    assert_eq!(ticket.with(|n| *n), 4000);
    assert_eq!(irq.with(&Threads, |n| *n), 4000);
    spin.with(&Threads, |_| assert_eq!(spin.try_with(|_| ()), None));
    irq.with(&Threads, |_| assert_eq!(irq.try_with(&Threads, |_| ()), None));
    assert_eq!(irq.try_with(&Threads, |n| *n), Some(4000));
}

#[test]
fn a_ticket_lock_serves_in_order_of_arrival() {
    let lock = TicketLock::new(Vec::new());
    let (first_in, go) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lock.with(|_| {
                first_in.store(true, Ordering::SeqCst);
                while go.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            });
        });
        while !first_in.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        for ticket in 0..2_u32 {
            scope.spawn({
                let (lock, go) = (&lock, &go);
                move || {
                    go.fetch_add(1, Ordering::SeqCst);
                    lock.with(|order| order.push(ticket));
                }
            });
            while go.load(Ordering::SeqCst) <= ticket {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    assert_eq!(lock.with(|order| order.clone()), [0, 1]);
}

#[test]
fn a_single_cpu_pins_to_zero_and_needs_no_re_entry_test() {
    // SAFETY: this thread alone uses it.
    let cpu = unsafe { SingleCpu::new() };
    let pin = Pinned::new(&cpu).expect("always has a CPU");
    assert_eq!(pin.id(), CpuId(0));
    assert_eq!(cpu.nr_cpus(), 1);
    const { assert!(!SingleCpu::REENTRANT) };
    const { assert!(!<&SingleCpu as Cpu>::REENTRANT) };
}

#[test]
fn counters_add_up() {
    let local = LocalCounter::new();
    local.add(5);
    local.add(-2);
    assert_eq!(local.get(), 3);

    let shared = ShardedCounter::new(100);
    let mut difference = 0;
    for _ in 0..7 {
        shared.add_local(&mut difference, -1, 4);
    }
    assert_eq!((shared.estimate(), difference), (96, -3), "folded once, at the threshold");
    shared.fold(&mut difference);
    assert_eq!((shared.estimate(), difference), (93, 0));
}

#[test]
fn without_readers_every_grace_period_has_passed() {
    // SAFETY: there are no readers in this test.
    let grace = unsafe { NoReaders::new() };
    let noted: Grace = grace.snapshot();
    assert!(grace.has_passed(noted));
    grace.synchronize();
}

#[test]
fn a_local_lock_is_two_bytes() {
    assert_eq!(size_of::<LocalLock>(), 2, "lock and value share a line");
    assert_eq!(size_of::<CpuSlot<[u64; 7]>>(), 64);
}
