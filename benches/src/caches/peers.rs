//! Object pools from the registry, and the two floors.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::{RefCell, UnsafeCell},
    ptr::NonNull,
};

use super::{Cache, Item, Workload, subject};
use crate::{
    measure::{Role, Subject},
    objects::peers::rusty_alloc,
};

/// Every peer that can run `workload`, and the floors.
pub(crate) fn subjects(workload: Workload) -> Vec<Subject> {
    let alone = matches!(workload, Workload::Pair { threads: 1 } | Workload::Batch);
    let mut all = Vec::new();
    if alone {
        all.push(subject::<BareSlab>("slab, no lock", Role::Unshared, workload));
    }
    all.push(subject::<SpinSlab>("slab, spin lock", Role::Peer, workload));
    all.push(subject::<Sharded>("sharded-slab", Role::Peer, workload));
    all.push(subject::<Pool>("object-pool", Role::Peer, workload));
    all.push(subject::<Boxes>("Box on rusty_alloc", Role::Peer, workload));
    if alone {
        all.push(subject::<FreeList>("floor: free list", Role::Floor, workload));
    }
    all.push(subject::<LocalVec>("floor: thread_local Vec", Role::Floor, workload));
    all
}

/// tokio's `slab`, one thread only.
pub(crate) struct BareSlab(UnsafeCell<slab::Slab<Item>>);

// SAFETY: chosen only for workloads of one thread.
unsafe impl Sync for BareSlab {}

impl Cache for BareSlab {
    type Handle = usize;
    fn new() -> Self {
        Self(UnsafeCell::new(slab::Slab::new()))
    }
    #[inline]
    fn alloc(&self, id: u64) -> usize {
        // SAFETY: one thread, no nested calls.
        unsafe { &mut *self.0.get() }.insert(Item::new(id))
    }
    #[inline]
    fn free(&self, key: usize) {
        // SAFETY: as above.
        std::hint::black_box(unsafe { &mut *self.0.get() }.remove(key).id);
    }
}

pub(crate) struct SpinSlab(spin::mutex::SpinMutex<slab::Slab<Item>>);

impl Cache for SpinSlab {
    type Handle = usize;
    fn new() -> Self {
        Self(spin::mutex::SpinMutex::new(slab::Slab::new()))
    }
    #[inline]
    fn alloc(&self, id: u64) -> usize {
        self.0.lock().insert(Item::new(id))
    }
    #[inline]
    fn free(&self, key: usize) {
        std::hint::black_box(self.0.lock().remove(key).id);
    }
}

pub(crate) struct Sharded(sharded_slab::Slab<Item>);

impl Cache for Sharded {
    type Handle = usize;
    fn new() -> Self {
        Self(sharded_slab::Slab::new())
    }
    #[inline]
    fn alloc(&self, id: u64) -> usize {
        self.0.insert(Item::new(id)).expect("a slab with room")
    }
    #[inline]
    fn free(&self, key: usize) {
        assert!(self.0.remove(key), "no such item");
    }
}

/// `object-pool`, filled beforehand; an item is reused as it is, its word written anew.
struct Pool(object_pool::Pool<Box<Item>>);

impl Cache for Pool {
    type Handle = Box<Item>;
    fn new() -> Self {
        Self(object_pool::Pool::new(256, || Box::new(Item::new(0))))
    }
    #[inline]
    fn alloc(&self, id: u64) -> Box<Item> {
        let (_, mut item) = self.0.pull(|| Box::new(Item::new(0))).detach();
        item.id = id;
        item
    }
    #[inline]
    fn free(&self, item: Box<Item>) {
        self.0.attach(item);
    }
}

/// What `Box` does when `rusty_alloc` is the global allocator.
struct Boxes;

impl Cache for Boxes {
    type Handle = NonNull<Item>;
    fn new() -> Self {
        Self
    }
    #[inline]
    fn alloc(&self, id: u64) -> NonNull<Item> {
        // SAFETY: an item is not empty; the fresh memory is large and aligned enough to write one.
        unsafe {
            let item = NonNull::new(rusty_alloc().alloc(Layout::new::<Item>()).cast::<Item>()).expect("out of memory");
            item.write(Item::new(id));
            item
        }
    }
    #[inline]
    fn free(&self, item: NonNull<Item>) {
        // SAFETY: allocated above with this layout, given back once.
        unsafe { rusty_alloc().dealloc(item.as_ptr().cast(), Layout::new::<Item>()) };
    }
}

/// The lowest floor: a chain through free items in memory that nobody else sees. One thread only.
struct FreeList {
    head: UnsafeCell<*mut Link>,
    _items: Box<[UnsafeCell<Item>]>,
}

struct Link {
    next: *mut Link,
}

// SAFETY: chosen only for workloads of one thread; the chain moves with the items it points to.
unsafe impl Sync for FreeList {}
// SAFETY: as above.
unsafe impl Send for FreeList {}

impl Cache for FreeList {
    type Handle = NonNull<Item>;
    fn new() -> Self {
        let items: Box<[UnsafeCell<Item>]> = (0..256).map(|id| UnsafeCell::new(Item::new(id))).collect();
        let mut head: *mut Link = std::ptr::null_mut();
        for item in &items {
            let link = item.get().cast::<Link>();
            // SAFETY: an item has room for a link, and is free.
            unsafe { link.write(Link { next: head }) };
            head = link;
        }
        Self { head: UnsafeCell::new(head), _items: items }
    }
    #[inline]
    fn alloc(&self, id: u64) -> NonNull<Item> {
        // SAFETY: one thread; the workloads hold fewer items than there are, so the head is a free item.
        unsafe {
            let head = *self.head.get();
            *self.head.get() = (*head).next;
            let item = NonNull::new_unchecked(head.cast::<Item>());
            item.write(Item::new(id));
            item
        }
    }
    #[inline]
    fn free(&self, item: NonNull<Item>) {
        // SAFETY: one thread; the item is free from now on.
        unsafe {
            let link = item.as_ptr().cast::<Link>();
            link.write(Link { next: *self.head.get() });
            *self.head.get() = link;
        }
    }
}

thread_local! {
    // Boxed, so that an item keeps its address like any allocated object.
    #[expect(clippy::vec_box)]
    static ITEMS: RefCell<Vec<Box<Item>>> = RefCell::new((0..256).map(|id| Box::new(Item::new(id))).collect());
}

/// The floor of safe Rust: items kept in a `thread_local!` vector, popped and pushed.
pub(crate) struct LocalVec;

impl Cache for LocalVec {
    type Handle = Box<Item>;
    fn new() -> Self {
        Self
    }
    #[inline]
    fn alloc(&self, id: u64) -> Box<Item> {
        let mut item = ITEMS.with(|items| items.borrow_mut().pop()).expect("fewer items are live than there are");
        item.id = id;
        item
    }
    #[inline]
    fn free(&self, item: Box<Item>) {
        ITEMS.with(|items| items.borrow_mut().push(item));
    }
}
