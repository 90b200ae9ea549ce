//! What a CPU keeps charged in advance: pages of up to seven groups, bytes of up to five.
//!
//! ```text
//! CpuStock  pages    group │  3 │  9 │  - │ ...   7 entries; pages charged and not given out, at most 64 each
//!                    pages │ 61 │ 12 │    │
//!                    refs  │ +3 │ -4 │    │       references given out since the entry was last flushed
//!           objects  group │  3 │  - │ ...        5 entries
//!                    bytes │ 3960               bytes of charged pages
//! ```
//!
//! An entry for a group exists only while the group is in the tree: it is made while the group is online, and taking a
//! group offline drains every CPU.

/// Pages that one charge takes at once, and the most that an entry keeps (A-04).
pub(crate) const BATCH: u64 = 64;

/// A page, in bytes.
const PAGE_BYTES: u32 = kmem_gfp::PAGE_SIZE as u32;

/// Entries for pages.
pub(crate) const PAGE_ENTRIES: usize = 7;
/// Entries for bytes.
pub(crate) const BYTE_ENTRIES: usize = 5;

/// References that an entry gives out before it tells the group.
const MOST_REFS: i32 = 1 << 16;

/// A free entry: the root is never charged.
const FREE: u32 = 0;

/// One CPU's stocks.
#[derive(Debug)]
pub(crate) struct CpuStock {
    groups: [u32; PAGE_ENTRIES],
    pages: [u32; PAGE_ENTRIES],
    refs: [i32; PAGE_ENTRIES],
    next_victim: u8,
    byte_groups: [u32; BYTE_ENTRIES],
    bytes: [u32; BYTE_ENTRIES],
    next_byte_victim: u8,
}

/// What an entry held, for the group to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) group: u32,
    pub(crate) pages: u64,
    pub(crate) refs: i64,
}

impl CpuStock {
    pub(crate) const fn new() -> Self {
        Self {
            groups: [FREE; PAGE_ENTRIES],
            pages: [0; PAGE_ENTRIES],
            refs: [0; PAGE_ENTRIES],
            next_victim: 0,
            byte_groups: [FREE; BYTE_ENTRIES],
            bytes: [0; BYTE_ENTRIES],
            next_byte_victim: 0,
        }
    }

    #[inline(always)]
    fn entry(&mut self, group: u32) -> Option<(&mut u32, &mut i32)> {
        let at = self.groups.iter().position(|&other| other == group)?;
        Some((self.pages.get_mut(at)?, self.refs.get_mut(at)?))
    }

    /// Gives out `nr` pages of `group`, with `refs` references; `false` if it has not so many.
    #[inline(always)]
    pub(crate) fn take(&mut self, group: u32, nr: u32, refs: i32) -> bool {
        match self.entry(group) {
            Some((pages, given)) if *pages >= nr && *given < MOST_REFS => {
                *pages -= nr;
                *given += refs;
                true
            }
            _ => false,
        }
    }

    /// Takes `nr` pages of `group` back, with `refs` references; `false` if there is no entry or it would hold too many.
    #[inline(always)]
    pub(crate) fn give(&mut self, group: u32, nr: u32, refs: i32) -> bool {
        match self.entry(group) {
            Some((pages, given)) if u64::from(*pages) + u64::from(nr) <= BATCH && *given > -MOST_REFS => {
                *pages += nr;
                *given -= refs;
                true
            }
            _ => false,
        }
    }

    /// Whether there is an entry for `group`.
    pub(crate) fn has(&self, group: u32) -> bool {
        self.groups.contains(&group)
    }

    /// Makes an entry for `group`, which has none; what had to give way is returned.
    pub(crate) fn open(&mut self, group: u32) -> Option<Flushed> {
        let at = self.groups.iter().position(|&other| other == FREE).unwrap_or_else(|| {
            let victim = usize::from(self.next_victim) % PAGE_ENTRIES;
            self.next_victim = ((victim + 1) % PAGE_ENTRIES) as u8;
            victim
        });
        let flushed = self.flush_at(at);
        if let Some(entry) = self.groups.get_mut(at) {
            *entry = group;
        }
        flushed
    }

    /// Empties the entry of `group`.
    pub(crate) fn flush(&mut self, group: u32) -> Option<Flushed> {
        let at = self.groups.iter().position(|&other| other == group)?;
        self.flush_at(at)
    }

    /// Empties some entry, if there is one left.
    pub(crate) fn flush_any(&mut self) -> Option<Flushed> {
        let at = self.groups.iter().position(|&other| other != FREE)?;
        self.flush_at(at)
    }

    fn flush_at(&mut self, at: usize) -> Option<Flushed> {
        let (group, pages, refs) = (self.groups.get_mut(at)?, self.pages.get_mut(at)?, self.refs.get_mut(at)?);
        let flushed = Flushed { group: *group, pages: u64::from(*pages), refs: i64::from(*refs) };
        (*group, *pages, *refs) = (FREE, 0, 0);
        (flushed.group != FREE).then_some(flushed)
    }

    /// Gives out `nr` bytes of `group`; `false` if it has not so many.
    #[inline(always)]
    pub(crate) fn take_bytes(&mut self, group: u32, nr: u32) -> bool {
        let Some(at) = self.byte_groups.iter().position(|&other| other == group) else { return false };
        match self.bytes.get_mut(at) {
            Some(bytes) if *bytes >= nr => {
                *bytes -= nr;
                true
            }
            _ => false,
        }
    }

    /// Takes `nr` bytes of `group` back; `None` if there is no entry. An entry keeps a page at most: above that its whole
    /// pages leave it, and their number is returned.
    #[inline(always)]
    pub(crate) fn give_bytes(&mut self, group: u32, nr: u32) -> Option<u32> {
        let at = self.byte_groups.iter().position(|&other| other == group)?;
        let bytes = self.bytes.get_mut(at)?;
        *bytes = bytes.checked_add(nr)?;
        if *bytes <= PAGE_BYTES {
            return Some(0);
        }
        let pages = *bytes / PAGE_BYTES;
        *bytes %= PAGE_BYTES;
        Some(pages)
    }

    /// Whether there is a byte entry for `group`.
    pub(crate) fn has_bytes(&self, group: u32) -> bool {
        self.byte_groups.contains(&group)
    }

    /// Makes a byte entry for `group`, which has none; returns group and bytes of what had to give way.
    pub(crate) fn open_bytes(&mut self, group: u32) -> Option<(u32, u32)> {
        let at = self.byte_groups.iter().position(|&other| other == FREE).unwrap_or_else(|| {
            let victim = usize::from(self.next_byte_victim) % BYTE_ENTRIES;
            self.next_byte_victim = ((victim + 1) % BYTE_ENTRIES) as u8;
            victim
        });
        let flushed = self.flush_bytes_at(at);
        if let Some(entry) = self.byte_groups.get_mut(at) {
            *entry = group;
        }
        flushed
    }

    /// Empties some byte entry, if there is one left.
    pub(crate) fn flush_any_bytes(&mut self) -> Option<(u32, u32)> {
        let at = self.byte_groups.iter().position(|&other| other != FREE)?;
        self.flush_bytes_at(at)
    }

    fn flush_bytes_at(&mut self, at: usize) -> Option<(u32, u32)> {
        let (group, bytes) = (self.byte_groups.get_mut(at)?, self.bytes.get_mut(at)?);
        let flushed = (*group, *bytes);
        (*group, *bytes) = (FREE, 0);
        (flushed.0 != FREE).then_some(flushed)
    }
}
