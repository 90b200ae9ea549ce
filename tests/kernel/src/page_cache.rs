//! [`PageCache`]: pages of a file that is never changed, so that reclaim may take any of them; the least that an owner of pages
//! must do.
//!
//! ```text
//! index ─▶ slot  │ frame │ accessed │ locked │      the file has word `mix(index, place)` at every place
//! ```
//!
//! **Locking:** a slot's lock is held while its page is brought in, used, moved or thrown away. Whoever holds one may allocate, and so
//! reclaim; reclaim never waits for a lock.

use alloc::boxed::Box;
use core::ptr::NonNull;

use kmem::reclaim::lru::{Look, NewPage, OwnerId, Page, PageKind, PageOwner, Refused, Shadow, WriteBack};
use kmem::{AllocError, Gfp, PAGE_SIZE, Pfn, PfnRange};
use kmem_gfp::{MigrateError, MigrateMode};
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::late::Late;
use crate::platform::kmem;
use crate::reclaim::MM;
use crate::sched;

/// Pages of the file.
pub(crate) const PAGES: usize = 1 << 16;

const LOCKED: u64 = 1;
const ACCESSED: u64 = 2;
const SHIFT: u32 = 2;
const OWNER: OwnerId = OwnerId(1);
/// Bytes between the words of a page that are looked at.
const STRIDE: usize = 248;

/// The page cache.
///
/// # Invariants
/// The frame in a slot is that page's, on reclaim's lists, and changes under the slot's lock.
pub(crate) struct PageCache {
    slots: Box<[AtomicU64]>,
    resident: AtomicU64,
    evicted: AtomicU64,
    moved: AtomicU64,
}

static CACHE: Late<PageCache> = Late::new();

/// Makes the page cache, empty.
pub(crate) fn init() {
    let zero = || AtomicU64::new(0);
    let slots = (0..PAGES).map(|_| zero()).collect();
    CACHE.set(PageCache { slots, resident: zero(), evicted: zero(), moved: zero() });
}

/// The page cache.
///
/// # Panics
/// Before [`init`].
pub(crate) fn cache() -> &'static PageCache {
    CACHE.get().expect("the page cache is made at boot")
}

/// The owner of that number.
pub(crate) fn owner(id: OwnerId) -> Option<&'static dyn PageOwner> {
    let cache = CACHE.get().filter(|_| id == OWNER)?;
    Some(cache)
}

fn contents(index: usize, place: usize) -> u64 {
    ((index as u64) << 12 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6b6d_656d
}

fn words(pfn: Pfn) -> NonNull<u8> {
    kmem().page_address(pfn).expect("every frame is mapped")
}

/// A slot whose lock is held.
struct Held<'a> {
    slot: &'a AtomicU64,
    frame: Option<Pfn>,
    accessed: bool,
}

impl Held<'_> {
    fn try_new(slot: &AtomicU64) -> Option<Held<'_>> {
        let before = slot.fetch_or(LOCKED, Ordering::Acquire);
        (before & LOCKED == 0).then(|| Held {
            slot,
            frame: (before >> SHIFT != 0).then_some(Pfn(before >> SHIFT)),
            accessed: before & ACCESSED != 0,
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let accessed = if self.accessed { ACCESSED } else { 0 };
        // Release pairs with the acquire in `try_new`.
        self.slot.store(self.frame.map_or(0, |pfn| pfn.0 << SHIFT) | accessed, Ordering::Release);
    }
}

