//! The pool: what it consists of, how it begins and ends.
//!
//! ```text
//! Pool ─▶ classes   one lock each ─▶ shared zspages by fullness ─▶ records ─▶ frames of objects
//!      ─▶ parts     one a CPU     ─▶ its own zspages by class and fullness
//!      ─▶ handles   directory of frames of entries: handle ─▶ zspage and slot
//!      ─▶ records   directory of frames of zspage records
//! ```
//! **Locks:** a [CPU's section](crate::shard) or a class lock is held for a few loads and stores and the copy of an object,
//! by compaction of up to eight, by migration of a frame. The order is section, class lock, meta lock; none is held
//! over a call to the page source. A zspage's [lock word](crate::lock_word) is only ever tried.

use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, FrameTable, Gfp, PAGE_SIZE, Pfn};
use kmem_sync::atomic::{AtomicBool, Ordering};
use kmem_sync::{IrqLock, LocalCounter, ShardedCounter, UnsafeCell};

use crate::class::{Class, Home, NR_LISTS};
use crate::directory::{Directory, floor_power_of_two};
use crate::geometry::{Geometry, NR_BUCKETS};
use crate::handle::tag_of;
use crate::locked::Locked;
use crate::meta::Meta;
use crate::shard::{Parts, ShardId};
use crate::zspage::{NONE, frame_at};
use crate::{Config, Corruption, CreateError, DebugFlags, NotEmpty, StoreError, ZsEnv};

/// Classes in a frame.
const CLASSES: usize = floor_power_of_two(PAGE_SIZE / size_of::<Class>());
/// Counters of frames.
pub(crate) const FRAME_COUNTERS: usize = 8;
/// Frames of classes.
const CLASS_FRAMES: usize = 256 / CLASSES;

/// A pool of objects of 1 to 4096 bytes, packed densely; see the [crate's documentation](crate).
///
/// Dropping a pool frees everything in it; [`destroy`](Self::destroy) refuses if objects are left.
///
/// # Invariants
/// 1. The first `geometry.nr_classes()` classes are initialised, in frames that live as long as the pool; `by_length` has one
///    for each length.
/// 2. A live entry names a slot of a zspage of the class that its length belongs to; the slot's owner is the entry's index.
pub struct Pool<E: ZsEnv> {
    pub(crate) env: E,
    pub(crate) config: Config,
    pub(crate) verify: bool,
    pub(crate) geometry: Geometry,
    /// The class of each length, see [`Geometry`].
    by_length: [*const Class; NR_BUCKETS],
    class_frames: [*mut Class; CLASS_FRAMES],
    /// The number of the pool's first frame: no two pools share it.
    pub(crate) id: u64,
    pub(crate) tag: u64,
    pub(crate) handles: Directory,
    pub(crate) records: Directory,
    /// Frames of CPUs' parts and states.
    pub(crate) kept: Directory,
    pub(crate) parts: Parts,
    pub(crate) meta: IrqLock<Meta>,
    /// Frames of shared zspages, on a cache line for each few classes.
    pub(crate) frames: [ShardedCounter; FRAME_COUNTERS],
    pub(crate) meta_frames: ShardedCounter,
    pub(crate) compacting: AtomicBool,
    /// Stands for everything that one compaction at a time does, so that loom sees a second one. Whoever set `compacting`.
    pub(crate) compactor: UnsafeCell<()>,
    /// Written by that one.
    pub(crate) pages_compacted: LocalCounter,
}

// SAFETY: the class table is reached through shared references to `Class`, which is `Sync` (a lock around plain state);
// everything else is atomics and locks. The environment is shared by reference.
unsafe impl<E: ZsEnv + Sync> Sync for Pool<E> {}
// SAFETY: nothing is tied to a thread.
unsafe impl<E: ZsEnv + Send> Send for Pool<E> {}

