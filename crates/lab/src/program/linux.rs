//! The pages that Linux held in slabs for the requests of a trace.
//!
//! A slab enters the books when the trace shows its creation: by a `slab_new`, or, where the probes were not yet in place, by a
//! page allocation with the flags that only slabs ask with ([`TraceGfp::is_slabs`](crate::trace::TraceGfp::is_slabs)).
//! It leaves them with its `slab_free`, or with the `mm_page_free` of its pages if that probe was missed. Slabs older than
//! the trace are never counted.
//!
//! Linux's own metadata live in slabs, too: a slab is left out for as long as all objects ever handed out from it are metadata
//! (at least one is). A slab of which nothing has been handed out is counted.

use super::caches::CacheId;
use super::tables::FrameMap;
use serde::Serialize;

/// Slab pages of Linux, at most and at the end of the trace.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct LinuxFigures {
    /// Slabs announced by a `slab_new` and not given back, without those that hold only metadata: at most. In a trace without
    /// any `slab_new`, the slabs known by the flags of their pages.
    pub slab_pages_peak: u64,
    /// The same at the end.
    pub slab_pages_end: u64,
    /// `slab_new` minus `slab_free` as recorded, metadata included: at most.
    pub recorded_peak: u64,
    /// The same at the end.
    pub recorded_end: u64,
    /// For all requests: slabs that the trace shows being made in either way, and of older slabs the bytes that objects of the
    /// trace occupy (as if these slabs were full): at most.
    pub all_slab_pages_peak: u64,
    /// The same at the end.
    pub all_slab_pages_end: u64,
    /// True if the trace has a `slab_new`.
    pub probes: bool,
    /// Slabs older than the trace that Linux gave back.
    pub older_slabs_freed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slab {
    pfn: u64,
    pages: u32,
    live: u32,
    cache: Option<CacheId>,
    probed: bool,
    metadata: bool,
    ordinary: bool,
}

impl Slab {
    const fn counts(&self) -> bool {
        self.ordinary || !self.metadata
    }
}

/// What the books know about the slab of an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SlabView {
    /// Its cache, once known.
    pub(crate) cache: Option<CacheId>,
    /// Announced by a `slab_new`.
    pub(crate) probed: bool,
}

/// A slab that left the books.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    pub(crate) pfn: u64,
    pub(crate) pages: u32,
    /// Objects of the trace that were live in it.
    pub(crate) live: u32,
}

/// The books.
#[derive(Debug, Default)]
pub struct LinuxSlabs {
    /// Slab number plus one, by frame.
    of: FrameMap,
    slabs: Vec<Slab>,
    free: Vec<u32>,
    probed_by_cache: Vec<u64>,
    signature_by_cache: Vec<u64>,
    pages: u64,
    probed: u64,
    recorded: u64,
    /// Bytes of ordinary objects that stand in no slab of the books.
    older_bytes: u64,
    signature_peak: u64,
    figures: LinuxFigures,
}

impl LinuxSlabs {
    fn index(&self, pfn: u64) -> Option<usize> {
        (self.of.get(pfn) as usize).checked_sub(1)
    }

    /// The slab over this frame.
    pub(crate) fn at(&self, pfn: u64) -> Option<SlabView> {
        self.slabs.get(self.index(pfn)?).map(|s| SlabView { cache: s.cache, probed: s.probed })
    }

