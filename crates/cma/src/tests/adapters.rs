//! The adapters under the crates that they are for.

use super::rig::{PIECES, Rig};

#[cfg(feature = "x86_64-015")]
mod frames {
    use kmem_gfp::Gfp;
    use std::boxed::Box;
    use x86_64_015::structures::paging::mapper::{CleanUp, PageTableFrameMapping};
    use x86_64_015::structures::paging::{
        FrameAllocator, FrameDeallocator, MappedPageTable, Mapper, Page, PageTable, PageTableFlags, PhysFrame,
        Size2MiB, Size4KiB, Translate,
    };
    use x86_64_015::{PhysAddr, VirtAddr};

    use super::*;
    use crate::adapter::PageFrames;

    /// Where the rig has page tables.
    struct Tables<'r>(&'r Rig);

    // SAFETY: frames of the rig are mapped there.
    unsafe impl PageTableFrameMapping for Tables<'_> {
        fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
            let pfn = kmem_gfp::Pfn::containing(frame.start_address().as_u64());
            kmem_gfp::FrameTable::address_of(&self.0.frames, pfn).unwrap().cast().as_ptr()
        }
    }

    #[test]
    fn a_mapper_builds_its_tables_in_frames_of_a_page_allocator() {
        let rig = Rig::new();
        let mut top = Box::new(PageTable::new());
        let mut frames = PageFrames::new(&rig.pages, Gfp::KERNEL | Gfp::ZERO);
        // SAFETY: an unused table, and a mapping of frames as above.
        let mut mapper = unsafe { MappedPageTable::new(&mut top, Tables(&rig)) };
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(0x4000_1234_5000));
        let frame: PhysFrame<Size4KiB> = frames.allocate_frame().unwrap();
        // SAFETY: no CPU walks these tables.
        let mapped =
            unsafe { mapper.map_to(page, frame, PageTableFlags::PRESENT | PageTableFlags::WRITABLE, &mut frames) };
        mapped.unwrap().ignore();
        assert_eq!(rig.in_use(), 4, "the page and three tables");
        let translated = mapper.translate_addr(page.start_address() + 7);
        assert_eq!(translated, Some(frame.start_address() + 7));
        let (unmapped, flush) = mapper.unmap(page).unwrap();
        flush.ignore();
        // SAFETY: unmapped; the tables are empty.
        unsafe {
            frames.deallocate_frame(unmapped);
            mapper.clean_up(&mut frames);
        }
        assert_eq!(rig.in_use(), 0);
    }

    #[test]
    fn two_mib_frames_are_blocks_of_their_size() {
        let rig = Rig::new();
        let mut frames = PageFrames::new(&rig.pages, Gfp::KERNEL);
        let none: Option<PhysFrame<Size2MiB>> = frames.allocate_frame();
        assert!(none.is_none(), "no piece of the rig is so large");
        let small: PhysFrame<Size4KiB> = frames.allocate_frame().unwrap();
        assert_eq!(small.start_address(), PhysAddr::new(PIECES[2] * 4096));
        // SAFETY: unused.
        unsafe { frames.deallocate_frame(small) };
        assert_eq!(rig.in_use(), 0);
    }
}

#[cfg(feature = "virtio-drivers-013")]
mod virtio {
    use std::ptr::NonNull;
    use std::sync::{LazyLock, Mutex};

    use kmem_gfp::{FrameTable, PAGE_SIZE, Pfn};
    use virtio_drivers_013::device::rng::VirtIORng;
    use virtio_drivers_013::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
    use virtio_drivers_013::{BufferDirection, Hal, PhysAddr};

    use super::*;
    use crate::adapter::{DmaHolder, VirtioHal};
    use crate::{Dma, DmaDevice};

    /// A machine whose memory begins with physical page 0.
    static RIG: LazyLock<&'static Rig> =
        LazyLock::new(|| std::boxed::Box::leak(std::boxed::Box::new(Rig::with([0, PIECES[1], PIECES[2]]))));
    static DMA: LazyLock<Dma<&'static Rig>> = LazyLock::new(|| Dma::new(*RIG));

    struct Holder;

    // SAFETY: there are no registers.
    unsafe impl DmaHolder for Holder {
        type Env = &'static Rig;
        fn dma() -> &'static Dma<&'static Rig> {
            &DMA
        }
        fn device() -> DmaDevice {
            DmaDevice::with_bits(24)
        }
        unsafe fn mmio(_physical: u64, _len: usize) -> NonNull<u8> {
            unreachable!("a transport without registers")
        }
    }

