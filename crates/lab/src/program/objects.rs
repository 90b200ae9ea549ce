//! Objects: from their events to operations.

use super::caches::{CacheId, is_metadata, kmalloc_name};
use super::census::Fate;
use super::feed::{DIRECT_MAP, KMALLOC_MAX_CACHE, Program, frame};
use super::op::{OpKind, Ref};
use crate::trace::TraceGfp;

/// A free that comes this many events after its address has been handed out again is that of the object before.
const LATE_FREE: u64 = 64;

/// An object of the trace that is live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) used: Ref,
    pub(super) cache: CacheId,
    /// What Linux took for it.
    pub(super) stride: u64,
    /// Linux's own: not replayed.
    pub(super) metadata: bool,
    /// A kmalloc of whole pages.
    pub(super) large: bool,
    /// Taken from a cache by name, not by kmalloc.
    pub(super) named: bool,
    /// Stands in a slab of the books.
    pub(super) booked: bool,
    /// Given to `kvfree_rcu`: dead to its owner, not yet seen freed.
    pub(super) deferred: bool,
}

/// What one allocation event says of an object.
pub(super) struct Birth<'a> {
    pub(super) ptr: u64,
    pub(super) cache: CacheId,
    pub(super) stride: u64,
    pub(super) call_site: &'a [u8],
    pub(super) cache_name: Option<&'a [u8]>,
    pub(super) large: bool,
}

impl Program {
    pub(super) fn kmalloc(
        &mut self,
        call_site: &[u8],
        ptr: u64,
        size: u64,
        alloc: u64,
        gfp: TraceGfp,
        node: i32,
    ) -> Fate {
        if ptr == 16 {
            self.census.nothing_to_do += 1;
            return Fate::Replayed;
        }
        let large = alloc > KMALLOC_MAX_CACHE;
        let pfn = frame(ptr);
        if large && let Some(pfn) = pfn {
            self.not_plain_pages(pfn);
            let _ = self.linux.remove(pfn);
        }
        let told = pfn.and_then(|p| self.linux.at(p)).filter(|v| v.probed).and_then(|v| v.cache);
        let cache = told.unwrap_or_else(|| {
            let name = if large { "kmalloc-large".into() } else { kmalloc_name(alloc, gfp) };
            self.caches.id(name.as_bytes(), 0, 0)
        });
        let birth = Birth { ptr, cache, stride: alloc, call_site, cache_name: None, large };
        self.born(&birth, |object| OpKind::Kmalloc { object, size, gfp, node })
    }

    pub(super) fn born(&mut self, birth: &Birth<'_>, op: impl FnOnce(Ref) -> OpKind) -> Fate {
        if birth.ptr == 0 {
            return Fate::FailedInTrace;
        }
        match self.enter(birth) {
            Some(used) => self.object_op(op(used)),
            None => Fate::Metadata,
        }
    }

    pub(super) fn object_op(&mut self, op: OpKind) -> Fate {
        if !self.has_objects() {
            return Fate::OtherLevel;
        }
        self.push(op);
        Fate::Replayed
    }

    /// Books an object; `None` if it is Linux's own.
    pub(super) fn enter(&mut self, birth: &Birth<'_>) -> Option<Ref> {
        if let Some(old) = self.objects.remove(&birth.ptr)
            && !old.deferred
        {
            // Its free was lost, or comes late.
            self.census.reused_live += 1;
            self.late.insert(birth.ptr, self.census.events + LATE_FREE);
            self.release(birth.ptr, &old);
            if !old.metadata && self.has_objects() {
                self.push(OpKind::Kfree { object: old.used });
            }
        }
        let metadata = is_metadata(birth.call_site, birth.cache_name);
        let pfn = frame(birth.ptr).filter(|_| !birth.large);
        let seen = pfn.and_then(|p| self.linux.at(p)).is_some_and(|v| v.probed);
        let booked = pfn.is_some_and(|p| self.linux.object(p, birth.cache, metadata));
        if !booked && !metadata && !birth.large {
            self.linux.older_object(birth.stride, true);
        }
        let used = if metadata { Ref { slot: u32::MAX, turn: 0, seen } } else { self.object_slots.take(seen) };
        let object = Object {
            used,
            cache: birth.cache,
            stride: birth.stride,
            metadata,
            large: birth.large,
            named: birth.cache_name.is_some(),
            booked,
            deferred: false,
        };
        self.objects.insert(birth.ptr, object);
        (!metadata).then_some(used)
    }

    /// Takes an object out of Linux's books and gives its slot back.
    pub(super) fn release(&mut self, ptr: u64, object: &Object) {
        if object.booked {
            if let Some(pfn) = frame(ptr) {
                self.linux.object_freed(pfn);
            }
        } else if !object.metadata && !object.large {
            self.linux.older_object(object.stride, false);
        }
        if !object.metadata {
            self.object_slots.retire(object.used);
        }
        if object.large
            && let Some(pfn) = frame(ptr)
        {
            self.expected.insert(pfn, ());
        }
    }

    /// The free of `ptr`, if it is one of something live: the object, or what to say of the event.
    pub(super) fn take(&mut self, ptr: u64) -> Result<Object, Fate> {
        if ptr == 0 || ptr == 16 {
            self.census.nothing_to_do += 1;
            return Err(Fate::Replayed);
        }
        if !self.late.is_empty()
            && let Some(until) = self.late.remove(&ptr)
            && self.census.events <= until
        {
            return Err(Fate::Duplicate);
        }
        match self.objects.remove(&ptr) {
            Some(object) if object.deferred => Err(Fate::Duplicate),
            Some(object) => {
                self.release(ptr, &object);
                if object.metadata { Err(Fate::Metadata) } else { Ok(object) }
            }
            None => Err(Fate::UnmatchedFree),
        }
    }

    pub(super) fn dies(&mut self, ptr: u64, named: bool) -> Fate {
        match self.take(ptr) {
            Ok(o) if named && o.named => self.object_op(OpKind::CacheFree { object: o.used, cache: o.cache }),
            Ok(o) => self.object_op(OpKind::Kfree { object: o.used }),
            Err(fate) => fate,
        }
    }

    pub(super) fn deferred(&mut self, ptr: u64) -> Fate {
        if (DIRECT_MAP.end..0xffff_ea00_0000_0000).contains(&ptr) {
            // vmalloc's: the area's own event follows.
            return Fate::Bookkeeping;
        }
        match self.take(ptr) {
            Ok(object) => {
                self.objects.insert(ptr, Object { deferred: true, booked: false, ..object });
                self.object_op(OpKind::KfreeRcu { object: object.used })
            }
            Err(fate) => fate,
        }
    }

    pub(super) fn free_bulk(&mut self, list: &[u64]) -> Fate {
        let mut by_cache: Vec<(CacheId, Vec<Ref>)> = Vec::new();
        let mut fate = Fate::Bookkeeping;
        for &ptr in list {
            match self.take(ptr) {
                Ok(o) if !o.named => fate = self.object_op(OpKind::Kfree { object: o.used }),
                Ok(o) => match by_cache.iter_mut().find(|(c, _)| *c == o.cache) {
                    Some((_, refs)) => refs.push(o.used),
                    None => by_cache.push((o.cache, vec![o.used])),
                },
                Err(other) => fate = other,
            }
        }
        for (cache, refs) in by_cache {
            fate = self.object_op(OpKind::CacheFreeBulk { objects: refs.into(), cache });
        }
        fate
    }
}
