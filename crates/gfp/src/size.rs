//! Size arithmetic that cannot wrap: an overflowing size becomes [`usize::MAX`], and no allocator grants that.
//!
//! Sizes come from untrusted counts. Instead of a check after every operation the arithmetic *saturates*: the sum or
//! product of an overflowing computation is `usize::MAX`, stays there through further additions and subtractions, and
//! fails at the one place that is checked anyway, the allocation. Everything is `const`, so constant counts fold to
//! plain numbers, and everything may run in any context.
//!
//! ```
//! use kmem_gfp::size::{array_size, size_add};
//!
//! // K03, KM-12
//! assert_eq!(size_add(array_size(16, 64), 32), 1056);
//! assert_eq!(size_add(array_size(usize::MAX / 2, 64), 32), usize::MAX);
//! ```

/// `a * b`, or [`usize::MAX`] when the product does not fit. A factor of zero gives zero, whatever the other is.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn size_mul(a: usize, b: usize) -> usize {
    a.saturating_mul(b)
}

/// `a + b`, or [`usize::MAX`] when the sum does not fit.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn size_add(a: usize, b: usize) -> usize {
    a.saturating_add(b)
}

/// `a - b`, or [`usize::MAX`] when `b` exceeds `a` or either of them is itself the result of an overflow.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn size_sub(a: usize, b: usize) -> usize {
    if a == usize::MAX || b == usize::MAX {
        return usize::MAX;
    }
    match a.checked_sub(b) {
        Some(difference) => difference,
        None => usize::MAX,
    }
}

/// Bytes of an array of `count` elements of `size_bytes` each.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn array_size(count: usize, size_bytes: usize) -> usize {
    size_mul(count, size_bytes)
}

/// Bytes of a two-dimensional array: `rows * columns` elements of `size_bytes` each.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn array3_size(rows: usize, columns: usize, size_bytes: usize) -> usize {
    size_mul(size_mul(rows, columns), size_bytes)
}

/// Bytes of `count` elements of type `T`: the trailing part of a structure with a flexible array.
///
/// [`struct_size!`](crate::struct_size) adds the structure itself.
#[must_use = "the size is computed, nothing else happens"]
#[inline]
pub const fn flex_array_size<T>(count: usize) -> usize {
    size_mul(count, size_of::<T>())
}

/// Whether `size_bytes` is the mark of an overflow. No allocator of this family grants such a size.
#[must_use]
#[inline]
pub const fn is_saturated(size_bytes: usize) -> bool {
    size_bytes == usize::MAX
}

/// The element size of the array that `_member` projects to; for [`struct_size!`](crate::struct_size).
#[doc(hidden)]
#[must_use]
#[inline]
pub const fn member_element_size<S, T, const N: usize>(_member: fn(&S) -> &[T; N]) -> usize {
    size_of::<T>()
}

/// Bytes of a structure followed by `count` elements of its trailing zero-length array: `struct_size!(Type, member,
/// count)`. Saturates like everything in [`size`](crate::size).
///
/// The structure should be `#[repr(C)]` with `member` last, so that the elements really begin at `member`'s offset. The
/// result counts the whole structure, its tail padding included, and is therefore never too small.
///
/// ```
/// use kmem_gfp::struct_size;
///
/// #[repr(C)]
/// struct Ring {
///     head: u32,
///     slots: [u64; 0],
/// }
/// // K03, KM-12
/// const TEN: usize = struct_size!(Ring, slots, 10);
/// assert_eq!(TEN, 8 + 10 * 8);
/// assert_eq!(struct_size!(Ring, slots, usize::MAX), usize::MAX);
/// ```
///
/// A member that is no array does not compile:
///
/// ```compile_fail
/// struct Ring {
///     head: u32,
/// }
/// let size = kmem_gfp::struct_size!(Ring, head, 10);
/// ```
#[macro_export]
macro_rules! struct_size {
    ($structure:ty, $member:ident, $count:expr) => {
        $crate::size::size_add(
            ::core::mem::size_of::<$structure>(),
            $crate::size::size_mul(
                $count,
                $crate::size::member_element_size(|structure: &$structure| &structure.$member),
            ),
        )
    };
}
