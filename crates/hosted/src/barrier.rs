//! A memory barrier on every CPU that runs a thread of this process: the expensive half of every protocol whose cheap
//! half is a plain store.
//!
//! The first choice is `membarrier(PRIVATE_EXPEDITED)` (Linux 4.14): an inter-processor interrupt to each host CPU
//! that runs one of our threads, a few microseconds. Hosts that lack or forbid it get a walk: the calling
//! thread moves itself to each host CPU in turn, and the context switch there is the barrier.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering, fence};

/// How barriers are made: the method found to work, as a [`Method`] number; zero until [`prepare`] ran.
static METHOD: AtomicU8 = AtomicU8::new(Method::Unknown as u8);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Method {
    Unknown = 0,
    Membarrier = 1,
    Walk = 2,
}

const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Finds a method that works here. Idempotent; does not allocate.
///
/// # Errors
/// The host's error if neither `membarrier` nor `sched_setaffinity` may be used.
pub(crate) fn prepare() -> io::Result<()> {
    if METHOD.load(Ordering::Acquire) != Method::Unknown as u8 {
        return Ok(());
    }
    let method = if registered() {
        Method::Membarrier
    } else {
        walk()?;
        Method::Walk
    };
    METHOD.store(method as u8, Ordering::Release);
    Ok(())
}

/// Makes every CPU of the host that runs a thread of this process execute a full memory barrier, the calling one
/// included. Microseconds.
pub(crate) fn all_cpus() {
    fence(Ordering::SeqCst);
    if METHOD.load(Ordering::Relaxed) != Method::Walk as u8 {
        // A child of `fork` may have to register once more.
        if membarrier(MEMBARRIER_PRIVATE_EXPEDITED) || registered() {
            fence(Ordering::SeqCst);
            return;
        }
    }
    let walked = walk();
    debug_assert!(walked.is_ok(), "a method that worked at boot has been taken away: {walked:?}");
    fence(Ordering::SeqCst);
}

/// Registers this process with `membarrier` and executes one.
fn registered() -> bool {
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the location is this thread's own and always valid.
    let errno = unsafe { &mut *libc::__errno_location() };
    let before = *errno;
    // SAFETY: takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0;
    *errno = before;
    done
}

/// Runs the calling thread on every host CPU in turn. CPUs that the process may not use refuse; none of our threads is
/// there either.
fn walk() -> io::Result<()> {
    // SAFETY: a CPU set is plain bits, for which zero is a value.
    let mut home: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: `home` has the size given; thread 0 is the calling one.
    if unsafe { libc::sched_getaffinity(0, size, &mut home) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut visited = 0;
    for cpu in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: as above.
        let mut one: libc::cpu_set_t = unsafe { core::mem::zeroed() };
        // SAFETY: `cpu` is below the set's size; the set has the size given.
        unsafe {
            libc::CPU_SET(cpu, &mut one);
            visited += u32::from(libc::sched_setaffinity(0, size, &one) == 0);
        }
    }
    // SAFETY: the set is the one that was in force before.
    if unsafe { libc::sched_setaffinity(0, size, &home) } != 0 || visited == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};

    #[test]
    fn both_methods_work_here() {
        super::prepare().unwrap();
        super::all_cpus();
        super::walk().unwrap();
    }

    /// Store buffering: one side pays with a plain compiler fence, the other with the heavy barrier. Both reading zero
    /// is what the barrier forbids.
    #[test]
    fn the_heavy_side_orders_the_light_side() {
        super::prepare().unwrap();
        let words = Arc::new([const { AtomicU32::new(0) }; 2]);
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new([const { AtomicU32::new(0) }; 2]);
        let light = std::thread::spawn({
            let (words, rounds, stop) = (words.clone(), rounds.clone(), stop.clone());
            move || {
                let mut seen = Vec::new();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    if rounds[0].load(Ordering::Acquire) == round {
                        std::hint::spin_loop();
                        continue;
                    }
                    round += 1;
                    words[0].store(round, Ordering::Relaxed);
                    compiler_fence(Ordering::SeqCst);
                    seen.push(words[1].load(Ordering::Relaxed) == round);
                    rounds[1].store(round, Ordering::Release);
                }
                seen
            }
        });
        let mut heavy = Vec::new();
        for round in 1..=300 {
            rounds[0].store(round, Ordering::Release);
            words[1].store(round, Ordering::Relaxed);
            super::all_cpus();
            heavy.push(words[0].load(Ordering::Relaxed) == round);
            while rounds[1].load(Ordering::Acquire) != round {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        let light = light.join().unwrap();
        for (round, (light, heavy)) in light.iter().zip(&heavy).enumerate() {
            assert!(light | heavy, "round {round}: neither side saw the other");
        }
    }
}
