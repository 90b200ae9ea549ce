//! Many objects back into their slabs at once: grouped by slab, each group spliced in by one exchange.
//!
//! ```text
//! objects   a1 b1 a2 c1 b2 ─▶ places ──▶ groups │ a: a2 ▶ a1 │ b: b2 ▶ b1 │ c: c1 │
//!                             (by frame)                │
//!                                                       ├─ stays partial: exchange, no lock
//!                                                       └─ was full or runs empty: all such groups under one hold of the list lock
//! ```
//!
//! Groups and places are a few hundred bytes of stack, so objects come in portions of [`PORTION`].

use core::ptr::NonNull;

use kmem_gfp::PAGE_SHIFT;

use crate::backend::Locking;
use crate::node::Node;
use crate::slab::{Slab, owner_node};
use crate::{KmemCache, ObjectError, SlabEnv, Slabs};

/// Objects that are grouped at once.
const PORTION: usize = 32;
/// As many as the sheaves of large objects hold, for which a whole portion's table would be dear.
const FEW: usize = 4;
/// Places where a slab's group is looked up by its frame: a power of two, twice the groups there can be.
const PLACES: usize = 2 * PORTION;

/// Free objects of one slab, linked: `head` is a slot, `tail` the first object found.
#[derive(Clone, Copy)]
struct Group<'a> {
    slab: Slab<'a>,
    owner: u64,
    total: usize,
    head: usize,
    first: NonNull<u8>,
    tail: NonNull<u8>,
    count: usize,
}

/// The groups of a portion.
struct Groups<'a, const N: usize> {
    groups: [Option<Group<'a>>; N],
    len: usize,
    /// A group's number plus one, or zero.
    places: [u8; PLACES],
}

impl<'a, const N: usize> Groups<'a, N> {
    /// The group of the slab, which is new if the result says so. `None` if there is no room, which a portion leaves.
    fn place(&mut self, slab: &Slab<'a>) -> Option<usize> {
        let mut at = (slab.pfn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PLACES.ilog2())) as usize;
        loop {
            let place = self.places.get_mut(at % PLACES)?;
            let Some(number) = (*place as usize).checked_sub(1) else {
                *place = (self.len + 1) as u8;
                return Some(self.len);
            };
            if self.groups.get(number)?.as_ref()?.slab.pfn == slab.pfn {
                return Some(number);
            }
            at += 1;
        }
    }
}

/// What came of many frees: how many were refused, and why the first was.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) count: usize,
    pub(crate) first: Option<ObjectError>,
}

impl<E: SlabEnv> Slabs<E> {
    /// Puts many objects back, those of one slab by one exchange as far as they are in one portion.
    ///
    /// # Safety
    /// The caller gives up the objects.
    pub(crate) unsafe fn put_objects(&self, cache: &KmemCache, objects: &[*mut u8], how: Locking) -> Refused {
        let mut refused = Refused::default();
        if objects.len() <= FEW {
            // SAFETY: given up by the caller.
            unsafe { self.put_portion::<FEW>(cache, objects, how, &mut refused) };
            return refused;
        }
        for portion in objects.chunks(PORTION) {
            // SAFETY: given up by the caller.
            unsafe { self.put_portion::<PORTION>(cache, portion, how, &mut refused) };
        }
        refused
    }

    /// # Safety
    /// As for [`put_objects`](Self::put_objects).
    unsafe fn put_portion<const N: usize>(
        &self,
        cache: &KmemCache,
        objects: &[*mut u8],
        how: Locking,
        refused: &mut Refused,
    ) {
        let mut groups = Groups { groups: [None; N], len: 0, places: [0; PLACES] };
        let mut rest = objects.iter();
        let mut ahead = rest.next();
        while let Some(&object) = ahead {
            ahead = rest.next();
            let Some(object) = NonNull::new(object) else { continue };
            let group = match self.group_of(cache, &mut groups, object) {
                Ok(group) => group,
                Err(error) => {
                    self.refuse(cache, refused, 1, error);
                    continue;
                }
            };
            // Neighbours on one page need no look at their frame.
            while let Some(&object) = ahead
                && object.addr() >> PAGE_SHIFT == group.first.addr().get() >> PAGE_SHIFT
                && let Some(index) = group.slab.index(cache, group.total, object)
                && let Some(object) = NonNull::new(object)
            {
                // SAFETY: given up by the caller.
                unsafe { cache.set_next(object, group.first.as_ptr()) };
                (group.head, group.first) = (index, object);
                group.count += 1;
                ahead = rest.next();
            }
        }
        // SAFETY: the groups are of objects that the caller gave up.
        unsafe { self.put_groups(cache, groups.groups.get_mut(..groups.len).unwrap_or_default(), how, refused) };
    }

