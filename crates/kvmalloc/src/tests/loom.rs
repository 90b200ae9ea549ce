//! Models of kvmalloc over the toy allocators, whose locks loom sees. Run with `cargo xtask loom --crate kvmalloc`.

use core::ptr::NonNull;

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_kmalloc::ObjectAllocator;
use kmem_vmalloc::VirtAllocator;
use loom::sync::Arc;
use loom::thread;

use super::toys::Toys;
use crate::{Kvmalloc, RcuHead};

const KERNEL: Gfp = Gfp::KERNEL;

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(f);
}

fn pointer(address: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address)
}

fn bytes<'a>(memory: *const u8, len: usize) -> &'a [u8] {
    // SAFETY: memory in use that has been written.
    unsafe { core::slice::from_raw_parts(memory, len) }
}

/// An area of a page and a bit.
fn area(kv: &Kvmalloc<Toys>) -> NonNull<u8> {
    VirtAllocator::alloc(&kv.env().areas, PAGE_SIZE + 64, 1, KERNEL, None, false).unwrap()
}

/// One CPU grows its memory, from an object into an area, while another frees both of its neighbours, the object beside it and
/// the area that the new one will lie beside, and allocates again what has come free.
#[test]
fn kvrealloc_and_a_kvfree_of_the_neighbours_do_not_disturb_each_other() {
    model(2, || {
        let kv = Arc::new(Kvmalloc::new(Toys::new(6)));
        kv.env().objects.faults.fail(2..3);
        let block = kv.kvmalloc(2048, KERNEL).unwrap();
        let object = kv.kvmalloc(2048, KERNEL).unwrap().addr().get();
        let neighbour = area(&kv).addr().get();
        // SAFETY: ours, of 2048 bytes.
        unsafe { block.write_bytes(0x5a, 2048) };
        let other = thread::spawn({
            let kv = kv.clone();
            move || {
                // SAFETY: allocated above and given to this thread; freed once.
                unsafe {
                    kv.kvfree(pointer(object)).unwrap();
                    kv.kvfree(pointer(neighbour)).unwrap();
                }
                let object = kv.env().objects.alloc(2048, KERNEL | Gfp::NOFAIL, None).unwrap();
                let again = area(&kv);
                // SAFETY: ours, of that size.
                unsafe {
                    object.write_bytes(0xa5, 2048);
                    again.write_bytes(0xa5, PAGE_SIZE + 64);
                    thread::yield_now();
                    assert!(bytes(object.as_ptr(), 2048).iter().all(|byte| *byte == 0xa5));
                    assert!(bytes(again.as_ptr(), PAGE_SIZE + 64).iter().all(|byte| *byte == 0xa5));
                    kv.kvfree(object.as_ptr()).unwrap();
                    kv.kvfree(again.as_ptr()).unwrap();
                }
            }
        });
        // The other thread may have used up the failing call; either way the bytes are the same.
        // SAFETY: ours.
        let grown = unsafe { kv.kvrealloc(block.as_ptr(), 2 * PAGE_SIZE, KERNEL) }.unwrap().unwrap();
        assert!(bytes(grown.as_ptr(), 2048).iter().all(|byte| *byte == 0x5a), "the contents travel whole");
        other.join().unwrap();
        assert!(bytes(grown.as_ptr(), 2048).iter().all(|byte| *byte == 0x5a), "and nobody else writes there");
        // SAFETY: ours, freed once.
        unsafe { kv.kvfree(grown.as_ptr()) }.unwrap();
        assert_eq!(kv.env().in_use(), (0, 0));
    });
}

/// Two CPUs give areas up to readers and collect, while the readers' grace periods pass.
#[test]
fn each_area_freed_through_rcu_is_given_back_once() {
    model(2, || {
        let kv = Arc::new(Kvmalloc::new(Toys::new(6)));
        let [one, other] = [(); 2].map(|()| area(&kv).addr().get());
        let give_up = |kv: &Kvmalloc<Toys>, memory: usize| {
            let head = NonNull::new(pointer(memory).cast::<RcuHead>()).unwrap();
            // SAFETY: ours, given up once; nobody reads.
            unsafe { kv.kvfree_rcu(pointer(memory), head) }.unwrap();
        };
        let thread = thread::spawn({
            let kv = kv.clone();
            move || {
                give_up(&kv, other);
                kv.env().grace.pass();
                kv.reap()
            }
        });
        give_up(&kv, one);
        let here = kv.reap();
        let there = thread.join().unwrap();
        kv.env().areas.run_deferred();
        let waiting = kv.env().areas.in_use();
        assert!(here + there + waiting <= 2, "none twice");
        kv.kvfree_rcu_barrier();
        kv.env().areas.run_deferred();
        assert_eq!(kv.env().in_use(), (0, 0), "none is forgotten");
    });
}

/// A barrier returns only once an area that another CPU is collecting is free.
#[test]
fn the_barrier_waits_for_what_another_cpu_is_freeing() {
    model(2, || {
        let kv = Arc::new(Kvmalloc::new(Toys::new(6)));
        let memory = area(&kv);
        // SAFETY: ours, given up once; nobody reads.
        unsafe { kv.kvfree_rcu(memory.as_ptr(), memory.cast()) }.unwrap();
        kv.env().grace.pass();
        let other = thread::spawn({
            let kv = kv.clone();
            move || kv.reap()
        });
        kv.kvfree_rcu_barrier();
        assert_eq!(kv.env().in_use(), (0, 0), "free when the barrier returns");
        other.join().unwrap();
    });
}