impl PageCache {
    fn hold(&self, index: usize) -> Held<'_> {
        loop {
            if let Some(held) = Held::try_new(&self.slots[index]) {
                return held;
            }
            sched::yield_now();
        }
    }

    /// Reads a page of the file, with a frame allocated with `gfp` if it is not in memory.
    ///
    /// # Errors
    /// There is no frame.
    ///
    /// # Panics
    /// If it holds anything but what the file has.
    pub(crate) fn read(&self, index: usize, gfp: Gfp) -> Result<(), AllocError> {
        let mut held = self.hold(index);
        let pfn = match held.frame {
            Some(pfn) => {
                MM.get().expect("reclaim").lists().mark_accessed(pfn);
                pfn
            }
            None => {
                let pfn = kmem().alloc_page(gfp)?;
                for place in (0..PAGE_SIZE).step_by(STRIDE) {
                    // SAFETY: inside a page that is ours alone.
                    unsafe { words(pfn).add(place).cast::<u64>().write(contents(index, place)) };
                }
                let page = NewPage::new(OWNER, index as u64, PageKind::File);
                MM.get().expect("reclaim").lists().add(pfn, page).expect("a fresh frame");
                self.resident.fetch_add(1, Ordering::Relaxed);
                held.frame = Some(pfn);
                pfn
            }
        };
        held.accessed = true;
        for place in (0..PAGE_SIZE).step_by(STRIDE) {
            // SAFETY: inside the page, which nobody changes while its slot is locked.
            let word = unsafe { words(pfn).add(place).cast::<u64>().read() };
            assert_eq!(word, contents(index, place), "page {index} in {pfn} at {place}");
        }
        Ok(())
    }

    /// Throws a page away, if it is in memory.
    pub(crate) fn forget(&self, index: usize) {
        let mut held = self.hold(index);
        if let Some(pfn) = held.frame.take() {
            // SAFETY: this page's, and nobody finds it any more.
            unsafe { MM.get().expect("reclaim").lists().release(pfn) }.expect("the page is on the lists");
            self.resident.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Throws every page away.
    pub(crate) fn clear(&self) {
        (0..PAGES).for_each(|index| self.forget(index));
    }

    /// Whether a page is in memory.
    pub(crate) fn is_resident(&self, index: usize) -> bool {
        self.slots[index].load(Ordering::Relaxed) >> SHIFT != 0
    }

    /// How many pages are in memory.
    pub(crate) fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// How many pages lie in a range of frames.
    pub(crate) fn resident_in(&self, range: PfnRange) -> usize {
        let frames = self.slots.iter().map(|slot| Pfn(slot.load(Ordering::Relaxed) >> SHIFT));
        frames.filter(|&pfn| range.contains(pfn)).count()
    }

    /// How many pages reclaim has taken so far.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// How often a page has been moved.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// The slot of a page that reclaim asks about, unless it is in use.
    fn asked(&self, page: Page) -> Result<Held<'_>, Refused> {
        let slot = usize::try_from(page.key).ok().and_then(|key| self.slots.get(key)).ok_or(Refused::Gone)?;
        let held = Held::try_new(slot).ok_or(Refused::Busy)?;
        if held.frame == Some(page.pfn) { Ok(held) } else { Err(Refused::Gone) }
    }
}

// SAFETY: (1) `evict` takes the frame out of its slot under the lock, by which alone the page is found; (2) `migrate` copies and
// repoints under that lock; (3) `forget` takes the frame out of the slot under the lock and removes it from the lists before the
// slot is unlocked, so both find it busy, or without that frame.
unsafe impl PageOwner for PageCache {
    fn look(&self, page: Page) -> Look {
        match self.asked(page) {
            Ok(mut held) => Look { accessed: u32::from(core::mem::take(&mut held.accessed)), ..Look::default() },
            Err(Refused::Busy) => Look { accessed: 1, ..Look::default() },
            Err(_) => Look::default(),
        }
    }

    /// There are no mappings.
    fn unmap(&self, page: Page, _gfp: Gfp) -> Result<(), Refused> {
        self.asked(page).map(drop)
    }

    /// Pages are never dirty.
    fn write_back(&self, _page: Page, _gfp: Gfp) -> Result<WriteBack, Refused> {
        Ok(WriteBack::Done)
    }

    fn evict(&self, page: Page, _shadow: Shadow, _gfp: Gfp) -> Result<(), Refused> {
        self.asked(page)?.frame = None;
        self.resident.fetch_sub(1, Ordering::Relaxed);
        self.evicted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn migrate(&self, page: Page, target: Pfn, _mode: MigrateMode) -> Result<(), MigrateError> {
        let mut held = self.asked(page).map_err(|_| MigrateError::Again(page.pfn))?;
        // SAFETY: two frames, both this page's; nobody uses it while its slot is locked.
        unsafe { words(page.pfn).copy_to_nonoverlapping(words(target), PAGE_SIZE) };
        held.frame = Some(target);
        self.moved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
