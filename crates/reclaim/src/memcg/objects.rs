//! Charging objects smaller than a page (A-11, A-12).
//!
//! ```text
//! bytes of a group's charged pages:   objects  +  byte stocks of the CPUs  +  the group's rest  =  pages × 4096
//!
//! charge_object(g, size) ─▶ byte stock has size + 8? ──no──▶ charge whole pages, the rest into the stock
//! uncharge_object        ─▶ byte stock; above a page: whole pages go back
//! a stock that gives way ─▶ whole pages go back, the sub-page rest stays with the group
//! ```

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_sync::atomic::{AtomicU32, Ordering};

use crate::GroupId;
use crate::memcg::stock::CpuStock;
use crate::memcg::table::State;
use crate::memcg::views::Stat;
use crate::memcg::{Memcg, MemcgEnv, OverLimit, Payer};

/// What an object costs beyond its size: the place for its payer.
pub const OBJECT_OVERHEAD_BYTES: usize = size_of::<usize>();

/// A page in bytes, as stocks count.
const PAGE_BYTES: u32 = PAGE_SIZE as u32;

/// The payers of a slab's objects: a word each, zero for nobody, in memory that the slab allocator gives.
///
/// A slab whose vector could not be had has none, and its objects are handed out uncharged.
#[derive(Clone, Copy, Debug)]
pub struct ObjectPayers<'a>(pub &'a [AtomicU32]);

impl ObjectPayers<'_> {
    /// Notes who paid for object `index`. Nothing happens beyond the vector's end.
    #[inline]
    fn set(&self, index: usize, payer: Payer) {
        if let Some(word) = self.0.get(index) {
            // The object is its allocator's alone; who frees it has got it from there.
            word.store(payer.to_raw(), Ordering::Relaxed);
        }
    }

    /// Takes the payer of object `index`.
    #[inline]
    fn take(&self, index: usize) -> Option<Payer> {
        let word = self.0.get(index)?;
        let payer = Payer::from_raw(word.load(Ordering::Relaxed));
        if payer.is_some() {
            word.store(0, Ordering::Relaxed);
        }
        payer
    }
}

impl<E: MemcgEnv> Memcg<E> {
    /// Charges an object of `size` bytes to whoever pays for it. `Ok(None)`: nobody. The common case writes this CPU's lines
    /// only. Contexts as `gfp` says.
    ///
    /// # Errors
    /// [`OverLimit`]: the object is to be freed again.
    #[inline]
    pub fn charge_object(&self, gfp: Gfp, size: usize) -> Result<Option<Payer>, OverLimit> {
        match self.payer() {
            None => Ok(None),
            Some(group) => self.charge_object_to(group, gfp, size),
        }
    }

    /// Charges an object of `size` bytes to `group`; see [`charge_object`](Self::charge_object).
    ///
    /// # Errors
    /// [`OverLimit`].
    #[inline]
    pub fn charge_object_to(&self, group: GroupId, gfp: Gfp, size: usize) -> Result<Option<Payer>, OverLimit> {
        let Some(state) = self.state() else { return Ok(None) };
        if group == GroupId::ROOT {
            return Ok(None);
        }
        let bytes = size.saturating_add(OBJECT_OVERHEAD_BYTES);
        if let Ok(bytes) = u32::try_from(bytes) {
            let taken = state.stocks.try_with(self.env.cpu(), |stock, _| stock.take_bytes(group.0, bytes));
            if taken == Some(true) {
                return Ok(Payer::from_raw(group.0));
            }
        }
        self.charge_object_slow(state, group, gfp, bytes)
    }

    /// Gives back the charge of an object of `size` bytes. Any context.
    #[inline]
    pub fn uncharge_object(&self, payer: Payer, size: usize) {
        let Some(state) = self.state() else { return };
        self.return_bytes(state, payer, size.saturating_add(OBJECT_OVERHEAD_BYTES));
    }

    #[cold]
    #[inline(never)]
    fn charge_object_slow(
        &self,
        state: &State,
        group: GroupId,
        gfp: Gfp,
        bytes: usize,
    ) -> Result<Option<Payer>, OverLimit> {
        if let Ok(bytes) = u32::try_from(bytes)
            && self.take_rest(state, group, bytes)
        {
            return Ok(Payer::from_raw(group.0));
        }
        let pages = bytes.div_ceil(PAGE_SIZE);
        let Some(payer) = self.charge(group, gfp, pages as u64)? else { return Ok(None) };
        let rest = pages.saturating_mul(PAGE_SIZE).saturating_sub(bytes);
        if rest > 0 {
            self.return_bytes(state, payer, rest);
        }
        Ok(Some(payer))
    }

