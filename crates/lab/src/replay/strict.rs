//! The second machine, which sees only what can be compared with Linux page by page.
//!
//! Linux's slab pages are known for the slabs that the trace shows being made. This machine gets exactly those objects that
//! Linux put into such slabs ([`Ref::seen`]), and nothing else: the same requests on both sides.

use super::drive::GRACE;
use super::rounds::{Bare, entry};
use crate::LabError;
use crate::program::{CacheSpec, Op, OpKind, Ref};
use crate::target::{CacheUsage, ReplayTarget};
use serde::Serialize;

/// What the second machine held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct SameRequests {
    /// Objects that were allocated.
    pub objects: u64,
    /// Slab pages at most.
    pub slab_pages_peak: u64,
    /// Slab pages at the end.
    pub slab_pages_end: u64,
    /// Bytes asked for by the objects that live at the end.
    pub live_bytes_end: u64,
}

/// Requests between two looks at the machine's page counts.
const LOOK_EVERY: u64 = 16;

/// The second machine at work.
pub(crate) struct Strict<'a, T: ReplayTarget> {
    target: &'a T,
    bare: Bare<'a, T>,
    sizes: Vec<u64>,
    out: SameRequests,
    since: usize,
}

impl<'a, T: ReplayTarget> Strict<'a, T> {
    pub(crate) fn new(target: &'a T) -> Self {
        Self { target, bare: Bare::new(target), sizes: Vec::new(), out: SameRequests::default(), since: 0 }
    }

    /// Runs those of the operations that count.
    pub(crate) fn run(&mut self, ops: &[Op], specs: &[CacheSpec]) -> Result<(), LabError> {
        self.bare.know(specs);
        let (target, cpus) = (self.target, self.target.shape().cpus.max(1));
        for same in ops.chunk_by(|a, b| a.cpu == b.cpu) {
            let cpu = same.first().map_or(0, |op| u32::from(op.cpu)) % cpus;
            target.on_cpu(cpu, || same.iter().try_for_each(|op| self.one(op, specs)))?;
            if self.since >= GRACE {
                self.since = 0;
                target.quiesce();
            }
        }
        Ok(())
    }

    fn one(&mut self, op: &Op, specs: &[CacheSpec]) -> Result<(), LabError> {
        self.since += 1;
        let bulk;
        let op = match &op.kind {
            OpKind::Kmalloc { object, .. }
            | OpKind::CacheAlloc { object, .. }
            | OpKind::Kfree { object }
            | OpKind::CacheFree { object, .. }
            | OpKind::KfreeRcu { object } => {
                if !object.seen {
                    return Ok(());
                }
                op
            }
            OpKind::CacheAllocBulk { .. } | OpKind::CacheFreeBulk { .. } => match part(op) {
                Some(op) => {
                    bulk = op;
                    &bulk
                }
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        self.bare.run(op)?;
        self.count(op, specs);
        if op.kind.takes() && self.out.objects.is_multiple_of(LOOK_EVERY) {
            self.out.slab_pages_peak = self.out.slab_pages_peak.max(self.target.usage().slab_pages);
        }
        Ok(())
    }

    fn count(&mut self, op: &Op, specs: &[CacheSpec]) {
        let size = |cache: crate::program::CacheId| specs.get(cache.0 as usize).map_or(0, |s| u64::from(s.size));
        match &op.kind {
            OpKind::CacheAlloc { object, cache, .. } => self.born(object, size(*cache)),
            OpKind::Kmalloc { object, size, .. } => self.born(object, *size),
            OpKind::CacheAllocBulk { objects, cache, .. } => objects.iter().for_each(|o| self.born(o, size(*cache))),
            OpKind::Kfree { object } | OpKind::CacheFree { object, .. } | OpKind::KfreeRcu { object } => {
                self.dead(object)
            }
            OpKind::CacheFreeBulk { objects, .. } => objects.iter().for_each(|o| self.dead(o)),
            _ => {}
        }
    }

    fn born(&mut self, object: &Ref, bytes: u64) {
        self.out.objects += 1;
        self.out.live_bytes_end += bytes;
        if let Some(size) = entry(&mut self.sizes, object.slot) {
            *size = bytes;
        }
    }

    fn dead(&mut self, object: &Ref) {
        let bytes = self.sizes.get_mut(object.slot as usize).map_or(0, std::mem::take);
        self.out.live_bytes_end = self.out.live_bytes_end.saturating_sub(bytes);
    }

    /// What the machine holds after the last operation; everything is freed then.
    pub(crate) fn finish(mut self) -> (SameRequests, Vec<CacheUsage>) {
        self.target.quiesce();
        self.out.slab_pages_end = self.target.usage().slab_pages;
        self.out.slab_pages_peak = self.out.slab_pages_peak.max(self.out.slab_pages_end);
        let caches = self.target.caches();
        self.bare.free_all();
        (self.out, caches)
    }
}

/// A bulk operation without the objects that do not count.
fn part(op: &Op) -> Option<Op> {
    let pick = |objects: &[Ref]| -> Option<Box<[Ref]>> {
        let some: Box<[Ref]> = objects.iter().copied().filter(|o| o.seen).collect();
        (!some.is_empty()).then_some(some)
    };
    let kind = match &op.kind {
        OpKind::CacheAllocBulk { objects, cache, gfp } => {
            OpKind::CacheAllocBulk { objects: pick(objects)?, cache: *cache, gfp: *gfp }
        }
        OpKind::CacheFreeBulk { objects, cache } => OpKind::CacheFreeBulk { objects: pick(objects)?, cache: *cache },
        _ => return None,
    };
    Some(Op { cpu: op.cpu, kind })
}
