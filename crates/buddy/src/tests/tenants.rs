//! Owners of movable memory for tests: each block has contents, and the tenant remembers what they must be.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateError, MigrateMode, MovableOwner, Order, Pfn};

use super::rig::{Rig, o};

/// A block in use.
#[derive(Clone, Debug)]
struct Tenant {
    /// Which one it is; stays when the block moves.
    name: u64,
    order: u32,
    isolated: bool,
    pinned: bool,
}

/// Blocks that can move, by first frame, and the memory behind them.
#[derive(Default)]
pub(crate) struct Tenants {
    blocks: Mutex<BTreeMap<u64, Tenant>>,
    /// What each frame contains.
    memory: Mutex<BTreeMap<u64, u64>>,
    pub(crate) isolations: AtomicU64,
    pub(crate) put_backs: AtomicU64,
    pub(crate) migrations: AtomicU64,
    pub(crate) attempts: AtomicU64,
    /// The attempt, counted from one, that fails for good; 0: none.
    pub(crate) fail_at: AtomicU64,
    /// So many attempts say "again".
    pub(crate) again: AtomicU64,
    /// Only patient attempts succeed.
    pub(crate) needs_sync: AtomicBool,
    /// Every attempt finds no memory of its own.
    pub(crate) no_memory: AtomicBool,
    pub(crate) needs_fs: AtomicBool,
    pub(crate) modes: Mutex<Vec<MigrateMode>>,
}

impl Tenants {
    /// Whether a frame begins one of the blocks.
    pub(crate) fn owns(&self, pfn: Pfn) -> bool {
        self.blocks.lock().unwrap().contains_key(&pfn.0)
    }

    fn write(&self, pfn: u64, order: u32, name: u64) {
        let mut memory = self.memory.lock().unwrap();
        for i in 0..1 << order {
            memory.insert(pfn + i, name << 16 | i);
        }
    }

    pub(crate) fn adopt(&self, pfn: Pfn, order: u32, name: u64) {
        self.write(pfn.0, order, name);
        let tenant = Tenant { name, order, isolated: false, pinned: false };
        assert!(self.blocks.lock().unwrap().insert(pfn.0, tenant).is_none(), "{pfn:?} has a tenant");
    }

    pub(crate) fn pin(&self, pfn: Pfn, pinned: bool) {
        self.blocks.lock().unwrap().get_mut(&pfn.0).unwrap().pinned = pinned;
    }

    /// The tenant gives up its block, wherever that is; `None` if it is isolated.
    pub(crate) fn leave(&self, name: u64) -> Option<(Pfn, u32)> {
        let mut blocks = self.blocks.lock().unwrap();
        let (&pfn, tenant) = blocks.iter().find(|(_, tenant)| tenant.name == name)?;
        let order = tenant.order;
        if tenant.isolated {
            return None;
        }
        blocks.remove(&pfn);
        Some((Pfn(pfn), order))
    }

    /// Every block where it is, with what must be in it, isolated by nobody.
    pub(crate) fn check(&self) -> BTreeMap<u64, (u64, u32)> {
        let memory = self.memory.lock().unwrap();
        let blocks = self.blocks.lock().unwrap();
        let mut found = BTreeMap::new();
        for (&pfn, tenant) in blocks.iter() {
            assert!(!tenant.isolated, "{pfn:#x} was not put back");
            for i in 0..1 << tenant.order {
                assert_eq!(memory.get(&(pfn + i)), Some(&(tenant.name << 16 | i)), "{:#x}", pfn + i);
            }
            assert!(found.insert(tenant.name, (pfn, tenant.order)).is_none());
        }
        let moved = self.migrations.load(Ordering::Relaxed);
        assert_eq!(self.isolations.load(Ordering::Relaxed), moved + self.put_backs.load(Ordering::Relaxed));
        found
    }
}

// SAFETY: an isolated tenant does not leave; a move renames the block and leaves the source to the caller.
unsafe impl MovableOwner for Tenants {
    fn isolate(&self, pfn: Pfn) -> bool {
        let mut blocks = self.blocks.lock().unwrap();
        let Some(tenant) = blocks.get_mut(&pfn.0).filter(|tenant| !tenant.isolated && !tenant.pinned) else {
            return false;
        };
        tenant.isolated = true;
        self.isolations.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn migrate(&self, source: Pfn, target: Pfn) -> Result<(), MigrateError> {
        self.migrate_with(source, target, MigrateMode::Async)
    }

    fn put_back(&self, pfn: Pfn) {
        let mut blocks = self.blocks.lock().unwrap();
        let tenant = blocks.get_mut(&pfn.0).expect("put back where nobody is");
        assert!(tenant.isolated, "put back twice");
        tenant.isolated = false;
        self.put_backs.fetch_add(1, Ordering::Relaxed);
    }

    fn migrate_with(&self, source: Pfn, target: Pfn, mode: MigrateMode) -> Result<(), MigrateError> {
        self.modes.lock().unwrap().push(mode);
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        if attempt == self.fail_at.load(Ordering::Relaxed) {
            return Err(MigrateError::Permanent(source));
        }
        if self.no_memory.load(Ordering::Relaxed) {
            return Err(MigrateError::NoMemory(source));
        }
        let left = self.again.load(Ordering::Relaxed);
        if left > 0 {
            self.again.store(left - 1, Ordering::Relaxed);
            return Err(MigrateError::Again(source));
        }
        if self.needs_sync.load(Ordering::Relaxed) && mode == MigrateMode::Async {
            return Err(MigrateError::Again(source));
        }
        let mut blocks = self.blocks.lock().unwrap();
        let mut tenant = blocks.remove(&source.0).expect("moved from where nobody is");
        assert!(tenant.isolated);
        tenant.isolated = false;
        let mut memory = self.memory.lock().unwrap();
        for i in 0..1 << tenant.order {
            let value = memory.remove(&(source.0 + i)).unwrap();
            memory.insert(target.0 + i, value);
        }
        assert!(blocks.insert(target.0, tenant).is_none(), "moved to where somebody is");
        self.migrations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn moves(&self, order: Order) -> bool {
        order < Order::MAX
    }

    fn needs_fs(&self) -> bool {
        self.needs_fs.load(Ordering::Relaxed)
    }
}

impl Rig {
    pub(crate) fn tenants(&self) -> &Tenants {
        &self.env().tenants
    }

    /// A tenant moves in wherever the allocator puts it.
    pub(crate) fn settle_in(&self, order: u32, name: u64) -> Option<Pfn> {
        let pfn = self.get(Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC | Gfp::NOWARN, order)?;
        self.tenants().adopt(pfn, order, name);
        Some(pfn)
    }

    /// A tenant moves into a given block.
    pub(crate) fn settle_at(&self, pfn: u64, order: u32, name: u64) {
        self.alloc_pages_at(Gfp::HIGHUSER_MOVABLE, Pfn(pfn), o(order)).unwrap();
        self.tenants().adopt(Pfn(pfn), order, name);
    }

    /// A tenant moves out.
    pub(crate) fn evict(&self, name: u64) {
        let (pfn, order) = self.tenants().leave(name).unwrap();
        self.put(pfn, order);
    }
}
