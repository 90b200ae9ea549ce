//! Areas for per-CPU memory: a set with fixed distances, placed as high as possible, all or none.

use core::panic::Location;

use kmem_gfp::{Gfp, PAGE_SHIFT, PAGE_SIZE};

use crate::alloc::Kind;
use crate::area::Owned;
use crate::purge::Mode;
use crate::reserve::Shortage;
use crate::tree::{Lack, Tree};
use crate::vmalloc::{Shared, Vmalloc};
use crate::{Granule, Prot, VfreeError, VmFlags, VmallocEnv, VmallocError};

/// One area of a congruent set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercpuArea {
    /// Its distance from the set's base, in bytes, page-aligned. The set is given in ascending order.
    pub offset: usize,
    /// Its size in bytes, page-aligned.
    pub size: usize,
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Reserves one range for each entry of `set`, at one base plus the entry's offset, as high in the window as possible;
    /// returns the base. The ranges have no guard pages and nothing is mapped. All or none. Task context; sleeps.
    ///
    /// # Errors
    /// [`VmallocError::BadAlign`] for sizes, offsets or an alignment that are not whole pages;
    /// [`VmallocError::BadRange`] for a set that is not ascending and disjoint; [`VmallocError::NoSpace`] after one purge.
    #[doc(alias = "pcpu_get_vm_areas")]
    #[track_caller]
    pub fn get_percpu_areas(&self, set: &[PercpuArea], align: usize, gfp: Gfp) -> Result<usize, VmallocError> {
        let shared = self.shared()?;
        let caller = Location::caller();
        self.check_context(gfp)?;
        let (Some(first), Some(last)) = (set.first(), set.last()) else { return Err(VmallocError::ZeroSize) };
        if !align.is_power_of_two() || align < PAGE_SIZE {
            return Err(VmallocError::BadAlign(align));
        }
        if let Some(bad) = set.iter().find(|area| (area.offset | area.size) % PAGE_SIZE != 0 || area.size == 0) {
            return Err(VmallocError::BadAlign(bad.offset | bad.size));
        }
        let end_of = |area: &PercpuArea| area.offset.checked_add(area.size);
        let ascending = set.windows(2).all(|pair| match pair {
            [low, high] => end_of(low).is_some_and(|end| end <= high.offset),
            _ => true,
        });
        let Some(end) = end_of(last).filter(|_| ascending) else {
            return Err(VmallocError::BadRange { start: first.offset, end: usize::MAX });
        };
        let mut purged = false;
        loop {
            match self.place_percpu(shared, set, align, end, gfp, caller) {
                Ok(base) => return Ok(base),
                Err(Shortage::Space) if !purged && gfp.allows_blocking() => {
                    purged = true;
                    self.run_deferred();
                    self.purge_in_mode(shared, Mode::Exhausted);
                }
                Err(Shortage::Space) => {
                    return Err(VmallocError::NoSpace { nr_pages: (end >> PAGE_SHIFT) as u64 });
                }
                Err(Shortage::Memory(source)) => return Err(Self::no_memory((end >> PAGE_SHIFT) as u64, source)),
            }
        }
    }

    fn place_percpu(
        &self,
        shared: &Shared,
        set: &[PercpuArea],
        align: usize,
        end: usize,
        gfp: Gfp,
        caller: &'static Location<'static>,
    ) -> Result<usize, Shortage> {
        let mut made = 0;
        let mut base = None;
        let outcome = loop {
            // The base is looked for and its first range taken in one section; the others follow, and if somebody has
            // taken one of them meanwhile the set is undone and placed anew.
            let Some(area) = set.get(made) else { break Ok(()) };
            let pages = (area.size >> PAGE_SHIFT) as u64;
            let reserved = self.reserve_stocked(shared, gfp, |tree| {
                let base = match base {
                    Some(base) => base,
                    None => find_base(shared, tree, set, align, end).ok_or(Lack::Space)?,
                };
                let page = ((base + area.offset - shared.base) >> PAGE_SHIFT) as u64;
                if tree.map.first_fit(page, page + pages, pages) != Some(page) {
                    return Err(Lack::Space);
                }
                Ok((base, tree.reserve_at(page, pages)?))
            });
            match reserved {
                Ok((at, owned)) => {
                    base = Some(at);
                    made += 1;
                    publish_percpu(owned, area.size, caller);
                }
                Err(Shortage::Space) if made > 0 => {
                    self.undo_percpu(shared, base, set.get(..made));
                    (made, base) = (0, None);
                }
                Err(error) => break Err(error),
            }
        };
        match (outcome, base) {
            (Ok(()), Some(base)) => Ok(base),
            (Ok(()), None) => Err(Shortage::Space),
            (Err(error), base) => {
                self.undo_percpu(shared, base, set.get(..made));
                Err(error)
            }
        }
    }

    fn undo_percpu(&self, shared: &Shared, base: Option<usize>, made: Option<&[PercpuArea]>) {
        for area in made.unwrap_or(&[]) {
            let Some(address) = base.map(|base| base + area.offset) else { return };
            if let Ok(owned) = self.claim(shared, address, VmFlags::PERCPU, VmFlags::empty()) {
                self.unreserve(shared, owned);
            }
        }
    }

    /// Frees a set that [`get_percpu_areas`](Self::get_percpu_areas) reserved, unmapping whatever its owner has mapped.
    /// Task context.
    ///
    /// # Safety
    /// Nobody uses the ranges any more.
    ///
    /// # Errors
    /// The first [`VfreeError`]; the areas behind that one are as they were.
    #[doc(alias = "pcpu_free_vm_areas")]
    pub unsafe fn free_percpu_areas(&self, base: usize, set: &[PercpuArea]) -> Result<(), VfreeError> {
        let shared = self.shared_to_free()?;
        self.task_or()?;
        for area in set {
            let mut owned = self.claim(shared, base.wrapping_add(area.offset), VmFlags::PERCPU, VmFlags::empty())?;
            let pages = owned.pages();
            owned.body(|body| body.mapped = pages);
            self.finish_free(shared, owned);
        }
        Ok(())
    }
}

fn publish_percpu(mut area: Owned, size: usize, caller: &'static Location<'static>) {
    let kind = Kind {
        flags: VmFlags::PERCPU | VmFlags::ALLOC,
        prot: Prot::KERNEL,
        granule: Granule::BASE,
        requested: size,
        mapped: 0,
        phys: 0,
        caller,
    };
    area.set_node(0);
    kind.fill(&mut area);
    area.publish();
}

/// The highest base, aligned, for which every range of the set is free. From the top down: a range that is not free moves
/// the base to where the next lower free run holds it.
fn find_base(shared: &Shared, tree: &Tree, set: &[PercpuArea], align: usize, end: usize) -> Option<usize> {
    let window_end = shared.address(shared.nr_pages);
    let mut base = window_end.checked_sub(end)? & !(align - 1);
    'moved: loop {
        if base < shared.base {
            return None;
        }
        for area in set.iter().rev() {
            let start = base.checked_add(area.offset)?;
            let pages = (area.size >> PAGE_SHIFT) as u64;
            let page = start.checked_sub(shared.base)? >> PAGE_SHIFT;
            let highest = tree.map.last_fit(0, page as u64 + pages, pages)?;
            if highest != page as u64 {
                base = shared.address(highest).checked_sub(area.offset)? & !(align - 1);
                continue 'moved;
            }
        }
        return Some(base);
    }
}
