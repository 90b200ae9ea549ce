//! Threads that start together, each on a processor of its own.

use std::{
    cell::Cell,
    sync::Barrier,
    time::{Duration, Instant},
};

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// The number of the calling thread in its [`gang`]; 0 outside one. Peers that ask for a processor number get this.
#[inline(always)]
pub(crate) fn current() -> usize {
    CPU.with(Cell::get)
}

/// Runs `work(cpu, phase)` on `count` threads for each of `phases` phases, all threads entering a phase together, and
/// returns how long each phase took from its first start to its last end. Phase 0 is for warming up.
pub(crate) fn gang(count: usize, phases: usize, work: impl Fn(usize, usize) + Sync) -> Vec<Duration> {
    let barrier = Barrier::new(count);
    let spans: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..count)
            .map(|cpu| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    become_cpu(cpu);
                    (0..phases)
                        .map(|phase| {
                            barrier.wait();
                            let start = Instant::now();
                            work(cpu, phase);
                            (start, Instant::now())
                        })
                        .collect()
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a benchmark thread panicked")).collect()
    });
    (0..phases)
        .filter_map(|phase| {
            let start = spans.iter().map(|thread| thread[phase].0).min()?;
            let end = spans.iter().map(|thread| thread[phase].1).max()?;
            Some(end - start)
        })
        .collect()
}

/// Takes the number `cpu` and, where the machine has that many processors, moves onto one of them.
pub(crate) fn become_cpu(cpu: usize) {
    CPU.with(|cell| cell.set(cpu));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if cpu < processors {
        // SAFETY: `set` is a plain bit set, zero is a valid value, and the calls only read it; failure is harmless.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set);
        }
    }
}
