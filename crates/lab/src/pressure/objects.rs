//! A cache of objects that can be made again: a shrinker gives the oldest back.

use kmem::reclaim::{ShrinkControl, ShrinkCount, ShrinkScan, Shrinker};
use kmem::{Gfp, KmemCache};
use kmem_hosted::Machine;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

/// Bytes of an object.
pub(super) const OBJECT_BYTES: usize = 192;

/// Objects in the order of their making.
pub(super) struct ObjectCache {
    machine: &'static Machine,
    cache: &'static KmemCache,
    objects: Mutex<VecDeque<(usize, u64)>>,
    pub(super) shrunk: AtomicU64,
    pub(super) damaged: AtomicU64,
}

impl ObjectCache {
    pub(super) fn new(machine: &'static Machine, cache: &'static KmemCache) -> Self {
        let objects = Mutex::new(VecDeque::with_capacity(1 << 20));
        Self { machine, cache, objects, shrunk: AtomicU64::new(0), damaged: AtomicU64::new(0) }
    }

    /// Makes an object full of `word`.
    pub(super) fn make(&self, gfp: Gfp, word: u64) -> Result<(), kmem::AllocError> {
        let object = self.machine.kmem().kmem_cache_alloc(self.cache, gfp)?;
        let words = object.cast::<[u64; OBJECT_BYTES / 8]>();
        // SAFETY: just allocated, with this size and alignment.
        unsafe { words.write([word; OBJECT_BYTES / 8]) };
        self.objects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((object.as_ptr().expose_provenance(), word));
        Ok(())
    }

    fn destroy(&self, (object, word): (usize, u64)) {
        let Some(object) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(object)) else { return };
        // SAFETY: made by `make`, in nobody's hands any more.
        let whole = unsafe { object.cast::<[u64; OBJECT_BYTES / 8]>().as_ref() }.iter().all(|have| *have == word);
        // SAFETY: as above.
        let freed = unsafe { self.machine.kmem().kmem_cache_free(self.cache, object) };
        if !whole || freed.is_err() {
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives up to `nr` of the oldest back.
    pub(super) fn trim(&self, nr: u64) -> u64 {
        let mut freed = 0;
        while freed < nr {
            // One at a time: whoever makes objects may be waiting for memory with the list in its hands.
            let oldest = match self.objects.try_lock() {
                Ok(mut objects) => objects.pop_front(),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().pop_front(),
                Err(TryLockError::WouldBlock) => break,
            };
            let Some(oldest) = oldest else { break };
            self.destroy(oldest);
            freed += 1;
        }
        freed
    }

    pub(super) fn len(&self) -> u64 {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl Shrinker for ObjectCache {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        match self.objects.try_lock() {
            Ok(objects) => ShrinkCount::Objects(objects.len() as u64),
            Err(_) => ShrinkCount::Skip,
        }
    }

    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        let freed = self.trim(nr);
        self.shrunk.fetch_add(freed, Ordering::Relaxed);
        ShrinkScan::Scanned { freed, scanned: nr }
    }
}
