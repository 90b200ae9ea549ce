//! Where an area goes.
//!
//! ```text
//!      base                      4 GiB                        limit
//!       |  2  ◀── from above ────  |  1  ── from below ──▶      |
//! ```
//!
//! A candidate is tried by taking it. A frame that is in the way rules out every candidate that holds it, so the next one
//! lies beyond that frame.

use kmem_gfp::{AllocError, PAGE_SHIFT, Pfn, PfnRange};

use crate::spec::{MAX_RANGES, Place, whole};
use crate::{AreaSpec, DeclareError, Lender};

/// The first frame beyond the reach of 32 address bits.
const ABOVE_4G: u64 = 1 << (32 - PAGE_SHIFT);

/// Ranges of an area, sorted.
#[derive(Default)]
pub(crate) struct Found {
    ranges: [PfnRange; MAX_RANGES],
    nr: usize,
}

impl Found {
    pub(crate) fn ranges(&self) -> &[PfnRange] {
        self.ranges.get(..self.nr).unwrap_or_default()
    }

    pub(crate) fn push(&mut self, range: PfnRange) -> Option<()> {
        *self.ranges.get_mut(self.nr)? = range;
        self.nr += 1;
        self.ranges.get_mut(..self.nr)?.sort_unstable_by_key(|range| range.start);
        Some(())
    }
}

/// Takes the memory for an area, in at most `most` ranges.
pub(crate) fn find_place(source: &impl Lender, spec: &AreaSpec<'_>, most: usize) -> Result<Found, DeclareError> {
    let (grain, nr_pages) = spec.checked()?;
    let mut found = Found::default();
    let none = DeclareError::NoMemory { nr_pages };
    let (base, limit) = match spec.place {
        Place::Fixed(start) => {
            let range = PfnRange::with_len(start, spec.nr_pages).ok_or(none)?;
            whole(range, grain)?;
            let limit = source.span().end;
            if range.end > limit {
                return Err(DeclareError::BeyondLimit { range, limit });
            }
            match source.reserve(range) {
                Ok(()) => {}
                Err(AllocError::Busy(pfn)) => return Err(DeclareError::Taken(pfn)),
                Err(other) => return Err(DeclareError::Source(other)),
            }
            found.push(range).ok_or(none)?;
            return Ok(found);
        }
        Place::Within { base, limit } => (base, limit),
    };
    let span = source.span();
    let low = base.0.max(span.start.0).checked_next_multiple_of(grain).ok_or(none)?;
    let high = limit.map_or(span.end.0, |limit| limit.0.min(span.end.0)) / grain * grain;
    let search = Search { source, grain, low, high };
    let mut left = nr_pages;
    let mut piece = nr_pages;
    loop {
        let taken = if found.nr < most { search.take(piece) } else { Ok(None) };
        match taken {
            Ok(Some(range)) => {
                // Cannot fail: there is room for `most`.
                let _ = found.push(range);
                left -= range.len();
                piece = piece.min(left);
                if left == 0 {
                    return Ok(found);
                }
            }
            Ok(None) if most > 1 && piece > grain && found.nr < most => {
                piece = (piece / 2).next_multiple_of(grain);
            }
            failed => {
                for &range in found.ranges() {
                    // SAFETY: taken above, and nobody has seen it.
                    unsafe { source.give_up(range) };
                }
                return Err(failed.err().map_or(none, DeclareError::Source));
            }
        }
    }
}

struct Search<'a, L> {
    source: &'a L,
    grain: u64,
    low: u64,
    high: u64,
}

impl<L: Lender> Search<'_, L> {
    fn take(&self, nr_pages: u64) -> Result<Option<PfnRange>, AllocError> {
        let border = ABOVE_4G.next_multiple_of(self.grain);
        if let found @ Some(_) = self.upwards(nr_pages, self.low.max(border))? {
            return Ok(found);
        }
        self.downwards(nr_pages)
    }

    fn attempt(&self, start: u64, nr_pages: u64) -> Result<Result<PfnRange, Pfn>, AllocError> {
        let range = PfnRange::new(Pfn(start), Pfn(start + nr_pages));
        match self.source.reserve(range) {
            Ok(()) => Ok(Ok(range)),
            Err(AllocError::Busy(pfn)) => Ok(Err(pfn)),
            // There may be a place that needs less to be moved.
            Err(AllocError::NoMemory { .. }) => Ok(Err(range.start)),
            Err(other) => Err(other),
        }
    }

    fn upwards(&self, nr_pages: u64, from: u64) -> Result<Option<PfnRange>, AllocError> {
        let mut start = from;
        while start.checked_add(nr_pages).is_some_and(|end| end <= self.high) {
            match self.attempt(start, nr_pages)? {
                Ok(range) => return Ok(Some(range)),
                Err(busy) => start = (busy.0.max(start) / self.grain + 1) * self.grain,
            }
        }
        Ok(None)
    }

    fn downwards(&self, nr_pages: u64) -> Result<Option<PfnRange>, AllocError> {
        let mut end = self.high;
        while let Some(start) = end.checked_sub(nr_pages).filter(|&start| start >= self.low) {
            match self.attempt(start, nr_pages)? {
                Ok(range) => return Ok(Some(range)),
                // The next candidate ends below the frame in the way, if that lies inside.
                Err(busy) if busy.0 > start && busy.0 < end => end = busy.0 / self.grain * self.grain,
                Err(_) => end -= self.grain,
            }
        }
        Ok(None)
    }
}
