//! [`Vmalloc`]: a window of addresses and everything that is kept about it.
//!
//! ```text
//!   Vmalloc { env, shared ─▶ Shared ─┬─ index    address ▶ area, read without a lock
//!                                    ├─ tree     free map, index writer, descriptors      one lock, cold paths only
//!                                    ├─ nodes    pools, lazy and deferred lists           one per CPU group
//!                                    └─ counters
//! ```

use core::ops::Range;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, Gfp, PAGE_SHIFT, PAGE_SIZE};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use kmem_sync::{Cpu, IrqLock, Pinned, SpinLock, const_fn};

use crate::area::MAX_WINDOW_PAGES;
use crate::index::Index;
use crate::meta::{Spares, alloc_block, free_block, order_of};
use crate::node::Node;
use crate::tree::{NODE_ORDER, Tree};
use crate::{VfreeError, VmallocEnv, VmallocError};

/// The most nodes that a window is divided into.
pub(crate) const MAX_NODES: usize = 128;

/// What the running window consists of.
///
/// # Invariants
/// 1. `nodes` point to nodes that live as long as this value: `nr_nodes` different ones, at least 1, over and over.
/// 2. `index` is the index of `tree`.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The window's first address, page-aligned.
    pub(crate) base: usize,
    pub(crate) nr_pages: u64,
    pub(crate) index: Index,
    nodes: [NonNull<Node>; MAX_NODES],
    nr_nodes: usize,
    /// Above so many lazily freed pages a purge is due.
    pub(crate) lazy_limit: u64,
    pub(crate) lazy_pages: AtomicU64,
    /// Pages of a block that `vm_map_ram` carves.
    pub(crate) ram_block_pages: u64,
    pub(crate) tree: IrqLock<Tree>,
    pub(crate) purging: SpinLock<()>,
    pub(crate) purges: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) warned: [AtomicBool; 4],
}

// SAFETY: all fields are shared by locks or atomics, or constant.
unsafe impl Sync for Shared {}

/// Messages that are reported once for each window.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Once {
    ZeroSize = 0,
    Flags = 1,
    BadFree = 2,
    NoGuard = 3,
}

impl Shared {
    /// A node by number; numbers wrap.
    #[inline(always)]
    pub(crate) fn node(&self, i: usize) -> &Node {
        // SAFETY: nodes live as long as `self` (invariant 1).
        unsafe { self.nodes[i % MAX_NODES].as_ref() }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        (0..self.nr_nodes).map(|i| self.node(i))
    }

    #[inline(always)]
    pub(crate) fn address(&self, page: u64) -> usize {
        self.base + ((page as usize) << PAGE_SHIFT)
    }

    /// The page of an address in the window.
    #[inline(always)]
    pub(crate) fn page_of(&self, address: usize) -> Option<u64> {
        let page = (address.wrapping_sub(self.base) >> PAGE_SHIFT) as u64;
        if page < self.nr_pages { Some(page) } else { None }
    }

    /// `true` the first time only.
    pub(crate) fn first_time(&self, what: Once) -> bool {
        self.warned.get(what as usize).is_some_and(|flag| !flag.swap(true, Ordering::Relaxed))
    }
}

/// Virtually contiguous memory in a window of addresses.
///
/// `const`-constructible and shared by reference; [`init`](Self::init) sets the window up. Dropping it gives all
/// bookkeeping memory back; areas that have not been freed by then are lost with their frames.
///
/// # Invariants
/// `shared` is null or points to what is shared, in a block of its own, as long as this value lives.
#[derive(Debug)]
pub struct Vmalloc<E: VmallocEnv> {
    pub(crate) env: E,
    shared: AtomicPtr<Shared>,
}

// SAFETY: all that is shared behind the pointer is `Sync`; the environment is used by reference.
unsafe impl<E: VmallocEnv + Sync> Sync for Vmalloc<E> {}
// SAFETY: nothing is tied to a thread but perhaps the environment.
unsafe impl<E: VmallocEnv + Send> Send for Vmalloc<E> {}