    /// The group of the object's slab, with the object in it.
    fn group_of<'a, 'g, const N: usize>(
        &'a self,
        cache: &KmemCache,
        groups: &'g mut Groups<'a, N>,
        object: NonNull<u8>,
    ) -> Result<&'g mut Group<'a>, ObjectError> {
        let address = object.addr().get();
        let (owner, slab) = Slab::find(self.env.frames(), object).ok_or(ObjectError::NotSlab { address })?;
        let total = slab.state().total();
        let head = slab.index(cache, total, object.as_ptr()).ok_or(ObjectError::NotAnObject { address })?;
        let number = groups.place(&slab).ok_or(ObjectError::Corrupted { address })?;
        let place = groups.groups.get_mut(number).ok_or(ObjectError::Corrupted { address })?;
        match place {
            Some(group) => {
                // SAFETY: given up by the caller.
                unsafe { cache.set_next(object, group.first.as_ptr()) };
                (group.head, group.first) = (head, object);
                group.count += 1;
                Ok(group)
            }
            None => {
                groups.len = number + 1;
                Ok(place.insert(Group { slab, owner, total, head, first: object, tail: object, count: 1 }))
            }
        }
    }

    /// Splices every group into its slab.
    ///
    /// # Safety
    /// The groups' objects have been given up.
    unsafe fn put_groups(
        &self,
        cache: &KmemCache,
        groups: &mut [Option<Group<'_>>],
        how: Locking,
        refused: &mut Refused,
    ) {
        let mut home: Option<(&Node, u64)> = None;
        let mut locked = 0;
        for place in groups.iter_mut() {
            let Some(group) = *place else { continue };
            // SAFETY: the group's objects were given up.
            match unsafe { self.push_unlocked(cache, &group.slab, group.head, group.tail, group.count) } {
                Ok(true) => *place = None,
                // Of the first such group's node; others go one by one.
                Ok(false)
                    if home.is_none_or(|(_, owner)| owner == group.owner) && owner_node(group.owner).is_some() =>
                {
                    locked += 1;
                    if home.is_none() {
                        home = self.node_of_slab(cache, group.owner, &group.slab).map(|node| (node, group.owner));
                    }
                }
                // SAFETY: as above.
                Ok(false) => match unsafe { self.put_group(cache, place.take(), how) } {
                    Ok(()) => {}
                    Err(error) => self.refuse(cache, refused, group.count, error),
                },
                Err(error) => {
                    *place = None;
                    self.refuse(cache, refused, group.count, error);
                }
            }
        }
        let Some((node, _)) = home.filter(|_| locked > 0) else { return };
        let mut failed: Option<(usize, ObjectError)> = None;
        let done = node.with(self.env.cpu(), how, |slabs| {
            for place in groups.iter_mut() {
                let Some(group) = *place else { continue };
                // SAFETY: as above.
                match unsafe { self.push_locked(cache, slabs, &group.slab, group.head, group.tail, group.count, how) } {
                    // What is left is to be released.
                    Ok(true) => {}
                    Ok(false) => *place = None,
                    Err(error) => {
                        *place = None;
                        failed =
                            Some(failed.map_or((group.count, error), |(count, first)| (count + group.count, first)));
                    }
                }
            }
        });
        if let Some((count, error)) = failed {
            self.refuse(cache, refused, count, error);
        }
        for group in groups.iter_mut().filter_map(Option::take) {
            match done {
                Some(()) => self.release_slab(cache, node, &group.slab),
                // SAFETY: as above; the lock was not to be had.
                None => unsafe { self.defer_chain(cache, &group.slab, group.head, group.count) },
            }
        }
    }

    /// # Safety
    /// The group's objects have been given up.
    unsafe fn put_group(&self, cache: &KmemCache, group: Option<Group<'_>>, how: Locking) -> Result<(), ObjectError> {
        let Some(group) = group else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { self.put_chain(cache, group.owner, &group.slab, group.head, group.tail, group.count, how) }
    }

    #[cold]
    fn refuse(&self, cache: &KmemCache, refused: &mut Refused, count: usize, error: ObjectError) {
        refused.count += count;
        refused.first.get_or_insert(error);
        self.report_refused(cache, error);
    }
}
