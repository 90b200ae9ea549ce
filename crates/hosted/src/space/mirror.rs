//! What the host has mapped in a window, page by page, and the system calls that change it.
//!
//! ```text
//! pages    │ -- │ f7 │ f8 │ f9 │ -- │ f3 │ f3 │        mappings: [--] [f7 f8 f9] [--] [f3] [f3]
//! ```
//!
//! Neighbouring pages are one mapping of the host if both are unmapped, or if their frames are neighbours with the same
//! protection: the host joins such mappings by itself, whenever they were made. So the number of mappings is the number of
//! boundaries, and is known exactly before anything is asked for.

use core::ops::Range;
use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use kmem_gfp::{PAGE_SHIFT, Pfn};
use kmem_vmalloc::MapError;

use super::mappings::Mappings;
use super::tables::{Entry, Tables};
use crate::ram::{self, Mapping, Ram};
use crate::sys;

/// The window is aligned to this.
const ALIGN: usize = 2 << 20;
/// How often the host is asked to unmap something before it is given up.
const ATTEMPTS: u32 = 1000;

/// Why the host does not follow.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It would have so many mappings then.
    Budget { mappings: usize, budget: usize },
    /// It says so itself.
    Host,
}

impl Refusal {
    /// The error for a caller who wanted something at `address`.
    pub(super) fn at(self, address: usize) -> MapError {
        match self {
            Self::Budget { mappings, budget } => MapError::TooManyMappings { address, mappings, budget },
            Self::Host => MapError::Refused { address },
        }
    }
}

/// # Invariants
/// 1. `window` is address space of ours; a page of it is inaccessible if its word is [`Entry::NONE`], is the frame in the
///    memory file that its word says, with that protection, or is not ours any more if it is [`Entry::LOST`].
/// 2. `words` holds a word for each page of the window.
pub(super) struct Mirror {
    window: Mapping,
    words: Mapping,
    nr_pages: u64,
    fd: RawFd,
    /// The frame at the file's start.
    first: Pfn,
    mappings: Mappings,
    /// Pages that lead somewhere else than the page tables say, and bounds for them.
    stale: u64,
    stale_range: Range<u64>,
}

impl Mirror {
    /// Reserves a window for `nr_pages`.
    pub(super) fn reserve(ram: &'static Ram, nr_pages: u64, budget: usize) -> Result<Self, ram::MapError> {
        let bytes = (nr_pages as usize) << PAGE_SHIFT;
        let refused = |source| ram::MapError { purpose: "the vmalloc window", bytes, source };
        let fd = ram.file().ok_or_else(|| refused(io::ErrorKind::Unsupported.into()))?.as_raw_fd();
        let words =
            Mapping::sparse("the vmalloc window's pages", (nr_pages as usize).saturating_mul(size_of::<u64>()))?;
        // INVARIANT: inaccessible addresses, words of zero (1); as many as there are pages (2).
        Ok(Self {
            window: Mapping::reserve("the vmalloc window", bytes, ALIGN)?,
            words,
            nr_pages,
            fd,
            first: ram.plan().span().start,
            mappings: Mappings::new(budget),
            stale: 0,
            stale_range: 0..0,
        })
    }

    /// The window's first address.
    pub(super) fn base(&self) -> usize {
        self.window.start().as_ptr().expose_provenance()
    }

    /// Mappings of the host in the window.
    pub(super) fn mappings(&self) -> usize {
        self.mappings.own()
    }

    /// How many all windows may have.
    pub(super) fn budget(&self) -> usize {
        self.mappings.budget()
    }

    /// Pages that lead elsewhere than the page tables say.
    pub(super) fn stale_pages(&self) -> u64 {
        self.stale
    }

    /// Where to look for them.
    pub(super) fn stale_range(&self) -> Range<u64> {
        self.stale_range.clone()
    }

    fn word(&self, page: u64) -> Option<NonNull<Entry>> {
        // SAFETY: inside `words` (2).
        (page < self.nr_pages).then(|| unsafe { self.words.start().cast::<Entry>().add(page as usize) })
    }

    /// What the host has at `page`.
    pub(super) fn get(&self, page: u64) -> Entry {
        // SAFETY: a word of ours, initialised (zeroed memory at least), and nobody writes it through `&self`.
        self.word(page).map_or(Entry::NONE, |word| unsafe { word.read() })
    }

    fn set(&mut self, pages: Range<u64>, mut entry: impl FnMut(u64) -> Entry) {
        for page in pages {
            if let Some(word) = self.word(page) {
                // SAFETY: a word of ours, borrowed alone.
                unsafe { word.write(entry(page)) };
            }
        }
    }

    fn at(&self, page: u64) -> NonNull<u8> {
        // SAFETY: at most the end of the window; callers have checked the page.
        unsafe { self.window.start().add((page.min(self.nr_pages) as usize) << PAGE_SHIFT) }
    }

    /// Boundaries between mappings in front of each page of `pages` and behind the last, if the pages were as `want` says.
    fn boundaries(&self, pages: &Range<u64>, want: impl Fn(u64) -> Entry) -> usize {
        let see = |page: u64| if pages.contains(&page) { want(page) } else { self.get(page) };
        let from = pages.start.max(1);
        let to = pages.end.min(self.nr_pages.saturating_sub(1));
        let mut boundaries = 0;
        let mut before = see(from - 1);
        for page in from..=to {
            let here = see(page);
            boundaries += usize::from(!before.joins(here));
            before = here;
        }
        boundaries
    }

