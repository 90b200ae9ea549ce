//! kmem's typed cache in the cache suite, on a hosted machine.

use kmem::ObjectSide;
use kmem::slab::{Cache as TypedCache, CacheBox};
use kmem_gfp::Gfp;
use kmem_hosted::{Host, HostCpu};

use super::{Cache, Item, Workload, subject};
use crate::{
    machine,
    measure::{Role, Subject},
};

/// kmem's subjects for `workload`.
pub(crate) fn subjects(workload: Workload) -> Vec<Subject> {
    vec![subject::<Typed>("kmem", Role::Kmem, workload)]
}

type Side = ObjectSide<Host<HostCpu>>;

/// A typed cache whose boxes own their items.
pub(crate) struct Typed(&'static TypedCache<'static, Item, Side>);

impl Cache for Typed {
    type Handle = CacheBox<'static, Item, Side>;
    fn new() -> Self {
        let cache = machine::shared().cache("bench_item").expect("memory for a cache");
        Self(Box::leak(Box::new(cache)))
    }
    #[inline(always)]
    fn alloc(&self, id: u64) -> Self::Handle {
        self.0.alloc_with(Gfp::KERNEL, || Item::new(id)).expect("memory for an item")
    }
    #[inline(always)]
    fn free(&self, item: Self::Handle) {
        drop(item);
    }
}
