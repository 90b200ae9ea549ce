//! [`Zswap`]: store, load, invalidate.

use core::fmt;
use std::io;

use kmem::ZsPool;
use kmem_gfp::{Gfp, NodeId, PAGE_SIZE};
use kmem_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kmem_zsmalloc::{CreateError, Handle, StoreError};

use super::shard::{Entry, Index};
use super::stats::{Counters, count, get};
use super::{SwapDevice, ZswapOptions, ZswapStats};
use crate::compress::{Compressor, PageBytes, ZERO_PAGE};
use crate::{Host, HostCpu, Machine};

/// The flags of objects: whoever swaps is short of memory, so nothing waits, and frames may be anywhere and move.
pub(crate) const FLAGS: Gfp =
    Gfp::NOWAIT.union(Gfp::NORETRY).union(Gfp::NOWARN).union(Gfp::HIGHMEM).union(Gfp::MOVABLE);

/// Why a page was not taken: its place is the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The pool has been full and has not shrunk enough yet.
    #[error("the pool has {used} frames and takes pages again at {accept}")]
    Full {
        /// Frames in use.
        used: u64,
        /// With so many, pages are taken again.
        accept: u64,
    },
    /// The page does not compress, and without writeback it would stay for good.
    #[error("the page does not compress")]
    Incompressible,
    /// The pool could not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A compressed cache of swapped pages, in a machine's memory, in front of a device.
///
/// Any number of threads use it at once. It is a [`SwapDevice`] itself: pages that it does not take go to the device behind
/// it, and so do its oldest ones when [`writeback`](Self::writeback) or [`shrink`](Self::shrink) is called.
///
/// ```
/// # #[cfg(feature = "lz4")] {
/// use kmem_hosted::{Lz4, Machine, SwapDevice, SwapFile, Zswap, ZswapOptions};
///
/// let machine = Machine::builder().cpus(2).ram_bytes(64 << 20).boot()?;
/// let path = std::env::temp_dir().join(format!("zswap-example-{}", std::process::id()));
/// let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
/// let zswap = Zswap::new(machine, Lz4, SwapFile::new(file), ZswapOptions::new())?;
///
/// zswap.write_page(17, &[0x5a; 4096])?;
/// assert_eq!(zswap.stats().stored_pages, 1);
/// zswap.writeback(1)?; // to the file
/// let mut page = [0; 4096];
/// zswap.read_page(17, &mut page)?; // from the file
/// assert_eq!((page, zswap.stats().stored_pages), ([0x5a; 4096], 0));
/// # std::fs::remove_file(path)?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "zswap")]
pub struct Zswap<D> {
    pub(super) pool: ZsPool<Host<HostCpu>>,
    pub(super) compressor: Box<dyn Compressor>,
    pub(super) device: D,
    pub(super) index: Index,
    /// The age of the next page.
    clock: AtomicU64,
    /// The pool's limit, in frames.
    pub(super) limit: u64,
    /// At so many frames or fewer, a pool that was full is not full any more.
    pub(super) accept: u64,
    pub(super) is_full: AtomicBool,
    pub(super) writes_back: bool,
    pub(super) counters: Counters,
}

