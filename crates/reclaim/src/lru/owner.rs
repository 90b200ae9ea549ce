//! Who the pages on the lists belong to: a page cache, an anonymous mapping, a compressed swap cache.
//!
//! ```text
//! lists ── look ──▶ owner      accessed? mapped? dirty? locked?
//!       ── unmap ─▶            take every mapping away
//!       ── write_back ─▶       start (or do) the write to swap
//!       ── evict(shadow) ─▶    forget the page, keep the shadow in its place
//!       ── migrate ─▶          move contents and references to another frame
//! ```
//!
//! **Locking:** owners are called with no list lock held and may sleep as far as the request's flags allow.

use kmem_gfp::{Gfp, MigrateError, MigrateMode, Pfn};

use super::Shadow;

/// The number by which the platform knows an owner: below [`OwnerId::LIMIT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnerId(pub u16);

impl OwnerId {
    /// Numbers are below this.
    pub const LIMIT: u16 = 1 << 11;
}

/// Which pair of lists a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum PageKind {
    /// Backed by swap: anonymous memory and shared memory.
    Anon = 0,
    /// Backed by a file.
    File = 1,
}

impl PageKind {
    /// The kind as an index.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The kind that is not this one.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Anon => Self::File,
            Self::File => Self::Anon,
        }
    }
}

/// A page as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its frame.
    pub pfn: Pfn,
    /// What the owner gave when it added the page; less than 2^48.
    pub key: u64,
    /// Its kind.
    pub kind: PageKind,
}

/// What an owner says of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Mappings that have accessed the page since the last look, which has cleared their marks.
    pub accessed: u32,
    /// Whether the page is mapped anywhere.
    pub mapped: bool,
    /// Whether its contents are newer than what lies on disk or swap.
    pub dirty: bool,
    /// Whether one of its mappings is locked in memory (`mlock`).
    pub locked: bool,
    /// Whether it is mapped executable.
    pub executable: bool,
}

/// What came of a write that an owner was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteBack {
    /// Written; the page is clean.
    Done,
    /// Under way; the owner calls [`Lists::writeback_ended`](super::Lists::writeback_ended) later.
    Started,
}

/// Why an owner keeps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody uses it at the moment.
    #[error("the page is in use")]
    Busy,
    /// It is not the owner's any more: it is being removed from the lists.
    #[error("the page is being removed")]
    Gone,
    /// There is nowhere to write it to, or writing failed.
    #[error("the page cannot be written back")]
    Unwritable,
}

/// The owner of reclaimable pages.
///
/// # Safety
/// 1. After [`evict`](Self::evict) has returned `Ok`, nothing refers to the page: the lists free its frame. The owner
///    neither frees it nor calls [`Lists::remove`](super::Lists::remove) for it.
/// 2. After [`migrate`](Self::migrate) has returned `Ok`, nothing refers to the source frame, and every reference is to the
///    target, which is on the lists in its stead; after an error nothing has changed.
/// 3. A page whose removal has begun ([`Lists::remove`](super::Lists::remove)) is refused by both ([`Refused::Gone`]).
///
/// An owner keeps these by asking its own index for the page under its own lock, as it does for any other reader.
pub unsafe trait PageOwner: Sync {
    /// Looks at a page, and clears the accessed marks of its mappings. Never sleeps. Also asked for pages on their way out,
    /// for which the default look will do.
    fn look(&self, page: Page) -> Look;

    /// Takes every mapping of the page away. `Err` if one cannot be.
    ///
    /// # Errors
    /// [`Refused`]; some mappings may be gone.
    fn unmap(&self, page: Page, gfp: Gfp) -> Result<(), Refused>;

    /// Writes an unmapped dirty page to swap, or starts doing so. Asked for anonymous pages only (R-15), and only where `gfp`
    /// has [`Gfp::IO`].
    ///
    /// # Errors
    /// [`Refused`]; the page stays dirty.
    fn write_back(&self, page: Page, gfp: Gfp) -> Result<WriteBack, Refused>;

    /// Forgets a clean, unmapped page, and keeps `shadow` where the page was, to be given back when it is added again. In one
    /// step of the owner's own lock: who looks finds the page or the shadow. `gfp` lacks [`Gfp::FS`] where no filesystem may be
    /// entered: an owner that would have to refuses.
    ///
    /// # Errors
    /// [`Refused`], also for a page that has become dirty, mapped or used in the meantime; nothing has changed.
    fn evict(&self, page: Page, shadow: Shadow, gfp: Gfp) -> Result<(), Refused>;

    /// Whether the page can be taken off the lists to be moved. Called under a list lock: looks at plain flags only.
    fn can_isolate(&self, page: Page) -> bool {
        let _ = page;
        true
    }

    /// Moves the contents and every reference of an isolated page to `target`.
    ///
    /// # Errors
    /// Why not; nothing has changed. The default cannot.
    fn migrate(&self, page: Page, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        let _ = (target, mode);
        Err(MigrateError::Permanent(page.pfn))
    }
}
