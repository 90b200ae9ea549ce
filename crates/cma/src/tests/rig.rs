//! A machine with real memory below 16 MiB, below 4 GiB and above, for devices.

use std::alloc::{Layout, alloc_zeroed};
use std::ptr::NonNull;
use std::string::String;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{
    AllocError, ExactPages, FlatFrameTable, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange,
};

use super::toy::{ToyContext, ToyCpu};
use crate::{Contiguous, DmaBus, DmaDirection, DmaEnv, ReleaseError};

/// Frames of each of the three pieces.
pub(crate) const NR: u64 = 64;
/// Where they begin, unless said otherwise: in DMA, in DMA32, in Normal.
pub(crate) const PIECES: [u64; 3] = [0x800, 0x4_0000, 0x20_0000];

/// A page allocator over three pieces of memory, first fit from above.
pub(crate) struct Pages {
    first: [u64; 3],
    frames: Frames,
    used: Mutex<[[bool; NR as usize]; 3]>,
    /// The request, counted from one, that fails; 0: none.
    pub(crate) fail_at: AtomicU64,
    pub(crate) asked: Mutex<Vec<Gfp>>,
}

impl Pages {
    fn slot(&self, pfn: Pfn) -> Option<(usize, usize)> {
        let piece = self.first.iter().position(|&first| (first..first + NR).contains(&pfn.0))?;
        Some((piece, (pfn.0 - self.first[piece]) as usize))
    }

    pub(crate) fn in_use(&self) -> usize {
        self.used.lock().unwrap().iter().flatten().filter(|&&used| used).count()
    }
}

// SAFETY: a frame is handed out by whoever sets its flag.
unsafe impl PageAllocator for Pages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.alloc_pages_exact(gfp, order.nr_pages(), node).map(|range| range.start)
    }
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_range(PfnRange::block(pfn, order).unwrap()) }
    }
}

// SAFETY: as above.
unsafe impl ExactPages for Pages {
    fn alloc_pages_exact(&self, gfp: Gfp, nr_pages: usize, _node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        self.asked.lock().unwrap().push(gfp);
        let none = AllocError::NoMemory { order: Order::ZERO, gfp };
        if self.fail_at.load(Ordering::Relaxed) > 0 && self.fail_at.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(none);
        }
        let highest = match gfp {
            gfp if gfp.contains(Gfp::DMA) => 0,
            gfp if gfp.contains(Gfp::DMA32) => 1,
            _ => 2,
        };
        let align = nr_pages.next_power_of_two() as u64;
        let mut used = self.used.lock().unwrap();
        for piece in (0..=highest).rev() {
            let first = self.first[piece];
            let starts = (0..NR).filter(|at| (first + at).is_multiple_of(align) && at + nr_pages as u64 <= NR);
            for at in starts {
                let frames = &mut used[piece][at as usize..at as usize + nr_pages];
                if frames.iter().all(|used| !used) {
                    frames.fill(true);
                    let range = PfnRange::with_len(Pfn(first + at), nr_pages as u64).unwrap();
                    if gfp.contains(Gfp::ZERO) {
                        self.frames.zero(range);
                    }
                    return Ok(range);
                }
            }
        }
        Err(none)
    }
    fn alloc_pages_at(&self, gfp: Gfp, _pfn: Pfn, order: Order) -> Result<(), AllocError> {
        Err(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        let mut used = self.used.lock().unwrap();
        for pfn in range.iter() {
            let (piece, at) = self.slot(pfn).ok_or(FreeError::Foreign(pfn))?;
            if !core::mem::take(&mut used[piece][at]) {
                return Err(FreeError::AlreadyFree(pfn));
            }
        }
        Ok(())
    }
}

/// The three pieces, mapped apart.
#[derive(Clone, Copy)]
pub(crate) struct Frames([FlatFrameTable; 3]);

impl Frames {
    /// For frames that the caller has.
    fn zero(&self, range: PfnRange) {
        for pfn in range.iter() {
            let page = self.address_of(pfn).unwrap();
            // SAFETY: mapped, the caller's.
            unsafe { page.write_bytes(0, PAGE_SIZE) };
        }
    }
}

// SAFETY: the tables of the pieces, which do not overlap.
unsafe impl FrameTable for Frames {
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        self.0.iter().find_map(|table| table.words(pfn))
    }
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.0.iter().find_map(|table| table.address_of(pfn))
    }
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        self.0.iter().find_map(|table| table.frame_of(address))
    }
}

