//! Page allocators from the registry, and the floor.
//!
//! Those that take `&mut self` run behind a spin lock, as any kernel would have to use them, and the two fast ones also
//! without it where the workload has one thread.

use std::{cell::UnsafeCell, num::NonZeroUsize, ptr::NonNull};

use bitmap_allocator::{BitAlloc, BitAlloc1M, BitAlloc64K};
use buddy_slab_allocator::BuddyAllocator;
use buddy_system_allocator::FrameAllocator;
use frame_alloc::{CpuId, DepotAllocator, PageSize, PhysicalAllocator, Provenance, RegionInit, SummaryBuddyAllocator};

use super::{Pages, Workload, subject};
use crate::{
    measure::{Role, Subject},
    memory::Region,
    threads,
};

/// Every peer that can run `workload`, and the floor where it applies.
pub(crate) fn subjects(workload: Workload, seed: u64) -> Vec<Subject> {
    let mut all = vec![
        subject::<FrameAlloc<Depot>>("frame-alloc Depot", Role::Peer, workload, seed),
        subject::<FrameAlloc<Summary>>("frame-alloc SummaryBuddy", Role::Peer, workload, seed),
    ];
    all.extend([
        subject::<Spinning<Bitmap>>("bitmap-allocator", Role::Peer, workload, seed),
        subject::<Spinning<BuddySlab>>("buddy-slab-allocator", Role::Peer, workload, seed),
        subject::<Spinning<BuddySystem>>("buddy_system_allocator", Role::Peer, workload, seed),
    ]);
    if workload.threads() == 1 {
        all.extend([
            subject::<Bare<Bitmap>>("bitmap-allocator, no lock", Role::Unshared, workload, seed),
            subject::<Bare<BuddySlab>>("buddy-slab-allocator, no lock", Role::Unshared, workload, seed),
        ]);
    }
    if let Workload::Pair { order: 0, .. } = workload {
        all.push(subject::<Array>("floor: per-CPU array", Role::Floor, workload, seed));
    }
    all
}

/// `frame-alloc` with its per-CPU magazines.
pub(crate) type DepotPages = FrameAlloc<Depot>;
/// `bitmap-allocator` without a lock.
pub(crate) type BitmapPages = Bare<Bitmap>;

/// An allocator that wants to be alone: `&mut self` throughout.
pub(crate) trait Exclusive: Send + Sized + 'static {
    fn new(frames: usize) -> Option<Self>;
    fn alloc(&mut self, order: u32) -> Option<usize>;
    fn free(&mut self, frame: usize, order: u32);
}

/// An exclusive allocator used by one thread, without any lock.
pub(crate) struct Bare<E>(UnsafeCell<E>);

// SAFETY: `Bare` is chosen only for workloads of one thread.
unsafe impl<E: Send> Sync for Bare<E> {}

impl<E: Exclusive> Pages for Bare<E> {
    fn new(frames: usize, _cpus: usize) -> Option<Self> {
        E::new(frames).map(|inner| Self(UnsafeCell::new(inner)))
    }
    #[inline]
    fn alloc(&self, _cpu: usize, order: u32) -> Option<usize> {
        // SAFETY: one thread, and no call is made from within another.
        unsafe { &mut *self.0.get() }.alloc(order)
    }
    #[inline]
    fn free(&self, _cpu: usize, frame: usize, order: u32) {
        // SAFETY: as in `alloc`.
        unsafe { &mut *self.0.get() }.free(frame, order);
    }
}

/// An exclusive allocator shared by several threads.
struct Spinning<E>(spin::mutex::SpinMutex<E>);

impl<E: Exclusive> Pages for Spinning<E> {
    fn new(frames: usize, _cpus: usize) -> Option<Self> {
        E::new(frames).map(|inner| Self(spin::mutex::SpinMutex::new(inner)))
    }
    #[inline]
    fn alloc(&self, _cpu: usize, order: u32) -> Option<usize> {
        self.0.lock().alloc(order)
    }
    #[inline]
    fn free(&self, _cpu: usize, frame: usize, order: u32) {
        self.0.lock().free(frame, order);
    }
}

/// `bitmap-allocator`, in the smallest of its sizes that holds the frames.
pub(crate) enum Bitmap {
    Small(Box<BitAlloc64K>),
    Large(Box<BitAlloc1M>),
}

impl Exclusive for Bitmap {
    fn new(frames: usize) -> Option<Self> {
        if frames <= BitAlloc64K::CAP {
            let mut bits = Box::<BitAlloc64K>::default();
            bits.insert(0..frames);
            Some(Self::Small(bits))
        } else {
            let mut bits = Box::<BitAlloc1M>::default();
            bits.insert(0..frames);
            Some(Self::Large(bits))
        }
    }
    #[inline]
    fn alloc(&mut self, order: u32) -> Option<usize> {
        match (self, order) {
            (Self::Small(bits), 0) => bits.alloc(),
            (Self::Large(bits), 0) => bits.alloc(),
            (Self::Small(bits), _) => bits.alloc_contiguous(None, 1 << order, order as usize),
            (Self::Large(bits), _) => bits.alloc_contiguous(None, 1 << order, order as usize),
        }
    }
    #[inline]
    fn free(&mut self, frame: usize, order: u32) {
        let done = match (self, order) {
            (Self::Small(bits), 0) => bits.dealloc(frame),
            (Self::Large(bits), 0) => bits.dealloc(frame),
            (Self::Small(bits), _) => bits.dealloc_contiguous(frame, 1 << order),
            (Self::Large(bits), _) => bits.dealloc_contiguous(frame, 1 << order),
        };
        assert!(done, "double free of {frame}");
    }
}