impl<E: ZsEnv> core::fmt::Debug for Pool<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pool")
            .field("config", &self.config)
            .field("total_pages", &self.total_pages())
            .finish_non_exhaustive()
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Creates an empty pool. Takes some ten frames for the table of classes, with the placement that `gfp` asks for
    /// (`HIGHMEM` and `MOVABLE` do not apply to metadata). Contexts: any that `gfp` allows.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left allocated.
    #[doc(alias = "zs_create_pool")]
    pub fn new(env: E, config: Config, gfp: Gfp) -> Result<Self, CreateError> {
        if !config.is_valid() {
            return Err(CreateError::BadConfig { chain: config.chain, granule: config.granule });
        }
        let geometry = Geometry::new(config.chain, config.granule);
        let verify = config.debug.contains(DebugFlags::VERIFY);
        let mut this = Self {
            env,
            config,
            verify,
            geometry,
            by_length: [ptr::null(); NR_BUCKETS],
            class_frames: [ptr::null_mut(); CLASS_FRAMES],
            id: 0,
            tag: tag_of(0),
            handles: Directory::new(),
            records: Directory::new(),
            kept: Directory::new(),
            parts: Parts::new(),
            meta: IrqLock::new(Meta::new()),
            frames: core::array::from_fn(|_| ShardedCounter::new(0)),
            meta_frames: ShardedCounter::new(0),
            compacting: AtomicBool::new(false),
            compactor: UnsafeCell::new(()),
            pages_compacted: LocalCounter::new(),
        };
        for i in 0..geometry.nr_classes().div_ceil(CLASSES) {
            // On failure `drop` gives back the frames so far.
            let (pfn, address) =
                this.alloc_frame(gfp.difference(Gfp::HIGHMEM.union(Gfp::MOVABLE))).map_err(|error| match error {
                    StoreError::Unmapped(pfn) => CreateError::Unmapped(pfn),
                    StoreError::Alloc(error) => CreateError::Alloc(error),
                    _ => CreateError::Unmapped(Pfn(0)),
                })?;
            if i == 0 {
                this.id = pfn.0;
                this.tag = tag_of(pfn.0);
            }
            this.claim_frame(pfn, crate::meta::META_STATE);
            this.meta_frames.add(1);
            let classes = address.cast::<Class>();
            for j in 0..CLASSES {
                let Some(shape) = this.geometry.shape(i * CLASSES + j) else { break };
                // SAFETY: `CLASSES` classes fit in the frame, which is ours and page-aligned.
                unsafe { classes.add(j).write(Class::new(shape, (i * CLASSES + j) as u8, verify)) };
            }
            if let Some(frame) = this.class_frames.get_mut(i) {
                *frame = classes.as_ptr();
            }
        }
        for len in 1..=PAGE_SIZE {
            let class = this.class(geometry.class_of(len)).map_or(ptr::null(), ptr::from_ref);
            if let Some(slot) = this.by_length.get_mut(geometry.bucket_of(len)) {
                *slot = class;
            }
        }
        // INVARIANT: (1) just written; (2) there is no entry.
        Ok(this)
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The size classes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Objects of at least this many bytes have a frame to themselves; compressing to that size gains nothing.
    #[doc(alias = "zs_huge_class_size")]
    pub fn huge_class_size(&self) -> usize {
        self.geometry.huge_class_size()
    }

    /// The class with this index, which the geometry gave.
    #[inline(always)]
    pub(crate) fn class(&self, index: u8) -> Option<&Class> {
        let frame = *self.class_frames.get(index as usize / CLASSES)?;
        if frame.is_null() || index as usize >= self.geometry.nr_classes() {
            return None;
        }
        // SAFETY: initialised (invariant 1).
        Some(unsafe { &*frame.add(index as usize % CLASSES) })
    }

    /// The class for objects of `len` bytes.
    ///
    /// # Safety
    /// `len` is 1..=4096.
    #[inline(always)]
    pub(crate) unsafe fn class_of_length(&self, len: usize) -> &Class {
        // SAFETY: lengths up to a page have a class (invariant 1).
        unsafe { &**self.by_length.get_unchecked(self.geometry.bucket_of(len)) }
    }

    pub(crate) fn classes(&self) -> impl DoubleEndedIterator<Item = &Class> {
        (0..self.geometry.nr_classes()).filter_map(|index| self.class(index as u8))
    }

    /// Runs `f` on a class's shared state, with the class's lock held.
    pub(crate) fn locked<'p, R>(&'p self, class: &'p Class, f: impl FnOnce(Locked<'p, '_, E>) -> R) -> R {
        class.lock.with(self.env.cpu(), |home| {
            let Home { state, handles } = home;
            let locked =
                Locked { pool: self, class, id: ShardId::HOME, counts: &class.counts, total: None, state, handles };
            let result = f(locked);
            if class.hint.load(Ordering::Relaxed) != home.state.nonempty {
                class.hint.store(home.state.nonempty, Ordering::Relaxed);
            }
            result
        })
    }

    /// Damage found where no error can be returned.
    pub(crate) fn report_damage(&self, damage: Corruption) {
        self.env.context().report(format_args!("zsmalloc: {damage}"));
    }

    /// Destroys the pool if it holds no object: all its frames go back to the page source.
    ///
    /// # Errors
    /// The pool itself and how many objects are left.
    #[doc(alias = "zs_destroy_pool")]
    #[expect(clippy::result_large_err, reason = "the pool is given back, and it is large wherever it is")]
    pub fn destroy(self) -> Result<(), (Self, NotEmpty)> {
        let objects = self.nr_objects();
        if objects == 0 { Ok(()) } else { Err((self, NotEmpty { objects })) }
    }

    /// How many objects are stored. Settles [outstanding frees](Self::settle_frees).
    pub fn nr_objects(&self) -> u64 {
        self.settle_frees();
        self.classes().map(|class| self.totals(class).objects).sum()
    }

    /// Gives back the frames of a zspage; those that somebody is about to move stay away.
    fn free_zspage_frames(&self, class: &Class, number: u32) -> Option<u32> {
        self.locked(class, |locked| {
            let zspage = locked.zspage(number).map_err(|damage| self.report_damage(damage)).ok()?;
            for frame in 0..zspage.shape().frames() {
                let word = zspage.frame(frame);
                if !word.is_backed() {
                    continue;
                }
                let Some(pfn) = frame_at(self.env.frames(), word) else { continue };
                if word.is_isolated() {
                    self.env.context().report(format_args!("zsmalloc: {pfn} is isolated, so it is left to its mover"));
                    continue;
                }
                self.disclaim_frame(pfn);
                self.give_frame(pfn);
            }
            Some(locked.inner(&zspage).next)
        })
    }
}

