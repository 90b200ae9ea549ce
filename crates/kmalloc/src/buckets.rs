//! Private sets of kmalloc caches, for memory whose size or contents a stranger controls: such objects never share a
//! slab with others.

use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp, NodeId};
use kmem_slab::{CreateError, Ctor, DestroyError, SlabEnv, SlabFlags};

use crate::classes::{ClassArgs, Classes};
use crate::{Kmalloc, SizeClass};

/// What a bucket set's caches have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct BucketArgs {
    /// Flags of each cache.
    pub flags: SlabFlags,
    /// Start of the window that may be copied to or from user space, in bytes; cut to each class's size.
    pub useroffset: usize,
    /// Its length in bytes.
    pub usersize: usize,
    /// Prepares each object of a new slab.
    pub ctor: Option<Ctor>,
}

/// A private set of caches, one for each size class; blocks above the classes come from the page allocator as usual.
#[doc(alias = "kmem_buckets")]
#[derive(Debug)]
#[must_use = "the caches stay until `kmem_buckets_destroy`"]
pub struct KmemBuckets<'s> {
    classes: Classes<'s>,
}

impl<'s, E: SlabEnv> Kmalloc<'s, E> {
    /// Creates a bucket set; its caches are named `name-8`, `name-16`, .. and never shared. May sleep.
    ///
    /// # Errors
    /// Those of [`Slabs::create`](kmem_slab::Slabs::create); nothing is left behind.
    pub fn kmem_buckets_create(&self, name: &str, args: &BucketArgs) -> Result<KmemBuckets<'s>, CreateError> {
        let mut prefix = [0_u8; kmem_slab::NAME_MAX];
        let len = name.len();
        prefix.get_mut(..len).ok_or(CreateError::BadName)?.copy_from_slice(name.as_bytes());
        *prefix.get_mut(len).ok_or(CreateError::BadName)? = b'-';
        let prefix = prefix.get(..=len).and_then(|bytes| core::str::from_utf8(bytes).ok());
        let classes = Classes::create(
            self.slabs,
            &ClassArgs {
                prefix: prefix.ok_or(CreateError::BadName)?,
                flags: args.flags | self.config.flags | SlabFlags::NO_MERGE,
                min_align: self.config.min_align,
                useroffset: args.useroffset,
                usersize: args.usersize,
                ctor: args.ctor,
            },
        )?;
        Ok(KmemBuckets { classes })
    }

    /// As [`kmalloc`](Self::kmalloc), from a bucket set. Freed with [`kfree`](Self::kfree).
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    #[inline]
    pub fn kmem_buckets_alloc(
        &self,
        buckets: &KmemBuckets<'s>,
        size_bytes: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        match SizeClass::for_size(size_bytes) {
            Some(class) => self.slabs.alloc_sized(buckets.classes.get(class), gfp, size_bytes),
            None => self.kmalloc_unclassed(size_bytes, gfp, None),
        }
    }

    /// As [`kmem_buckets_alloc`](Self::kmem_buckets_alloc), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`kmalloc_node`](Self::kmalloc_node).
    pub fn kmem_buckets_alloc_node(
        &self,
        buckets: &KmemBuckets<'s>,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        match SizeClass::for_size(size_bytes) {
            Some(class) => self.slabs.alloc_node_sized(buckets.classes.get(class), gfp, node, size_bytes),
            None => self.kmalloc_unclassed(size_bytes, gfp, node),
        }
    }

    /// Destroys a bucket set. May sleep.
    ///
    /// # Errors
    /// [`DestroyError`] if objects are left: each is reported. Those objects stay valid and may be freed; caches of the set
    /// that had none are gone, the others stay behind without the set.
    pub fn kmem_buckets_destroy(&self, buckets: KmemBuckets<'s>) -> Result<(), DestroyError> {
        // SAFETY: the set ends here, and only it gave out references to its caches.
        unsafe { buckets.classes.destroy(self.slabs) }
    }
}
