//! Models of large blocks and of `krealloc`, the latter over the real object caches with the smallest sheaves.
//! Run with `cargo xtask loom --crate kmalloc`.

use std::boxed::Box;
use std::mem::ManuallyDrop;

use kmem_gfp::{FrameTable, Gfp, PAGE_SIZE};
use kmem_slab::{SlabConfig, SlabEnv, Slabs};
use kmem_sync::atomic::Ordering;
use loom::sync::Arc;
use loom::thread;

use super::machine::{FIRST, TestEnv, become_model_cpu};
use crate::{Kmalloc, KmallocConfig, large};

const KERNEL: Gfp = Gfp::KERNEL;
/// Four pages: a large block of order 2.
const LARGE: usize = 4 * PAGE_SIZE;

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(f);
}

fn alloc(env: &TestEnv) -> Option<usize> {
    let (block, _) = large::alloc(env.pages(), env.frames(), LARGE, KERNEL, None).ok()?;
    Some(block.addr().get())
}

fn free(env: &TestEnv, address: usize) -> bool {
    let (pfn, words) = env.frames().lookup(address).unwrap();
    // SAFETY: the models free a block that nobody uses; where they free it twice, the refusal is what is tested.
    unsafe { large::free(env.pages(), words, pfn, address) }.is_ok()
}

/// Machine with room for one large block only: freed frames are the next allocation's.
#[test]
fn a_free_never_touches_the_mark_of_the_frames_next_owner() {
    model(4, || {
        let env = Arc::new(TestEnv::new(4, 1));
        let block = alloc(&env).unwrap();
        let other = thread::spawn({
            let env = env.clone();
            move || {
                let got = (0..2).find_map(|_| {
                    let got = alloc(&env);
                    if got.is_none() {
                        thread::yield_now();
                    }
                    got
                });
                if let Some(address) = got {
                    assert!(large::find(env.frames(), address + PAGE_SIZE).is_some(), "the new mark stands");
                    assert!(free(&env, address), "and lets the block be freed");
                }
            }
        });
        assert!(free(&env, block));
        other.join().unwrap();
        assert_eq!(env.pages.in_use(), 0);
        assert!(env.owners().is_empty());
    });
}

#[test]
fn of_two_frees_of_one_block_exactly_one_wins() {
    model(4, || {
        let env = Arc::new(TestEnv::new(4, 1));
        let block = alloc(&env).unwrap();
        let other = thread::spawn({
            let env = env.clone();
            move || free(&env, block)
        });
        let here = free(&env, block);
        assert!(here ^ other.join().unwrap());
        assert_eq!(env.pages.in_use(), 0);
        assert!(env.owners().is_empty(), "the loser leaves no mark");
    });
}

/// A kmalloc with its whole machine. Fields drop in order: what borrows before what it borrows.
struct Machine {
    kmalloc: ManuallyDrop<Kmalloc<'static, &'static TestEnv>>,
    slabs: ManuallyDrop<Box<Slabs<&'static TestEnv>>>,
    env: ManuallyDrop<Box<TestEnv>>,
}

