//! Which CPUs there are: the MADT, found through the tables that the loader names.

use crate::percpu::MAX_CPUS;

/// The local APICs of the machine's CPUs; the one that boots is among them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// Their APIC ids.
    pub(crate) apic_ids: [u8; MAX_CPUS],
    /// How many there are.
    pub(crate) nr: usize,
}

/// Reads a little-endian number of `N` bytes.
///
/// # Safety
/// The bytes are mapped.
unsafe fn number<const N: usize>(at: u64) -> u64 {
    let mut bytes = [0; 8];
    for (i, byte) in bytes.iter_mut().enumerate().take(N) {
        // SAFETY: the caller's promise.
        *byte = unsafe { core::ptr::with_exposed_provenance::<u8>(at as usize + i).read() };
    }
    u64::from_le_bytes(bytes)
}

/// Finds the CPUs; `None` if there is no table that says so.
///
/// # Safety
/// `rsdp` is what the loader said; the firmware's tables are mapped one to one.
pub(crate) unsafe fn cpus(rsdp: u64) -> Option<Cpus> {
    if rsdp == 0 {
        return None;
    }
    // SAFETY: the caller's promise; offsets and lengths are the tables' own.
    unsafe {
        // Revision 2 and up have a table of 64-bit pointers.
        let (root, width) = match number::<1>(rsdp + 15) {
            0 | 1 => (number::<4>(rsdp + 16), 4),
            _ => (number::<8>(rsdp + 24), 8),
        };
        let end = root + number::<4>(root + 4);
        let mut at = root + 36;
        while at < end {
            let table = if width == 4 { number::<4>(at) } else { number::<8>(at) };
            if number::<4>(table) == u64::from(u32::from_le_bytes(*b"APIC")) {
                return Some(read_madt(table));
            }
            at += width;
        }
    }
    None
}

/// Reads the entries of a MADT.
///
/// # Safety
/// It is one, and mapped.
unsafe fn read_madt(table: u64) -> Cpus {
    let mut cpus = Cpus { apic_ids: [0; MAX_CPUS], nr: 0 };
    // SAFETY: the caller's promise; lengths are the table's own.
    unsafe {
        let end = table + number::<4>(table + 4);
        let mut at = table + 44;
        while at + 2 <= end {
            let length = number::<1>(at + 1).max(2);
            // A local APIC that is enabled.
            if number::<1>(at) == 0 && number::<4>(at + 4) & 1 != 0 && cpus.nr < MAX_CPUS {
                cpus.apic_ids[cpus.nr] = number::<1>(at + 3) as u8;
                cpus.nr += 1;
            }
            at += length;
        }
    }
    cpus
}