/// The buddy of `buddy-slab-allocator`, on untouched memory.
struct BuddySlab {
    buddy: BuddyAllocator<4096>,
    _region: Region,
}

// SAFETY: the allocator's raw pointers lead into its own region, which moves with it.
unsafe impl Send for BuddySlab {}

impl Exclusive for BuddySlab {
    fn new(frames: usize) -> Option<Self> {
        let region = Region::new(frames * 4096, 4 << 20)?;
        let mut buddy = BuddyAllocator::new();
        // SAFETY: the region is a live mapping that outlives the allocator, and nobody else uses it.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut::<u8>(region.start());
            buddy.init(std::slice::from_raw_parts_mut(start, region.bytes())).ok()?;
        }
        Some(Self { buddy, _region: region })
    }
    #[inline]
    fn alloc(&mut self, order: u32) -> Option<usize> {
        // Its blocks are aligned to where its heap starts, so nothing more than a page's alignment can be asked for.
        self.buddy.alloc_pages(1 << order, 4096).ok()
    }
    #[inline]
    fn free(&mut self, frame: usize, order: u32) {
        self.buddy.dealloc_pages(frame, 1 << order);
    }
}

/// `buddy_system_allocator`'s frame allocator.
struct BuddySystem(FrameAllocator<11>);

impl Exclusive for BuddySystem {
    fn new(frames: usize) -> Option<Self> {
        let mut inner = FrameAllocator::new();
        inner.insert(0..frames);
        Some(Self(inner))
    }
    #[inline]
    fn alloc(&mut self, order: u32) -> Option<usize> {
        self.0.alloc(1 << order)
    }
    #[inline]
    fn free(&mut self, frame: usize, order: u32) {
        self.0.dealloc(frame, 1 << order);
    }
}

const FRAME: PageSize = PageSize::from_log2(12);

pub(crate) struct Mapped;

// SAFETY: the "physical" addresses are those of a live mapping whose provenance is exposed.
unsafe impl Provenance for Mapped {
    unsafe fn create(address: usize) -> NonNull<u8> {
        // SAFETY: addresses inside the mapping are never null.
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) }
    }
    unsafe fn destroy<T>(pointer: NonNull<T>) -> usize {
        pointer.addr().get()
    }
}

pub(crate) struct GangMember;

impl CpuId for GangMember {
    #[inline]
    fn current_cpu() -> usize {
        threads::current()
    }
}

pub(crate) type Summary = SummaryBuddyAllocator<11, Mapped>;
pub(crate) type Depot = DepotAllocator<Summary, GangMember, 4>;

pub(crate) trait Fresh: PhysicalAllocator + RegionInit + Send + Sync + 'static {
    fn fresh() -> Self;
}

impl Fresh for Summary {
    fn fresh() -> Self {
        Self::new(FRAME)
    }
}

impl Fresh for Depot {
    fn fresh() -> Self {
        Self::new(FRAME, Summary::new(FRAME))
    }
}

/// `frame-alloc`, with or without its per-CPU magazines.
pub(crate) struct FrameAlloc<A> {
    inner: Box<A>,
    _region: Region,
}

impl<A: Fresh> Pages for FrameAlloc<A> {
    fn new(frames: usize, _cpus: usize) -> Option<Self> {
        let region = Region::new(frames * 4096, 4 << 20)?;
        let inner = Box::new(A::fresh());
        // SAFETY: the region is ours, mapped, frame-aligned, and lives as long as the allocator; nobody shares it yet.
        unsafe { inner.try_init_region(region.start(), region.bytes()) }.ok()?;
        Some(Self { inner, _region: region })
    }
    #[inline]
    fn alloc(&self, _cpu: usize, order: u32) -> Option<usize> {
        self.inner.allocate_physical(FRAME, count(order)).ok()
    }
    #[inline]
    fn free(&self, _cpu: usize, frame: usize, order: u32) {
        // SAFETY: the workloads free what they allocated, once and with the same order.
        unsafe { self.inner.deallocate_physical(FRAME, count(order), frame) };
    }
}

#[inline]
fn count(order: u32) -> NonZeroUsize {
    NonZeroUsize::new(1 << order).unwrap_or(NonZeroUsize::MIN)
}

/// The floor: one array of frames per processor, and nothing else. No refill, no order but 0.
pub(crate) struct Array {
    stacks: Box<[Stack]>,
}

#[repr(align(128))]
struct Stack(UnsafeCell<Vec<usize>>);

// SAFETY: each stack is used only by the thread that runs as its processor.
unsafe impl Sync for Array {}

impl Pages for Array {
    fn new(_frames: usize, cpus: usize) -> Option<Self> {
        let stacks = (0..cpus).map(|cpu| Stack(UnsafeCell::new((cpu * 64..cpu * 64 + 64).collect()))).collect();
        Some(Self { stacks })
    }
    #[inline]
    fn alloc(&self, cpu: usize, _order: u32) -> Option<usize> {
        // SAFETY: only the thread of `cpu` comes here.
        unsafe { &mut *self.stacks[cpu].0.get() }.pop()
    }
    #[inline]
    fn free(&self, cpu: usize, frame: usize, _order: u32) {
        // SAFETY: as in `alloc`.
        unsafe { &mut *self.stacks[cpu].0.get() }.push(frame);
    }
}
