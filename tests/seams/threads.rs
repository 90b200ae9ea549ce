//! More threads than CPUs, handing blocks to one another: contents stay, no two blocks overlap, everything comes back.

use std::sync::mpsc;

use kmem::{Gfp, RcuHead};
use kmem_hosted::{Machine, Reports};
use kmem_tests::Kmem;

const THREADS: usize = 6;
const ROUNDS: usize = 4000;

/// A block on its way: address, size, and the byte that fills it.
struct Parcel(usize, usize, u8);

impl Parcel {
    fn pack(kmem: Kmem, size: usize, fill: u8) -> Option<Self> {
        let gfp = if fill.is_multiple_of(3) { Gfp::ATOMIC } else { Gfp::KERNEL };
        let block = kmem.kmalloc(size, gfp | Gfp::NOWARN).ok()?;
        // SAFETY: ours, of that size.
        unsafe { block.write_bytes(fill, size) };
        Some(Self(block.as_ptr().expose_provenance(), size, fill))
    }

    fn block(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.0)
    }

    fn check(&self) {
        for at in (0..self.1).step_by(1 + self.1 / 64) {
            // SAFETY: ours, of that size, filled when it was packed.
            assert_eq!(unsafe { self.block().add(at).read() }, self.2);
        }
    }

    fn unpack(self, kmem: Kmem, how: usize) {
        self.check();
        // SAFETY: ours, freed once; nobody reads it.
        unsafe {
            match how % 8 {
                0 if self.1 >= size_of::<RcuHead>() => {
                    let head = core::ptr::NonNull::new(self.block().cast()).unwrap();
                    kmem.kfree_rcu(self.block(), head).unwrap();
                }
                1 => kmem.kfree_bulk(&[self.block()]).unwrap(),
                2 => kmem.kfree_sensitive(self.block()).unwrap(),
                3 => {
                    let grown = kmem.krealloc(self.block(), self.1 * 2 + 1, Gfp::KERNEL).unwrap();
                    assert_eq!(grown.read(), self.2);
                    kmem.kfree(grown.as_ptr()).unwrap();
                }
                _ => kmem.kfree(self.block()).unwrap(),
            }
        }
    }
}

#[test]
fn blocks_that_change_threads_keep_their_contents_and_all_come_back() {
    let machine =
        Machine::builder().cpus(2).ram_bytes(128 << 20).nodes(2).reports(Reports::Capture).boot().expect("a machine");
    let kmem = machine.kmem();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Parcel>()).unzip();
    let inboxes: Vec<_> = std::thread::scope(|threads| {
        let mut running = Vec::new();
        for (me, inbox) in receivers.into_iter().enumerate() {
            let next = senders[(me + 1) % THREADS].clone();
            running.push(threads.spawn(move || {
                let mut state = me as u64 * 0x9e37_79b9 + 1;
                let mut random = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as usize
                };
                let mut mine = Vec::new();
                for round in 0..ROUNDS {
                    let size = match random() % 20 {
                        0 => random() % 60_000,
                        1..4 => random() % 5000,
                        _ => random() % 400,
                    };
                    mine.extend(Parcel::pack(kmem, 1 + size, random() as u8));
                    if random() % 2 == 0 && !mine.is_empty() {
                        let at = random() % mine.len();
                        let _ = next.send(mine.swap_remove(at));
                    }
                    if mine.len() > 100 {
                        let at = random() % mine.len();
                        mine.swap_remove(at).unpack(kmem, random());
                    }
                    for parcel in inbox.try_iter().take(2) {
                        parcel.unpack(kmem, random());
                    }
                    if round % 1000 == 999 {
                        kmem.slabs().shrink_all();
                    }
                }
                mine.into_iter().for_each(|parcel| parcel.unpack(kmem, 4));
                inbox
            }));
        }
        running.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    // What was sent to threads that had already finished.
    for parcel in inboxes.iter().flat_map(|inbox| inbox.try_iter()) {
        parcel.unpack(kmem, 4);
    }
    kmem.kfree_rcu_barrier();
    assert_eq!(kmem.kmalloc_layer().large_pages(), 0);
    kmem.slabs().shrink_all();
    let mut live = Vec::new();
    kmem.slabs().for_each_cache(|cache| {
        let info = kmem.slabs().slab_info(cache);
        live.push((info.name.to_string(), info.active_objs));
    });
    let live: Vec<_> = live.into_iter().filter(|(_, objects)| *objects > 0).collect();
    // The counters of kmalloc itself are one block.
    assert_eq!(live.iter().map(|(_, objects)| objects).sum::<u64>(), 1, "{live:?}");
}
