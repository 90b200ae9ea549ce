//! The frames of an area, in address order: a few runs in the descriptor, the rest in a chain of blocks.
//!
//! ```text
//!   RunList  inline [ run run run run ]   last ─▶ Chunk { previous, nr, runs[510] } ─▶ Chunk ─▶ nothing
//! ```
//!
//! It is a stack: runs are added at the end, a shrinking area takes them off the end, freeing takes them all. Neighbouring
//! frames join into one run, so an area whose memory came in few large blocks needs no chunk at all.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp, PAGE_SIZE};

use crate::meta::{alloc_block, free_block, meta_gfp, order_of};
use crate::{Run, VmallocEnv};

/// Runs in the descriptor itself.
const INLINE: usize = 4;
const CHUNK_RUNS: usize = (PAGE_SIZE - 16) / size_of::<Run>();

#[repr(C)]
struct Chunk {
    previous: Option<NonNull<Chunk>>,
    nr: usize,
    runs: [MaybeUninit<Run>; CHUNK_RUNS],
}

/// The list. Whoever drops it must have [taken](Self::pop_all) everything off, or the blocks are lost.
///
/// # Invariants
/// 1. The first `nr_inline` of `inline` are runs; there are chunks only if all of `inline` is used.
/// 2. `last` and what follows by `previous` are blocks of ours; the first `nr` of each chunk's runs are runs, and `nr`
///    is not zero.
#[derive(Debug)]
pub(crate) struct RunList {
    inline: [MaybeUninit<Run>; INLINE],
    last: Option<NonNull<Chunk>>,
    nr_inline: u32,
}

