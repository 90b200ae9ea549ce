//! A machine on which tasks pay for objects: real memory cgroups under the object caches, and a task that gives memory back
//! when its group is full.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::num::NonZeroU32;
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kmem::gfp::{FlatFrameTable, FrameWords, NoReclaim, PlainContext};
use kmem::reclaim::GroupId;
use kmem::reclaim::memcg::{Memcg, MemcgConfig, MemcgEnv, OBJECT_OVERHEAD_BYTES, Payer, Stat, Wait};
use kmem::sync::NoReaders;
use kmem::{
    AllocError, CacheArgs, Gfp, Kmem, KmemCell, KreallocError, MemoryMap, NoAddressSpace, Order, PAGE_SIZE, Pfn,
    PfnRange, Platform, RcuHead, Region, SlabFlags,
};

use crate::board::OneCpu;

const PAGES: usize = 2048;
/// The frame that the memory begins at.
const FIRST: Pfn = Pfn(0x400);
const GROUPS: u32 = 8;

#[repr(align(0x40_0000))]
struct Memory(UnsafeCell<[u8; PAGES * PAGE_SIZE]>);
// SAFETY: the page allocator hands it out piece by piece.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; PAGES * PAGE_SIZE]));
static WORDS: [FrameWords; PAGES] = [const { FrameWords::new() }; PAGES];
static KMEM: KmemCell<Market> = KmemCell::new();
static PINNED: AtomicBool = AtomicBool::new(false);

/// What the groups see of the machine.
struct Tasks {
    cpu: OneCpu,
    group: AtomicU32,
    /// Addresses of blocks that may go when their group is full.
    cached: Mutex<Vec<usize>>,
}

impl MemcgEnv for Tasks {
    type Cpu = OneCpu;
    type Context = PlainContext;

    fn cpu(&self) -> &OneCpu {
        &self.cpu
    }
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    fn task_group(&self) -> GroupId {
        GroupId(self.group.load(Ordering::Relaxed))
    }
    fn reclaim(&self, group: GroupId, pages: u64, _gfp: Gfp) -> u64 {
        let groups = &KMEM.get().unwrap().platform().groups;
        let before = groups.usage(group);
        let mut freed = 0;
        while freed < pages * PAGE_SIZE as u64 {
            let Some(block) = self.cached.lock().unwrap().pop() else { break };
            free(block);
            freed += PAGE_SIZE as u64 / 2;
        }
        groups.drain_stocks();
        before.saturating_sub(groups.usage(group))
    }
}

/// The machine.
struct Market {
    cpu: OneCpu,
    grace: NoReaders,
    frames: FlatFrameTable,
    groups: Memcg<Tasks>,
}

impl Platform for Market {
    type Cpu = OneCpu;
    type Context = PlainContext;
    type Grace = NoReaders;
    type Reclaimer = NoReclaim;
    type Frames = FlatFrameTable;
    type Space = NoAddressSpace;

    const CHARGES: bool = true;

    fn cpu(&self) -> &OneCpu {
        &self.cpu
    }
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    fn grace(&self) -> &NoReaders {
        &self.grace
    }
    fn reclaimer(&self) -> &NoReclaim {
        &NoReclaim
    }
    fn frames(&self) -> &FlatFrameTable {
        &self.frames
    }
    fn space(&self) -> &NoAddressSpace {
        &NoAddressSpace
    }
    fn charge_object(&self, gfp: Gfp, size: usize, _: bool) -> Result<Option<NonZeroU32>, AllocError> {
        match self.groups.charge_object(gfp, size) {
            Ok(payer) => Ok(payer.and_then(|payer| {
                self.groups.account(payer.group(), Stat::SlabUnreclaimable, cost(size) as i64);
                NonZeroU32::new(payer.to_raw())
            })),
            Err(_) => Err(AllocError::OverLimit { order: Order::ZERO, gfp }),
        }
    }
    fn uncharge_object(&self, payer: NonZeroU32, size: usize, _: bool) {
        let payer = Payer::from_raw(payer.get()).unwrap();
        self.groups.account(payer.group(), Stat::SlabUnreclaimable, -(cost(size) as i64));
        self.groups.uncharge_object(payer, size);
    }
}

