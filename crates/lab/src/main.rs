//! `cargo lab`: the command line.

fn main() {}
