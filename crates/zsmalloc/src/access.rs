//! Reading and writing: the object's zspage is pinned, so nothing moves it.
//!
//! A reader loads the entry, counts itself on the zspage's lock word, and loads the entry again: if it is the same, the
//! object is there and stays there until the count goes down. No lock is taken, and no class is involved.

use core::fmt;
use core::ops::Deref;

use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, IrqGuard};

use crate::class::Class;
use crate::handle::{Entry, Handle};
use crate::released::Released;
use crate::zspage::{Runs, Zspage};
use crate::{AccessError, Corruption, Pool, ZsEnv};

/// An object's place and who it belongs to.
pub(crate) struct Found<'p> {
    pub(crate) class: &'p Class,
    pub(crate) zspage: Zspage<'p>,
    pub(crate) place: Entry,
}

impl<E: ZsEnv> Pool<E> {
    /// The entry of a handle of this pool.
    #[inline(always)]
    pub(crate) fn entry_of(&self, handle: Handle) -> Result<&AtomicU64, AccessError> {
        if !handle.has_tag(self.tag) {
            return Err(AccessError::Foreign(handle));
        }
        self.entry(handle.index()).ok_or(AccessError::Foreign(handle))
    }

    /// Where an entry says that its object is.
    #[inline(always)]
    pub(crate) fn find(&self, place: Entry, handle: Handle) -> Result<Found<'_>, AccessError> {
        let number = place.zspage();
        let damaged = |what| AccessError::Corrupt(Corruption { zspage: number, what });
        if !place.fits(handle) {
            return Err(AccessError::Stale(handle));
        }
        // SAFETY: an entry's length has twelve bits and counts from one.
        let class = unsafe { self.class_of_length(place.len()) };
        if self.verify && !self.names_record(number, class.bucket) {
            return Err(damaged("zspage number"));
        }
        let header = self.header(number).ok_or(damaged("zspage number"))?;
        // SAFETY: entries name records of the class of their length (invariant 2 of `Pool`); until the lock word is ours
        // and the entry has been seen again, only the header is used.
        Ok(Found { class, zspage: unsafe { Zspage::new(header, class) }, place })
    }

    /// Finds an object and keeps it from moving. To be undone with [`unpin`](Self::unpin).
    #[inline(always)]
    fn pin(&self, handle: Handle) -> Result<Found<'_>, AccessError> {
        let entry = self.entry_of(handle)?;
        loop {
            // Acquire pairs with the releases of stores and moves.
            let found = self.find(Entry(entry.load(Ordering::Acquire)), handle)?;
            if !found.zspage.lock().try_pin() {
                self.env.cpu().relax();
                continue;
            }
            // Whoever moved or freed the object before we were counted has changed the entry, and we see that.
            if entry.load(Ordering::Acquire) == found.place.0 {
                if self.verify
                    && let Err(damage) = self.verify_object(&found, handle.index())
                {
                    self.unpin(&found);
                    return Err(damage.into());
                }
                return Ok(found);
            }
            self.unpin(&found);
        }
    }

    #[inline(always)]
    fn unpin(&self, found: &Found<'_>) {
        if found.zspage.lock().unpin() {
            self.reap(found);
        }
    }

    /// Frees what was freed while readers were inside. The record may hold another zspage by now, of any class.
    #[cold]
    #[inline(never)]
    fn reap(&self, found: &Found<'_>) {
        let mut released = Released::new();
        let number = found.place.zspage();
        // Whoever ended a zspage found nothing pending.
        let result = self.with_owner(found.zspage.header(), |mut locked| locked.reap(number, &mut released));
        if let Some(Err(damage)) = result {
            self.report_damage(damage);
        }
        self.release(&mut released);
    }

    #[inline(always)]
    fn runs_of(&self, found: &Found<'_>) -> Runs {
        // SAFETY: the object is alive there, so slot and frames exist.
        unsafe { found.zspage.runs_of(found.place.slot(), found.place.len()) }
    }

    /// How many bytes an object has.
    ///
    /// # Errors
    /// [`AccessError::Foreign`], [`AccessError::Stale`].
    pub fn len_of(&self, handle: Handle) -> Result<usize, AccessError> {
        let place = Entry(self.entry_of(handle)?.load(Ordering::Relaxed));
        if place.fits(handle) { Ok(place.len()) } else { Err(AccessError::Stale(handle)) }
    }

    /// Gives access to an object: its own bytes if it lies in one frame, else a copy of them in `buffer`, which must have
    /// room (a buffer of one page always has).
    ///
    /// While the guard holds the object's own bytes, it cannot move, and the memory of objects freed meanwhile in its zspage
    /// is kept; the holder may sleep. Constant time. Contexts: any but interrupt handlers and NMI.
    ///
    /// # Errors
    /// [`AccessError`]: `Foreign`, `Stale`, `BufferTooSmall`, `Corrupt`.
    #[doc(alias("zs_obj_read_begin", "zs_obj_read_end", "zs_map_object"))]
    #[inline]
    pub fn read<'a>(&'a self, handle: Handle, buffer: &'a mut [u8]) -> Result<ReadGuard<'a, E>, AccessError> {
        let found = self.pin(handle)?;
        let runs = self.runs_of(&found);
        if runs.second_len == 0 {
            touch(&found);
            return Ok(ReadGuard { data: Data::Own(PartsGuard { pool: self, found, runs }) });
        }
        let (needed, given) = (found.place.len(), buffer.len());
        let Some(buffer) = buffer.get_mut(..needed) else {
            self.unpin(&found);
            return Err(AccessError::BufferTooSmall { needed, given });
        };
        // SAFETY: pinned, so nobody writes the object or takes its frames; the buffer has its length.
        with_token(&found, || unsafe { runs.read(buffer.as_mut_ptr()) });
        self.unpin(&found);
        Ok(ReadGuard { data: Data::Copy(buffer) })
    }

    /// Gives access to an object's own bytes as one or two pieces: the scatter-list form of [`read`](Self::read), without
    /// a buffer.
    ///
    /// # Errors
    /// [`AccessError`]: `Foreign`, `Stale`, `Corrupt`.
    #[doc(alias = "zs_obj_read_sg_begin")]
    #[inline]
    pub fn read_parts(&self, handle: Handle) -> Result<PartsGuard<'_, E>, AccessError> {
        let found = self.pin(handle)?;
        let runs = self.runs_of(&found);
        touch(&found);
        Ok(PartsGuard { pool: self, found, runs })
    }

    /// Overwrites an object with `data`, whose length must belong to the same size class (as the same length does). For a
    /// short time readers wait.
    ///
    /// # Errors
    /// [`AccessError`]: `Foreign`, `Stale`, `WrongClass`, `Corrupt`; `Busy` if somebody reads an object of the same zspage.
    #[doc(alias = "zs_obj_write")]
    pub fn write(&self, handle: Handle, data: &[u8]) -> Result<(), AccessError> {
        let entry = self.entry_of(handle)?;
        loop {
            let found = self.find(Entry(entry.load(Ordering::Acquire)), handle)?;
            let old = found.place.len();
            if data.is_empty()
                || data.len() > found.class.shape.size()
                || self.geometry.class_of(data.len()) != found.class.index
            {
                return Err(AccessError::WrongClass { len: data.len(), old });
            }
            // Readers spin while the zspage is ours, so this CPU must not be taken away.
            let irqs_off = IrqGuard::new(self.env.cpu());
            if !found.zspage.lock().try_exclusive() {
                drop(irqs_off);
                if found.zspage.lock().has_readers() {
                    return Err(AccessError::Busy);
                }
                self.env.cpu().relax();
                continue;
            }
            let result = if entry.load(Ordering::Acquire) == found.place.0 {
                Some(self.write_locked(&found, entry, handle, data))
            } else {
                None
            };
            let is_pending = found.zspage.lock().end_exclusive();
            drop(irqs_off);
            if is_pending {
                self.reap(&found);
            }
            if let Some(result) = result {
                return result;
            }
        }
    }

    fn write_locked(
        &self,
        found: &Found<'_>,
        entry: &AtomicU64,
        handle: Handle,
        data: &[u8],
    ) -> Result<(), AccessError> {
        let place = found.place;
        if self.verify {
            self.verify_object(found, handle.index())?;
        }
        let damaged = AccessError::Corrupt(Corruption { zspage: place.zspage(), what: "frame word" });
        let runs = found.zspage.runs(place.slot(), data.len()).ok_or(damaged)?;
        let slot = found.zspage.slots().get(place.slot()).ok_or(damaged)?;
        // SAFETY: the zspage is exclusively ours and the object is alive there.
        slot.token.with_mut(|_| unsafe { runs.write(data) });
        if data.len() != place.len() {
            self.change_len(found, entry, data.len());
        }
        Ok(())
    }

    /// Notes another length of an object whose zspage is exclusively the caller's.
    #[cold]
    fn change_len(&self, found: &Found<'_>, entry: &AtomicU64, len: usize) {
        let place = found.place;
        let new = place.moved(len, place.slot(), place.zspage());
        self.locked(found.class, |class| {
            // A free may have come in between.
            if entry.compare_exchange(place.0, new.0, Ordering::Release, Ordering::Relaxed).is_ok() {
                // Sums over a class's states are what counts.
                class.counts.bytes.add(len as i64 - place.len() as i64);
                if self.verify {
                    // SAFETY: verifying pools set records up with lengths.
                    if let Some(slot) = unsafe { found.zspage.lens() }.get(place.slot()) {
                        slot.store(len as u16, Ordering::Relaxed);
                    }
                }
            }
        });
    }
}