fn cost(size: usize) -> u64 {
    (size + OBJECT_OVERHEAD_BYTES) as u64
}

/// Memory that stays for good.
fn leak(layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: neither is empty.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

fn boot() -> &'static Kmem<Market> {
    let base = MEMORY.0.get().expose_provenance();
    let cpu = OneCpu::new(&PINNED);
    let groups = Memcg::new(Tasks { cpu, group: AtomicU32::new(0), cached: Mutex::new(Vec::new()) });
    let table = MemcgConfig::new(GROUPS);
    let memory = leak(Memcg::<Tasks>::layout(&table, 1).unwrap()).unwrap();
    // SAFETY: memory of that layout that stays; as many words as frames, all in statics; nobody reads objects without owning
    // them.
    let market = unsafe {
        groups.init(memory, table).unwrap();
        let frames = FlatFrameTable::new(NonNull::from(&WORDS[0]), base, FIRST, PAGES as u64);
        Market { cpu, grace: NoReaders::new(), frames, groups }
    };
    let regions = [Region::new(PfnRange::with_len(FIRST, PAGES as u64).unwrap())];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    // SAFETY: the statics are this machine's alone, the table covers all of them, and the books stay.
    unsafe { KMEM.init(market, &map, leak) }.unwrap()
}

/// Frees the block at an address.
fn free(block: usize) {
    // SAFETY: tests free what they own.
    unsafe { KMEM.get().unwrap().kfree(core::ptr::with_exposed_provenance_mut(block)) }.unwrap();
}

/// The bytes of every block's object.
fn total(live: &BTreeMap<usize, usize>) -> u64 {
    live.values().map(|&size| cost(size)).sum()
}

