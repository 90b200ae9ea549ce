//! PCI configuration space through the old ports: enough to find a virtio device.

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use crate::asm;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Configuration space behind two ports.
#[derive(Debug)]
pub(crate) struct Ports;

fn select(function: DeviceFunction, register: u8) {
    let address = 1 << 31
        | u32::from(function.bus) << 16
        | u32::from(function.device) << 11
        | u32::from(function.function) << 8
        | u32::from(register & 0xfc);
    // SAFETY: selects a register.
    unsafe { asm::out32(ADDRESS, address) };
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, device_function: DeviceFunction, register_offset: u8) -> u32 {
        let _irqs_off = kmem_sync::IrqGuard::new(&crate::cpu::KernelCpu);
        select(device_function, register_offset);
        // SAFETY: reads the register.
        unsafe { asm::in32(DATA) }
    }

    fn write_word(&mut self, device_function: DeviceFunction, register_offset: u8, data: u32) {
        let _irqs_off = kmem_sync::IrqGuard::new(&crate::cpu::KernelCpu);
        select(device_function, register_offset);
        // SAFETY: the driver knows what it writes.
        unsafe { asm::out32(DATA, data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}
