//! kmem as Rust's global allocator: `Box`, `Vec`, `BTreeMap`, `format!` work. Step 8 of a port.

use kmem::{Gfp, KmemGlobal};

use crate::platform::{KMEM, Machine};

#[global_allocator]
static GLOBAL: KmemGlobal<Machine> = KmemGlobal::new(&KMEM, Gfp::KERNEL);