    type MachineHal = VirtioHal<Holder>;

    /// A random-number device that answers as soon as it is notified.
    #[derive(Default)]
    struct Rng {
        status: u32,
        /// Descriptors, the driver's ring, the device's ring.
        queue: [u64; 3],
        seen: u16,
    }

    /// Where a device finds a bus address.
    fn at<T>(bus: u64) -> *mut T {
        assert!(bus < 1 << 24, "the device reaches it");
        let page = RIG.frames.address_of(Pfn::containing(bus)).unwrap();
        page.as_ptr().wrapping_add(bus as usize % PAGE_SIZE).cast()
    }

    impl Transport for Rng {
        fn device_type(&self) -> DeviceType {
            DeviceType::EntropySource
        }
        fn read_device_features(&mut self) -> u64 {
            1 << 32
        }
        fn write_driver_features(&mut self, _features: u64) {}
        fn max_queue_size(&mut self, _queue: u16) -> u32 {
            8
        }
        fn notify(&mut self, _queue: u16) {
            let [descriptors, available, used] = self.queue;
            // SAFETY: the queue's memory, which the driver leaves alone until it is answered.
            unsafe {
                let newest = at::<u16>(available + 2).read_volatile();
                while self.seen != newest {
                    let slot = u64::from(self.seen % 8);
                    let index = at::<u16>(available + 4 + 2 * slot).read_volatile();
                    let descriptor = descriptors + 16 * u64::from(index);
                    let (buffer, len) = (at::<u64>(descriptor).read(), at::<u32>(descriptor + 8).read());
                    at::<u8>(buffer).write_bytes(0x5a, len as usize);
                    at::<u32>(used + 4 + 8 * slot).write_volatile(u32::from(index));
                    at::<u32>(used + 8 + 8 * slot).write_volatile(len);
                    self.seen = self.seen.wrapping_add(1);
                    at::<u16>(used + 2).write_volatile(self.seen);
                }
            }
        }
        fn get_status(&self) -> DeviceStatus {
            DeviceStatus::from_bits_truncate(self.status)
        }
        fn set_status(&mut self, status: DeviceStatus) {
            self.status = status.bits();
        }
        fn set_guest_page_size(&mut self, _size: u32) {}
        fn requires_legacy_layout(&self) -> bool {
            false
        }
        fn queue_set(&mut self, _queue: u16, _size: u32, table: PhysAddr, driver: PhysAddr, device: PhysAddr) {
            self.queue = [table, driver, device];
        }
        fn queue_unset(&mut self, _queue: u16) {}
        fn queue_used(&mut self, _queue: u16) -> bool {
            false
        }
        fn ack_interrupt(&mut self) -> InterruptStatus {
            InterruptStatus::empty()
        }
        fn read_config_generation(&self) -> u32 {
            0
        }
        fn read_config_space<T>(&self, _offset: usize) -> virtio_drivers_013::Result<T> {
            Err(virtio_drivers_013::Error::Unsupported)
        }
        fn write_config_space<T>(&mut self, _offset: usize, _value: T) -> virtio_drivers_013::Result<()> {
            Err(virtio_drivers_013::Error::Unsupported)
        }
    }

    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn a_driver_runs_over_the_adapter_with_a_buffer_that_its_device_does_not_reach() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let before = RIG.in_use();
        let mut rng = VirtIORng::<MachineHal, _>::new(Rng::default()).unwrap();
        let mut bytes = [0; 300];
        assert_eq!(rng.request_entropy(&mut bytes), Ok(300));
        assert_eq!(bytes, [0x5a; 300], "by way of a bounce buffer");
        drop(rng);
        assert_eq!(RIG.in_use(), before);
    }

    #[test]
    fn queues_are_zeroed_of_any_size_and_never_at_physical_page_0() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let before = RIG.in_use();
        for pages in [1, 2, 3, 5, 7] {
            let (bus, address) = MachineHal::dma_alloc(pages, BufferDirection::Both);
            assert!(bus != 0 && bus.is_multiple_of(PAGE_SIZE as u64));
            assert_eq!(RIG.in_use(), before + pages);
            // SAFETY: so many pages, ours; given back once.
            unsafe {
                assert_eq!(MachineHal::dma_dealloc(bus, address, pages), 0);
                assert_ne!(MachineHal::dma_dealloc(bus, address, pages), 0, "not twice");
            }
        }
        let (none, _) = MachineHal::dma_alloc(1000, BufferDirection::Both);
        assert_eq!((none, RIG.in_use()), (0, before), "a failure says 0");
    }
}
