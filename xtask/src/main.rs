//! `cargo xtask`: every check and measurement of the workspace.

fn main() {}
