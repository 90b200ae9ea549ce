//! Somewhere to put blobs: ours, and the peers.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use buddy_system_allocator::Heap;
use kmem::PageSource;
use kmem_gfp::{FlatFrameTable, Gfp};
use kmem_hosted::{Host, HostCpu, Machine};
use kmem_zsmalloc::{Config, Handle, Pool, ZsEnv};
use spin::mutex::SpinMutex;

use crate::{machine, measure::Role, memory};

/// Holds copies of blobs of 1 to 4096 bytes.
pub(crate) trait Store: Sync + 'static {
    /// The name of a blob.
    type Name: Copy + Send;

    /// Keeps a copy; `None` if there is no room.
    fn put(&self, blob: &[u8]) -> Option<Self::Name>;

    /// Drops a blob.
    ///
    /// # Safety
    /// `name` is from `put` of this store and has not been dropped; `len` is the blob's length.
    unsafe fn drop_blob(&self, name: Self::Name, len: usize);

    /// Moves blobs together; `false` if the store cannot.
    fn compact(&self) -> bool {
        false
    }

    /// The bytes of memory it holds; `None`: look at the process.
    fn held(&self) -> Option<u64> {
        None
    }
}

/// Somebody who wants to see every store, each with its own type.
pub(crate) trait Visitor {
    /// Called once per store.
    fn visit<S: Store>(&mut self, name: &str, role: Role, make: fn() -> Option<S>);
}

/// Shows every store to `visitor`.
pub(crate) fn visit_all(visitor: &mut impl Visitor) {
    visitor.visit("kmem", Role::Kmem, || Zs::new(Config::new(), false));
    visitor.visit("kmem, all it holds", Role::Kmem, || Zs::new(Config::new(), true));
    visitor.visit("kmem, one move a free", Role::Kmem, || Zs::new(Config::new().with_moves_per_free(1), false));
    visitor.visit("mimalloc", Role::Peer, || Some(Heaped(&mimalloc::MiMalloc)));
    visitor.visit("jemalloc", Role::Peer, || Some(Heaped(&tikv_jemallocator::Jemalloc)));
    visitor.visit("buddy_system_allocator", Role::Peer, Buddy::new);
    visitor.visit("a page each", Role::Floor, || Some(PageEach::default()));
}

/// The hosted machine as the surroundings of a pool.
struct Surroundings(&'static Machine);

impl ZsEnv for Surroundings {
    type Cpu = HostCpu;
    type Pages = PageSource<Host<HostCpu>>;
    type Frames = FlatFrameTable;
    type Context = <Host<HostCpu> as kmem::Platform>::Context;

    #[inline(always)]
    fn cpu(&self) -> &HostCpu {
        kmem::Platform::cpu(self.0.kmem().platform())
    }
    fn pages(&self) -> &Self::Pages {
        self.0.kmem().pages()
    }
    fn frames(&self) -> &FlatFrameTable {
        kmem::Platform::frames(self.0.kmem().platform())
    }
    fn context(&self) -> &Self::Context {
        kmem::Platform::context(self.0.kmem().platform())
    }
}

/// A pool on a machine of its own.
struct Zs {
    pool: Pool<Surroundings>,
    counts_metadata: bool,
}

impl Zs {
    fn new(config: Config, counts_metadata: bool) -> Option<Self> {
        static MACHINE: std::sync::OnceLock<Option<&'static Machine>> = std::sync::OnceLock::new();
        let machine = (*MACHINE.get_or_init(|| machine::boot(1 << 30, 4)))?;
        let pool = Pool::new(Surroundings(machine), config, Gfp::KERNEL).ok()?;
        Some(Self { pool, counts_metadata })
    }
}

impl Store for Zs {
    type Name = Handle;

    #[inline(always)]
    fn put(&self, blob: &[u8]) -> Option<Handle> {
        self.pool.store(blob, Gfp::NOIO).ok()
    }
    #[inline(always)]
    unsafe fn drop_blob(&self, name: Handle, _len: usize) {
        self.pool.free(name).expect("a live handle");
    }
    fn compact(&self) -> bool {
        self.pool.compact();
        true
    }
    fn held(&self) -> Option<u64> {
        let stats = self.pool.stats();
        let metadata = if self.counts_metadata { stats.metadata_frames } else { 0 };
        Some((stats.object_frames + metadata) * 4096)
    }
}

/// A general allocator: a blob is an allocation of its length.
struct Heaped<A: 'static>(&'static A);

/// A blob's address.
#[derive(Clone, Copy)]
pub(crate) struct Address(NonNull<u8>);

// SAFETY: a number until its owner frees it; allocators here take frees from any thread.
unsafe impl Send for Address {}

impl<A: GlobalAlloc + Sync> Store for Heaped<A> {
    type Name = Address;

    #[inline(always)]
    fn put(&self, blob: &[u8]) -> Option<Address> {
        let layout = Layout::from_size_align(blob.len(), 1).ok()?;
        // SAFETY: no blob is empty; the copy is as long as the allocation.
        unsafe {
            let address = NonNull::new(self.0.alloc(layout))?;
            address.as_ptr().copy_from_nonoverlapping(blob.as_ptr(), blob.len());
            Some(Address(address))
        }
    }
    #[inline(always)]
    unsafe fn drop_blob(&self, name: Address, len: usize) {
        // SAFETY: allocated in `put` with this layout, and live (the caller's promise).
        unsafe { self.0.dealloc(name.0.as_ptr(), Layout::from_size_align_unchecked(len, 1)) }
    }
}

/// A buddy that hands out powers of two, behind a spin lock. It counts what it has handed out.
struct Buddy {
    heap: SpinMutex<Heap<32>>,
    held: AtomicU64,
    _region: memory::Region,
}

impl Buddy {
    fn new() -> Option<Self> {
        let region = memory::Region::new(1 << 30, 1 << 30)?;
        let mut heap = Heap::new();
        // SAFETY: the region is ours and lives as long as the heap.
        unsafe { heap.init(region.start(), region.bytes()) };
        Some(Self { heap: SpinMutex::new(heap), held: AtomicU64::new(0), _region: region })
    }

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.next_power_of_two().max(16), 1).ok()
    }
}

impl Store for Buddy {
    type Name = Address;

    fn put(&self, blob: &[u8]) -> Option<Address> {
        let layout = Self::layout(blob.len())?;
        let address = self.heap.lock().alloc(layout).ok()?;
        self.held.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: ours, and not shorter than the blob.
        unsafe { address.as_ptr().copy_from_nonoverlapping(blob.as_ptr(), blob.len()) };
        Some(Address(address))
    }
    unsafe fn drop_blob(&self, name: Address, len: usize) {
        if let Some(layout) = Self::layout(len) {
            // SAFETY: allocated in `put` with this layout, and live (the caller's promise).
            unsafe { self.heap.lock().dealloc(name.0, layout) };
            self.held.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        }
    }
    fn held(&self) -> Option<u64> {
        Some(self.held.load(Ordering::Relaxed))
    }
}

/// What a page allocator alone makes of blobs: a page each. Only counted.
#[derive(Default)]
struct PageEach(AtomicU64);

impl Store for PageEach {
    type Name = ();

    fn put(&self, _blob: &[u8]) -> Option<()> {
        self.0.fetch_add(4096, Ordering::Relaxed);
        Some(())
    }
    unsafe fn drop_blob(&self, _name: (), _len: usize) {
        self.0.fetch_sub(4096, Ordering::Relaxed);
    }
    fn held(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}
