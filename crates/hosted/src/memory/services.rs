//! The threads behind reclaim: kswapd for each node, the flusher of dirty file-like pages, the reaper of victims.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kmem_gfp::{NodeId, TaskFlags};

use super::setup::{HostMemory, HostMm};
use crate::in_context;
use crate::thread;

/// How often the flusher looks.
const FLUSH_INTERVAL: Duration = Duration::from_millis(2);
/// Pages that it writes of a store in one go.
const FLUSH_PAGES: u64 = 256;
/// How often the reaper looks.
const REAP_INTERVAL: Duration = Duration::from_millis(20);

/// The threads, until they are stopped.
#[derive(Debug, Default)]
pub(crate) struct Services {
    stop: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    nodes: Mutex<Vec<NodeId>>,
}

impl Services {
    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = Builder::new().name(name).spawn(|| {
            // CPUs are for those who work.
            thread::with(|thread| thread.is_service.set(true));
            in_context(TaskFlags::KTHREAD, body);
        })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    pub(super) fn start(
        &'static self,
        memory: &'static HostMemory,
        nodes: impl Iterator<Item = NodeId>,
        flusher: bool,
    ) -> io::Result<()> {
        let mm = memory.mm;
        for node in nodes {
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
            self.spawn(format!("kswapd{}", node.0), move || {
                mm.engine().kswapd_run(node, || self.stop.load(Ordering::Acquire));
            })?;
        }
        if flusher {
            self.spawn("flusher".into(), move || {
                while !self.stop.load(Ordering::Acquire) {
                    memory.for_each_file(|store| {
                        if store.stats().dirty > 0 {
                            store.flush(FLUSH_PAGES);
                        }
                    });
                    std::thread::sleep(FLUSH_INTERVAL);
                }
            })?;
        }
        self.spawn("oom_reaper".into(), move || {
            while !self.stop.load(Ordering::Acquire) {
                mm.killer().reap();
                std::thread::sleep(REAP_INTERVAL);
            }
        })
    }

    /// Stops every thread and waits for it.
    pub(super) fn stop(&self, mm: &HostMm) {
        self.stop.store(true, Ordering::Release);
        for &node in self.nodes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            mm.engine().kswapd_kick(node);
        }
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
