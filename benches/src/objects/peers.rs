//! General allocators from the registry, as their crates offer them to a Rust program.

use std::alloc::System;

use super::Visitor;
use crate::{measure::Role, memory::MappedBlocks};

static RUSTY: rusty_alloc_api::RustyAlloc = rusty_alloc_api::RustyAlloc;
static MIMALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;
static SNMALLOC: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
static RPMALLOC: rpmalloc::RpMalloc = rpmalloc::RpMalloc;
static GLIBC: System = System;
static TALC: talc::TalcLock<spinning_top::RawSpinlock, talc::source::GlobalAllocSource<MappedBlocks>> =
    talc::TalcLock::new(talc::source::GlobalAllocSource::new(MappedBlocks));
static RLSF: rlsf::GlobalTlsf = rlsf::GlobalTlsf::new();
static DLMALLOC: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The allocator behind the `Box` of the cache suite.
pub(crate) fn rusty_alloc() -> &'static rusty_alloc_api::RustyAlloc {
    &RUSTY
}

/// Shows every peer to `visitor`.
pub(crate) fn visit(visitor: &mut impl Visitor) {
    visitor.visit("rusty_alloc", Role::Peer, &RUSTY);
    visitor.visit("mimalloc", Role::Peer, &MIMALLOC);
    visitor.visit("snmalloc", Role::Peer, &SNMALLOC);
    visitor.visit("jemalloc", Role::Peer, &JEMALLOC);
    visitor.visit("rpmalloc", Role::Peer, &RPMALLOC);
    visitor.visit("glibc", Role::Peer, &GLIBC);
    visitor.visit("talc", Role::Peer, &TALC);
    visitor.visit("rlsf", Role::Peer, &RLSF);
    visitor.visit("dlmalloc", Role::Peer, &DLMALLOC);
}