    /// Changes a slab, keeping every sum true.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Slab)) {
        let Some(slab) = self.slabs.get_mut(index) else { return };
        let before = *slab;
        change(slab);
        let after = *slab;
        self.account(&before, false);
        self.account(&after, true);
        self.note_peaks();
    }

    fn account(&mut self, slab: &Slab, add: bool) {
        let step = |sum: &mut u64| {
            let pages = u64::from(slab.pages);
            *sum = if add { *sum + pages } else { sum.saturating_sub(pages) };
        };
        if slab.probed {
            step(&mut self.recorded);
        }
        if slab.counts() {
            step(&mut self.pages);
            if slab.probed {
                step(&mut self.probed);
            }
            if let Some(cache) = slab.cache {
                let sums = if slab.probed { &mut self.probed_by_cache } else { &mut self.signature_by_cache };
                let at = cache.0 as usize;
                if sums.len() <= at {
                    sums.resize(at + 1, 0);
                }
                if let Some(sum) = sums.get_mut(at) {
                    step(sum);
                }
            }
        }
    }

    fn note_peaks(&mut self) {
        let all = self.all_pages();
        let f = &mut self.figures;
        f.all_slab_pages_peak = f.all_slab_pages_peak.max(all);
        f.slab_pages_peak = f.slab_pages_peak.max(self.probed);
        f.recorded_peak = f.recorded_peak.max(self.recorded);
        self.signature_peak = self.signature_peak.max(self.pages);
    }

    /// A slab appears: `cache` and `probed` if a `slab_new` said so. One that is already known by its pages gets its name.
    pub(crate) fn appear(&mut self, pfn: u64, order: u8, cache: Option<CacheId>, probed: bool) {
        self.figures.probes |= probed;
        if let Some(index) = self.index(pfn) {
            let same = self.slabs.get(index).is_some_and(|s| s.pfn == pfn && s.pages == 1 << order && !s.probed);
            if same && probed {
                self.change(index, |s| (s.cache, s.probed) = (cache, true));
                return;
            }
        }
        for p in pfn..pfn.saturating_add(1 << order) {
            // Its end was not recorded.
            let _ = self.remove(p);
        }
        let slab = Slab { pfn, pages: 1 << order, live: 0, cache, probed, metadata: false, ordinary: false };
        let index = match self.free.pop() {
            Some(index) => {
                if let Some(place) = self.slabs.get_mut(index as usize) {
                    *place = slab;
                }
                index
            }
            None => {
                self.slabs.push(slab);
                (self.slabs.len() - 1) as u32
            }
        };
        self.of.set_range(pfn, 1 << order, index + 1);
        self.account(&slab, true);
        self.note_peaks();
    }

    /// The slab over `pfn` goes.
    pub(crate) fn remove(&mut self, pfn: u64) -> Option<Removed> {
        let index = self.index(pfn)?;
        let slab = *self.slabs.get(index)?;
        self.account(&slab, false);
        self.of.set_range(slab.pfn, u64::from(slab.pages), 0);
        self.free.push(index as u32);
        Some(Removed { pfn: slab.pfn, pages: slab.pages, live: slab.live })
    }

    /// An object is handed out; true if its slab is one of the counted.
    pub(crate) fn object(&mut self, pfn: u64, cache: CacheId, metadata: bool) -> bool {
        let Some(index) = self.index(pfn) else { return false };
        let Some(slab) = self.slabs.get_mut(index) else { return false };
        slab.live += 1;
        let news = slab.cache.is_none() || if metadata { !slab.metadata } else { !slab.ordinary };
        if news {
            self.change(index, |s| {
                s.cache = s.cache.or(Some(cache));
                s.metadata |= metadata;
                s.ordinary |= !metadata;
            });
        }
        true
    }

    /// An object that was handed out comes back.
    pub(crate) fn object_freed(&mut self, pfn: u64) {
        if let Some(slab) = self.index(pfn).and_then(|i| self.slabs.get_mut(i)) {
            slab.live = slab.live.saturating_sub(1);
        }
    }

    /// An ordinary object that stands in no slab of the books comes or goes.
    pub(crate) fn older_object(&mut self, bytes: u64, comes: bool) {
        if comes {
            self.older_bytes += bytes;
            self.note_peaks();
        } else {
            self.older_bytes = self.older_bytes.saturating_sub(bytes);
        }
    }

    pub(crate) fn older_freed(&mut self) {
        self.figures.older_slabs_freed += 1;
    }

    /// Pages for all requests at this moment.
    #[must_use]
    pub const fn all_pages(&self) -> u64 {
        self.pages + self.older_bytes.div_ceil(4096)
    }

    /// The figures; those of the end are of this moment.
    #[must_use]
    pub fn figures(&self) -> LinuxFigures {
        let f = self.figures.clone();
        let (slab_pages_peak, slab_pages_end) =
            if f.probes { (f.slab_pages_peak, self.probed) } else { (self.signature_peak, self.pages) };
        LinuxFigures {
            slab_pages_peak,
            slab_pages_end,
            recorded_end: self.recorded,
            all_slab_pages_end: self.all_pages(),
            ..f
        }
    }

    /// The pages of `slab_pages_end` by cache.
    #[must_use]
    pub fn by_cache(&self) -> &[u64] {
        if self.figures.probes { &self.probed_by_cache } else { &self.signature_by_cache }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_of_metadata_is_left_out_until_an_ordinary_object_comes() {
        let mut l = LinuxSlabs::default();
        l.appear(16, 1, Some(CacheId(0)), true);
        assert_eq!((l.all_pages(), l.figures().recorded_end), (2, 2));
        l.object(17, CacheId(0), true);
        assert_eq!((l.all_pages(), l.figures().recorded_end, l.figures().slab_pages_end), (0, 2, 0));
        l.object(16, CacheId(0), false);
        assert_eq!((l.all_pages(), l.by_cache()), (2, &[2][..]));
        assert_eq!(l.remove(17).map(|r| (r.pfn, r.pages, r.live)), Some((16, 2, 2)));
        assert_eq!((l.all_pages(), l.figures().slab_pages_peak), (0, 2));
        assert_eq!(l.at(16), None);
    }

    #[test]
    fn a_slab_known_by_its_flags_is_named_later() {
        let mut l = LinuxSlabs::default();
        l.appear(8, 0, None, false);
        assert_eq!((l.figures().slab_pages_end, l.figures().probes), (1, false));
        l.appear(12, 1, None, false);
        l.appear(8, 0, Some(CacheId(3)), true);
        assert_eq!((l.all_pages(), l.figures().slab_pages_end), (3, 1));
        l.appear(8, 2, Some(CacheId(1)), true);
        assert_eq!((l.all_pages(), l.by_cache().get(3)), (6, Some(&0)));
        assert_eq!(l.at(11).and_then(|v| v.cache), Some(CacheId(1)));
    }

    #[test]
    fn objects_in_older_slabs_count_with_their_bytes() {
        let mut l = LinuxSlabs::default();
        l.older_object(4096, true);
        l.older_object(8, true);
        assert_eq!((l.all_pages(), l.figures().slab_pages_end), (2, 0));
        l.older_object(8, false);
        assert_eq!((l.figures().all_slab_pages_end, l.figures().all_slab_pages_peak), (1, 2));
    }
}
