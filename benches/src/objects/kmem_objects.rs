//! kmem as a `GlobalAlloc` in the object suite: the hosted machine's heap.

use kmem_hosted::HostedAlloc;

use super::Visitor;
use crate::measure::Role;

pub(crate) static HEAP: HostedAlloc = HostedAlloc::new();

/// Shows kmem to `visitor`.
pub(crate) fn visit(visitor: &mut impl Visitor) {
    visitor.visit("kmem", Role::Kmem, &HEAP);
}