impl<E: VmallocEnv> Vmalloc<E> {
    const_fn! {
        /// A window that is not set up: every call fails with `NotReady`.
        pub fn new(env: E) -> Self {
            Self { env, shared: AtomicPtr::new(core::ptr::null_mut()) }
        }
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    #[inline(always)]
    pub(crate) fn try_shared(&self) -> Option<&Shared> {
        // Acquire pairs with the release in `init`.
        NonNull::new(self.shared.load(Ordering::Acquire)).map(|shared| {
            // SAFETY: lives as long as `self` (type invariant).
            unsafe { shared.as_ref() }
        })
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> Result<&Shared, VmallocError> {
        self.try_shared().ok_or(VmallocError::NotReady)
    }

    #[inline(always)]
    pub(crate) fn shared_to_free(&self) -> Result<&Shared, VfreeError> {
        self.try_shared().ok_or(VfreeError::NotReady)
    }

    /// The number of the running CPU's node.
    #[inline(always)]
    pub(crate) fn local_node(&self) -> usize {
        Pinned::new(self.env.cpu()).map_or(0, |pin| pin.id().index())
    }

    /// Sets the window up. Once, in task context, before anything is asked for; takes a few pages of bookkeeping memory for
    /// each CPU from the page source.
    ///
    /// # Safety
    /// The addresses of `window` belong to this value as long as it lives: nobody else maps, unmaps or uses them.
    ///
    /// # Errors
    /// [`VmallocError::BadRange`] for a window that is empty, not page-aligned, or above 2^36 pages;
    /// [`VmallocError::NoMemory`] without bookkeeping memory (nothing is kept, and it may be tried again).
    pub unsafe fn init(&self, window: Range<usize>) -> Result<(), VmallocError> {
        let bad_range = VmallocError::BadRange { start: window.start, end: window.end };
        let nr_pages = (window.end.saturating_sub(window.start) >> PAGE_SHIFT) as u64;
        let aligned = (window.start | window.end).is_multiple_of(PAGE_SIZE);
        if nr_pages == 0 || nr_pages > MAX_WINDOW_PAGES || !aligned || self.try_shared().is_some() {
            return Err(bad_range);
        }
        let out_of_memory = |source| VmallocError::NoMemory { nr_pages: 0, source };
        let block = alloc_block(&self.env, Gfp::KERNEL, order_of::<Shared>()).map_err(out_of_memory)?;
        match self.build(&window, nr_pages) {
            Ok(shared) => {
                let place = block.cast::<Shared>();
                // SAFETY: a fresh block of that size.
                unsafe { place.write(shared) };
                // INVARIANT: just written. Release pairs with the acquire in `try_shared`.
                self.shared.store(place.as_ptr(), Ordering::Release);
                Ok(())
            }
            Err(source) => {
                // SAFETY: allocated above, unused.
                unsafe { free_block(&self.env, block, order_of::<Shared>()) };
                Err(out_of_memory(source))
            }
        }
    }

    fn build(&self, window: &Range<usize>, nr_pages: u64) -> Result<Shared, kmem_gfp::AllocError> {
        let env = &self.env;
        let nr_cpus = env.cpu().nr_cpus().max(1);
        let nr_nodes = (nr_cpus as usize).min(MAX_NODES);
        let mut made = [None; MAX_NODES];
        let mut failure = None;
        for slot in made.iter_mut().take(nr_nodes) {
            match alloc_block(env, Gfp::KERNEL, order_of::<Node>()) {
                Ok(block) => {
                    // SAFETY: a fresh block of that size.
                    unsafe { block.cast::<Node>().write(Node::new()) };
                    *slot = Some(block.cast());
                }
                Err(error) => failure = Some(error),
            }
        }
        let mut spares = Spares::new();
        while failure.is_none() && spares.len() < Tree::blocks_for(nr_pages) {
            match alloc_block(env, Gfp::KERNEL, NODE_ORDER) {
                // SAFETY: a fresh block.
                Ok(block) => unsafe { spares.push(block) },
                Err(error) => failure = Some(error),
            }
        }
        let base_page = (window.start >> PAGE_SHIFT) as u64;
        let tree = match failure {
            None => Tree::new(base_page, nr_pages, spares),
            Some(_) => Err(spares),
        };
        let mut nodes = [NonNull::dangling(); MAX_NODES];
        for (slot, node) in nodes.iter_mut().zip(made.iter().flatten().cycle()) {
            *slot = *node;
        }
        match tree {
            Ok(tree) => Ok(Shared {
                base: window.start,
                nr_pages,
                index: tree.index,
                nodes,
                nr_nodes,
                lazy_limit: lazy_limit(env.online_cpus()),
                lazy_pages: AtomicU64::new(0),
                ram_block_pages: crate::map_ram::block_pages(nr_pages, nr_cpus),
                tree: IrqLock::new(tree),
                purging: SpinLock::new(()),
                purges: AtomicU64::new(0),
                flushes: AtomicU64::new(0),
                warned: [(); 4].map(|()| AtomicBool::new(false)),
            }),
            Err(mut spares) => {
                while let Some(block) = spares.pop() {
                    // SAFETY: allocated above, unused.
                    unsafe { free_block(env, block, NODE_ORDER) };
                }
                for node in made.into_iter().flatten() {
                    // SAFETY: allocated above, unused.
                    unsafe { free_block(env, node.cast(), order_of::<Node>()) };
                }
                Err(failure.unwrap_or(kmem_gfp::AllocError::NotReady))
            }
        }
    }

    /// The window, or an empty range before [`init`](Self::init).
    pub fn window(&self) -> Range<usize> {
        self.try_shared().map_or(0..0, |shared| shared.base..shared.address(shared.nr_pages))
    }

    /// Whether an address lies in the window. Any context; a subtraction and a comparison.
    #[inline(always)]
    pub fn is_vmalloc_addr(&self, address: *const u8) -> bool {
        self.try_shared().is_some_and(|shared| shared.page_of(address.addr()).is_some())
    }

    pub(crate) fn report(&self, line: core::fmt::Arguments<'_>) {
        self.env.context().report(line);
    }
}

/// Pages that may be freed lazily: 32 MiB for each doubling of the CPUs.
fn lazy_limit(online_cpus: u32) -> u64 {
    let doublings = u64::from(u32::BITS - online_cpus.max(1).leading_zeros());
    doublings * ((32 << 20) / PAGE_SIZE as u64)
}

impl<E: VmallocEnv> Drop for Vmalloc<E> {
    fn drop(&mut self) {
        if self.try_shared().is_none() {
            return;
        }
        self.vm_unmap_aliases();
        let live = self.live_areas();
        if live > 0 {
            self.report(format_args!("vmalloc: the window goes with {live} areas in use"));
        }
        let Some(place) = NonNull::new(self.shared.load(Ordering::Acquire)) else { return };
        let env = &self.env;
        // SAFETY: points to a live value (type invariant).
        let shared = unsafe { place.as_ref() };
        crate::map_ram::drop_blocks(env, shared);
        // SAFETY: `&mut self`: nobody uses the window any more; blocks have the orders they were allocated with, and
        // nothing in them is looked at once they are given back.
        unsafe {
            shared.tree.with(env.cpu(), |tree| tree.dismantle(|block, order| free_block(env, block, order)));
            for node in shared.nodes.into_iter().take(shared.nr_nodes) {
                free_block(env, node.cast(), order_of::<Node>());
            }
            free_block(env, place.cast(), order_of::<Shared>());
        }
    }
}
