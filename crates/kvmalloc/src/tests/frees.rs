//! Freeing: who takes what, what is cleared, what waits for readers.

use core::ptr::NonNull;

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_kmalloc::{KfreeError, ObjectAllocator, ZERO_SIZE_PTR};
use kmem_vmalloc::{VfreeError, VirtAllocator};

use super::toys::Toys;
use crate::{KvBlock, KvfreeError, Kvmalloc, RcuHead, kvfree_rcu};

const KERNEL: Gfp = Gfp::KERNEL;

fn kvmalloc() -> Kvmalloc<Toys> {
    Kvmalloc::new(Toys::new(64))
}

/// Two pages of vmalloc's.
fn area(kv: &Kvmalloc<Toys>) -> *mut u8 {
    kv.env().objects.faults.fail(0..1);
    let memory = kv.kvmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    kv.env().objects.faults.none();
    assert!(kv.is_vmalloc_addr(memory.as_ptr()));
    memory.as_ptr()
}

// KV-07
#[test]
fn kvfree_takes_what_either_gave_and_nothing_else() {
    let kv = kvmalloc();
    let toys = kv.env();
    // SAFETY: each ours and freed once; what is refused is the test.
    unsafe {
        // F05
        kv.kvfree(kv.kvmalloc(100, KERNEL).unwrap().as_ptr()).unwrap();
        kv.kvfree(area(&kv)).unwrap();
        // F01, F04: also what was not kvmalloc's.
        kv.kvfree(toys.objects.alloc(100, KERNEL, None).unwrap().as_ptr()).unwrap();
        kv.kvfree(VirtAllocator::alloc(&toys.areas, 100, 1, KERNEL, None, false).unwrap().as_ptr()).unwrap();
        kv.kvfree(core::ptr::null_mut()).unwrap();
        kv.kvfree(ZERO_SIZE_PTR.as_ptr()).unwrap();
        // F06
        let mut local = 0_u8;
        let address = (&raw mut local).addr();
        assert_eq!(kv.kvfree(&raw mut local), Err(KvfreeError::Kmalloc(KfreeError::NotMemory { address })));
        let freed = area(&kv);
        kv.kvfree(freed).unwrap();
        assert_eq!(kv.kvfree(freed), Err(KvfreeError::Vmalloc(VfreeError::NoArea(freed.addr()))));
    }
    assert_eq!(toys.in_use(), (0, 0));
}

// KV-07
#[test]
fn kvfree_atomic_always_puts_vmalloc_memory_off() {
    let kv = kvmalloc();
    let toys = kv.env();
    let (block, area) = (kv.kvmalloc(100, KERNEL).unwrap(), area(&kv));
    // SAFETY: ours, freed once; the second time is refused.
    unsafe {
        kv.kvfree_atomic(block.as_ptr()).unwrap();
        kv.kvfree_atomic(area).unwrap();
        assert_eq!((toys.in_use(), toys.areas.nr_put_off()), ((0, 1), 1));
        kv.kvfree_atomic(area).unwrap_err();
    }
    toys.areas.run_deferred();
    assert_eq!(toys.in_use(), (0, 0));
}

