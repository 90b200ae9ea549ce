//! Sheaves: small stacks of free objects, and the three that each CPU has of a cache.
//!
//! ```text
//! CpuSheaves ─┬─ main   ──▶ │ len cap next grace guard │ object │ object │ ...
//!             ├─ spare  ──▶ empty or full, or none
//!             ├─ rcu    ──▶ objects that wait for a grace period, or none
//!             └─ owner      the owner word of this cache's slabs on the CPU's node
//! ```
//!
//! A sheaf belongs to one holder at a time: a CPU's slot (inside its local section), a barn (under its lock), the list
//! of sheaves waiting for readers (under its lock), or the function that is moving it.

use core::ptr::{self, NonNull};

use kmem_sync::Grace;

/// Bytes before the first object pointer.
pub(crate) const HEADER_BYTES: usize = size_of::<Sheaf>();

/// The header of a sheaf; `cap` object pointers follow it.
///
/// # Invariants
/// 1. `len <= cap`, and the first `len` pointers are free objects of the sheaf's cache that nothing else refers to.
/// 2. `guard` is null: it stands where the object below the first would be.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Sheaf {
    pub(crate) len: u32,
    pub(crate) cap: u32,
    pub(crate) next: *mut Sheaf,
    pub(crate) grace: Grace,
    guard: *mut u8,
}

impl Sheaf {
    /// A sheaf without room: every push and pop fails. What CPUs start with.
    pub(crate) const NONE: Self =
        Self { len: 0, cap: 0, next: ptr::null_mut(), grace: Grace(0), guard: ptr::null_mut() };

    /// Bytes of a sheaf for `cap` objects.
    pub(crate) const fn size_bytes(cap: u32) -> usize {
        HEADER_BYTES + (cap as usize) * size_of::<*mut u8>()
    }

    /// Makes `memory` an empty sheaf.
    ///
    /// # Safety
    /// `memory` is [`size_bytes(cap)`](Self::size_bytes) bytes, aligned to 8, the caller's alone.
    pub(crate) unsafe fn init(memory: NonNull<u8>, cap: u32) -> *mut Sheaf {
        let sheaf = memory.as_ptr().cast::<Sheaf>();
        // SAFETY: the caller's memory holds a header.
        unsafe { sheaf.write(Self { cap, ..Self::NONE }) };
        sheaf
    }

    /// The first object pointer.
    ///
    /// # Safety
    /// `this` is a sheaf.
    #[inline(always)]
    pub(crate) unsafe fn objects(this: *mut Sheaf) -> *mut *mut u8 {
        // SAFETY: the pointers start where the header ends.
        unsafe { this.add(1).cast() }
    }

    /// Takes the object that was put in last.
    ///
    /// # Safety
    /// The caller holds the sheaf `this`.
    #[inline(always)]
    pub(crate) unsafe fn pop(this: *mut Sheaf) -> Option<NonNull<u8>> {
        // SAFETY: the caller holds the sheaf; the index is below `len` (invariant 1).
        unsafe {
            // One subtraction that says "was empty" by its borrow.
            let (left, empty) = (*this).len.overflowing_sub(1);
            if empty {
                return None;
            }
            (*this).len = left;
            Some(NonNull::new_unchecked(*Self::objects(this).add(left as usize)))
        }
    }

    /// Puts an object on top; `false` if the sheaf is full.
    ///
    /// # Safety
    /// The caller holds the sheaf `this`, and gives up a free object of its cache.
    #[inline(always)]
    pub(crate) unsafe fn push(this: *mut Sheaf, object: NonNull<u8>) -> bool {
        // SAFETY: the caller holds the sheaf; the index is below `cap`.
        unsafe {
            let len = (*this).len;
            if len == (*this).cap {
                return false;
            }
            Self::objects(this).add(len as usize).write(object.as_ptr());
            (*this).len = len + 1;
        }
        true
    }

