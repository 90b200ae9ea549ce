//! Copies, bucket sets, any-context forms.

use core::ptr;
use core::ptr::NonNull;
use std::ffi::{CStr, c_char};
use std::string::ToString;

use kmem_gfp::{AllocError, Gfp, OwnerTag};
use kmem_slab::{CreateError, DestroyError, UsercopyError};

use super::machine::{usable, with_config, with_kmalloc};
use crate::{BucketArgs, KMALLOC_MAX_CACHE_SIZE, KfreeError, KmallocConfig, ZERO_SIZE_PTR};

const KERNEL: Gfp = Gfp::KERNEL;

fn text<'a>(copy: NonNull<c_char>) -> &'a CStr {
    // SAFETY: the copies of these tests end in a zero byte and live until freed.
    unsafe { CStr::from_ptr(copy.as_ptr()) }
}

#[test]
fn copies_hold_what_their_sources_hold() {
    // KM-24
    with_kmalloc(|kmalloc, _| {
        let source = [1_u8, 2, 3, 4, 5];
        let copy = kmalloc.kmemdup(&source, KERNEL).unwrap();
        // SAFETY: five bytes were copied.
        assert_eq!(unsafe { core::slice::from_raw_parts(copy.as_ptr(), 5) }, source);
        assert_eq!(kmalloc.kmemdup(&[], KERNEL), Ok(ZERO_SIZE_PTR));
        // SAFETY: four bytes can be read there; for the other product nothing is.
        unsafe {
            let array = kmalloc.kmemdup_array(NonNull::from(&source).cast(), 2, 2, KERNEL).unwrap();
            assert_eq!(array.cast::<[u8; 4]>().read(), [1, 2, 3, 4]);
            kmalloc.kfree(array.as_ptr()).unwrap();
            let overflow = kmalloc.kmemdup_array(NonNull::from(&source).cast(), 1 << 40, 1 << 40, KERNEL | Gfp::NOWARN);
            assert_eq!(overflow, Err(AllocError::TooLarge { size_bytes: usize::MAX }));
        }
        let with_nul = kmalloc.kmemdup_nul(b"abc", KERNEL).unwrap();
        assert_eq!(text(with_nul), c"abc");
        let whole = kmalloc.kstrdup(Some(c"hello"), KERNEL).unwrap().unwrap();
        assert_eq!(text(whole), c"hello");
        let part = kmalloc.kstrndup(Some(c"hello"), 2, KERNEL).unwrap().unwrap();
        assert_eq!(text(part), c"he");
        let short = kmalloc.kstrndup(Some(c"hello"), 99, KERNEL).unwrap().unwrap();
        assert_eq!(text(short), c"hello");
        assert_eq!(kmalloc.kstrdup(None, KERNEL), Ok(None));
        assert_eq!(kmalloc.kstrndup(None, 5, KERNEL), Ok(None));
        for block in [copy.cast(), with_nul, whole, part, short] {
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree(block.as_ptr().cast()) }.unwrap();
        }
    });
}

#[test]
fn constant_strings_are_not_copied() {
    // KM-24
    let constant = c"constant";
    let start = constant.as_ptr().addr();
    let config = KmallocConfig { rodata: start..start + 9, ..KmallocConfig::default() };
    with_config(config, |kmalloc, _| {
        let same = kmalloc.kstrdup_const(Some(constant), KERNEL).unwrap().unwrap();
        assert_eq!(same.as_ptr().cast_const(), constant.as_ptr());
        let copy = kmalloc.kstrdup_const(Some(c"variable"), KERNEL).unwrap().unwrap();
        assert_eq!(text(copy), c"variable");
        assert_eq!(kmalloc.kstrdup_const(None, KERNEL), Ok(None));
        // SAFETY: from `kstrdup_const`.
        unsafe {
            kmalloc.kfree_const(same.as_ptr()).unwrap();
            kmalloc.kfree_const(copy.as_ptr()).unwrap();
            kmalloc.kfree_const(ptr::null_mut()).unwrap();
        }
    });
}