impl<D> fmt::Debug for Zswap<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zswap").field("limit", &self.limit).field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl<D: SwapDevice> Zswap<D> {
    /// A cache in the memory of `machine` in front of `device`.
    ///
    /// # Errors
    /// Those of [`Kmem::zs_create_pool`](kmem::Kmem::zs_create_pool).
    pub fn new(
        machine: &Machine,
        compressor: impl Compressor + 'static,
        device: D,
        options: ZswapOptions,
    ) -> Result<Self, CreateError> {
        let frames = machine.ram_bytes() / PAGE_SIZE as u64;
        let limit = frames.saturating_mul(options.max_pool_percent.into()) / 100;
        Ok(Self {
            pool: machine.kmem().zs_create_pool(options.pool, Gfp::KERNEL)?,
            compressor: Box::new(compressor),
            device,
            index: Index::new(),
            clock: AtomicU64::new(0),
            limit,
            accept: limit.saturating_mul(options.accept_threshold_percent.into()) / 100,
            is_full: AtomicBool::new(false),
            writes_back: options.writeback,
            counters: Counters::default(),
        })
    }

    /// The device behind the cache.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The most frames that the pool may have when it takes a page.
    pub fn limit_frames(&self) -> u64 {
        self.limit
    }

    /// Takes the page at `offset` into the cache, with new frames preferably on `node`.
    ///
    /// # Errors
    /// [`Rejected`]: then the cache has nothing at that offset, and the page belongs on the device.
    #[doc(alias = "zswap_store")]
    pub fn store(&self, offset: u64, page: &PageBytes, node: Option<NodeId>) -> Result<(), Rejected> {
        self.store_folio(offset, &[page], node)
    }

    /// Takes the pages of a folio, the first of which is at `offset`: all or none.
    ///
    /// # Errors
    /// [`Rejected`]: then the cache has nothing at these offsets.
    pub fn store_folio(&self, offset: u64, pages: &[&PageBytes], node: Option<NodeId>) -> Result<(), Rejected> {
        let mut handles = Vec::with_capacity(pages.len());
        let stored = self.check_limit().and_then(|()| {
            pages.iter().try_for_each(|page| {
                handles.push(self.store_object(page, node)?);
                Ok(())
            })
        });
        let offsets = (0..pages.len() as u64).map(|nth| offset.wrapping_add(nth));
        match stored {
            Ok(()) => offsets.zip(handles).for_each(|(offset, handle)| self.enter(offset, handle)),
            Err(_) => {
                handles.into_iter().for_each(|handle| self.free(handle));
                // What is there is older than what its user goes on to write elsewhere.
                offsets.for_each(|offset| {
                    self.invalidate(offset);
                });
            }
        }
        stored
    }

    /// Whether the pool takes pages at the moment.
    fn check_limit(&self) -> Result<(), Rejected> {
        let used = self.pool.total_pages();
        if used >= self.limit {
            if !self.is_full.swap(true, Ordering::Relaxed) {
                count(&self.counters.limit_hit);
            }
        } else if self.is_full.load(Ordering::Relaxed) && used <= self.accept {
            self.is_full.store(false, Ordering::Relaxed);
        }
        if !self.is_full.load(Ordering::Relaxed) {
            return Ok(());
        }
        count(&self.counters.full);
        Err(Rejected::Full { used, accept: self.accept })
    }

    fn store_object(&self, page: &PageBytes, node: Option<NodeId>) -> Result<Handle, Rejected> {
        let mut buffer = ZERO_PAGE;
        let small = self.compressor.compress(page, &mut buffer).filter(|len| *len < PAGE_SIZE);
        let object = match small.and_then(|len| buffer.get(..len)) {
            Some(small) => small,
            None if self.writes_back => page,
            None => {
                count(&self.counters.poor);
                return Err(Rejected::Incompressible);
            }
        };
        self.pool.store_on(object, FLAGS, node).map_err(|error| {
            count(&self.counters.no_memory);
            error.into()
        })
    }

    /// Enters a page that the pool holds.
    fn enter(&self, offset: u64, handle: Handle) {
        let age = self.clock.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { handle, age, is_leaving: false };
        if self.is_whole(handle) {
            count(&self.counters.incompressible);
        }
        count(&self.counters.stored);
        count(&self.counters.out);
        let old = self.index.settled(offset).and_then(|mut pages| pages.insert(offset, entry));
        if let Some(old) = old {
            self.forget(old);
        }
    }

    fn is_whole(&self, handle: Handle) -> bool {
        self.pool.len_of(handle) == Ok(PAGE_SIZE)
    }

    fn free(&self, handle: Handle) {
        let freed = self.pool.free(handle);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Frees the page of an entry that is not in the index any more.
    pub(super) fn forget(&self, entry: Entry) {
        if self.is_whole(entry.handle) {
            self.counters.incompressible.fetch_sub(1, Ordering::Relaxed);
        }
        self.counters.stored.fetch_sub(1, Ordering::Relaxed);
        self.free(entry.handle);
    }

    /// Fills `page` with what the cache has at `offset`; `false` if it has nothing there, and `page` is unchanged. The page
    /// stays in the cache.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if memory is damaged; `page` then holds anything.
    #[doc(alias = "zswap_load")]
    pub fn load(&self, offset: u64, page: &mut PageBytes) -> io::Result<bool> {
        let Some(mut pages) = self.index.lock(offset) else { return Ok(false) };
        let Some(entry) = pages.get(offset).copied() else { return Ok(false) };
        // The guard keeps the bytes, also when the entry goes.
        let parts = self.pool.read_parts(entry.handle).map_err(|error| self.damaged(error))?;
        drop(pages);
        let (first, second) = parts.parts();
        self.unpack(first, second, page)?;
        count(&self.counters.loaded);
        Ok(true)
    }

    /// As [`load`](Self::load), and the page leaves the cache: its user keeps it, and will store it again if need be.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn take(&self, offset: u64, page: &mut PageBytes) -> io::Result<bool> {
        let found = self.load(offset, page)?;
        if found {
            self.invalidate(offset);
        }
        Ok(found)
    }

    /// Makes a page of an object's pieces.
    fn unpack(&self, first: &[u8], second: &[u8], page: &mut PageBytes) -> io::Result<()> {
        let len = first.len() + second.len();
        let mut joined = ZERO_PAGE;
        let object = if second.is_empty() {
            first
        } else {
            for (to, from) in joined.iter_mut().zip(first.iter().chain(second)) {
                *to = *from;
            }
            joined.get(..len).unwrap_or(&[])
        };
        if let Ok(whole) = <&PageBytes>::try_from(object) {
            *page = *whole;
            return Ok(());
        }
        self.compressor.decompress(object, page).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        count(&self.counters.damaged);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Forgets the page at `offset`; whether there was one. Waits if the page is just being written to the device.
    #[doc(alias = "zswap_invalidate")]
    pub fn invalidate(&self, offset: u64) -> bool {
        let old = self.index.settled(offset).and_then(|mut pages| pages.remove(offset));
        old.map(|entry| self.forget(entry)).is_some()
    }

    /// What the cache has done.
    pub fn stats(&self) -> ZswapStats {
        let (pool, c) = (self.pool.stats(), &self.counters);
        ZswapStats {
            stored_pages: get(&c.stored),
            stored_incompressible_pages: get(&c.incompressible),
            pool_total_size: pool.object_frames.saturating_mul(PAGE_SIZE as u64),
            stored_bytes: pool.bytes_stored,
            zswpout: get(&c.out),
            zswpin: get(&c.loaded),
            written_back_pages: get(&c.written_back),
            pool_limit_hit: get(&c.limit_hit),
            reject_full: get(&c.full),
            reject_alloc_fail: get(&c.no_memory),
            reject_compress_poor: get(&c.poor),
            decompress_fail: get(&c.damaged),
        }
    }

    /// The pool: classes, statistics, compaction.
    pub fn pool(&self) -> &ZsPool<Host<HostCpu>> {
        &self.pool
    }
}

impl<D> Drop for Zswap<D> {
    fn drop(&mut self) {
        let pool = &self.pool;
        self.index.drain(|entry| {
            let freed = pool.free(entry.handle);
            debug_assert!(freed.is_ok(), "{freed:?}");
        });
    }
}

impl<D: SwapDevice> SwapDevice for Zswap<D> {
    /// Into the cache, or else to the device.
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()> {
        match self.store(offset, page, None) {
            Ok(()) => Ok(()),
            Err(_) => self.device.write_page(offset, page),
        }
    }

    /// From the cache, or else from the device.
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()> {
        if self.load(offset, page)? { Ok(()) } else { self.device.read_page(offset, page) }
    }

    fn discard_page(&self, offset: u64) {
        self.invalidate(offset);
        self.device.discard_page(offset);
    }
}
