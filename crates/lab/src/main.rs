//! kmem-lab: `cargo lab`.

fn main() {}
