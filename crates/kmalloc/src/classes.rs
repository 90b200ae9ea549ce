//! One set of caches: a cache for each size class, and how such a set is made and named.

use core::fmt::{self, Write};

use kmem_slab::{CacheArgs, CreateError, Ctor, DestroyError, KmemCache, SlabEnv, SlabFlags, Slabs};

use crate::{MinAlign, SizeClass};

/// The caches of one family, by class index. Classes that the minimum alignment removes are served by a larger one.
///
/// # Invariants
/// Entry [`SizeClass::index`] holds a cache of the family whose objects have at least that class's size and alignment.
/// Entries that no class has repeat the largest class's.
#[derive(Clone, Copy)]
pub(crate) struct Classes<'s>([&'s KmemCache; 16]);

impl fmt::Debug for Classes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classes").finish_non_exhaustive()
    }
}

/// What the caches of a set have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClassArgs<'n> {
    /// What precedes the size in their names, the hyphen included.
    pub(crate) prefix: &'n str,
    /// Their flags.
    pub(crate) flags: SlabFlags,
    /// Their smallest alignment.
    pub(crate) min_align: MinAlign,
    /// The window that may be copied to and from user space, cut to each class's size.
    pub(crate) useroffset: usize,
    /// Its length in bytes.
    pub(crate) usersize: usize,
    /// Prepares each object of a new slab.
    pub(crate) ctor: Option<Ctor>,
}

impl<'s> Classes<'s> {
    /// The cache that serves `class`.
    #[inline(always)]
    pub(crate) fn get(&self, class: SizeClass) -> &'s KmemCache {
        // Class indices are below 14; the mask says so to the compiler.
        self.0[class.index() & 15]
    }

    /// Creates the caches. On failure none is left.
    ///
    /// # Errors
    /// Those of [`Slabs::create`].
    pub(crate) fn create<E: SlabEnv>(slabs: &'s Slabs<E>, args: &ClassArgs<'_>) -> Result<Self, CreateError> {
        let mut made: [Option<&'s KmemCache>; 16] = [None; 16];
        for class in SizeClass::ALL.into_iter().rev() {
            let served_by = class.with_min_align(args.min_align);
            let cache = match made[served_by.index() & 15] {
                Some(cache) => Ok(cache),
                None => create_one(slabs, served_by, args),
            };
            match cache {
                Ok(cache) => made[class.index() & 15] = Some(cache),
                Err(error) => {
                    if let Some(any) = made.iter().flatten().next().copied() {
                        // SAFETY: nobody has seen the set.
                        let _ = unsafe { Self::fill(made, any).destroy(slabs) };
                    }
                    return Err(error);
                }
            }
        }
        match made[SizeClass::ALL[SizeClass::COUNT - 1].index() & 15] {
            // INVARIANT: each class's entry holds the cache of a class that is not smaller and naturally aligned.
            Some(largest) => Ok(Self::fill(made, largest)),
            None => Err(CreateError::BadSize(0)),
        }
    }

    fn fill(made: [Option<&'s KmemCache>; 16], otherwise: &'s KmemCache) -> Self {
        Self(made.map(|cache| cache.unwrap_or(otherwise)))
    }

    /// Every cache once, smallest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'s KmemCache> {
        let caches = self.0;
        SizeClass::ALL.into_iter().enumerate().filter_map(move |(i, class)| {
            let cache = caches[class.index() & 15];
            let earlier =
                SizeClass::ALL.get(..i)?.iter().any(|smaller| core::ptr::eq(caches[smaller.index() & 15], cache));
            if earlier { None } else { Some(cache) }
        })
    }

    /// Destroys the caches; those with objects left stay behind.
    ///
    /// # Safety
    /// Nobody uses a copy of this set any more.
    ///
    /// # Errors
    /// The first [`DestroyError`]. Objects left stay valid.
    pub(crate) unsafe fn destroy<E: SlabEnv>(&self, slabs: &'s Slabs<E>) -> Result<(), DestroyError> {
        let mut result = Ok(());
        for cache in self.iter() {
            // SAFETY: the caller's promise.
            result = result.and(unsafe { slabs.destroy(cache) });
        }
        result
    }

    /// Whether both are the same set.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        core::ptr::eq(self.0[15], other.0[15])
    }
}

fn create_one<'s, E: SlabEnv>(
    slabs: &'s Slabs<E>,
    class: SizeClass,
    args: &ClassArgs<'_>,
) -> Result<&'s KmemCache, CreateError> {
    let mut name = NameBuffer::default();
    write!(name, "{}{}", args.prefix, class.name()).map_err(|_| CreateError::BadName)?;
    let size = class.size_bytes();
    slabs.create(
        name.as_str(),
        size,
        &CacheArgs {
            flags: args.flags,
            align: class.align().min(kmem_gfp::PAGE_SIZE),
            ctor: args.ctor,
            useroffset: if args.useroffset < size { args.useroffset } else { 0 },
            usersize: size.saturating_sub(args.useroffset).min(args.usersize),
            ..CacheArgs::default()
        },
    )
}

/// A cache's name under construction.
struct NameBuffer {
    bytes: [u8; kmem_slab::NAME_MAX],
    len: usize,
}

impl Default for NameBuffer {
    fn default() -> Self {
        Self { bytes: [0; kmem_slab::NAME_MAX], len: 0 }
    }
}

impl NameBuffer {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for NameBuffer {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len.checked_add(s.len()).ok_or(fmt::Error)?;
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}