    /// Runs `f`, which changes `pages` here and in the page tables, and counts which of them lead elsewhere afterwards.
    pub(super) fn changing<R>(
        &mut self,
        pages: Range<u64>,
        tables: &Tables,
        lingering: bool,
        f: impl FnOnce(&mut Self) -> R,
    ) -> R {
        if !lingering {
            return f(self);
        }
        let stale = |mirror: &Self| {
            let stale = |&page: &u64| mirror.get(page).frame().is_some() && mirror.get(page) != tables.get(page);
            pages.clone().filter(stale).count() as u64
        };
        let before = stale(self);
        let result = f(self);
        self.stale = (self.stale + stale(self)).saturating_sub(before);
        self.stale_range = match (self.stale, self.stale_range.is_empty()) {
            (0, _) => 0..0,
            (_, true) => pages,
            (_, false) => self.stale_range.start.min(pages.start)..self.stale_range.end.max(pages.end),
        };
        result
    }

    /// Makes the host's mapping of each page what `want` says, given what it is. `regardless` of the budget if it must be.
    ///
    /// # Errors
    /// A [`Refusal`]: nothing has changed if it is the budget's; if it is the host's, some pages may have.
    pub(super) fn follow(
        &mut self,
        pages: Range<u64>,
        regardless: bool,
        want: impl Fn(u64, Entry) -> Entry,
    ) -> Result<(), Refusal> {
        let before = self.boundaries(&pages, |page| self.get(page));
        let after = self.boundaries(&pages, |page| want(page, self.get(page)));
        let own = self.mappings.own();
        if after > before && !regardless {
            let budget = self.mappings.budget();
            self.mappings.take(after - before).map_err(|mappings| Refusal::Budget { mappings, budget })?;
        }
        let done = self.apply(pages.clone(), want);
        let now = self.boundaries(&pages, |page| self.get(page));
        self.mappings.correct((own + now).saturating_sub(before));
        done
    }

    /// Makes `pages` inaccessible.
    pub(super) fn forget(&mut self, pages: Range<u64>) {
        self.settle(pages, |_| Entry::NONE);
    }

    /// [`follow`](Self::follow) for changes that must not fail: those that take something away.
    pub(super) fn settle(&mut self, pages: Range<u64>, want: impl Fn(u64) -> Entry) {
        let keep_lost = |page, now| if now == Entry::LOST { now } else { want(page) };
        for _ in 0..ATTEMPTS {
            if self.follow(pages.clone(), true, keep_lost).is_ok() {
                return;
            }
            sys::sched_yield();
        }
        // PANIC: the process has used up the host's mappings outside of all machines, and freed memory could be reached
        // through old addresses from here on.
        panic!("the host does not unmap pages {pages:?} of a vmalloc window");
    }

    /// Changes what differs, piece by piece.
    fn apply(&mut self, pages: Range<u64>, want: impl Fn(u64, Entry) -> Entry) -> Result<(), Refusal> {
        let mut page = pages.start;
        while page < pages.end {
            let now = self.get(page);
            let wanted = want(page, now);
            if wanted == now {
                page += 1;
                continue;
            }
            // As far as it is one mapping; over pages that are inaccessible already, if others follow.
            let (mut end, mut last, mut next) = (page + 1, wanted, page + 1);
            while next < pages.end {
                let now = self.get(next);
                let wanted = want(next, now);
                if !last.joins(wanted) || (wanted == now && wanted != Entry::NONE) {
                    break;
                }
                next += 1;
                if wanted != now {
                    end = next;
                }
                last = wanted;
            }
            match wanted.frame() {
                Some(pfn) => self.map(page..end, pfn, wanted)?,
                None => self.unmap(page..end)?,
            }
            page = end;
        }
        Ok(())
    }

    /// Puts neighbouring frames from `pfn` on behind `pages`.
    fn map(&mut self, pages: Range<u64>, pfn: Pfn, entry: Entry) -> Result<(), Refusal> {
        let len = ((pages.end - pages.start) as usize) << PAGE_SHIFT;
        let offset = pfn.checked_sub(self.first).ok_or(Refusal::Host)? << PAGE_SHIFT;
        // SAFETY: a part of the window, which is ours (1), and whose user wants it so; the file is open as long as the
        // memory, and its caller has checked that the frames lie in it.
        let mapped = unsafe { sys::map_shared_at(self.at(pages.start), len, entry.access(), self.fd, offset) };
        if mapped.is_err() {
            // A refused mapping may have removed what was there: whatever it was, it is to be inaccessible.
            self.unmap(pages)?;
            return Err(Refusal::Host);
        }
        let first = pages.start;
        // INVARIANT: just mapped (1).
        self.set(pages, |page| entry.after(page - first));
        Ok(())
    }

    /// Makes `pages` inaccessible.
    fn unmap(&mut self, pages: Range<u64>) -> Result<(), Refusal> {
        let (at, len) = (self.at(pages.start), ((pages.end - pages.start) as usize) << PAGE_SHIFT);
        // SAFETY: a part of the window, which is ours (1), and whose user gives it up.
        let state = match unsafe { sys::clear_at(at, len) } {
            Ok(sys::Cleared::Reserved) => Entry::NONE,
            Ok(sys::Cleared::Taken) => Entry::LOST,
            Err(_) => return Err(Refusal::Host),
        };
        // INVARIANT: just made so (1).
        self.set(pages, |_| state);
        Ok(())
    }
}
