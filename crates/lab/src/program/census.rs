//! What became of every event.

use serde::Serialize;
use std::collections::BTreeMap;

/// What a program did with an event. Each event has exactly one fate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It became an operation, or asks for nothing (`kfree(NULL)`).
    Replayed,
    /// It frees something that the trace never allocated.
    UnmatchedFree,
    /// Its name is not known.
    Unknown,
    /// It is a request to an allocator that is not part of the replay, or beyond what the replay can ask.
    Unsupported,
    /// The request failed in Linux, so that there is nothing to hold.
    FailedInTrace,
    /// Linux's own metadata.
    Metadata,
    /// It tells again what another event told.
    Duplicate,
    /// It belongs to the other level.
    OtherLevel,
    /// It tells about Linux's state or activity and asks for nothing.
    Bookkeeping,
}

/// Counts of events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Census {
    /// Events in the trace.
    pub events: u64,
    /// Events that the recorder says it lost.
    pub lost: u64,
    /// Events by name.
    pub by_type: BTreeMap<String, u64>,
    /// Events by CPU.
    pub by_cpu: BTreeMap<u32, u64>,
    /// [`Fate::Replayed`].
    pub replayed: u64,
    /// Of these, frees of NULL and of zero-size objects, and zero-size requests.
    pub nothing_to_do: u64,
    /// [`Fate::UnmatchedFree`].
    pub unmatched_free: u64,
    /// Pages that such frees and parts of other frees gave back.
    pub unmatched_pages: u64,
    /// [`Fate::Unknown`].
    pub unknown_event: u64,
    /// Their names, with counts.
    pub unknown_names: BTreeMap<String, u64>,
    /// [`Fate::Unsupported`].
    pub unsupported: u64,
    /// [`Fate::FailedInTrace`].
    pub failed_in_trace: u64,
    /// [`Fate::Metadata`].
    pub metadata: u64,
    /// [`Fate::Duplicate`].
    pub duplicate: u64,
    /// [`Fate::OtherLevel`].
    pub other_level: u64,
    /// [`Fate::Bookkeeping`].
    pub bookkeeping: u64,
    /// Allocations of something that was live: the free was lost, or recorded later than the reuse on another CPU.
    pub reused_live: u64,
    /// Objects that were live when Linux gave their slab back.
    pub lost_frees: u64,
    /// Pointers that a bulk event had no room for.
    pub bulk_cut_off: u64,
    #[serde(skip)]
    types: Vec<(Box<[u8]>, u64)>,
    #[serde(skip)]
    cpus: Vec<u64>,
}

const MOST_NAMES: usize = 512;

impl Census {
    /// Counts one event by name and CPU.
    #[inline]
    pub(crate) fn count(&mut self, name: &[u8], cpu: u32) {
        self.events += 1;
        let at = self.types.iter().position(|(known, _)| &**known == name);
        match at {
            Some(0) => {}
            // Busy names drift to the front.
            Some(n) => self.types.swap(n, n - 1),
            None if self.types.len() < MOST_NAMES => self.types.push((name.into(), 0)),
            None => {}
        }
        let at = at.map_or(self.types.len().saturating_sub(1), |n| n.saturating_sub(1));
        if let Some((_, n)) = self.types.get_mut(at) {
            *n += 1;
        }
        let cpu = cpu as usize;
        if cpu >= self.cpus.len() && cpu < 1 << 16 {
            self.cpus.resize(cpu + 1, 0);
        }
        if let Some(n) = self.cpus.get_mut(cpu) {
            *n += 1;
        }
    }

    /// Records what became of it.
    #[inline]
    pub(crate) fn settle(&mut self, fate: Fate, name: &[u8]) {
        let n = match fate {
            Fate::Replayed => &mut self.replayed,
            Fate::UnmatchedFree => &mut self.unmatched_free,
            Fate::Unknown => {
                let known = self.unknown_names.len();
                let name = String::from_utf8_lossy(name).into_owned();
                if known < MOST_NAMES || self.unknown_names.contains_key(&name) {
                    *self.unknown_names.entry(name).or_default() += 1;
                }
                &mut self.unknown_event
            }
            Fate::Unsupported => &mut self.unsupported,
            Fate::FailedInTrace => &mut self.failed_in_trace,
            Fate::Metadata => &mut self.metadata,
            Fate::Duplicate => &mut self.duplicate,
            Fate::OtherLevel => &mut self.other_level,
            Fate::Bookkeeping => &mut self.bookkeeping,
        };
        *n += 1;
    }

    /// Fills in the maps; call once the trace is over.
    pub(crate) fn finish(&mut self) {
        self.by_type = self.types.iter().map(|(k, n)| (String::from_utf8_lossy(k).into_owned(), *n)).collect();
        self.by_cpu = self.cpus.iter().zip(0..).filter(|(n, _)| **n > 0).map(|(n, cpu)| (cpu, *n)).collect();
    }

    /// The sum over all fates, which is the number of events.
    #[must_use]
    pub const fn settled(&self) -> u64 {
        self.replayed
            + self.unmatched_free
            + self.unknown_event
            + self.unsupported
            + self.failed_in_trace
            + self.metadata
            + self.duplicate
            + self.other_level
            + self.bookkeeping
    }
}