/// Tells loom that the object is read here.
#[inline(always)]
fn touch(found: &Found<'_>) {
    with_token(found, || ());
}

#[inline(always)]
fn with_token(found: &Found<'_>, f: impl FnOnce()) {
    if let Some(slot) = found.zspage.slots().get(found.place.slot()) {
        slot.token.with(|_| f());
    }
}

/// An object's own bytes in one piece or two; the object cannot move until this is dropped.
///
/// # Invariants
/// The zspage is pinned, `runs` are the object's bytes.
pub struct PartsGuard<'p, E: ZsEnv> {
    pool: &'p Pool<E>,
    found: Found<'p>,
    runs: Runs,
}

impl<E: ZsEnv> PartsGuard<'_, E> {
    /// The pieces; the second is empty if the object lies in one frame.
    #[inline(always)]
    pub fn parts(&self) -> (&[u8], &[u8]) {
        // SAFETY: nobody writes or moves the object while its zspage is pinned (type invariant).
        let first = unsafe { core::slice::from_raw_parts(self.runs.first, self.runs.first_len) };
        if self.runs.second_len == 0 {
            return (first, &[]);
        }
        // SAFETY: as above.
        (first, unsafe { core::slice::from_raw_parts(self.runs.second, self.runs.second_len) })
    }
}

impl<E: ZsEnv> Drop for PartsGuard<'_, E> {
    #[inline(always)]
    fn drop(&mut self) {
        touch(&self.found);
        self.pool.unpin(&self.found);
    }
}

impl<E: ZsEnv> fmt::Debug for PartsGuard<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartsGuard").field("parts", &self.parts()).finish()
    }
}

/// Access to an object's bytes; from [`Pool::read`].
#[derive(Debug)]
pub struct ReadGuard<'a, E: ZsEnv> {
    data: Data<'a, E>,
}

#[derive(Debug)]
enum Data<'a, E: ZsEnv> {
    Own(PartsGuard<'a, E>),
    Copy(&'a [u8]),
}

impl<E: ZsEnv> ReadGuard<'_, E> {
    /// Whether these are the object's own bytes, not a copy in the caller's buffer.
    pub fn is_borrowed(&self) -> bool {
        matches!(self.data, Data::Own(_))
    }
}

impl<E: ZsEnv> Deref for ReadGuard<'_, E> {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        match &self.data {
            Data::Own(own) => own.parts().0,
            Data::Copy(copy) => copy,
        }
    }
}
