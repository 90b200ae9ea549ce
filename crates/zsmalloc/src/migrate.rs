//! Moving a frame from under a zspage: the pool as the owner of movable frames.
//!
//! A frame's words lead to its zspage; whether that is still true is checked in the section of the zspage's owner, where frames
//! come and go.

use kmem_gfp::{FrameTable, MigrateError, MovableOwner, PAGE_SIZE, Pfn};
use kmem_sync::atomic::Ordering;

use crate::locked::Locked;
use crate::released::Released;
use crate::zspage::{FIRST_SPECIAL, FrameWord, Zspage};
use crate::{Pool, ZsEnv};

impl<E: ZsEnv> Pool<E> {
    /// Runs `f` on the zspage over a frame, inside its owner's section; `None` if the frame does not hold objects of this pool.
    fn with_frame<'p, R>(
        &'p self,
        pfn: Pfn,
        f: impl FnOnce(&mut Locked<'p, '_, E>, u32, &Zspage<'p>, usize, &mut Released) -> R,
    ) -> Option<R> {
        let state = self.frame_state(pfn)?;
        let (number, frame, header) = self.header_from_state(state)?;
        let mut released = Released::new();
        let result = self.with_owner(header, |mut locked| {
            if self.frame_state(pfn) != Some(state) {
                return None;
            }
            let zspage = locked.zspage(number).map_err(|damage| self.report_damage(damage)).ok()?;
            let word = zspage.frame(frame);
            if !word.is_backed() || self.env.frames().frame_of(word.address()) != Some(pfn) {
                return None;
            }
            Some(f(&mut locked, number, &zspage, frame, &mut released))
        });
        self.release(&mut released);
        result.flatten()
    }
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Gives an isolated frame back its freedom; if nothing is on it, it goes.
    fn end_isolation(&mut self, number: u32, zspage: &Zspage<'p>, frame: usize, released: &mut Released) {
        let word = zspage.frame(frame).with_isolated(false);
        zspage.set_frame(frame, word);
        if word.live() == 0 {
            self.unback(zspage, frame, released);
            if let Err(damage) = self.settle(number, zspage, released) {
                self.pool.report_damage(damage);
            }
        }
    }
}

// SAFETY: an isolated frame's word says so, and `unback`, the only place where frames leave a zspage (but for `drop`, which
// leaves isolated frames alone), refuses such frames. A successful `migrate` has replaced the address in the frame's word,
// which is the only reference to a frame besides its own words (cleared) and runs of pinned objects (none, as the lock word
// was exclusive).
unsafe impl<E: ZsEnv + Sync> MovableOwner for Pool<E> {
    fn isolate(&self, pfn: Pfn) -> bool {
        self.with_frame(pfn, |_, _, zspage, frame, _| {
            let word = zspage.frame(frame);
            if word.is_isolated() {
                return false;
            }
            zspage.set_frame(frame, word.with_isolated(true));
            true
        })
        .unwrap_or(false)
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        let Some(to) = self.env.frames().address_of(target) else { return Err(MigrateError::Permanent(target)) };
        self.with_frame(source, |locked, number, zspage, frame, released| {
            let word = zspage.frame(frame);
            if !word.is_isolated() {
                return Err(MigrateError::Permanent(source));
            }
            let (start, end) = zspage.shape().slots_of(frame);
            let slots = zspage.slots().get(start..end).unwrap_or(&[]);
            if !zspage.lock().try_exclusive() {
                return Err(MigrateError::Again(source));
            }
            let objects = slots.iter().filter(|slot| slot.owner.load(Ordering::Relaxed) < FIRST_SPECIAL);
            for slot in objects {
                // Tells loom that the objects' bytes change places here.
                slot.token.with_mut(|_| ());
            }
            let from = core::ptr::with_exposed_provenance::<u8>(word.address());
            // SAFETY: nobody is inside the zspage, and stores to it happen in this section, so the source does not change; the target is the
            // caller's and unused. Both are whole frames.
            unsafe { to.as_ptr().copy_from_nonoverlapping(from, PAGE_SIZE) };
            self.claim_frame(target, u64::from(number) << 8 | frame as u64);
            zspage.set_frame(frame, FrameWord::at(word, to));
            self.disclaim_frame(source);
            let _ = zspage.lock().end_exclusive();
            locked.end_isolation(number, zspage, frame, released);
            Ok(())
        })
        .unwrap_or(Err(MigrateError::Permanent(source)))
    }

    fn put_back(&self, pfn: Pfn) {
        let _ = self.with_frame(pfn, |locked, number, zspage, frame, released| {
            locked.end_isolation(number, zspage, frame, released);
        });
    }
}
