//! Size classes of the global heap: finer than kmalloc's, because a program's heap is mostly odd sizes.
//!
//! ```text
//! 8 16 24 .. 64 │ 80 96 112 128 │ 160 192 224 256 │ ... │ 5120 6144 7168 8192 ║ 10240 12288 .. 57344 65536
//!  by 8         │ by 16         │ four for each doubling: at most a fifth is lost to rounding
//!  small ─────────────────────────────────────────────────────────────────────╨─ medium
//! ```
//!
//! A class is a multiple of every power of two up to a quarter of the power of two below it. So a size that was rounded up
//! to its alignment gets a class that is a multiple of the alignment, and objects of that class are aligned.

use core::alloc::Layout;

/// The largest size that a class serves. Above it, whole pages are as dense.
pub(super) const MAX_CLASS_BYTES: usize = 64 << 10;
/// The largest size that a *small* class serves.
pub(super) const MAX_SMALL_BYTES: usize = 8 << 10;
/// The largest alignment that a class serves: a page.
const MAX_CLASS_ALIGN: usize = 4096;
/// How many classes there are.
pub(super) const CLASSES: usize = 48;
/// How many of them are small: the first ones.
pub(super) const SMALL_CLASSES: usize = 36;

/// Up to this size a table says the class; above, arithmetic does.
const TABLE_BYTES: usize = 1024;

/// The classes' sizes, ascending.
pub(super) const SIZES: [usize; CLASSES] = {
    let mut sizes = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        sizes[class] = match class {
            0..8 => 8 * (class + 1),
            8..12 => 16 * (class - 3),
            _ => {
                let doubling = (class - 12) / 4;
                (128 << doubling) + ((class - 12) % 4 + 1) * (32 << doubling)
            }
        };
        class += 1;
    }
    sizes
};

/// `(size + 7) / 8` to class.
static TABLE: [u8; TABLE_BYTES / 8 + 1] = {
    let mut table = [0; TABLE_BYTES / 8 + 1];
    let mut class = 0;
    let mut units = 0;
    while units < table.len() {
        while SIZES[class] < units * 8 {
            class += 1;
        }
        table[units] = class as u8;
        units += 1;
    }
    table
};

const _: () = assert!(SIZES[CLASSES - 1] == MAX_CLASS_BYTES, "the classes end where they should");
const _: () = assert!(SIZES[SMALL_CLASSES - 1] == MAX_SMALL_BYTES, "the small classes end where they should");

/// The number of a small class.
///
/// # Invariants
/// Below [`SMALL_CLASSES`].
#[derive(Clone, Copy, Debug)]
pub(super) struct SmallClass(usize);

impl SmallClass {
    /// The number.
    #[inline(always)]
    pub(super) const fn index(self) -> usize {
        self.0
    }
}

/// The smallest small class for a layout of at least one byte; `None` if it needs a larger one.
#[inline(always)]
pub(super) const fn small_class(layout: Layout) -> Option<SmallClass> {
    match class_up_to(layout, MAX_SMALL_BYTES) {
        // INVARIANT: classes ascend, and the class of the limit is the last small one (asserted above).
        Some(class) => Some(SmallClass(class)),
        None => None,
    }
}

/// The smallest class for a layout of at least one byte; `None` if it needs pages of its own.
#[inline(always)]
pub(super) const fn class_of(layout: Layout) -> Option<usize> {
    class_up_to(layout, MAX_CLASS_BYTES)
}

#[inline(always)]
const fn class_up_to(layout: Layout, limit: usize) -> Option<usize> {
    let (size, align) = (layout.size(), layout.align());
    if align <= 8 {
        return class_of_size(size, limit);
    }
    if align > MAX_CLASS_ALIGN {
        return None;
    }
    // Cannot overflow: a layout's size rounded up to its alignment fits `isize`.
    class_of_size((size + align - 1) & !(align - 1), limit)
}

#[inline(always)]
const fn class_of_size(size: usize, limit: usize) -> Option<usize> {
    if size <= TABLE_BYTES {
        return Some(TABLE[size.div_ceil(8)] as usize);
    }
    if size > limit {
        return None;
    }
    let below = size - 1;
    let doubling = below.ilog2() as usize - 7;
    Some(12 + 4 * doubling + ((below >> (doubling + 5)) & 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 0..=MAX_CLASS_BYTES {
            let class = class_of_size(size, MAX_CLASS_BYTES).unwrap();
            assert!(SIZES[class] >= size);
            assert!(class == 0 || SIZES[class - 1] < size, "{size}");
        }
        assert_eq!(class_of_size(MAX_CLASS_BYTES + 1, MAX_CLASS_BYTES), None);
    }

    #[test]
    fn objects_of_a_class_are_aligned_as_asked() {
        for shift in 0..=12 {
            let align = 1 << shift;
            for size in 1..=MAX_CLASS_BYTES {
                if let Some(class) = class_of(Layout::from_size_align(size, align).unwrap()) {
                    assert_eq!(SIZES[class] % align, 0, "{size} aligned to {align}");
                }
            }
        }
        assert_eq!(class_of(Layout::from_size_align(16, 8192).unwrap()), None);
    }
}
