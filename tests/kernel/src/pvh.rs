//! What the loader says (the PVH protocol): the memory map, the command line, where the ACPI tables are.

use kmem_gfp::{Pfn, PfnRange};

/// The most entries of the map that are looked at.
pub(crate) const MAX_ENTRIES: usize = 32;

const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`, version 1.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modules: u64,
    cmdline: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Entry {
    /// The first byte's address.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// 1: memory; the rest is taken.
    pub(crate) kind: u32,
    reserved: u32,
}

impl Entry {
    /// Whether it is memory.
    pub(crate) fn is_memory(&self) -> bool {
        self.kind == 1
    }

    /// The frames that lie in it as a whole.
    pub(crate) fn whole_frames(&self) -> PfnRange {
        let first = self.start.div_ceil(4096);
        PfnRange::new(Pfn(first), Pfn((self.start.saturating_add(self.size) / 4096).max(first)))
    }
}

/// What was learned.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The map.
    pub(crate) entries: [Entry; MAX_ENTRIES],
    /// How many entries it has.
    pub(crate) nr_entries: usize,
    /// Where the root of the ACPI tables is.
    pub(crate) rsdp: u64,
}

impl Loaded {
    /// The map's entries.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries[..self.nr_entries]
    }
}

/// Copies what the loader left, before anything overwrites it.
///
/// # Safety
/// `info` is what the loader passed; its tables are still there and mapped one to one.
pub(crate) unsafe fn read(info: usize) -> Option<Loaded> {
    // SAFETY: the caller's promise.
    let info = unsafe { core::ptr::with_exposed_provenance::<StartInfo>(info).read_unaligned() };
    if info.magic != MAGIC || info.version < 1 {
        return None;
    }
    let mut loaded = Loaded { entries: [Entry::default(); MAX_ENTRIES], nr_entries: 0, rsdp: info.rsdp };
    let table = core::ptr::with_exposed_provenance::<Entry>(info.memmap as usize);
    for (i, slot) in loaded.entries.iter_mut().take(info.memmap_entries as usize).enumerate() {
        // SAFETY: inside the loader's table.
        *slot = unsafe { table.add(i).read_unaligned() };
        loaded.nr_entries = i + 1;
    }
    if info.cmdline != 0 {
        let text = core::ptr::with_exposed_provenance::<u8>(info.cmdline as usize);
        // SAFETY: the loader ends its text with a zero.
        crate::cmdline::keep(unsafe { core::ffi::CStr::from_ptr(text.cast()) }.to_bytes());
    }
    Some(loaded)
}
