//! Size classes and how a zspage is cut into slots. Pure arithmetic.
//!
//! ```text
//! class of 2592-byte slots in a zspage of 7 frames, 11 slots
//! frame   0         1         2         3         4         5         6
//! slot    [ 0  ][ 1  ][ 2  ][ 3  ][ 4  ][ 5  ][ 6  ][ 7  ][ 8  ][ 9  ][ 10 ].
//! ```
//! An object's class follows from its length alone, and an object starts at its slot's first byte: nothing is stored
//! beside it.

use kmem_gfp::{PAGE_SHIFT, PAGE_SIZE};

use crate::Config;

/// The smallest slot in bytes.
pub const MIN_SLOT_SIZE: usize = 32;
/// The most slots of a zspage.
pub const MAX_SLOTS: usize = 128;
/// How many fullness groups there are: empty, ten tenths, full.
pub const NR_GROUPS: usize = 12;

/// The most frames in a zspage of any configuration.
pub(crate) const MAX_FRAMES: usize = Config::MAX_CHAIN as usize;
/// Lengths between whose classes nothing distinguishes: the shortest distance of classes.
const BUCKET: usize = 16;
pub(crate) const NR_BUCKETS: usize = PAGE_SIZE / BUCKET;

/// How a class's zspages are cut up.
///
/// # Invariants
/// `size` is [`MIN_SLOT_SIZE`]..=4096, `frames` 1..=16, `slots` 1..=[`MAX_SLOTS`], and `slots` slots fit in `frames` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    size: u16,
    frames: u8,
    slots: u8,
}

impl Shape {
    /// The shape for slots of `size` bytes that wastes the least share of a zspage of at most `chain` frames; the
    /// smallest on ties. `size` is clamped to the sizes there are.
    pub const fn best(size: usize, chain: u8) -> Self {
        let size = if size < MIN_SLOT_SIZE {
            MIN_SLOT_SIZE
        } else if size > PAGE_SIZE {
            PAGE_SIZE
        } else {
            size
        };
        // INVARIANT: one frame holds 1..=128 slots of 32..=4096 bytes.
        let mut best = Self { size: size as u16, frames: 1, slots: (PAGE_SIZE / size) as u8 };
        let mut frames = 2;
        while frames <= chain as usize && frames <= MAX_FRAMES {
            let slots = frames * PAGE_SIZE / size;
            // slots/frames > best: more slots per frame is less waste.
            if slots <= MAX_SLOTS && slots * best.frames as usize > best.slots as usize * frames {
                // INVARIANT: at most 16 frames and 128 slots, by the conditions above.
                best = Self { size: size as u16, frames: frames as u8, slots: slots as u8 };
            }
            frames += 1;
        }
        best
    }

    /// Bytes of a slot.
    #[inline(always)]
    pub const fn size(&self) -> usize {
        self.size as usize
    }

    /// Frames of a zspage that has all of them.
    #[inline(always)]
    pub const fn frames(&self) -> usize {
        self.frames as usize
    }

    /// Slots of a zspage.
    #[inline(always)]
    pub const fn slots(&self) -> usize {
        self.slots as usize
    }

    /// The first and the last frame that a slot touches; they differ by at most one.
    #[inline(always)]
    pub const fn frames_of(&self, slot: usize) -> (usize, usize) {
        let start = slot * self.size as usize;
        (start >> PAGE_SHIFT, (start + self.size as usize - 1) >> PAGE_SHIFT)
    }

    /// The slots that touch a frame, first and one past the last.
    pub const fn slots_of(&self, frame: usize) -> (usize, usize) {
        let start = frame * PAGE_SIZE / self.size as usize;
        let end = ((frame + 1) * PAGE_SIZE).div_ceil(self.size as usize);
        (start, if end < self.slots as usize { end } else { self.slots as usize })
    }

    /// The fewest frames that hold `objects` objects.
    pub const fn frames_for(&self, objects: u64) -> u64 {
        let rest = objects % self.slots as u64;
        objects / self.slots as u64 * self.frames as u64 + (rest * self.size as u64).div_ceil(PAGE_SIZE as u64)
    }

    /// The fullness group of a zspage with `inuse` objects: 0 empty, 11 full, else one more than its tenths
    /// (a zspage with an object is never in group 0).
    #[inline(always)]
    pub const fn group(&self, inuse: usize) -> usize {
        if inuse == 0 {
            0
        } else if inuse >= self.slots as usize {
            NR_GROUPS - 1
        } else {
            10 * inuse / self.slots as usize + 1
        }
    }
}

/// The classes of a configuration: from a length to a class.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    chain: u8,
    granule_shift: u8,
    nr_classes: u8,
    /// The class of the lengths from 16 times the index plus one on, up to the next.
    class_of: [u8; NR_BUCKETS],
}

impl Geometry {
    /// The classes for zspages of up to `chain` frames and slots `granule` (a power of two, 16..=1024) bytes apart.
    /// Sizes whose zspages have the same frames and slots share the largest of them.
    pub const fn new(chain: u8, granule: u16) -> Self {
        let granule = if granule < 16 { 16 } else { granule as usize };
        let shift = granule.trailing_zeros();
        let mut this = Self { chain, granule_shift: shift as u8, nr_classes: 0, class_of: [0; NR_BUCKETS] };
        let mut bucket = 0;
        let mut class = 0;
        let mut before: Option<Shape> = None;
        while bucket < NR_BUCKETS {
            let size = (bucket * BUCKET + 1).next_multiple_of(granule);
            let shape = Shape::best(size, chain);
            if let Some(before) = before
                && (before.frames != shape.frames || before.slots != shape.slots)
            {
                class += 1;
            }
            this.class_of[bucket] = class;
            before = Some(shape);
            bucket += 1;
        }
        this.nr_classes = class + 1;
        this
    }

    /// How many classes there are.
    pub const fn nr_classes(&self) -> usize {
        self.nr_classes as usize
    }

    /// The class for objects of `len` bytes, 1..=4096.
    #[inline(always)]
    pub fn class_of(&self, len: usize) -> u8 {
        self.class_of.get(self.bucket_of(len)).copied().unwrap_or(0)
    }

    /// Which bucket a length, 1..=4096, belongs to.
    #[inline(always)]
    pub(crate) const fn bucket_of(&self, len: usize) -> usize {
        len.wrapping_sub(1) / BUCKET
    }

    /// The shape of a class, and `None` beyond the last. Slow: looks through the sizes.
    pub fn shape(&self, class: usize) -> Option<Shape> {
        let last = self.class_of.iter().rposition(|&other| other as usize == class)?;
        Some(Shape::best(((last + 1) * BUCKET).next_multiple_of(1 << self.granule_shift), self.chain))
    }

    /// Objects of at least this many bytes have a frame to themselves.
    #[doc(alias = "zs_huge_class_size")]
    pub fn huge_class_size(&self) -> usize {
        let last = self.nr_classes.saturating_sub(1);
        self.class_of.iter().position(|&class| class == last).unwrap_or(0) * BUCKET + 1
    }
}