impl Machine {
    fn new(pages: usize, sheaf: u32) -> Arc<Self> {
        let env = Box::new(TestEnv::new(pages, 1));
        // SAFETY: the box is dropped last, in `drop`, and does not move its contents.
        let env_ref: &'static TestEnv = unsafe { &*(&raw const *env) };
        let config = SlabConfig { max_sheaf_capacity: sheaf, barn_full: 1, barn_empty: 1, ..SlabConfig::DEFAULT };
        let slabs = Box::new(Slabs::with_config(env_ref, config));
        slabs.init().unwrap();
        // SAFETY: dropped after the kmalloc that borrows it.
        let slabs_ref: &'static Slabs<&'static TestEnv> = unsafe { &*(&raw const *slabs) };
        let kmalloc = Kmalloc::new(slabs_ref, KmallocConfig::default()).unwrap();
        Arc::new(Self {
            kmalloc: ManuallyDrop::new(kmalloc),
            slabs: ManuallyDrop::new(slabs),
            env: ManuallyDrop::new(env),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: each once, the borrower before what it borrows.
        unsafe {
            ManuallyDrop::drop(&mut self.kmalloc);
            ManuallyDrop::drop(&mut self.slabs);
            ManuallyDrop::drop(&mut self.env);
        }
    }
}

/// One CPU grows a block while another frees its neighbour, which lies in the same slab, and allocates again.
fn krealloc_beside_a_free(sheaf: u32) {
    model(3, move || {
        let machine = Machine::new(64, sheaf);
        become_model_cpu(0);
        let block = machine.kmalloc.kmalloc(1024, KERNEL).unwrap();
        let neighbour = machine.kmalloc.kmalloc(1024, KERNEL).unwrap().addr().get();
        // SAFETY: ours, of 1024 bytes.
        unsafe { block.write_bytes(0x5a, 1024) };
        let other = thread::spawn({
            let machine = machine.clone();
            move || {
                become_model_cpu(1);
                let neighbour = core::ptr::with_exposed_provenance_mut::<u8>(neighbour);
                // SAFETY: allocated above and given to this thread.
                unsafe { machine.kmalloc.kfree(neighbour) }.unwrap();
                let again = machine.kmalloc.kmalloc(1024, KERNEL).unwrap();
                // SAFETY: ours, of 1024 bytes.
                unsafe { again.write_bytes(0xa5, 1024) };
                again.addr().get()
            }
        });
        // SAFETY: ours; the result replaces it.
        let grown = unsafe { machine.kmalloc.krealloc(block.as_ptr(), 2048, KERNEL) }.unwrap();
        // SAFETY: the first 1024 bytes came along.
        let kept = (0..1024).step_by(64).all(|at| unsafe { grown.add(at).read() } == 0x5a);
        assert!(kept, "the contents travel whole");
        let again = other.join().unwrap();
        let last = machine.kmalloc.kmalloc(1024, KERNEL).unwrap();
        assert_ne!(last.addr().get(), again, "one object, one owner");
    });
}

/// With sheaves, and without, when a freed object is at once anybody's.
#[test]
fn krealloc_and_a_free_of_the_neighbour_do_not_disturb_each_other() {
    krealloc_beside_a_free(2);
    krealloc_beside_a_free(0);
}

#[test]
fn each_large_block_freed_through_rcu_is_given_back_once() {
    model(3, || {
        let machine = Machine::new(64, 2);
        become_model_cpu(0);
        let before = machine.env.pages.in_use();
        let blocks = [(); 2].map(|()| machine.kmalloc.kmalloc(LARGE, KERNEL).unwrap().addr().get());
        let give = |machine: &Machine, address: usize| {
            let block = core::ptr::with_exposed_provenance_mut::<u8>(address);
            let head = core::ptr::NonNull::new(block.cast()).unwrap();
            // SAFETY: allocated above, given back once; nobody reads it.
            unsafe { machine.kmalloc.kfree_rcu(block, head) }.unwrap();
        };
        let other = thread::spawn({
            let machine = machine.clone();
            move || {
                become_model_cpu(1);
                give(&machine, blocks[1]);
                kmem_sync::GracePeriod::synchronize(&machine.env.grace);
                machine.kmalloc.reap();
            }
        });
        give(&machine, blocks[0]);
        kmem_sync::GracePeriod::synchronize(&machine.env.grace);
        machine.kmalloc.reap();
        other.join().unwrap();
        kmem_sync::GracePeriod::synchronize(&machine.env.grace);
        machine.kmalloc.reap();
        assert_eq!(machine.env.pages.in_use(), before);
        assert_eq!(machine.env.words_of(FIRST).state.load(Ordering::Relaxed) >> 63, 0);
    });
}
