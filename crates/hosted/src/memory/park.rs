//! Sleeping on the host: a mutex and a condition variable for the queues of a hash bucket.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use kmem::reclaim::{Park, Wait, WaitQueue};
use kmem_gfp::{AllocContext, TaskFlags};

const BUCKETS: usize = 64;
/// A killable sleep looks for signals as often as this.
const SIGNAL_MS: u64 = 5;

struct Bucket {
    lock: Mutex<()>,
    wake: Condvar,
}

static SLEEPERS: [Bucket; BUCKETS] = [const { Bucket { lock: Mutex::new(()), wake: Condvar::new() } }; BUCKETS];

/// How threads of the host sleep as tasks of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPark;

fn bucket(queue: &WaitQueue) -> &'static Bucket {
    let address = core::ptr::from_ref(queue).addr();
    // Queues lie side by side in nodes; cache lines tell them apart well enough.
    let at = (address >> 3).wrapping_mul(0x9e37_79b9) >> 8;
    SLEEPERS.get(at % BUCKETS).unwrap_or(&SLEEPERS[0])
}

impl Park for HostPark {
    fn park(&self, context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        super::deliver_signals();
        if wait.killable && context.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
            return;
        }
        let bucket = bucket(queue);
        let ms = match (wait.timeout_ms, wait.killable) {
            (Some(ms), false) => Some(ms),
            (ms, true) => Some(ms.unwrap_or(SIGNAL_MS).min(SIGNAL_MS)),
            (None, false) => None,
        };
        let guard = bucket.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: whoever changes the sequence takes it afterwards to wake.
        if queue.sequence() == seen {
            match ms {
                Some(ms) => drop(bucket.wake.wait_timeout(guard, Duration::from_millis(ms))),
                None => drop(bucket.wake.wait(guard)),
            }
        }
        super::deliver_signals();
    }

    fn unpark_all(&self, queue: &WaitQueue) {
        let bucket = bucket(queue);
        drop(bucket.lock.lock().unwrap_or_else(PoisonError::into_inner));
        bucket.wake.notify_all();
    }
}