/// A bus that shifts addresses and notes what is synchronized.
#[derive(Default)]
pub(crate) struct Bus {
    pub(crate) shift: AtomicU64,
    pub(crate) log: Mutex<Vec<(&'static str, usize)>>,
    /// No coherent mappings are to be had.
    pub(crate) refuses: AtomicBool,
}

// SAFETY: (1) one distance for all; (2) the direct map.
unsafe impl DmaBus for Bus {
    fn to_bus(&self, physical: u64) -> Option<u64> {
        physical.checked_add(self.shift.load(Ordering::Relaxed))
    }
    fn to_physical(&self, bus: u64) -> Option<u64> {
        bus.checked_sub(self.shift.load(Ordering::Relaxed))
    }
    unsafe fn map_coherent(&self, _frames: PfnRange, direct: NonNull<u8>) -> Option<NonNull<u8>> {
        (!self.refuses.load(Ordering::Relaxed)).then_some(direct)
    }
    fn sync_for_device(&self, _address: NonNull<u8>, len: usize, _direction: DmaDirection) {
        self.log.lock().unwrap().push(("device", len));
    }
    fn sync_for_cpu(&self, _address: NonNull<u8>, len: usize, _direction: DmaDirection) {
        self.log.lock().unwrap().push(("cpu", len));
    }
}

/// A contiguous area of the last 32 frames of one piece, if it is there.
pub(crate) struct Corner {
    pub(crate) piece: Mutex<Option<u64>>,
    pub(crate) used: Mutex<Vec<PfnRange>>,
}

// SAFETY: one range at a time.
unsafe impl Contiguous for Corner {
    fn take(&self, nr_pages: u64, align_order: u32) -> Option<PfnRange> {
        let first = (*self.piece.lock().unwrap())? + 32;
        let mut used = self.used.lock().unwrap();
        let fits = used.is_empty() && nr_pages <= 32 && first.is_multiple_of(1 << align_order);
        let range = PfnRange::with_len(Pfn(first), nr_pages).filter(|_| fits)?;
        used.push(range);
        Some(range)
    }
    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError> {
        let mut used = self.used.lock().unwrap();
        let at = used.iter().position(|&other| other == range).ok_or(ReleaseError::Foreign(range))?;
        used.remove(at);
        Ok(())
    }
}

/// The machine.
pub(crate) struct Rig {
    pub(crate) context: ToyContext,
    pub(crate) pages: Pages,
    pub(crate) frames: Frames,
    pub(crate) bus: Bus,
    pub(crate) corner: Corner,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(PIECES)
    }

    pub(crate) fn with(first: [u64; 3]) -> Self {
        let frames = Frames(first.map(|first| {
            let size = NR as usize * PAGE_SIZE;
            // SAFETY: not empty.
            let memory = unsafe { alloc_zeroed(Layout::from_size_align(size, size).unwrap()) };
            // SAFETY: not empty.
            let words = unsafe { alloc_zeroed(Layout::array::<FrameWords>(NR as usize).unwrap()) };
            let words = NonNull::new(words).unwrap().cast();
            // Junk, so that zeroing shows.
            // SAFETY: just allocated.
            unsafe { memory.write_bytes(0xcc, size) };
            // SAFETY: zeroed words of ours, for good; the memory as long as the frames.
            unsafe { FlatFrameTable::new(words, memory.expose_provenance(), Pfn(first), NR) }
        }));
        Self {
            context: ToyContext::default(),
            pages: Pages {
                first,
                frames,
                used: Mutex::new([[false; NR as usize]; 3]),
                fail_at: AtomicU64::new(0),
                asked: Mutex::new(Vec::new()),
            },
            frames,
            bus: Bus::default(),
            corner: Corner { piece: Mutex::new(None), used: Mutex::new(Vec::new()) },
        }
    }

    /// Frames in use, of whichever source.
    pub(crate) fn in_use(&self) -> usize {
        self.pages.in_use() + self.corner.used.lock().unwrap().len()
    }

    /// A buffer in the direct map of a piece, which nobody else gets.
    pub(crate) fn buffer(&self, piece: usize, len: usize) -> &'static mut [u8] {
        let pages = len.div_ceil(PAGE_SIZE);
        let mut used = self.pages.used.lock().unwrap();
        let at = used[piece].iter().rposition(|used| !used).unwrap() + 1 - pages;
        used[piece][at..at + pages].fill(true);
        let address = self.frames.address_of(Pfn(self.pages.first[piece] + at as u64)).unwrap();
        // SAFETY: frames of ours alone, mapped for good.
        unsafe { core::slice::from_raw_parts_mut(address.as_ptr(), len) }
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        self.context.reports.lock().unwrap().clone()
    }
}

impl DmaEnv for Rig {
    type Cpu = ToyCpu;
    type Context = ToyContext;
    type Pages = Pages;
    type Frames = Frames;
    type Contiguous = Corner;

    fn cpu(&self) -> &ToyCpu {
        &ToyCpu
    }
    fn context(&self) -> &ToyContext {
        &self.context
    }
    fn pages(&self) -> &Pages {
        &self.pages
    }
    fn frames(&self) -> &Frames {
        &self.frames
    }
    fn contiguous(&self) -> &Corner {
        &self.corner
    }
    fn bus(&self) -> &dyn DmaBus {
        &self.bus
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        self.frames.zero(range);
    }
}
