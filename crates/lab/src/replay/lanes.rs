//! The threads that execute: one that moves from CPU to CPU, or one per CPU; and one for the second machine.

use super::drive::{AHEAD, Batch, GRACE, Kept, Step};
use super::execute::Executor;
use super::strict::{SameRequests, Strict};
use crate::LabError;
use crate::program::{Op, OpKind, Program};
use crate::target::{CacheUsage, ReplayTarget};
use crate::trace::{TraceError, Why};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Where steps go beside the machine itself.
pub(crate) struct Aside {
    /// For the rounds that follow.
    pub(crate) kept: Kept,
    /// To the second machine.
    pub(crate) second: Option<SyncSender<Arc<Step>>>,
}

impl Aside {
    fn take(&mut self, step: &Arc<Step>) {
        if let Some(second) = &self.second
            && second.send(Arc::clone(step)).is_err()
        {
            // It has stopped, and says why when it is asked for its result.
            self.second = None;
        }
        self.kept.push(step);
    }
}

/// The second machine's thread.
pub(crate) fn second<T: ReplayTarget>(
    target: &T,
    steps: &Receiver<Arc<Step>>,
) -> Result<(SameRequests, Vec<CacheUsage>), LabError> {
    let mut strict = Strict::new(target);
    for step in steps {
        strict.run(&step.ops, &step.specs)?;
    }
    Ok(strict.finish())
}

/// Executes in trace order, on this thread.
pub(crate) fn in_order<T: ReplayTarget>(
    run: &Executor<'_, T>,
    batches: &Receiver<Batch>,
    aside: &mut Aside,
) -> Result<Box<Program>, TraceError> {
    let cpus = run.target.shape().cpus.max(1);
    loop {
        let step = match batches.recv() {
            Ok(Batch::Ops(step)) => step,
            Ok(Batch::Failed(e)) => return Err(e),
            Ok(Batch::Over(program)) => return Ok(program),
            Err(_) => return Err(gone()),
        };
        run.know(&step.specs);
        aside.take(&step);
        for grace in step.ops.chunks(GRACE) {
            for same in grace.chunk_by(|a, b| a.cpu == b.cpu) {
                let cpu = same.first().map_or(0, |op| u32::from(op.cpu)) % cpus;
                let fine = run.target.on_cpu(cpu, || same.iter().all(|op| run.run(op)));
                if !fine {
                    run.stop.store(true, Ordering::Relaxed);
                    return drain(batches);
                }
            }
            run.target.quiesce();
        }
    }
}

/// Executes each CPU on a thread of its own; this thread deals the operations out.
pub(crate) fn in_parallel<T: ReplayTarget>(
    run: &Executor<'_, T>,
    batches: &Receiver<Batch>,
    aside: &mut Aside,
) -> Result<Box<Program>, TraceError> {
    let cpus = run.target.shape().cpus.max(1);
    std::thread::scope(|threads| {
        let lanes: Vec<SyncSender<Vec<Op>>> = (0..cpus)
            .map(|cpu| {
                let (tx, rx) = sync_channel::<Vec<Op>>(AHEAD);
                threads.spawn(move || run.target.on_cpu(cpu, || lane(run, &rx)));
                tx
            })
            .collect();
        loop {
            let step = match batches.recv() {
                Ok(Batch::Ops(step)) => step,
                Ok(Batch::Over(program)) => return Ok(program),
                Ok(Batch::Failed(e)) => {
                    // Whoever waits, waits for nothing.
                    run.stop.store(true, Ordering::Relaxed);
                    return Err(e);
                }
                Err(_) => return Err(gone()),
            };
            run.know(&step.specs);
            aside.take(&step);
            let mut shares: Vec<Vec<Op>> = (0..cpus).map(|_| Vec::new()).collect();
            for op in &step.ops {
                if let OpKind::Mark(mark) = &op.kind {
                    // Taken when the operations before it are on their way, not when they are done.
                    run.sample(mark);
                } else if let Some(share) = shares.get_mut((u32::from(op.cpu) % cpus) as usize) {
                    share.push(op.clone());
                }
            }
            // A step is sent to every CPU before the next is sent to any: a CPU that waits, waits for an earlier operation,
            // which is in its CPU's lane already.
            for (lane, share) in lanes.iter().zip(shares) {
                if !share.is_empty() && lane.send(share).is_err() {
                    run.stop.store(true, Ordering::Relaxed);
                    return drain(batches);
                }
            }
        }
    })
}

fn lane<T: ReplayTarget>(run: &Executor<'_, T>, shares: &Receiver<Vec<Op>>) {
    for ops in shares {
        for grace in ops.chunks(GRACE) {
            if !grace.iter().all(|op| run.run(op)) {
                run.stop.store(true, Ordering::Relaxed);
                return;
            }
            run.target.quiescent();
        }
    }
}

/// Lets the parser run to its end, whose program nobody will look at.
fn drain(batches: &Receiver<Batch>) -> Result<Box<Program>, TraceError> {
    loop {
        match batches.recv() {
            Ok(Batch::Ops(_)) => {}
            Ok(Batch::Failed(e)) => return Err(e),
            Ok(Batch::Over(program)) => return Ok(program),
            Err(_) => return Err(gone()),
        }
    }
}

fn gone() -> TraceError {
    TraceError { name: "the trace".into(), line: 0, why: Why::Io(std::io::Error::other("its reader stopped")) }
}
