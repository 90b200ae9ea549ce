//! The state of the allocator in the kernel's own text formats.

pub(crate) mod mem_info;
