//! Stores as owners of pages: what reclaim asks of them.

use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use kmem::reclaim::lru::{Look, Page, PageKind, PageOwner, Refused, Shadow, WriteBack};
use kmem_gfp::{Gfp, MigrateError, MigrateMode, PAGE_SIZE, Pfn};

use super::store::{Backing, PageStore, Slot, add, sub};

impl PageStore {
    /// The slot of a page that reclaim asks about, unless it is in use.
    fn asked(&self, page: Page) -> Result<MutexGuard<'_, Slot>, Refused> {
        let slot = usize::try_from(page.key).ok().and_then(|key| self.slots.get(key)).ok_or(Refused::Gone)?;
        let slot = Mutex::try_lock(slot).map_err(|_| Refused::Busy)?;
        if slot.frame == Some(page.pfn) { Ok(slot) } else { Err(Refused::Gone) }
    }
}

// SAFETY: (1) `evict` takes the frame out of its slot under the slot's lock, by which alone the page is found; (2) `migrate` copies
// and repoints under that lock; (3) whoever removes a page takes the frame out of the slot first, so that both find another
// frame there or none.
unsafe impl PageOwner for PageStore {
    fn look(&self, page: Page) -> Look {
        match self.asked(page) {
            Ok(mut slot) => Look {
                accessed: u32::from(core::mem::take(&mut slot.accessed)),
                mapped: slot.mapped,
                dirty: slot.dirty,
                ..Look::default()
            },
            Err(Refused::Busy) => Look { accessed: 1, mapped: self.kind == PageKind::Anon, ..Look::default() },
            Err(_) => Look::default(),
        }
    }

    fn unmap(&self, page: Page, _gfp: Gfp) -> Result<(), Refused> {
        self.asked(page)?.mapped = false;
        Ok(())
    }

    fn write_back(&self, page: Page, _gfp: Gfp) -> Result<WriteBack, Refused> {
        let mut slot = self.asked(page)?;
        let bytes = self.address(page.pfn).ok_or(Refused::Unwritable)?;
        // SAFETY: the slot is locked, and the frame is its page's.
        let bytes = unsafe { bytes.as_ref() };
        match &self.backing {
            Backing::Swap(swap) => {
                if slot.place.is_none() {
                    slot.place = Some(swap.store(bytes).map_err(|_| Refused::Unwritable)?);
                    add(&self.counters.swapped, 1);
                }
            }
            Backing::File(file) => {
                file.write_all_at(bytes, page.key * PAGE_SIZE as u64).map_err(|_| Refused::Unwritable)?;
            }
            Backing::Nothing => return Err(Refused::Unwritable),
        }
        if core::mem::take(&mut slot.dirty) {
            sub(&self.counters.dirty, 1);
        }
        add(&self.counters.writebacks, 1);
        Ok(WriteBack::Done)
    }

    fn evict(&self, page: Page, shadow: Shadow, _gfp: Gfp) -> Result<(), Refused> {
        let mut slot = self.asked(page)?;
        // An anonymous page that was never changed reads as zeroes again.
        if slot.dirty || slot.mapped {
            return Err(Refused::Busy);
        }
        slot.frame = None;
        slot.shadow = Some(shadow);
        sub(&self.counters.resident, 1);
        add(&self.counters.evictions, 1);
        Ok(())
    }

    fn migrate(&self, page: Page, target: Pfn, _mode: MigrateMode) -> Result<(), MigrateError> {
        let mut slot = self.asked(page).map_err(|_| MigrateError::Again(page.pfn))?;
        let (Some(from), Some(mut to)) = (self.address(page.pfn), self.address(target)) else {
            return Err(MigrateError::Permanent(page.pfn));
        };
        // SAFETY: both frames are this page's, and the slot is locked.
        unsafe { to.as_mut().copy_from_slice(from.as_ref()) };
        slot.frame = Some(target);
        Ok(())
    }
}