impl RunList {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        // INVARIANT: nothing is used (1), no chunk (2).
        Self { inline: [const { MaybeUninit::uninit() }; INLINE], last: None, nr_inline: 0 }
    }

    /// Takes the only run off; `None` if there are more, or none.
    #[inline(always)]
    pub(crate) fn take_single(&mut self) -> Option<Run> {
        if self.nr_inline != 1 {
            return None;
        }
        // SAFETY: the first is initialised (invariant 1); no chunk without all of `inline` in use.
        let run = unsafe { self.inline[0].assume_init() };
        self.nr_inline = 0;
        Some(run)
    }

    /// Makes an empty list a list of one run.
    #[inline(always)]
    pub(crate) fn set_single(&mut self, run: Run) {
        debug_assert!(self.is_empty());
        self.inline[0].write(run);
        self.nr_inline = 1;
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.nr_inline == 0
    }

    #[inline(always)]
    fn inline(&self) -> &[Run] {
        let used = self.inline.get(..self.nr_inline as usize).unwrap_or(&[]);
        // SAFETY: these are initialised (invariant 1).
        unsafe { core::slice::from_raw_parts(used.as_ptr().cast(), used.len()) }
    }

    /// The last run.
    pub(crate) fn last(&self) -> Option<Run> {
        match self.last {
            // SAFETY: a chunk of ours (invariant 2).
            Some(chunk) => chunk_runs(unsafe { chunk.as_ref() }).last().copied(),
            None => self.inline().last().copied(),
        }
    }

    fn replace_last(&mut self, run: Run) {
        match self.last {
            Some(mut chunk) => {
                // SAFETY: a chunk of ours (invariant 2), and `self` is borrowed alone.
                let chunk = unsafe { chunk.as_mut() };
                if let Some(slot) = chunk.runs.get_mut(chunk.nr.wrapping_sub(1)) {
                    slot.write(run);
                }
            }
            None => {
                if let Some(slot) = self.inline.get_mut((self.nr_inline as usize).wrapping_sub(1)) {
                    slot.write(run);
                }
            }
        }
    }

    /// Adds frames at the end. Joins them to the last run if they follow it.
    ///
    /// # Errors
    /// Those of the page source, when a new block is needed and there is none; nothing has changed.
    #[inline]
    pub(crate) fn push<E: VmallocEnv>(&mut self, env: &E, gfp: Gfp, run: Run) -> Result<(), AllocError> {
        if self.nr_inline > 0
            && let Some(joined) = self.last().and_then(|last| last.joined(run))
        {
            self.replace_last(joined);
            return Ok(());
        }
        if let Some(slot) = self.inline.get_mut(self.nr_inline as usize) {
            slot.write(run);
            self.nr_inline += 1;
            return Ok(());
        }
        self.push_to_chunk(env, gfp, run)
    }

    #[cold]
    #[inline(never)]
    fn push_to_chunk<E: VmallocEnv>(&mut self, env: &E, gfp: Gfp, run: Run) -> Result<(), AllocError> {
        if let Some(mut chunk) = self.last {
            // SAFETY: a chunk of ours (invariant 2), and `self` is borrowed alone.
            let chunk = unsafe { chunk.as_mut() };
            if let Some(slot) = chunk.runs.get_mut(chunk.nr) {
                slot.write(run);
                chunk.nr += 1;
                return Ok(());
            }
        }
        let block = alloc_block(env, meta_gfp(gfp), order_of::<Chunk>())?.cast::<Chunk>();
        // SAFETY: a fresh block, large and aligned enough for a chunk. The runs are left as they are, but for the first.
        unsafe {
            (&raw mut (*block.as_ptr()).previous).write(self.last);
            (&raw mut (*block.as_ptr()).nr).write(1);
            (&raw mut (*block.as_ptr()).runs).cast::<Run>().write(run);
        }
        self.last = Some(block);
        Ok(())
    }

    /// Shows the runs in groups, each group in address order, **the last group first**, with the number of pages that lie
    /// behind the group. Stops at the first error.
    pub(crate) fn for_groups_from_end<R>(&self, mut f: impl FnMut(&[Run], u64) -> Result<(), R>) -> Result<(), R> {
        let mut behind = 0;
        let mut chunk = self.last;
        while let Some(this) = chunk {
            // SAFETY: a chunk of ours (invariant 2).
            let this = unsafe { this.as_ref() };
            let runs = chunk_runs(this);
            f(runs, behind)?;
            behind += pages_of(runs);
            chunk = this.previous;
        }
        if self.nr_inline > 0 { f(self.inline(), behind) } else { Ok(()) }
    }

    /// Takes everything off, handing each group to `f` and the blocks back to the page source.
    #[inline]
    pub(crate) fn pop_all<E: VmallocEnv>(&mut self, env: &E, mut f: impl FnMut(&[Run])) {
        while let Some(last) = self.last {
            // SAFETY: a chunk of ours (invariant 2).
            let chunk = unsafe { last.as_ref() };
            f(chunk_runs(chunk));
            self.last = chunk.previous;
            // SAFETY: from `alloc_block` with this order, and unlinked.
            unsafe { free_block(env, last.cast(), order_of::<Chunk>()) };
        }
        let runs = self.inline();
        if !runs.is_empty() {
            f(runs);
        }
        self.nr_inline = 0;
    }

    /// Takes the last `nr_pages` pages off, handing each run or part of a run to `f`.
    pub(crate) fn pop_pages<E: VmallocEnv>(&mut self, env: &E, mut nr_pages: u64, mut f: impl FnMut(Run)) {
        while nr_pages > 0 {
            let Some(run) = self.last() else { return };
            let len = run.nr_pages();
            if len > nr_pages {
                let keep = len - nr_pages;
                let (Some(kept), Some(cut)) =
                    (Run::new(run.first(), keep), Run::new(kmem_gfp::Pfn(run.first().0 + keep), nr_pages))
                else {
                    return;
                };
                self.replace_last(kept);
                f(cut);
                return;
            }
            f(run);
            nr_pages -= len;
            self.pop_run(env);
        }
    }

    fn pop_run<E: VmallocEnv>(&mut self, env: &E) {
        let Some(mut last) = self.last else {
            self.nr_inline = self.nr_inline.saturating_sub(1);
            return;
        };
        // SAFETY: a chunk of ours (invariant 2), and `self` is borrowed alone.
        let chunk = unsafe { last.as_mut() };
        chunk.nr = chunk.nr.saturating_sub(1);
        if chunk.nr == 0 {
            self.last = chunk.previous;
            // SAFETY: from `alloc_block` with this order, and unlinked.
            unsafe { free_block(env, last.cast(), order_of::<Chunk>()) };
        }
    }
}

fn chunk_runs(chunk: &Chunk) -> &[Run] {
    let used = chunk.runs.get(..chunk.nr).unwrap_or(&[]);
    // SAFETY: these are initialised (invariant 2 of `RunList`).
    unsafe { core::slice::from_raw_parts(used.as_ptr().cast(), used.len()) }
}

/// Pages in a group of runs.
pub(crate) fn pages_of(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.nr_pages()).sum()
}
