//! [`Compactor`]: compaction of a machine, on behalf of requests and by a thread in the background.
//!
//! ```text
//! request short of a large block ─▶ HostReclaimer ─▶ compact ─▶ Buddy::compact_zones
//!                                        └─ wake ─▶ Kcompactd of the node ─▶ bell ─▶ thread: poll, sleep until the next look
//! ```

use core::fmt;
use core::time::Duration;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use kmem::PageSource;
use kmem_buddy::Kcompactd;
use kmem_gfp::{AllocContext, CompactOutcome, CompactPriority, NodeId, Order, ReclaimRequest, TaskFlags, ZoneKind};

use crate::host::Host;
use crate::{HostCpu, in_context, sys};

/// How a thread is told that there is something to do.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<Rung>,
    heard: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rung {
    #[default]
    Quiet,
    Work,
    End,
}

impl Bell {
    fn ring(&self, why: Rung) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if *rung != Rung::End {
            *rung = why;
        }
        self.heard.notify_one();
    }

    /// Sleeps until it is rung or `until_ms` has come; `false` if this is the end.
    fn wait(&self, until_ms: Option<u64>) -> bool {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if *rung == Rung::Quiet {
            rung = match until_ms {
                Some(until) => {
                    let time = Duration::from_millis(until.saturating_sub(sys::now_ms()).max(1));
                    self.heard.wait_timeout(rung, time).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.heard.wait(rung).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if *rung == Rung::End {
            return false;
        }
        *rung = Rung::Quiet;
        true
    }
}

/// A machine's compaction.
pub(crate) struct Compactor {
    pages: &'static PageSource<Host<HostCpu>>,
    daemons: Arc<[Kcompactd]>,
    bell: Arc<Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Compactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compactor").field("daemons", &self.daemons).finish_non_exhaustive()
    }
}

impl Compactor {
    pub(crate) fn new(pages: &'static PageSource<Host<HostCpu>>, nodes: u32) -> Self {
        Self {
            pages,
            daemons: (0..nodes).map(|node| Kcompactd::new(NodeId(node))).collect(),
            bell: Arc::default(),
            thread: Mutex::new(None),
        }
    }

    /// Starts the thread that polls the daemons of all nodes.
    ///
    /// # Errors
    /// What the host said.
    pub(crate) fn start(&self) -> std::io::Result<()> {
        let (pages, daemons, bell) = (self.pages, self.daemons.clone(), self.bell.clone());
        let work = move || {
            let mut next = None;
            while bell.wait(next) {
                // The earliest moment at which a node wants to be looked at again.
                let poll = |daemon: &Kcompactd| daemon.poll(pages, sys::now_ms());
                next = in_context(TaskFlags::KTHREAD, || daemons.iter().filter_map(poll).min());
            }
        };
        let thread = std::thread::Builder::new().name("kcompactd".into()).spawn(work)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        // It looks after the nodes by itself from here on.
        self.bell.ring(Rung::Work);
        Ok(())
    }

    /// Ends the thread and waits for that. Nothing happens if there is none.
    pub(crate) fn stop(&self) {
        self.bell.ring(Rung::End);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn has_thread(&self) -> bool {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Asks for blocks of `order` on a node.
    pub(crate) fn wake(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        let Some(daemon) = self.daemons.get(node.0 as usize) else { return };
        // Asked for already: the bell has been rung.
        let rung = daemon.is_wanted();
        daemon.wake(order, ceiling);
        if !rung && self.has_thread() {
            self.bell.ring(Rung::Work);
        }
    }

    /// Looks after all nodes on the calling thread; when to do so again.
    pub(crate) fn poll(&self, now_ms: u64) -> Option<u64> {
        self.daemons.iter().filter_map(|daemon| daemon.poll(self.pages, now_ms)).min()
    }

    pub(crate) fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.pages.compact_zones(context, request, priority)
    }
}