    /// Puts the last of `objects` in, the first of them on top, as many as there is room for; returns how many.
    ///
    /// # Safety
    /// The caller holds the sheaf `this`, and gives up that many free objects of its cache.
    pub(crate) unsafe fn push_last(this: *mut Sheaf, objects: &[*mut u8]) -> usize {
        // SAFETY: the caller holds the sheaf; the places written lie between `len` and `cap`.
        unsafe {
            let len = (*this).len;
            let count = objects.len().min(((*this).cap - len) as usize);
            if count == 0 {
                // Perhaps the shared sheaf without room, which is never written.
                return 0;
            }
            let mut place = Self::objects(this).add(len as usize);
            for &object in objects.iter().rev().take(count) {
                place.write(object);
                place = place.add(1);
            }
            (*this).len = len + count as u32;
            count
        }
    }

    /// Whether `object` is the one put in last: it is being freed twice.
    ///
    /// # Safety
    /// The caller holds the sheaf `this`.
    #[inline(always)]
    pub(crate) unsafe fn tops(this: *mut Sheaf, object: NonNull<u8>) -> bool {
        // SAFETY: with `len` 0 this reads `guard`, which is no object (invariant 2).
        unsafe { *Self::objects(this).add((*this).len as usize).sub(1) == object.as_ptr() }
    }

    /// The objects inside, as a slice.
    ///
    /// # Safety
    /// The caller holds the sheaf for `'a`.
    pub(crate) unsafe fn contents<'a>(this: *mut Sheaf) -> &'a mut [*mut u8] {
        // SAFETY: the first `len` pointers are initialised (invariant 1) and the caller's alone.
        unsafe { core::slice::from_raw_parts_mut(Self::objects(this), (*this).len as usize) }
    }

    /// Fills the room above `len` by `fill`, which returns how many leading slots it wrote (at most `limit`).
    ///
    /// # Safety
    /// The caller holds the sheaf; `fill` writes free objects of its cache.
    pub(crate) unsafe fn fill_with(this: *mut Sheaf, limit: u32, fill: impl FnOnce(&mut [*mut u8]) -> usize) -> u32 {
        // SAFETY: the slots between `len` and `cap` belong to the sheaf; they are given initialised (null).
        unsafe {
            let len = (*this).len;
            let room = ((*this).cap - len).min(limit);
            let first = Self::objects(this).add(len as usize);
            ptr::write_bytes(first, 0, room as usize);
            let got = fill(core::slice::from_raw_parts_mut(first, room as usize)) as u32;
            (*this).len = len + got.min(room);
            got.min(room)
        }
    }
}

/// An owner word that no frame carries: its low bits are not the tag of a slab, and free frames carry zero.
pub(crate) const NO_OWNER: u64 = !7;

/// The sheaves of one CPU and cache. See the drawing at the top of the file.
///
/// # Invariants
/// `main` is a sheaf that this slot holds, or the family's shared [`Sheaf::NONE`]; `spare` and `rcu` are null or held.
#[derive(Debug)]
pub(crate) struct CpuSheaves {
    pub(crate) main: *mut Sheaf,
    pub(crate) spare: *mut Sheaf,
    pub(crate) rcu: *mut Sheaf,
    /// A free whose frame carries exactly this word may go into `main`. [`NO_OWNER`] until the first slow free says the
    /// node; stays so in caches whose frees need care.
    pub(crate) owner: u64,
    /// How many objects the next refill takes: doubles with each.
    pub(crate) batch: u32,
}

// SAFETY: the pointers are to memory that the slot owns exclusively; nothing is tied to a thread.
unsafe impl Send for CpuSheaves {}

/// The shared sheaf without room. Never written: a push into it fails on `len == cap`, a pop on `len == 0`.
#[derive(Debug)]
pub(crate) struct NoSheaf(Sheaf);

// SAFETY: only ever read.
unsafe impl Sync for NoSheaf {}

static NO_SHEAF: NoSheaf = NoSheaf(Sheaf::NONE);

/// The sheaf that stands for "none yet".
pub(crate) const fn none() -> *mut Sheaf {
    (&raw const NO_SHEAF.0).cast_mut()
}

impl CpuSheaves {
    pub(crate) const fn new() -> Self {
        Self { main: none(), spare: ptr::null_mut(), rcu: ptr::null_mut(), owner: NO_OWNER, batch: 0 }
    }

    /// Whether `main` is a sheaf of its own.
    pub(crate) fn has_main(&self) -> bool {
        self.main != none()
    }
}