#[test]
fn a_bucket_set_has_caches_of_its_own() {
    // KM-26
    with_kmalloc(|kmalloc, _| {
        let args = BucketArgs { useroffset: 16, usersize: 64, ..BucketArgs::default() };
        let buckets = kmalloc.kmem_buckets_create("msg", &args).unwrap();
        let block = kmalloc.kmem_buckets_alloc(&buckets, 90, KERNEL).unwrap().as_ptr();
        assert_eq!(kmalloc.slabs().cache_of(ptr::NonNull::new(block).unwrap()).unwrap().name(), "msg-96");
        assert_eq!(kmalloc.check_object_size(block.wrapping_add(16), 64), Ok(()));
        let outside = kmalloc.check_object_size(block, 8);
        assert_eq!(outside, Err(UsercopyError::OutsideWindow { offset: 0, len: 8 }));
        let small = kmalloc.kmem_buckets_alloc_node(&buckets, 20, KERNEL, None).unwrap().as_ptr();
        assert_eq!(kmalloc.check_object_size(small.wrapping_add(16), 16), Ok(()), "the window is cut to the class");
        let tiny = kmalloc.kmem_buckets_alloc(&buckets, 8, KERNEL).unwrap().as_ptr();
        assert!(kmalloc.check_object_size(tiny, 1).is_err(), "and may be empty");
        let large = kmalloc.kmem_buckets_alloc(&buckets, 9000, KERNEL).unwrap().as_ptr();
        assert_eq!(kmalloc.large_pages(), 4);
        assert_eq!(kmalloc.kmem_buckets_alloc(&buckets, 0, KERNEL), Ok(ZERO_SIZE_PTR));
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_bulk(&[small, tiny, large]) }.unwrap();
        let other = kmalloc.kmem_buckets_create("other", &BucketArgs::default()).unwrap();
        let remain = kmalloc.kmem_buckets_destroy(buckets).unwrap_err();
        assert!(matches!(remain, DestroyError::ObjectsRemain { live: 1, .. }), "{remain}");
        // SAFETY: allocated above; the object outlives the set.
        unsafe { kmalloc.kfree(block) }.unwrap();
        kmalloc.kmem_buckets_destroy(other).unwrap();
        let long = "x".repeat(70).to_string();
        assert!(matches!(kmalloc.kmem_buckets_create(&long, &args), Err(CreateError::BadName)));
    });
}

#[test]
fn any_context_forms_take_few_flags_and_small_sizes() {
    // SL-90, SL-91
    with_kmalloc(|kmalloc, env| {
        assert_eq!(kmalloc.kmalloc_nolock(8, Gfp::KERNEL, None), Err(AllocError::BadFlags(Gfp::KERNEL)));
        assert_eq!(kmalloc.kmalloc_nolock(0, Gfp::empty(), None), Ok(ZERO_SIZE_PTR));
        let size_bytes = KMALLOC_MAX_CACHE_SIZE + 1;
        let too_large = Err(AllocError::TooLarge { size_bytes });
        assert_eq!(kmalloc.kmalloc_nolock(size_bytes, Gfp::empty(), None), too_large);
        let block = kmalloc.kmalloc_nolock(100, Gfp::ZERO, None).unwrap();
        // SAFETY: the block has 128 bytes, zeroed.
        assert!((0..128).all(|at| unsafe { block.add(at).read() } == 0));
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_nolock(block.as_ptr()) }.unwrap();
        let block = kmalloc.kmalloc_nolock(100, Gfp::ACCOUNT, None).unwrap();
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        let large = kmalloc.kmalloc(20_000, KERNEL).unwrap().as_ptr();
        // SAFETY: refused.
        let error = unsafe { kmalloc.kfree_nolock(large) }.unwrap_err();
        assert!(matches!(error, KfreeError::OtherOwner { owner: OwnerTag::LargeKmalloc, .. }));
        // SAFETY: allocated above; null is nothing.
        unsafe {
            kmalloc.kfree(large).unwrap();
            assert_eq!(kmalloc.kfree_nolock(ptr::null_mut()), Ok(()));
            assert_eq!(kmalloc.kfree_nolock(ZERO_SIZE_PTR.as_ptr()), Ok(()));
        }
        // One class is empty and pages are gone: the next larger class still has an object.
        let spare = kmalloc.kmalloc(3000, KERNEL).unwrap();
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(spare.as_ptr()) }.unwrap();
        env.pages.exhaust(true);
        let from_larger = kmalloc.kmalloc_nolock(2000, Gfp::empty(), None).unwrap();
        assert_eq!(usable(kmalloc, from_larger.as_ptr()), Ok(4096));
        env.pages.exhaust(false);
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_nolock(from_larger.as_ptr()) }.unwrap();
    });
}
