//! Where things lie inside one object slot. Pure arithmetic.
//!
//! ```text
//! plain      │ object ........ free pointer in its middle ........ │ pad │          object_size ≤ inuse ≤ stride
//! typesafe   │ object ................................ │ pad │ free pointer │ pad │
//! debugged   │ left red zone │ object │ red zone │ free pointer │ alloc track │ free track │ size │ pad │
//!            └ slot i starts at i * stride; the object `left_pad` bytes further
//! ```

use kmem_gfp::PAGE_SIZE;

use crate::debug::Track;
use crate::{CreateError, SlabFlags};

/// The smallest alignment of any object, in bytes.
pub const MIN_ALIGN: usize = 8;
const CACHE_LINE: usize = 64;
const WORD: usize = size_of::<usize>();

/// The geometry of a cache's slots, in bytes.
///
/// # Invariants
/// `stride` is a multiple of `align`, at least 8 and at most the largest block; `free_offset + 8 <= stride - left_pad`;
/// every offset is relative to the object's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectLayout {
    pub(crate) object_size: usize,
    pub(crate) inuse: usize,
    pub(crate) stride: usize,
    pub(crate) align: usize,
    pub(crate) free_offset: usize,
    pub(crate) left_pad: usize,
    /// Two [`Track`]s, if users are stored.
    pub(crate) track_offset: Option<usize>,
    /// The requested size, if it is tracked.
    pub(crate) size_offset: Option<usize>,
    /// Where the last red zone or metadata ends and plain padding starts.
    pub(crate) meta_end: usize,
}

const fn round_up(value: usize, align: usize) -> usize {
    value.saturating_add(align - 1) & !(align - 1)
}

/// The alignment of objects of `size_bytes`: the larger of the one asked for, the cache-line rule and 8.
pub(crate) fn alignment(flags: SlabFlags, asked: usize, size_bytes: usize) -> Result<usize, CreateError> {
    if (asked != 0 && !asked.is_power_of_two()) || asked > PAGE_SIZE {
        return Err(CreateError::BadAlign(asked));
    }
    let mut align = asked.max(MIN_ALIGN);
    if flags.contains(SlabFlags::HWCACHE_ALIGN) {
        let mut line = CACHE_LINE;
        while size_bytes <= line / 2 && line > MIN_ALIGN {
            line /= 2;
        }
        align = align.max(line);
    }
    Ok(align)
}

impl ObjectLayout {
    /// Lays out slots for objects of `object_size` bytes. `align` comes from [`alignment`].
    pub(crate) fn new(
        object_size: usize,
        align: usize,
        flags: SlabFlags,
        has_ctor: bool,
        freeptr_offset: Option<usize>,
    ) -> Self {
        let red_zone = flags.contains(SlabFlags::RED_ZONE);
        let store_user = flags.contains(SlabFlags::STORE_USER);
        let tracks_size = store_user && flags.contains(SlabFlags::KMALLOC);
        let keeps_contents = flags.contains(SlabFlags::TYPESAFE_BY_RCU) || has_ctor;
        let mut size = round_up(object_size, WORD);
        if red_zone && size == object_size {
            size += WORD;
        }
        let inuse = size;
        let outside = (keeps_contents && freeptr_offset.is_none())
            || flags.contains(SlabFlags::POISON)
            || (red_zone && (object_size < WORD || tracks_size));
        let free_offset = if outside {
            size += WORD;
            size - WORD
        } else if let Some(offset) = freeptr_offset {
            offset
        } else {
            (object_size / 2) & !(WORD - 1)
        };
        let mut track_offset = None;
        let mut size_offset = None;
        if store_user {
            track_offset = Some(size);
            size += 2 * size_of::<Track>();
            if tracks_size {
                size_offset = Some(size);
                size += WORD;
            }
        }
        let meta_end = size;
        let mut left_pad = 0;
        if red_zone {
            size += WORD;
            left_pad = round_up(WORD, align);
            size = size.saturating_add(left_pad);
        }
        // INVARIANT: the free pointer is below `inuse`, or the word after it, and `size` covers both.
        Self {
            object_size,
            inuse,
            stride: round_up(size, align),
            align,
            free_offset,
            left_pad,
            track_offset,
            size_offset,
            meta_end,
        }
    }

    /// Whether the free pointer lies inside the object, so that freeing clobbers a word of it.
    pub(crate) const fn free_pointer_inside(&self) -> bool {
        self.free_offset < self.object_size
    }
}

/// Objects in a sheaf of a cache with this stride: the reference's classes, enlarged until the sheaf fills its memory.
pub(crate) fn sheaf_capacity(stride: usize, asked: u32, limit: u32) -> u32 {
    let automatic = match stride {
        4096.. => 4,
        1024.. => 12,
        256.. => 26,
        _ => 60,
    };
    if limit == 0 {
        return 0;
    }
    let wanted = automatic.max(asked).min(limit);
    if wanted == limit && wanted < automatic {
        return wanted;
    }
    let bytes = crate::sheaf::Sheaf::size_bytes(wanted).next_power_of_two();
    (((bytes - crate::sheaf::HEADER_BYTES) / WORD) as u32).max(wanted)
}
