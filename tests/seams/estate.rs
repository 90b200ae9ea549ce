//! A machine of one CPU with real memory whose user pages move: tenants with contents, who know where they live.

use std::alloc::{Layout, alloc, alloc_zeroed};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kmem::gfp::{FlatFrameTable, FrameWords, MigrateError, MovableOwner, NoReclaim, PlainContext};
use kmem::sync::{NoReaders, SingleCpu};
use kmem::{Gfp, Kmem, KmemCell, MemoryMap, NoAddressSpace, PAGE_SIZE, Pfn, PfnRange, Platform, Region};

/// One tenant's state.
#[derive(Clone, Copy, Debug)]
struct Tenant {
    name: u64,
    isolated: bool,
    pinned: bool,
}

/// Who lives where; each page holds its tenant's name all over.
pub(crate) struct Tenants {
    homes: Mutex<BTreeMap<u64, Tenant>>,
    frames: FlatFrameTable,
    pub(crate) moves: AtomicU64,
    /// The move, counted from one, that fails; 0: none.
    pub(crate) fail_at: AtomicU64,
}

impl Tenants {
    fn words(&self, pfn: u64) -> &mut [u64] {
        let page = kmem::gfp::FrameTable::address_of(&self.frames, Pfn(pfn)).unwrap();
        // SAFETY: the tenant's page, or one that it is moving to; tenants are locked.
        unsafe { core::slice::from_raw_parts_mut(page.cast().as_ptr(), PAGE_SIZE / 8) }
    }

    fn owns(&self, pfn: Pfn) -> bool {
        self.homes.lock().unwrap().contains_key(&pfn.0)
    }
}

// SAFETY: (1) an isolated tenant does not leave; (2) a move leaves the source to the caller; (3) who is not at home is not isolated.
unsafe impl MovableOwner for Tenants {
    fn isolate(&self, pfn: Pfn) -> bool {
        let mut homes = self.homes.lock().unwrap();
        let tenant = homes.get_mut(&pfn.0).filter(|tenant| !tenant.isolated && !tenant.pinned);
        tenant.map(|tenant| tenant.isolated = true).is_some()
    }
    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        if self.fail_at.load(Ordering::Relaxed) > 0 && self.fail_at.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.homes.lock().unwrap().get_mut(&source.0).unwrap().pinned = true;
            return Err(MigrateError::Permanent(source));
        }
        let mut homes = self.homes.lock().unwrap();
        let tenant = homes.remove(&source.0).unwrap();
        assert!(tenant.isolated);
        self.words(target.0).copy_from_slice(self.words(source.0));
        self.words(source.0).fill(0xdead);
        assert!(homes.insert(target.0, Tenant { isolated: false, ..tenant }).is_none());
        self.moves.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn put_back(&self, pfn: Pfn) {
        self.homes.lock().unwrap().get_mut(&pfn.0).unwrap().isolated = false;
    }
}

/// The machine.
pub(crate) struct Estate {
    cpu: SingleCpu,
    grace: NoReaders,
    frames: FlatFrameTable,
    pub(crate) tenants: Tenants,
}

impl Platform for Estate {
    type Cpu = SingleCpu;
    type Context = PlainContext;
    type Grace = NoReaders;
    type Reclaimer = NoReclaim;
    type Frames = FlatFrameTable;
    type Space = NoAddressSpace;

    fn cpu(&self) -> &SingleCpu {
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
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        self.tenants.owns(pfn).then_some(&self.tenants as &dyn MovableOwner)
    }
}

/// What tenants' requests say.
pub(crate) const HOME: Gfp = Gfp::HIGHUSER_MOVABLE.union(Gfp::NOWARN).union(Gfp::NORETRY);

/// A machine of so many MiB, for this thread alone and for good.
pub(crate) fn boot(mib: usize, reserved: &[PfnRange]) -> &'static Kmem<Estate> {
    let nr = mib << 8;
    let first = Pfn(0x1000);
    // SAFETY: no layout is empty; the words are zeroed and as many as the frames, and all memory is this machine's for good; one
    // thread has it; nobody reads objects without owning them.
    unsafe {
        let memory = alloc_zeroed(Layout::from_size_align(nr * PAGE_SIZE, 4 << 20).unwrap());
        let words = NonNull::new(alloc_zeroed(Layout::array::<FrameWords>(nr).unwrap())).unwrap();
        let frames = FlatFrameTable::new(words.cast(), memory.expose_provenance(), first, nr as u64);
        let tenants = Tenants { homes: Mutex::default(), frames, moves: AtomicU64::new(0), fail_at: AtomicU64::new(0) };
        let estate = Estate { cpu: SingleCpu::new(), grace: NoReaders::new(), frames, tenants };
        let regions = [Region::new(PfnRange::with_len(first, nr as u64).unwrap())];
        let map = MemoryMap { regions: &regions, reserved, ..MemoryMap::default() };
        let cell: &'static KmemCell<Estate> = Box::leak(Box::new(KmemCell::new()));
        cell.init(estate, &map, |layout| NonNull::new(alloc(layout))).unwrap()
    }
}

/// A tenant moves in wherever the page allocator puts it.
pub(crate) fn enter(kmem: &Kmem<Estate>, name: u64) -> Option<Pfn> {
    let pfn = kmem.alloc_page(HOME).ok()?;
    let tenants = &kmem.platform().tenants;
    let mut homes = tenants.homes.lock().unwrap();
    tenants.words(pfn.0).fill(name);
    assert!(homes.insert(pfn.0, Tenant { name, isolated: false, pinned: false }).is_none(), "{pfn} has a tenant");
    Some(pfn)
}

/// The tenant of the lowest page at or above `from` moves out.
pub(crate) fn leave(kmem: &Kmem<Estate>, from: Pfn) -> Option<u64> {
    let mut homes = kmem.platform().tenants.homes.lock().unwrap();
    let (&pfn, &tenant) = homes.range(from.0..).next()?;
    homes.remove(&pfn);
    drop(homes);
    // SAFETY: the tenant's, who has left.
    unsafe { kmem.free_page(Pfn(pfn)) }.unwrap();
    Some(tenant.name)
}

/// Pins the tenant of the lowest page at or above `from`, or lets all move again.
pub(crate) fn pin(kmem: &Kmem<Estate>, from: Option<Pfn>) -> Option<Pfn> {
    let mut homes = kmem.platform().tenants.homes.lock().unwrap();
    let Some(from) = from else {
        homes.values_mut().for_each(|tenant| tenant.pinned = false);
        return None;
    };
    let (&pfn, tenant) = homes.range_mut(from.0..).next()?;
    tenant.pinned = true;
    Some(Pfn(pfn))
}

/// Whether a pinned tenant lives there.
pub(crate) fn is_pinned(kmem: &Kmem<Estate>, pfn: Pfn) -> bool {
    kmem.platform().tenants.homes.lock().unwrap().get(&pfn.0).is_some_and(|tenant| tenant.pinned)
}

/// Every tenant's page, after a look at all contents: none torn, none lost, nobody isolated.
pub(crate) fn census(kmem: &Kmem<Estate>) -> BTreeMap<u64, Pfn> {
    let tenants = &kmem.platform().tenants;
    let homes = tenants.homes.lock().unwrap();
    let mut found = BTreeMap::new();
    for (&pfn, tenant) in homes.iter() {
        assert!(!tenant.isolated, "{pfn:#x} was not put back");
        assert!(tenants.words(pfn).iter().all(|&word| word == tenant.name), "{pfn:#x} is torn");
        assert!(found.insert(tenant.name, Pfn(pfn)).is_none(), "{} lives twice", tenant.name);
    }
    found
}
