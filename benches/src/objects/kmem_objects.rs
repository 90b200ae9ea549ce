//! kmem as a `GlobalAlloc` in the object suite.

use super::Visitor;

/// Shows kmem to `visitor`.
pub(crate) fn visit(_visitor: &mut impl Visitor) {}