// KV-07
#[test]
fn kvfree_sensitive_clears_exactly_the_length_given() {
    let kv = kvmalloc();
    let toys = kv.env();
    let memory = area(&kv);
    // SAFETY: ours, of two pages; what is refused is not touched.
    unsafe {
        memory.write_bytes(0xee, 2 * PAGE_SIZE);
        let too_long = kv.kvfree_sensitive(memory, 2 * PAGE_SIZE + 1);
        let error = KvfreeError::TooLong { address: memory.addr(), len: 2 * PAGE_SIZE + 1, size_bytes: 2 * PAGE_SIZE };
        assert_eq!(too_long, Err(error));
        let inside = kv.kvfree_sensitive(memory.add(PAGE_SIZE), 8);
        assert_eq!(inside, Err(KvfreeError::Vmalloc(VfreeError::NoArea(memory.addr() + PAGE_SIZE))));
        let all = core::slice::from_raw_parts(memory, 2 * PAGE_SIZE);
        assert!(all.iter().all(|byte| *byte == 0xee), "nothing has been cleared");
        kv.kvfree_sensitive(core::ptr::null_mut(), 10).unwrap();
        kv.kvfree_sensitive(ZERO_SIZE_PTR.as_ptr(), 10).unwrap();
        kv.kvfree_sensitive(kv.kvmalloc(100, KERNEL).unwrap().as_ptr(), 100).unwrap();
        kv.kvfree_sensitive(memory, 100).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}

#[repr(C)]
struct Table {
    value: u64,
    rcu: RcuHead,
    rest: [u8; 2 * PAGE_SIZE],
}

fn table(kv: &Kvmalloc<Toys>, value: u64, from_area: bool) -> NonNull<Table> {
    kv.env().objects.faults.fail(0..usize::from(from_area));
    let table = kv.kvmalloc_obj::<Table>(KERNEL).unwrap();
    kv.env().objects.faults.none();
    assert_eq!(kv.is_vmalloc_addr(table.as_ptr().cast()), from_area);
    // SAFETY: room for a `Table`, ours.
    unsafe { (&raw mut (*table.as_ptr()).value).write(value) };
    table
}

// RC-01: what kmalloc or vmalloc gave.
#[test]
fn kvfree_rcu_frees_after_the_readers_and_in_order() {
    let kv = kvmalloc();
    let toys = kv.env();
    let tables: [_; 4] = core::array::from_fn(|i| table(&kv, i as u64, i % 2 == 0));
    // SAFETY: ours, given up once each; readers look at `value` only.
    unsafe {
        for table in tables {
            kvfree_rcu!(kv, table, Table, rcu).unwrap();
        }
        assert_eq!(toys.in_use(), (2, 2));
        assert_eq!(kv.reap(), 0, "readers may still be there");
        for (value, table) in (0..).zip(tables) {
            assert_eq!((*table.as_ptr()).value, value);
        }
        toys.grace.pass();
        assert_eq!(kv.reap(), 2);
        assert_eq!(toys.in_use(), (2, 0));
        kv.kvfree_rcu(core::ptr::null_mut(), NonNull::dangling()).unwrap();
        let foreign = tables[0].as_ptr().cast();
        assert_eq!(kv.kvfree_rcu(foreign, NonNull::dangling()), Err(VfreeError::NoArea(foreign.addr()).into()));
    }
    kv.kvfree_rcu_barrier();
    assert_eq!(toys.in_use(), (0, 0));
}

// RC-12: the oldest first, and the first that is not ready ends the look.
#[test]
fn a_later_free_waits_for_its_own_readers() {
    let kv = kvmalloc();
    let toys = kv.env();
    let [one, other] = [1, 2].map(|value| table(&kv, value, true));
    // SAFETY: ours, given up once each.
    unsafe { kvfree_rcu!(kv, one, Table, rcu) }.unwrap();
    toys.grace.pass();
    // SAFETY: as above. The first goes now, where nothing may sleep, so that it is put off.
    unsafe { kvfree_rcu!(kv, other, Table, rcu) }.unwrap();
    assert_eq!(toys.areas.nr_put_off(), 1);
    toys.areas.run_deferred();
    assert_eq!(toys.in_use(), (0, 1));
    assert_eq!(kv.reap(), 0);
    toys.grace.pass();
    // Any free of vmalloc memory collects.
    // SAFETY: ours, freed once.
    unsafe { kv.kvfree(area(&kv)) }.unwrap();
    assert_eq!(toys.in_use(), (0, 0));
}

// RC-02
#[test]
fn mightsleep_notes_the_memory_or_waits_for_the_readers() {
    let kv = kvmalloc();
    let toys = kv.env();
    // SAFETY: ours, given up once each.
    unsafe {
        let memory = area(&kv);
        kv.kvfree_rcu_mightsleep(memory).unwrap();
        assert_eq!(toys.in_use(), (1, 1), "an object notes it");
        toys.grace.pass();
        assert_eq!(kv.reap(), 1);
        assert_eq!(toys.in_use(), (0, 0));
        let memory = area(&kv);
        toys.objects.faults.fail(0..1);
        kv.kvfree_rcu_mightsleep(memory).unwrap();
        assert_eq!(toys.in_use(), (0, 0), "without one it has waited");
        kv.kvfree_rcu_mightsleep(kv.kvmalloc(10, KERNEL).unwrap().as_ptr()).unwrap();
        kv.kvfree_rcu_mightsleep(memory).unwrap_err();
    }
    kv.kvfree_rcu_barrier();
    assert_eq!(toys.in_use(), (0, 0));
}

#[test]
fn an_owned_block_frees_itself_wherever_it_lies() {
    let kv = kvmalloc();
    let toys = kv.env();
    let mut block = kv.block(100, KERNEL).unwrap();
    block.as_uninit_mut().fill(core::mem::MaybeUninit::new(7));
    toys.objects.faults.fail(0..1);
    block.resize(3 * PAGE_SIZE, KERNEL).unwrap();
    assert!(block.is_vmalloc());
    // SAFETY: the first hundred bytes are initialised.
    assert!(block.as_uninit_mut()[..100].iter().all(|byte| unsafe { byte.assume_init() } == 7));
    let size = block.size();
    let memory = block.into_raw();
    assert_eq!(toys.in_use(), (0, 1));
    // SAFETY: from `into_raw`.
    let mut block = unsafe { KvBlock::from_raw(&kv, memory, size) };
    assert_eq!(block.as_ptr(), memory.as_ptr());
    block.resize(0, KERNEL).unwrap();
    assert_eq!((block.size(), toys.in_use()), (0, (0, 0)));
    block.resize(10, KERNEL).unwrap();
    assert!(!block.is_vmalloc(), "what is gone can start anew");
    drop(block);
    assert_eq!(toys.in_use(), (0, 0));
}
