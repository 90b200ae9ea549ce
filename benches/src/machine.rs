//! The hosted machine that kmem's rows run on.

use std::sync::OnceLock;

use kmem::Kmem;
use kmem_hosted::{Host, HostCpu, Machine, Reports, ZoneSplit};

/// kmem on a hosted machine.
pub(crate) type HostedKmem = Kmem<Host<HostCpu>>;

/// A machine of its own with `ram_bytes` of normal memory; `None` if the host refuses it.
pub(crate) fn boot(ram_bytes: usize, cpus: usize) -> Option<&'static Machine> {
    Machine::builder()
        .cpus(u32::try_from(cpus).ok()?)
        .ram_bytes(ram_bytes as u64)
        .zones(ZoneSplit::NORMAL_ONLY)
        .reports(Reports::Capture)
        .boot()
        .ok()
}

/// The machine that objects are allocated on: 1 GiB, as many CPUs as there are benchmark threads.
pub(crate) fn shared() -> &'static HostedKmem {
    static MACHINE: OnceLock<&'static Machine> = OnceLock::new();
    MACHINE.get_or_init(|| boot(1 << 30, 8).expect("a hosted machine")).kmem()
}
