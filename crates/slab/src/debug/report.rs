//! The text of a report: what is wrong, who touched the object, and the bytes around it.
//!
//! ```text
//! =============================================================================
//! BUG kmalloc-64: Right Redzone overwritten
//! -----------------------------------------------------------------------------
//! 0x... - 0x... @offset=64. First byte 0x12 instead of 0xcc
//! Allocated in driver.rs:17 age=3 cpu=0
//! Slab 0x... objects=21 used=4 fp=0x... order=0
//! Object 0x... @offset=128 fp=0x...
//! Redzone  0x...: cc cc cc cc cc cc cc cc                          ........
//! Object   0x...: 6b 6b ...
//! FIX kmalloc-64: Restoring Right Redzone 0x...-0x...=0xcc
//! ```

use core::fmt;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, PAGE_SIZE};

use super::{Track, TrackKind, track};
use crate::KmemCache;
use crate::slab::Slab;

const RULE: &str = "=============================================================================";
const DASHES: &str = "-----------------------------------------------------------------------------";

/// Sixteen bytes, in hexadecimal and as text.
struct Row<'b>(&'b [u8]);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for at in 0..16 {
            match self.0.get(at) {
                Some(byte) => write!(f, "{byte:02x} ")?,
                None => f.write_str("   ")?,
            }
        }
        f.write_str(" ")?;
        for &byte in self.0 {
            let shown = if byte.is_ascii_graphic() { byte as char } else { '.' };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}

fn rows<C: AllocContext>(context: &C, label: &str, from: NonNull<u8>, len: usize) {
    let mut at = 0;
    while at < len {
        let count = (len - at).min(16);
        // SAFETY: callers name parts of a slab's block, which is mapped; what users write meanwhile may tear.
        let row = unsafe { core::slice::from_raw_parts(from.as_ptr().add(at), count) };
        context.report(format_args!("{label:<8} {:#018x}: {}", from.addr().get() + at, Row(row)));
        at += count;
    }
}

fn one_track<C: AllocContext>(context: &C, what: &str, track: Track) {
    if let Some(location) = track.location {
        let age = context.now_ms().saturating_sub(track.when_ms);
        let cpu = track.cpu as i32;
        context.report(format_args!(
            "{what} in {}:{} age={age} cpu={cpu} task={:#x}",
            location.file(),
            location.line(),
            track.task_flags
        ));
    }
}

/// Who allocated and freed the object last, if the cache stores users.
pub(crate) fn tracks<C: AllocContext>(context: &C, cache: &KmemCache, object: NonNull<u8>) {
    for (kind, what) in [(TrackKind::Alloc, "Allocated"), (TrackKind::Free, "Freed")] {
        if let Some(track) = track(cache, object, kind) {
            one_track(context, what, track);
        }
    }
}

/// The head of a report.
pub(crate) fn bug<C: AllocContext>(context: &C, cache: &KmemCache, what: fmt::Arguments<'_>) {
    context.report(format_args!("{RULE}"));
    context.report(format_args!("BUG {}: {what}", cache.name()));
    context.report(format_args!("{DASHES}"));
}

/// The slab's line.
pub(crate) fn slab_line<C: AllocContext>(context: &C, cache: &KmemCache, slab: &Slab<'_>) {
    let state = slab.state();
    let head = state.head().map_or(0, |index| slab.object(cache, index).addr().get());
    context.report(format_args!(
        "Slab {:#018x} objects={} used={} fp={head:#018x} order={}{}",
        slab.base.addr(),
        state.total(),
        state.inuse(),
        state.order().get(),
        if state.is_frozen() { " frozen" } else { "" }
    ));
}

/// Tracks, slab and bytes of an object: the body of a report.
pub(crate) fn object<C: AllocContext>(context: &C, cache: &KmemCache, slab: &Slab<'_>, object: NonNull<u8>) {
    let layout = &cache.layout;
    tracks(context, cache, object);
    slab_line(context, cache, slab);
    let offset = object.addr().get().wrapping_sub(slab.base.addr().get());
    // SAFETY: the object is in its slab; whatever the link holds is only printed.
    let link = unsafe { cache.next(object) };
    context.report(format_args!("Object {:#018x} @offset={offset} fp={link:p}", object.addr()));
    if layout.left_pad > 0 {
        // SAFETY: the left red zone belongs to the slot.
        rows(context, "Redzone", unsafe { object.sub(layout.left_pad) }, layout.left_pad);
    } else if offset >= 16 {
        // SAFETY: inside the slab, as the offset says.
        rows(context, "Bytes b4", unsafe { object.sub(16) }, 16);
    }
    rows(context, "Object", object, layout.object_size.min(PAGE_SIZE));
    if layout.inuse > layout.object_size {
        // SAFETY: inside the slot.
        rows(context, "Redzone", unsafe { object.add(layout.object_size) }, layout.inuse - layout.object_size);
    }
    let end = layout.stride - layout.left_pad;
    if end > layout.meta_end {
        // SAFETY: inside the slot.
        rows(context, "Padding", unsafe { object.add(layout.meta_end) }, end - layout.meta_end);
    }
}

/// What was done about it.
pub(crate) fn fix<C: AllocContext>(context: &C, cache: &KmemCache, what: fmt::Arguments<'_>) {
    context.report(format_args!("FIX {}: {what}", cache.name()));
}
