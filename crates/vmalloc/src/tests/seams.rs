//! The seams with other parts on either side: an address space that maps nothing, a layer above that knows the trait only.

use kmem_gfp::{Gfp, NodeId, PAGE_SIZE};

use super::machine::Machine;
use crate::{NoMapping, VfreeError, VirtAllocator, Vmalloc, VmallocEnv};

/// The machine of the tests with addresses that are only numbers.
struct Numbers<'m>(&'m Machine);

impl VmallocEnv for Numbers<'_> {
    type Cpu = Machine;
    type Pages = Machine;
    type Frames = Machine;
    type Context = Machine;
    type Space = NoMapping;

    fn cpu(&self) -> &Machine {
        self.0
    }
    fn pages(&self) -> &Machine {
        self.0
    }
    fn frames(&self) -> &Machine {
        self.0
    }
    fn context(&self) -> &Machine {
        self.0
    }
    fn space(&self) -> &NoMapping {
        &NoMapping
    }
}

#[test]
fn a_window_of_numbers_works_without_page_tables() {
    let machine = Machine::new(256);
    let vmalloc = Vmalloc::new(Numbers(&machine));
    // SAFETY: the addresses are only numbers.
    unsafe { vmalloc.init(0..1 << 48) }.unwrap();
    assert!(vmalloc.vmalloc(1).is_err(), "address 0 is no pointer");
    let memory = vmalloc.vmalloc(3 * PAGE_SIZE).unwrap();
    assert_eq!(vmalloc.vmalloc_to_pfn(memory.as_ptr()), None);
    // SAFETY: not used.
    unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
    assert_eq!(machine.nr_mapped(), 0);
}

/// A layer above that takes any allocator of virtual memory.
fn grows_and_frees(allocator: &impl VirtAllocator) {
    let memory = allocator.alloc(100, 1, Gfp::KERNEL, Some(NodeId(0)), false).unwrap().as_ptr();
    assert!(allocator.owns(memory));
    assert_eq!(allocator.sizes(memory), Some((100, PAGE_SIZE)));
    // SAFETY: ours alone.
    unsafe {
        let memory = allocator.resize(memory, 3 * PAGE_SIZE, 1, Gfp::KERNEL, None).unwrap().unwrap().as_ptr();
        assert_eq!(allocator.sizes(memory), Some((3 * PAGE_SIZE, 3 * PAGE_SIZE)));
        allocator.free_atomic(memory).unwrap();
        assert!(matches!(allocator.free(memory), Err(VfreeError::AlreadyFree(_))));
        assert_eq!(allocator.sizes(memory), None);
    }
}

#[test]
fn a_layer_above_needs_the_trait_only() {
    let machine = Machine::new(256);
    grows_and_frees(&machine.window(1000));
}