#[test]
fn tasks_pay_for_their_objects_and_for_nothing_else() {
    let kmem = boot();
    let groups = &kmem.platform().groups;
    let task = |group: GroupId| groups.env().group.store(group.0, Ordering::Relaxed);
    let group = groups.create(GroupId::ROOT).unwrap();
    let charged = || groups.stat(group, Stat::SlabUnreclaimable);
    // the root, and requests without the flag
    let free_of_charge = kmem.kmalloc(100, Gfp::KERNEL_ACCOUNT).unwrap();
    task(group);
    let plain = kmem.kmalloc(100, Gfp::KERNEL).unwrap();
    assert_eq!((groups.usage(group), charged()), (0, 0));

    // Blocks come and go in every way: what is charged is what is in use.
    let mut live = BTreeMap::new();
    let mut seed = 0x2545_f491_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let usable = |block: usize| {
        // SAFETY: the test owns the block.
        unsafe { kmem.ksize(core::ptr::with_exposed_provenance(block)) }.unwrap()
    };
    let pick = |live: &mut BTreeMap<usize, usize>, nth: usize| {
        let block = *live.keys().nth(nth % live.len().max(1))?;
        live.remove(&block);
        Some(block)
    };
    for _ in 0..4000 {
        match random(6) {
            0 | 1 => {
                let block = kmem.kmalloc(1 + random(6000), Gfp::KERNEL_ACCOUNT).unwrap().as_ptr().expose_provenance();
                live.insert(block, usable(block));
            }
            2 => {
                if let Some(block) = pick(&mut live, random(10_000)) {
                    free(block);
                }
            }
            3 => {
                if let Some(old) = pick(&mut live, random(10_000)) {
                    let to = 1 + random(8000);
                    // SAFETY: the test owns the block.
                    let new =
                        unsafe { kmem.krealloc(core::ptr::with_exposed_provenance_mut(old), to, Gfp::KERNEL_ACCOUNT) };
                    let new = new.unwrap().as_ptr().expose_provenance();
                    live.insert(new, usable(new));
                }
            }
            4 => {
                let blocks: Vec<*mut u8> = (0..random(9))
                    .filter_map(|_| pick(&mut live, random(10_000)))
                    .map(core::ptr::with_exposed_provenance_mut)
                    .collect();
                // SAFETY: the test owns the blocks.
                unsafe { kmem.kmalloc_layer().kfree_bulk(&blocks) }.unwrap();
            }
            _ => {
                let Some(block) = pick(&mut live, random(10_000)) else { continue };
                if usable(block) < size_of::<RcuHead>() {
                    free(block);
                    continue;
                }
                let block = core::ptr::with_exposed_provenance_mut::<u8>(block);
                let head = NonNull::new(block.cast::<RcuHead>()).unwrap();
                // SAFETY: the test owns the block, which has room for a head.
                unsafe { kmem.kfree_rcu(block, head) }.unwrap();
                kmem.kfree_rcu_barrier();
            }
        }
        assert_eq!(charged(), total(&live));
    }
    while let Some(block) = pick(&mut live, 0) {
        free(block);
    }

    // G06: over the limit the allocation reclaims within the group, then fails.
    groups.drain_stocks();
    let limit = groups.usage(group) + 16;
    groups.set_max(group, limit, Wait::No).unwrap();
    for _ in 0..200 {
        // What is in the way is given back.
        let block = kmem.kmalloc(2048, Gfp::KERNEL_ACCOUNT).unwrap().as_ptr().expose_provenance();
        groups.env().cached.lock().unwrap().push(block);
    }
    assert!(groups.env().cached.lock().unwrap().len() < 100);
    assert!(groups.usage(group) <= limit);
    let held: Vec<_> = core::mem::take(&mut *groups.env().cached.lock().unwrap());
    let mut more = Vec::new();
    let refused = loop {
        match kmem.kmalloc(8192, Gfp::KERNEL_ACCOUNT | Gfp::NORETRY) {
            Ok(block) => more.push(block),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AllocError::OverLimit { .. }), "{refused}");
    // A block that cannot move stays, and what need not be charged is not in the way.
    // SAFETY: the test owns the block.
    let grown = unsafe {
        kmem.krealloc(core::ptr::with_exposed_provenance_mut(held[0]), 8000, Gfp::KERNEL_ACCOUNT | Gfp::NORETRY)
    };
    assert!(matches!(grown, Err(KreallocError::Alloc(AllocError::OverLimit { .. }))));
    let outside = kmem.kmalloc(8192, Gfp::KERNEL).unwrap();

    // All or none, in a cache whose every object is charged.
    let args = CacheArgs::with_flags(SlabFlags::ACCOUNT);
    let cache = kmem.kmem_cache_create("paid", 4000, &args).unwrap();
    let mut many = [None; 40];
    assert!(matches!(kmem.kmem_cache_alloc_bulk(cache, Gfp::NOWAIT, &mut many), Err(AllocError::OverLimit { .. })));
    assert_eq!(many, [None; 40]);
    groups.set_max(group, u64::MAX, Wait::No).unwrap();
    let before = charged();
    kmem.kmem_cache_alloc_bulk(cache, Gfp::NOWAIT, &mut many).unwrap();
    assert_eq!(charged() - before, 40 * cost(cache.stride()));
    // SAFETY: the test owns the objects; then nobody uses the cache.
    unsafe {
        kmem.kmem_cache_free_bulk(cache, &mut many).unwrap();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
    assert_eq!(charged(), before);
    for block in more.into_iter().chain([outside, plain, free_of_charge]) {
        free(block.as_ptr().expose_provenance());
    }
    held.into_iter().for_each(free);
    groups.drain_stocks();
    assert_eq!((charged(), groups.usage(group)), (0, 0));
}
