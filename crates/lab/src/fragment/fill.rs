//! A machine filled with a mix of requests, by owners, and thinned out.

use super::scenario::Way;
use super::sequence::Mix;
use super::subjects::flags;
use crate::trace::TraceGfp;
use kmem::{Gfp, Order, PAGE_SIZE, Pfn};
use kmem_hosted::{CpuId, Machine, MovableMemory};

/// Numbers that look random and repeat (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// One tenant of memory.
enum Tenant {
    /// Pages that move, and what fills them.
    Movable(MovableMemory, u64),
    /// A block that does not.
    Fixed(Pfn, Order),
}

/// The tenants of a machine, oldest first; freed on drop.
pub(crate) struct Tenants {
    machine: &'static Machine,
    cpus: u32,
    all: Vec<(u32, Tenant)>,
}

/// Marks a page at its beginning and its end.
fn mark(page: &mut [u8; PAGE_SIZE], name: u64) {
    let (first, rest) = page.split_at_mut(8);
    first.copy_from_slice(&name.to_le_bytes());
    if let Some(last) = rest.last_chunk_mut() {
        *last = (!name).to_le_bytes();
    }
}

fn is_marked(page: &[u8; PAGE_SIZE], name: u64) -> bool {
    page.first_chunk() == Some(&name.to_le_bytes()) && page.last_chunk() == Some(&(!name).to_le_bytes())
}

impl Tenants {
    /// Fills `machine` with requests out of `mix` until `pages` are in use or one cannot be served. An owner is a run of requests on one
    /// CPU, 16 to 512 of them.
    pub(crate) fn fill(machine: &'static Machine, cpus: u32, mix: &Mix, pages: u64, random: &mut Random) -> Self {
        let mut tenants = Self { machine, cpus, all: Vec::new() };
        let (mut owner, mut left, mut used) = (0, 0, 0);
        while used < pages {
            if left == 0 {
                owner += 1;
                left = 16 + random.next() % 497;
            }
            left -= 1;
            let Some((order, gfp)) = mix.pick(random.next()) else { break };
            let Some(tenant) = tenants.on(owner, || Self::settle(machine, order, gfp, random)) else { break };
            tenants.all.push((owner, tenant));
            used += 1 << order;
        }
        tenants
    }

    fn settle(machine: &Machine, order: u8, gfp: TraceGfp, random: &mut Random) -> Option<Tenant> {
        // Memory of programs and files, whatever it was asked for in, lives in single pages that move.
        let ask = flags(gfp).difference(Gfp::MEMALLOC);
        if gfp.contains(TraceGfp::MOVABLE) {
            let memory = machine.movable_pages(1 << order, ask).ok()?;
            let name = random.next();
            (0..memory.nr_pages()).for_each(|page| mark(&mut memory.write(page), name ^ page as u64));
            return Some(Tenant::Movable(memory, name));
        }
        let order = Order::new(u32::from(order))?;
        machine.kmem().alloc_pages(ask, order).ok().map(|pfn| Tenant::Fixed(pfn, order))
    }

    /// On an owner's CPU.
    fn on<R>(&self, owner: u32, work: impl FnOnce() -> Option<R>) -> Option<R> {
        // SAFETY: no pin or read-side section outlives the call.
        unsafe { self.machine.on_cpu(CpuId(owner % self.cpus), work) }.ok().flatten()
    }

    /// Pages in use.
    pub(crate) fn pages(&self) -> u64 {
        let pages = |tenant: &Tenant| match tenant {
            Tenant::Movable(memory, _) => memory.nr_pages() as u64,
            Tenant::Fixed(_, order) => order.nr_pages() as u64,
        };
        self.all.iter().map(|(_, tenant)| pages(tenant)).sum()
    }

    /// Frees tenants in one of the ways until `pages` are left.
    pub(crate) fn thin(&mut self, way: Way, pages: u64, random: &mut Random) {
        let mut keys: Vec<u64> = match way {
            Way::Random => self.all.iter().map(|_| random.next()).collect(),
            Way::Age => (0..self.all.len() as u64).collect(),
            Way::Owner => {
                let owners = self.all.last().map_or(0, |(owner, _)| *owner);
                let keys: Vec<u64> = (0..=owners).map(|_| random.next()).collect();
                self.all.iter().map(|(owner, _)| keys.get(*owner as usize).copied().unwrap_or(0)).collect()
            }
        };
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        order.sort_by_key(|&at| keys.get(at).copied());
        keys.clear();
        let mut slots: Vec<Option<(u32, Tenant)>> = self.all.drain(..).map(Some).collect();
        let mut used: u64 = {
            let pages = |slot: &Option<(u32, Tenant)>| match slot {
                Some((_, Tenant::Movable(memory, _))) => memory.nr_pages() as u64,
                Some((_, Tenant::Fixed(_, order))) => order.nr_pages() as u64,
                None => 0,
            };
            slots.iter().map(pages).sum()
        };
        for at in order {
            if used <= pages {
                break;
            }
            let Some((owner, tenant)) = slots.get_mut(at).and_then(Option::take) else { continue };
            used -= match &tenant {
                Tenant::Movable(memory, _) => memory.nr_pages() as u64,
                Tenant::Fixed(_, order) => order.nr_pages() as u64,
            };
            self.end(owner, tenant);
        }
        self.all = slots.into_iter().flatten().collect();
    }

    fn end(&self, owner: u32, tenant: Tenant) {
        let machine = self.machine;
        let _ = self.on(owner, || {
            if let Tenant::Fixed(pfn, order) = tenant {
                // SAFETY: ours, freed once; nobody uses its memory.
                let _ = unsafe { machine.kmem().free_pages(pfn, order) };
            }
            Some(())
        });
    }

    /// How many movable pages do not hold what was written into them.
    pub(crate) fn broken(&self) -> u64 {
        let broken = |tenant: &Tenant| match tenant {
            Tenant::Movable(memory, name) => {
                (0..memory.nr_pages()).filter(|&page| !is_marked(&memory.read(page), name ^ page as u64)).count() as u64
            }
            Tenant::Fixed(..) => 0,
        };
        self.all.iter().map(|(_, tenant)| broken(tenant)).sum()
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        for (owner, tenant) in std::mem::take(&mut self.all) {
            self.end(owner, tenant);
        }
    }
}