    /// Makes a byte entry with the group's rest, if there is none, and takes from it.
    fn take_rest(&self, state: &State, group: GroupId, bytes: u32) -> bool {
        let taken = state
            .stocks
            .try_with(self.env.cpu(), |stock, _| open_bytes(state, stock, group) && stock.take_bytes(group.0, bytes));
        taken == Some(true)
    }

    /// Puts bytes of charged pages into this CPU's stock, or back to the group.
    fn return_bytes(&self, state: &State, payer: Payer, bytes: usize) {
        let group = payer.group();
        let (whole, part) = (bytes / PAGE_SIZE, (bytes % PAGE_SIZE) as u32);
        if whole > 0 {
            self.uncharge(payer, whole as u64);
        }
        if part == 0 {
            return;
        }
        let given = state.stocks.try_with(self.env.cpu(), |stock, _| {
            if let Some(pages) = stock.give_bytes(group.0, part) {
                return Some(pages);
            }
            if !open_bytes(state, stock, group) {
                return None;
            }
            stock.give_bytes(group.0, part)
        });
        match given.flatten() {
            Some(0) => {}
            Some(pages) => self.uncharge(payer, u64::from(pages)),
            None => state.settle_bytes(group, part),
        }
    }

    /// Charges the object at `index` of a slab and notes the payer (A-12). Without a vector the object is handed out
    /// uncharged. Contexts as `gfp` says.
    ///
    /// # Errors
    /// [`OverLimit`]: the object is to be freed again.
    #[inline]
    pub fn attach(
        &self,
        gfp: Gfp,
        size: usize,
        payers: Option<ObjectPayers<'_>>,
        index: usize,
    ) -> Result<(), OverLimit> {
        let Some(payers) = payers else { return Ok(()) };
        if let Some(payer) = self.charge_object(gfp, size)? {
            payers.set(index, payer);
        }
        Ok(())
    }

    /// Charges several objects of one slab, all or none.
    ///
    /// # Errors
    /// [`OverLimit`]: none is charged, and all are to be freed again.
    pub fn attach_bulk(
        &self,
        gfp: Gfp,
        size: usize,
        payers: Option<ObjectPayers<'_>>,
        indices: &[usize],
    ) -> Result<(), OverLimit> {
        for (done, &index) in indices.iter().enumerate() {
            if let Err(over) = self.attach(gfp, size, payers, index) {
                for &index in indices.iter().take(done) {
                    self.detach(size, payers, index);
                }
                return Err(over);
            }
        }
        Ok(())
    }

    /// Gives back the charge of the object at `index` of a slab, if it has a payer. Any context; one load for an object that
    /// has none.
    #[inline]
    pub fn detach(&self, size: usize, payers: Option<ObjectPayers<'_>>, index: usize) {
        if let Some(payer) = payers.and_then(|payers| payers.take(index)) {
            self.uncharge_object(payer, size);
        }
    }
}

/// A byte entry for `group` in this CPU's stock with the group's rest in it; `false` if the group is not online or there is
/// one already.
fn open_bytes(state: &State, stock: &mut CpuStock, group: GroupId) -> bool {
    if stock.has_bytes(group.0) {
        return false;
    }
    // Inside the section, as in `open_entry`.
    let Some(slot) = state.online(group) else { return false };
    if let Some((displaced, bytes)) = stock.open_bytes(group.0) {
        state.settle_bytes(GroupId(displaced), bytes);
    }
    // Acquire and release: the bytes change hands with the pages that they are part of.
    let rest = slot.rest_bytes.swap(0, Ordering::AcqRel);
    match u32::try_from(rest) {
        Ok(rest) => {
            let over = stock.give_bytes(group.0, rest).unwrap_or(0);
            state.release_pages(group, u64::from(over));
        }
        Err(_) => state.settle_rest(group, rest),
    }
    true
}

impl State {
    /// Gives bytes back to the group: whole pages are uncharged, the rest stays with it. The bytes' pages hold references.
    pub(crate) fn settle_bytes(&self, group: GroupId, bytes: u32) {
        self.settle_rest(group, u64::from(bytes));
    }

    fn settle_rest(&self, group: GroupId, bytes: u64) {
        let Some(slot) = self.slot(group) else { return };
        let page = u64::from(PAGE_BYTES);
        let mut rest = slot.rest_bytes.load(Ordering::Relaxed);
        let pages = loop {
            let sum = rest.wrapping_add(bytes);
            match slot.rest_bytes.compare_exchange(rest, sum % page, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break sum / page,
                Err(seen) => rest = seen,
            }
        };
        self.release_pages(group, pages);
    }

    /// Uncharges pages past the stock.
    fn release_pages(&self, group: GroupId, pages: u64) {
        if pages == 0 {
            return;
        }
        self.uncount(group, pages);
        if let Some(slot) = self.slot(self.online_from(group)) {
            slot.add_stat(Stat::Kernel, (pages as i64).wrapping_neg());
        }
        self.put_refs(group, pages);
    }
}
