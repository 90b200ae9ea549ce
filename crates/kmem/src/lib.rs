//! The facade, in reading order:
//!
//! - [`Platform`]: what a machine supplies;
//! - [`KmemCell`] and [`Kmem`]: where the allocators live, and the familiar names in one place;
//! - [`KmemGlobal`], [`GfpAlloc`], [`KvAlloc`]: the machine for Rust's collections;
//! - the layers, re-exported: [`gfp`], [`buddy`], [`slab`], [`kmalloc`](mod@kmalloc), [`vmalloc`](mod@vmalloc),
//!   [`kvmalloc`](mod@kvmalloc), [`zsmalloc`](mod@zsmalloc), [`cma`], [`sync`].
#![doc = include_str!("../README.md")]
#![no_std]

mod account;
mod caches;
mod cell;
mod compact_names;
mod contiguous_names;
mod contiguous_side;
mod error;
mod global;
mod handle;
mod kmem;
mod kvmalloc_names;
mod many;
mod names;
mod platform;
mod reclaim_side;
mod scopes;
mod views;
mod virtual_side;
mod vmalloc_names;
mod zsmalloc_names;

pub use cell::KmemCell;
pub use compact_names::CompactOnly;
pub use contiguous_side::{CmaSide, DmaSide};
pub use error::InitError;
pub use global::KmemGlobal;
pub use handle::{GfpAlloc, KvAlloc};
pub use kmem::Kmem;
pub use kvmalloc_names::EitherSide;
pub use platform::{ObjectSide, PageSide, Platform};
pub use reclaim_side::{MemInfo, Mm, MmConfig, MmError, MmReclaimer, ReclaimPlatform, ReclaimSide};
pub use views::SlabInfo;
pub use virtual_side::{NoAddressSpace, VirtualSide};
pub use zsmalloc_names::ZsPool;

pub use kmem_buddy as buddy;
pub use kmem_buddy::{MapError, MemoryMap, Region, ZoneLimits};
pub use kmem_cma as cma;
pub use kmem_cma::{
    AreaSpec, CmaArea, CmaError, CmaPages, DeclareError, DmaBlock, DmaBuffer, DmaDevice, DmaError, DmaPool, Place,
    PoolError, PoolSpec, ReleaseError,
};
pub use kmem_gfp as gfp;
pub use kmem_gfp::{
    AllocError, FreeError, Gfp, MigrateType, NodeId, Order, PAGE_SHIFT, PAGE_SIZE, Pages, Pfn, PfnRange, ZoneKind,
    struct_size,
};
pub use kmem_kmalloc as kmalloc;
pub use kmem_kmalloc::{KBox, KMALLOC_MAX_SIZE, KMALLOC_MINALIGN, KfreeError, KreallocError, ZERO_SIZE_PTR, kfree_rcu};
pub use kmem_kvmalloc as kvmalloc;
pub use kmem_kvmalloc::{KvBlock, KvfreeError, KvmallocError, KvreallocError, kvfree_rcu};
pub use kmem_reclaim as reclaim;
pub use kmem_slab as slab;
pub use kmem_slab::{
    Cache, CacheArgs, CacheBox, CreateError, DestroyError, KmemCache, ObjectError, RcuHead, SlabFlags,
};
pub use kmem_sync as sync;
pub use kmem_vmalloc as vmalloc;
pub use kmem_vmalloc::{Prot, VfreeError, VmArea, VmFlags, VmRequest, VmallocError};
pub use kmem_zsmalloc as zsmalloc;

/// The page allocator of a machine.
pub type PageSource<P> = kmem_buddy::Buddy<PageSide<P>>;
