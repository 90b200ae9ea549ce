//! Debug options of a cache: what is written around objects, who is remembered, and the paths that check it.
//!
//! ```text
//! options   which caches get which options: the language of `slab_debug=`
//! check     one object, one slab: what should be there, and what is
//! report    the text of a report
//! paths     allocation, free and validation under the list lock
//! ```
//!
//! A cache with a debug option has no sheaves: each of its calls goes through here, under the list lock.

mod check;
mod options;
mod paths;
mod report;

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::Order;

pub use options::{CacheDebug, DebugOptions};
pub(crate) use paths::{check_slab_padding, report_tracks};

use crate::slab::Slab;
use crate::{KmemCache, SlabFlags};

/// Bytes of a red zone beside a free object.
pub const RED_INACTIVE: u8 = 0xbb;
/// Bytes of a red zone beside an object in use.
pub const RED_ACTIVE: u8 = 0xcc;
/// Bytes of a free object.
pub const POISON_FREE: u8 = 0x6b;
/// The last byte of a free object.
pub const POISON_END: u8 = 0xa5;
/// Bytes of padding and of memory never used.
pub const POISON_INUSE: u8 = 0x5a;

/// Who allocated or freed an object, and when.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Track {
    /// The call; `None` if there has been none.
    pub location: Option<&'static Location<'static>>,
    /// Milliseconds of the context's clock.
    pub when_ms: u64,
    /// The CPU, `u32::MAX` if the caller had none.
    pub cpu: u32,
    /// The state of the task, as [`TaskFlags`](kmem_gfp::TaskFlags) bits.
    pub task_flags: u32,
    reserved: u64,
}

impl Track {
    pub(crate) const NONE: Self = Self { location: None, when_ms: 0, cpu: u32::MAX, task_flags: 0, reserved: 0 };

    pub(crate) const fn new(location: &'static Location<'static>, when_ms: u64, cpu: u32, task_flags: u32) -> Self {
        Self { location: Some(location), when_ms, cpu, task_flags, reserved: 0 }
    }
}

/// Which of an object's two tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackKind {
    /// The last allocation.
    Alloc = 0,
    /// The last free.
    Free = 1,
}

/// What an object is being used as, as far as its surroundings tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    Allocated,
}

impl Use {
    pub(crate) const fn red(self) -> u8 {
        match self {
            Self::Free => RED_INACTIVE,
            Self::Allocated => RED_ACTIVE,
        }
    }
}

/// Whether free objects are filled: not where their contents mean something.
pub(crate) fn poisons_objects(cache: &KmemCache) -> bool {
    cache.flags.contains(SlabFlags::POISON) && !cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU) && cache.ctor.is_none()
}

/// Writes `len` bytes from the object's byte `offset` on, which may lie in its left red zone.
fn fill(object: NonNull<u8>, offset: isize, len: usize, byte: u8) {
    // SAFETY: callers name parts of the object's slot, which is theirs.
    unsafe { object.as_ptr().offset(offset).write_bytes(byte, len) };
}

/// Fills a new slab's block, padding and all.
pub(crate) fn init_slab(cache: &KmemCache, slab: &Slab<'_>, order: Order) {
    if cache.flags.contains(SlabFlags::POISON) {
        fill(slab.base, 0, order.size_bytes(), POISON_INUSE);
    }
}

/// Prepares the surroundings of a new slab's object.
pub(crate) fn init_object(cache: &KmemCache, object: NonNull<u8>) {
    if cache.flags.intersects(SlabFlags::DEBUG_METADATA) {
        mark(cache, object, Use::Free);
        set_track(cache, object, TrackKind::Alloc, Track::NONE);
        set_track(cache, object, TrackKind::Free, Track::NONE);
        set_requested(cache, object, cache.object_size());
    }
}

/// Writes red zones and poison for the given use.
pub(crate) fn mark(cache: &KmemCache, object: NonNull<u8>, as_what: Use) {
    let layout = &cache.layout;
    let mut end = layout.object_size;
    if cache.flags.contains(SlabFlags::RED_ZONE) {
        fill(object, -(layout.left_pad as isize), layout.left_pad, as_what.red());
        if as_what == Use::Allocated && layout.size_offset.is_some() {
            end = requested(cache, object).unwrap_or(end).min(end);
            fill(object, end as isize, layout.object_size - end, RED_ACTIVE);
        }
    }
    if poisons_objects(cache) && end > 0 {
        fill(object, 0, end - 1, POISON_FREE);
        fill(object, end as isize - 1, 1, POISON_END);
    }
    if cache.flags.contains(SlabFlags::RED_ZONE) {
        fill(object, layout.object_size as isize, layout.inuse - layout.object_size, as_what.red());
    }
}

fn track_at(cache: &KmemCache, object: NonNull<u8>, kind: TrackKind) -> Option<*mut Track> {
    let offset = cache.layout.track_offset? + kind as usize * size_of::<Track>();
    // SAFETY: the tracks lie inside the slot.
    Some(unsafe { object.as_ptr().add(offset) }.cast())
}

/// Notes who touched the object last.
pub(crate) fn set_track(cache: &KmemCache, object: NonNull<u8>, kind: TrackKind, track: Track) {
    if let Some(place) = track_at(cache, object, kind) {
        // SAFETY: inside the slot, which the caller holds.
        unsafe { place.write_unaligned(track) };
    }
}

/// Who touched the object last; `None` in caches that do not store users.
pub(crate) fn track(cache: &KmemCache, object: NonNull<u8>, kind: TrackKind) -> Option<Track> {
    // SAFETY: written when the slab was made.
    track_at(cache, object, kind).map(|place| unsafe { place.read_unaligned() })
}

/// The requested size; `None` in caches that do not track it.
pub(crate) fn requested(cache: &KmemCache, object: NonNull<u8>) -> Option<usize> {
    let offset = cache.layout.size_offset?;
    // SAFETY: inside the slot, written when the slab was made.
    Some(unsafe { object.as_ptr().add(offset).cast::<usize>().read_unaligned() })
}

/// Notes the requested size.
pub(crate) fn set_requested(cache: &KmemCache, object: NonNull<u8>, size: usize) {
    if let Some(offset) = cache.layout.size_offset {
        // SAFETY: inside the slot, which the caller holds.
        unsafe { object.as_ptr().add(offset).cast::<usize>().write_unaligned(size) };
    }
}
