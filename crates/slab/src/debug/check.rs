//! What should be there, and what is: one object, one slab's chain. Every mismatch is reported once and repaired.

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, Order};

use super::{POISON_END, POISON_FREE, POISON_INUSE, RED_ACTIVE, Use, poisons_objects, report, requested};
use crate::slab::Slab;
use crate::{KmemCache, SlabFlags};

/// A stretch of bytes that should all be equal.
struct Stretch {
    what: &'static str,
    offset: isize,
    len: usize,
    byte: u8,
}

/// Checks one stretch; a mismatch is reported (the first with everything known of the object) and repaired.
fn stretch<C: AllocContext>(
    context: &C,
    cache: &KmemCache,
    slab: &Slab<'_>,
    object: NonNull<u8>,
    Stretch { what, offset, len, byte }: Stretch,
    errors: &mut usize,
) {
    // SAFETY: stretches are parts of the object's slot; users who overwrite them are what is looked for.
    let bytes = unsafe { core::slice::from_raw_parts_mut(object.as_ptr().offset(offset), len) };
    let Some(first) = bytes.iter().position(|found| *found != byte) else { return };
    let last = bytes.iter().rposition(|found| *found != byte).unwrap_or(first);
    let found = bytes.get(first).copied().unwrap_or(0);
    let start = object.addr().get().wrapping_add_signed(offset);
    report::bug(context, cache, format_args!("{what} overwritten"));
    context.report(format_args!(
        "{:#018x} - {:#018x} @offset={}. First byte {found:#x} instead of {byte:#x}",
        start + first,
        start + last,
        (start + first).wrapping_sub(slab.base.addr().get())
    ));
    if *errors == 0 {
        report::object(context, cache, slab, object);
    }
    *errors += 1;
    bytes.fill(byte);
    report::fix(context, cache, format_args!("Restoring {what} {:#x}-{:#x}={byte:#x}", start + first, start + last));
}

/// Checks an object that should be in the given use. Returns how many things were wrong; all are repaired.
pub(crate) fn object<C: AllocContext>(
    context: &C,
    cache: &KmemCache,
    slab: &Slab<'_>,
    object: NonNull<u8>,
    as_what: Use,
) -> usize {
    let layout = &cache.layout;
    let mut errors = 0;
    let mut check = |what, offset, len, byte| {
        stretch(context, cache, slab, object, Stretch { what, offset, len, byte }, &mut errors);
    };
    let behind = layout.object_size as isize;
    let gap = layout.inuse - layout.object_size;
    if cache.flags.contains(SlabFlags::RED_ZONE) {
        check("Left Redzone", -(layout.left_pad as isize), layout.left_pad, as_what.red());
        check("Right Redzone", behind, gap, as_what.red());
        if as_what == Use::Allocated
            && let Some(size) = requested(cache, object)
            && size < layout.object_size
        {
            check("kmalloc Redzone", size as isize, layout.object_size - size, RED_ACTIVE);
        }
    } else if cache.flags.contains(SlabFlags::POISON) && gap > 0 {
        check("Alignment padding", behind, gap, POISON_INUSE);
    }
    if cache.flags.contains(SlabFlags::POISON) {
        if as_what == Use::Free && poisons_objects(cache) {
            let size = layout.object_size;
            check("Poison", 0, size - 1, POISON_FREE);
            check("End Poison", size as isize - 1, 1, POISON_END);
        }
        let end = layout.stride - layout.left_pad;
        check("Object padding", layout.meta_end as isize, end - layout.meta_end, POISON_INUSE);
    }
    if as_what == Use::Free {
        // SAFETY: the caller says that the object is free, so its link has been written.
        let next = unsafe { cache.next(object) };
        if !next.is_null() && slab.index(cache, slab.state().total(), next).is_none() {
            report::bug(context, cache, format_args!("Freepointer corrupt"));
            report::object(context, cache, slab, object);
            report::fix(context, cache, format_args!("Ending the free list at {:#x}", object.addr()));
            // SAFETY: free; what followed is lost, and the chain check corrects the counts.
            unsafe { cache.set_next(object, core::ptr::null_mut()) };
            errors += 1;
        }
    }
    errors
}

/// Checks the bytes behind the last slot.
pub(crate) fn tail<C: AllocContext>(context: &C, cache: &KmemCache, slab: &Slab<'_>, order: Order) -> usize {
    if !cache.flags.contains(SlabFlags::POISON) {
        return 0;
    }
    let used = slab.state().total() * cache.stride();
    let len = order.size_bytes().saturating_sub(used);
    // SAFETY: the bytes lie in the slab's block and belong to no slot.
    let bytes = unsafe { core::slice::from_raw_parts_mut(slab.base.as_ptr().add(used), len) };
    let Some(first) = bytes.iter().position(|byte| *byte != POISON_INUSE) else { return 0 };
    report::bug(context, cache, format_args!("Padding overwritten. First at offset {}", used + first));
    report::slab_line(context, cache, slab);
    report::fix(context, cache, format_args!("Restoring slab padding"));
    bytes.fill(POISON_INUSE);
    1
}

/// What walking a slab's chain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Whether slot `search` is on it.
    pub(crate) found: bool,
    /// Whether it is sound.
    pub(crate) sound: bool,
}

/// Walks the chain, looking for slot `search`. Pointers out of the slab end it there; a chain longer or shorter than the
/// counts say corrects the counts. The list lock is held.
pub(crate) fn chain<C: AllocContext>(context: &C, cache: &KmemCache, slab: &Slab<'_>, search: Option<usize>) -> Chain {
    let state = slab.state();
    let total = state.total();
    let mut at = state.head();
    let mut before = None;
    let mut length = 0;
    let mut found = false;
    let mut sound = state.inuse() <= total;
    while let Some(index) = at {
        if length >= total {
            report::bug(context, cache, format_args!("Freelist cycle detected"));
            report::slab_line(context, cache, slab);
            sound = false;
            break;
        }
        found |= search == Some(index);
        length += 1;
        let object = slab.object(cache, index);
        // SAFETY: on the chain, so free.
        let next = unsafe { cache.next(object) };
        at = match next.is_null() {
            true => None,
            false => slab.index(cache, total, next),
        };
        if at.is_none() && !next.is_null() {
            report::bug(context, cache, format_args!("Freechain corrupt"));
            report::object(context, cache, slab, object);
            // SAFETY: free.
            unsafe { cache.set_next(object, core::ptr::null_mut()) };
            report::fix(context, cache, format_args!("Isolate corrupted freechain"));
            sound = false;
        }
        before = Some(index);
    }
    let _ = before;
    if sound && length != state.free() {
        report::bug(
            context,
            cache,
            format_args!("Wrong number of free objects: {length} on the list, {} counted", state.free()),
        );
        report::slab_line(context, cache, slab);
        sound = false;
    }
    Chain { found, sound }
}
