//! Threads as CPUs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use kmem_sync::{Cpu, CpuId, PerCpu, SpinLock};

use crate::slots::{Slot, SlotTable};
use crate::{BindError, Binding, HostCpu};

fn cpus(nr: usize, binding: Binding) -> HostCpu {
    let slots = Vec::leak((0..nr).map(|_| Slot::new()).collect());
    let nr_free = if binding == Binding::OnDemand { nr as u32 } else { 0 };
    HostCpu::new(Box::leak(Box::new(SlotTable::new(slots, nr_free))), binding)
}

fn on<R>(cpu: &HostCpu, id: u32, f: impl FnOnce() -> R) -> Result<R, BindError> {
    // SAFETY: no closure of these tests lets a pin out.
    unsafe { cpu.on_cpu(CpuId(id), f) }
}

#[test]
fn a_thread_keeps_the_cpu_it_took() {
    let cpu = cpus(2, Binding::OnDemand);
    assert_eq!(cpu.nr_cpus(), 2);
    assert_eq!(cpu.try_pin(), Some(CpuId(0)));
    assert_eq!(cpu.try_pin(), Some(CpuId(0)));
    std::thread::spawn(move || assert_eq!(cpu.try_pin(), Some(CpuId(1)))).join().unwrap();
}

#[test]
fn an_ending_thread_gives_its_cpu_back() {
    let cpu = cpus(1, Binding::OnDemand);
    for _ in 0..20 {
        std::thread::spawn(move || assert_eq!(cpu.try_pin(), Some(CpuId(0)))).join().unwrap();
    }
}

#[test]
fn threads_beyond_the_cpus_go_without_until_one_is_free() {
    let cpu = cpus(1, Binding::OnDemand);
    let (taken, tried) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let owner = std::thread::spawn({
        let (taken, tried) = (taken.clone(), tried.clone());
        move || {
            assert_eq!(cpu.try_pin(), Some(CpuId(0)));
            taken.wait();
            tried.wait();
        }
    });
    taken.wait();
    assert_eq!(cpu.try_pin(), None);
    assert_eq!(cpu.try_pin(), None);
    tried.wait();
    owner.join().unwrap();
    assert_eq!(cpu.try_pin(), Some(CpuId(0)), "free again");
}

#[test]
fn machines_do_not_confuse_their_cpus() {
    let (a, b) = (cpus(2, Binding::OnDemand), cpus(2, Binding::OnDemand));
    std::thread::spawn(move || assert_eq!(a.try_pin(), Some(CpuId(0)))).join().unwrap();
    let other = std::thread::spawn(move || {
        assert_eq!(b.try_pin(), Some(CpuId(0)));
        std::thread::park();
    });
    while b.slots()[0].is_free() {
        std::thread::yield_now();
    }
    for _ in 0..3 {
        assert_eq!(a.try_pin(), Some(CpuId(0)));
        assert_eq!(b.try_pin(), Some(CpuId(1)), "a thread owns a CPU of each");
    }
    other.thread().unpark();
    other.join().unwrap();
}

#[test]
fn by_name_a_thread_is_any_cpu_and_none_outside() {
    let cpu = cpus(4, Binding::ByName);
    assert_eq!(cpu.try_pin(), None);
    for id in [3, 0, 2, 2] {
        let inner = on(&cpu, id, || {
            let inner = on(&cpu, (id + 1) % 4, || cpu.try_pin()).unwrap();
            assert_eq!(cpu.try_pin(), Some(CpuId(id)), "back on the outer CPU");
            inner
        });
        assert_eq!(inner, Ok(Some(CpuId((id + 1) % 4))));
    }
    assert_eq!(cpu.try_pin(), None);
    assert_eq!(on(&cpu, 4, || ()), Err(BindError::NoSuchCpu { cpu: CpuId(4), nr_cpus: 4 }));
}

#[test]
fn a_panic_gives_the_cpu_back() {
    let cpu = cpus(1, Binding::ByName);
    let result = std::panic::catch_unwind(|| on(&cpu, 0, || std::panic::resume_unwind(Box::new(()))));
    assert!(result.is_err());
    assert!(cpu.slots()[0].is_free());
    assert_eq!(cpu.try_pin(), None);
}

#[test]
fn a_cpu_owned_for_life_is_refused_by_name() {
    let cpu = cpus(2, Binding::OnDemand);
    assert_eq!(cpu.try_pin(), Some(CpuId(0)));
    assert_eq!(on(&cpu, 0, || cpu.try_pin()), Ok(Some(CpuId(0))), "not to its owner");
    std::thread::spawn(move || {
        assert_eq!(on(&cpu, 0, || ()), Err(BindError::Owned(CpuId(0))));
        assert_eq!(on(&cpu, 1, || cpu.try_pin()), Ok(Some(CpuId(1))));
    })
    .join()
    .unwrap();
}

#[test]
fn one_cpu_is_one_thread_at_a_time() {
    let cpu = cpus(2, Binding::ByName);
    let inside = [const { AtomicUsize::new(0) }; 2];
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let inside = &inside;
            scope.spawn(move || {
                for round in 0..300 {
                    let id = (thread + round) % 2;
                    on(&cpu, id as u32, || {
                        assert_eq!(inside[id].fetch_add(1, Ordering::Relaxed), 0);
                        assert_eq!(cpu.try_pin(), Some(CpuId(id as u32)));
                        assert_eq!(inside[id].fetch_sub(1, Ordering::Relaxed), 1);
                    })
                    .unwrap();
                }
            });
        }
    });
}

#[test]
fn per_cpu_data_counts_every_visit_under_thread_churn_and_revocation() {
    let cpu = cpus(3, Binding::OnDemand);
    let layout = PerCpu::<u64>::layout(3).unwrap();
    // SAFETY: the layout is not empty.
    let memory = std::ptr::NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with this layout; leaked.
    let counts = unsafe { PerCpu::<u64>::init(memory, 3, |_| 0) };
    let shared = SpinLock::new(0_u64);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..30 {
                    std::thread::scope(|inner| {
                        inner.spawn(|| {
                            for _ in 0..100 {
                                if counts.try_with(&cpu, |count, _| *count += 1).is_none() {
                                    shared.with(&cpu, |count| *count += 1);
                                }
                            }
                        });
                    });
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                for (_, slot) in counts.iter() {
                    let taken = slot.with_revoked(&cpu, std::mem::take);
                    shared.with(&cpu, |count| *count += taken);
                }
            }
        });
    });
    let left: u64 = counts.iter().map(|(_, slot)| slot.with_revoked(&cpu, |count| *count)).sum();
    assert_eq!(left + shared.with(&cpu, |count| *count), 8 * 30 * 100);
}

#[test]
fn freeing_after_thread_local_destructors_goes_without_a_cpu() {
    use std::cell::Cell;
    /// Asks for a CPU when the thread's locals are destroyed, and again from a later key's destructor.
    struct Late(HostCpu, std::sync::mpsc::Sender<Option<CpuId>>);
    impl Drop for Late {
        fn drop(&mut self) {
            self.1.send(self.0.try_pin()).unwrap();
        }
    }
    thread_local! {
        static LATE: Cell<Option<Late>> = const { Cell::new(None) };
    }
    let cpu = cpus(1, Binding::OnDemand);
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        LATE.set(Some(Late(cpu, send)));
        assert_eq!(cpu.try_pin(), Some(CpuId(0)));
    })
    .join()
    .unwrap();
    assert_eq!(receive.recv().unwrap(), Some(CpuId(0)), "locals die before the CPU is given back");
    assert!(cpu.slots()[0].is_free());
}
