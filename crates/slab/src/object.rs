//! Questions about an address: whose object is it, how large, what may be copied.

use core::ptr::NonNull;

use kmem_gfp::AllocContext;

use crate::debug;
use crate::slab::{Slab, owner_cache};
use crate::{KmemCache, ObjectError, SlabEnv, SlabFlags, Slabs, UsercopyError};

/// An object, found from an address inside it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'s> {
    /// Its cache.
    pub cache: &'s KmemCache,
    /// Its first byte.
    pub start: NonNull<u8>,
    /// How far behind the first byte the address lies; negative in a left red zone.
    pub offset: isize,
}

/// The longest range that may be copied to or from user space.
const COPY_MAX: usize = i32::MAX as usize;

impl<E: SlabEnv> Slabs<E> {
    /// The object that an address points into, in use or not. `None` for memory that is no slab's, and for the bytes
    /// behind a slab's last object.
    #[doc(alias = "kmem_dump_obj")]
    pub fn object_of(&self, address: NonNull<u8>) -> Option<Object<'_>> {
        let (owner, slab) = Slab::find(self.env.frames(), address)?;
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(owner) };
        let index = slab.index_within(cache, slab.state().total(), address.addr().get())?;
        let start = slab.object(cache, index);
        Some(Object { cache, start, offset: address.addr().get().wrapping_sub(start.addr().get()) as isize })
    }

    /// How many bytes of an object its user may touch (`ksize`): the whole slot, unless debug data or a free pointer lies
    /// in it. The caller may use them all from then on: the red zone behind a requested size goes away.
    ///
    /// # Safety
    /// The caller owns the object.
    ///
    /// # Errors
    /// [`ObjectError::NotSlab`].
    #[doc(alias = "ksize")]
    pub unsafe fn usable_size(&self, object: NonNull<u8>) -> Result<usize, ObjectError> {
        let address = object.addr().get();
        let cache = self.cache_of(object).ok_or(ObjectError::NotSlab { address })?;
        debug::set_requested(cache, object, cache.layout.object_size);
        Ok(if cache.flags.intersects(SlabFlags::RED_ZONE | SlabFlags::POISON) {
            cache.layout.object_size
        } else if cache.flags.intersects(SlabFlags::TYPESAFE_BY_RCU | SlabFlags::STORE_USER) || cache.ctor.is_some() {
            cache.layout.inuse
        } else {
            cache.layout.stride
        })
    }

    /// The size that was asked for with [`alloc_sized`](Self::alloc_sized), in caches that remember it.
    ///
    /// # Safety
    /// The caller owns the object.
    pub unsafe fn requested_size(&self, object: NonNull<u8>) -> Option<usize> {
        debug::requested(self.cache_of(object)?, object)
    }

    /// Changes the remembered size, and paints the red zone behind it anew. Nothing in caches that do not remember.
    ///
    /// # Safety
    /// The caller owns the object, whose cache's objects have at least `size` bytes.
    pub unsafe fn set_requested_size(&self, object: NonNull<u8>, size: usize) {
        let Some(cache) = self.cache_of(object) else { return };
        if cache.layout.size_offset.is_none() {
            return;
        }
        let size = size.min(cache.layout.object_size);
        debug::set_requested(cache, object, size);
        if cache.flags.contains(SlabFlags::RED_ZONE) {
            // SAFETY: the bytes behind `size` are the object's, the caller's.
            unsafe { object.add(size).write_bytes(debug::RED_ACTIVE, cache.layout.object_size - size) };
        }
    }

    /// Whether `len` bytes at `address` may be copied to or from user space, as far as slab objects are concerned:
    /// they must lie in the window that the object's cache was created with. Violations are reported.
    ///
    /// # Errors
    /// A [`UsercopyError`]; of these, `NotSlab` means that another check is responsible.
    #[doc(alias("__check_heap_object", "check_object_size"))]
    pub fn check_usercopy(&self, address: usize, len: usize) -> Result<(), UsercopyError> {
        if len == 0 {
            return Ok(());
        }
        let bad = UsercopyError::BadRange { address, len };
        if len > COPY_MAX || address <= 16 || address.checked_add(len - 1).is_none() {
            self.env.context().report(format_args!("usercopy: {bad}"));
            return Err(bad);
        }
        let pointer = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).ok_or(bad)?;
        let (owner, slab) = Slab::find(self.env.frames(), pointer).ok_or(UsercopyError::NotSlab { address })?;
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(owner) };
        let slot = address.wrapping_sub(slab.base.addr().get()) % cache.stride();
        let offset = slot.wrapping_sub(cache.layout.left_pad);
        let inside = slab.index_within(cache, slab.state().total(), address).is_some()
            && slot >= cache.layout.left_pad
            && offset >= cache.useroffset
            && offset.checked_add(len).is_some_and(|end| end <= cache.useroffset + cache.usersize);
        if inside {
            return Ok(());
        }
        self.env.context().report(format_args!(
            "usercopy: kernel memory access attempt detected: SLUB object '{}' (offset {}, size {len})!",
            cache.name(),
            offset as isize
        ));
        Err(UsercopyError::OutsideWindow { offset, len })
    }
}
