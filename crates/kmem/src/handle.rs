//! [`GfpAlloc`] and [`KvAlloc`]: kmalloc and kvmalloc as allocator handles that carry their flags, for `Box`, `Vec` and maps.
//!
//! The crate `allocator-api2` is what collections speak on stable Rust; its versions 0.2 and 0.4 are different traits
//! to the compiler. Each is implemented behind a feature of its own (`collections`), over the same three calls of a handle.

use core::fmt;

use kmem_gfp::Gfp;

use crate::{Kmem, Platform};

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
mod collections;

macro_rules! handle {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        pub struct $name<P: Platform> {
            kmem: &'static Kmem<P>,
            gfp: Gfp,
        }

        impl<P: Platform> Clone for $name<P> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<P: Platform> Copy for $name<P> {}

        impl<P: Platform> fmt::Debug for $name<P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.gfp).finish()
            }
        }

        impl<P: Platform> $name<P> {
            /// The flags it asks with.
            pub fn gfp(&self) -> Gfp {
                self.gfp
            }

            /// The machine it asks.
            pub fn kmem(&self) -> &'static Kmem<P> {
                self.kmem
            }

            /// The same machine with other flags. Memory may be grown and given back through either.
            #[must_use]
            pub fn with_gfp(self, gfp: Gfp) -> Self {
                Self { gfp, ..self }
            }
        }
    };
}

handle! {
    /// Allocates from a machine's kmalloc with fixed flags. `Copy`: a pointer and a word.
    ///
    /// ```
    /// use kmem::{Gfp, GfpAlloc, Kmem, Platform};
    ///
    /// // let mut v = Vec::new_in(kmem.gfp_alloc(Gfp::KERNEL));
    /// // v.try_reserve(1000)?;
    /// fn for_interrupts<P: Platform>(kmem: &'static Kmem<P>) -> GfpAlloc<P> {
    ///     kmem.gfp_alloc(Gfp::ATOMIC)
    /// }
    /// ```
    GfpAlloc
}

handle! {
    /// Allocates from a machine's kvmalloc with fixed flags: a collection that grows starts in kmalloc, moves into vmalloc
    /// memory when kmalloc has no room for it, and is given back by kvfree. `Copy`: a pointer and a word.
    ///
    /// ```
    /// use kmem::{Gfp, Kmem, KvAlloc, Platform};
    ///
    /// // let mut table = Vec::new_in(kmem.kv_alloc(Gfp::KERNEL));
    /// // table.try_reserve(10_000_000)?;
    /// fn for_tables<P: Platform>(kmem: &'static Kmem<P>) -> KvAlloc<P> {
    ///     kmem.kv_alloc(Gfp::KERNEL)
    /// }
    /// ```
    KvAlloc
}

impl<P: Platform> Kmem<P> {
    /// A handle for collections that allocates from kmalloc with `gfp`.
    pub fn gfp_alloc(&'static self, gfp: Gfp) -> GfpAlloc<P> {
        GfpAlloc { kmem: self, gfp }
    }

    /// A handle for collections that allocates from kvmalloc with `gfp`.
    pub fn kv_alloc(&'static self, gfp: Gfp) -> KvAlloc<P> {
        KvAlloc { kmem: self, gfp }
    }
}
