//! The decisions of kvmalloc, from numbers and flags alone.
//!
//! ```text
//! size            kmalloc is asked with                                     if that fails
//! ≤ a page        the flags as they are                                     final
//! more            + no-warn, − no-fail, − direct reclaim unless retry-mayfail   vmalloc, with the flags as they are
//! > INT_MAX       the same                                                  final, reported once
//! ```

use kmem_gfp::{Gfp, PAGE_SIZE};

use crate::KvmallocError;

/// The largest request that vmalloc is asked for, in bytes (`INT_MAX`). kmalloc may be able to give more on some machine.
pub const KVMALLOC_FALLBACK_MAX: usize = 0x7fff_ffff;

/// The flags that kmalloc is asked with (KV-02): above a page, where there is something to fall back to, it does not try
/// hard, and says nothing when it fails.
///
/// ```
/// use kmem_gfp::Gfp;
/// use kmem_kvmalloc::object_gfp;
///
/// // V02
/// assert_eq!(object_gfp(4096, Gfp::KERNEL | Gfp::NOFAIL), Gfp::KERNEL | Gfp::NOFAIL);
/// assert_eq!(
///     object_gfp(4097, Gfp::KERNEL | Gfp::NOFAIL),
///     (Gfp::KERNEL | Gfp::NOWARN).difference(Gfp::DIRECT_RECLAIM)
/// );
/// ```
#[doc(alias = "kmalloc_gfp_adjust")]
#[must_use = "the flags are computed, nothing else happens"]
#[inline(always)]
pub const fn object_gfp(size_bytes: usize, gfp: Gfp) -> Gfp {
    if size_bytes <= PAGE_SIZE {
        return gfp;
    }
    let quiet = gfp.union(Gfp::NOWARN).difference(Gfp::NOFAIL);
    if quiet.contains(Gfp::RETRY_MAYFAIL) { quiet } else { quiet.difference(Gfp::DIRECT_RECLAIM) }
}

/// The bytes to ask kmalloc for so that it aligns the block to `align`.
///
/// # Errors
/// [`KvmallocError::Kmalloc`] for an alignment that is no power of two, [`KvmallocError::TooLarge`] on overflow.
#[inline(always)]
pub(crate) const fn object_size(size_bytes: usize, align: usize) -> Result<usize, KvmallocError> {
    if !align.is_power_of_two() {
        return Err(KvmallocError::Kmalloc(kmem_gfp::AllocError::BadAlign(align)));
    }
    match size_bytes.checked_add(align - 1) {
        Some(sum) => Ok(sum & !(align - 1)),
        None => Err(KvmallocError::TooLarge { size_bytes }),
    }
}

/// Bytes of an array; an overflow is an error of its own, without a report (KV-06).
#[inline(always)]
pub(crate) const fn array_bytes(count: usize, size_bytes: usize) -> Result<usize, KvmallocError> {
    match count.checked_mul(size_bytes) {
        Some(bytes) => Ok(bytes),
        None => Err(KvmallocError::TooLarge { size_bytes: usize::MAX }),
    }
}