impl<E: ZsEnv> Drop for Pool<E> {
    fn drop(&mut self) {
        self.settle_frees();
        for class in self.classes() {
            for (id, _) in self.parts() {
                if let Err(damage) = self.gather(id, class, true) {
                    self.report_damage(damage);
                }
            }
            let totals = self.totals(class);
            let (current, source) = self.locked(class, |class| (class.state.current, class.state.source));
            if totals.objects != 0 {
                self.env.context().report(format_args!(
                    "zsmalloc: pool destroyed with {} objects in {} zspages of class {}",
                    totals.objects,
                    totals.zspages,
                    class.shape.size(),
                ));
            }
            for number in [current, source] {
                if number != NONE {
                    self.free_zspage_frames(class, number);
                }
            }
            for list in 0..NR_LISTS {
                let mut number = self.locked(class, |class| class.state.head(list));
                while number != NONE {
                    number = self.free_zspage_frames(class, number).unwrap_or(NONE);
                }
            }
        }
        let mut handles = core::mem::replace(&mut self.handles, Directory::new());
        let mut records = core::mem::replace(&mut self.records, Directory::new());
        let mut kept = core::mem::replace(&mut self.kept, Directory::new());
        let give = |address: NonNull<u8>| {
            if let Some(pfn) = self.env.frames().frame_of(address.addr().get()) {
                self.disclaim_frame(pfn);
                self.give_frame(pfn);
            }
        };
        // SAFETY: the pool is being dropped, so nobody else uses it, and its zspages have just ended.
        unsafe {
            handles.take_apart(give);
            records.take_apart(give);
            kept.take_apart(give);
        }
        for &frame in &self.class_frames {
            let Some(frame) = NonNull::new(frame) else { continue };
            give(frame.cast());
        }
    }
}
