//! The global heap: one machine for the whole process, behind `#[global_allocator]`.

mod cpu;

pub use cpu::HeapCpu;
pub(crate) use cpu::leave;
