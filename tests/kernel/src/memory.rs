//! From the loader's map to allocators: what exists, what is taken, bookkeeping carved off, `KmemCell::init`. Step 7 of a
//! port.
//!
//! ```text
//! the loader's map   [ 0 .. 640K ]   hole   [ 1M .. top ]   hole   [ 4G .. top ]
//! reserved             first MiB             image      words, books, tables        carved downwards from a region's top
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem::{InitError, MemoryMap, PAGE_SIZE, Pfn, PfnRange, Region, ZoneLimits};
use kmem_gfp::FrameWords;

use crate::late::Late;
use crate::percpu::nr_cpus;
use crate::platform::{KMEM, Machine};
use crate::pvh::{Loaded, MAX_ENTRIES};
use crate::{asm, cmdline, frames};

/// The boot page tables map so much.
const MAPPED_AT_BOOT: u64 = 4 << 30;
/// The most that is mapped at all.
const MAPPABLE: u64 = frames::MOST_FRAMES << 12;
/// The trampoline and whatever the firmware keeps in real mode's memory.
const LOW_MEMORY: PfnRange = PfnRange::new(Pfn(0), Pfn(0x100));
/// A range that the map has and nobody may use, as firmware likes to leave behind.
const FIRMWARE: PfnRange = PfnRange::new(Pfn(0x1a03), Pfn(0x1a85));

/// What the page allocator was given.
#[derive(Debug)]
pub(crate) struct Given {
    regions: [Region; MAX_ENTRIES],
    nr_regions: usize,
    reserved: [PfnRange; 4],
    /// Where zones end.
    pub(crate) limits: ZoneLimits,
}

impl Given {
    /// The memory that exists.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions[..self.nr_regions]
    }

    /// The frames that are not handed out.
    pub(crate) fn reserved(&self) -> &[PfnRange] {
        &self.reserved
    }

    /// Whether a frame may be handed out.
    pub(crate) fn is_free_memory(&self, pfn: Pfn) -> bool {
        self.regions().iter().any(|region| region.range.contains(pfn))
            && !self.reserved.iter().any(|range| range.contains(pfn))
    }
}

/// What the page allocator was given, once it was.
pub(crate) static GIVEN: Late<Given> = Late::new();

/// Takes memory from the top of a region, downwards.
struct Carver {
    region: PfnRange,
    /// The lowest address taken.
    at: u64,
}

impl Carver {
    /// Zeroed memory for good; `None` if the region is used up.
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let at = self.at.checked_sub(layout.size() as u64)? & !(layout.align() as u64 - 1);
        if at < self.region.start.0 << 12 {
            return None;
        }
        self.at = at;
        let memory = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(at as usize))?;
        // SAFETY: memory of the map that nobody has, mapped one to one.
        unsafe { memory.write_bytes(0, layout.size()) };
        Some(memory)
    }

    fn taken(&self) -> PfnRange {
        PfnRange::new(Pfn(self.at / PAGE_SIZE as u64), self.region.end)
    }
}

unsafe extern "C" {
    static __kernel_start: [u8; 0];
    static __kernel_end: [u8; 0];
    static boot_pml4: [u64; 512];
    static boot_pdpt: [u64; 512];
}

fn image() -> PfnRange {
    let start = (&raw const __kernel_start).addr() as u64 / PAGE_SIZE as u64;
    let end = ((&raw const __kernel_end).addr() as u64).div_ceil(PAGE_SIZE as u64);
    PfnRange::new(Pfn(start), Pfn(end))
}

/// Where zones end: as on every PC, or DMA32 lower so that small machines have a Normal zone too.
fn limits() -> ZoneLimits {
    let dma32_end = cmdline::number("dma32_mib").map(|mib| Pfn(mib << 8));
    ZoneLimits { dma32_end: dma32_end.or(ZoneLimits::X86_64.dma32_end), ..ZoneLimits::X86_64 }
}

/// Brings the allocators to life. Once, on the CPU that boots, when the number of CPUs is known.
///
/// # Errors
/// What is wrong with the map, in words.
///
/// # Safety
/// `loaded` is the loader's map, and nobody uses the memory in it but for the first megabyte and the kernel's image.
pub(crate) unsafe fn init(loaded: &Loaded) -> Result<(), &'static str> {
    let mut given = Given {
        regions: [Region::new(PfnRange::new(Pfn(0), Pfn(0))); MAX_ENTRIES],
        nr_regions: 0,
        reserved: [LOW_MEMORY, image(), FIRMWARE, PfnRange::new(Pfn(0), Pfn(0))],
        limits: limits(),
    };
    for entry in loaded.entries().iter().filter(|entry| entry.is_memory()) {
        let mut range = entry.whole_frames();
        range.end = range.end.min(Pfn(MAPPABLE >> 12));
        if !range.is_empty() {
            given.regions[given.nr_regions] = Region::new(range);
            given.nr_regions += 1;
        }
    }
    let nr_frames = given.regions().iter().map(|region| region.range.end.0).max().ok_or("no memory in the map")?;

    // The largest region that is mapped already; above the image.
    let mapped = Pfn(MAPPED_AT_BOOT >> 12);
    let largest = given.regions().iter().map(|region| region.range).filter(|range| range.end <= mapped);
    let mut region = largest.max_by_key(PfnRange::len).ok_or("no region below 4 GiB")?;
    region.start = region.start.max(image().end).max(FIRMWARE.end);
    let mut carver = Carver { region, at: region.end.0 << 12 };
    map_above_4_gib(nr_frames, &mut carver).ok_or("no memory for page tables")?;

    map_words(nr_frames, &mut carver).ok_or("no memory for the frame table")?;
    // SAFETY: as many zeroed words as frames; the map is one to one.
    unsafe { frames::init(nr_frames) };

    // The books' size is known when kmem asks for them; so much is enough for any map (half a byte a frame, and each CPU's
    // part).
    let books = Layout::from_size_align(nr_frames as usize / 2 + (64 << 10) * (1 + nr_cpus() as usize), PAGE_SIZE);
    let books = books.map_err(|_| "too many frames")?;
    let room = carver.take(books).ok_or("no memory for the page allocator's books")?;
    given.reserved[3] = carver.taken();

    let map = MemoryMap {
        regions: given.regions(),
        reserved: given.reserved(),
        limits: given.limits,
        ..MemoryMap::default()
    };
    let fits = |layout: Layout| (layout.size() <= books.size() && layout.align() <= PAGE_SIZE).then_some(room);
    // SAFETY: the books are carved off and reserved; the frames exist by the loader's word and belong to nobody (caller);
    // the frame table covers all of them.
    let kmem = unsafe { KMEM.init(Machine, &map, fits) };
    if let Err(error) = kmem {
        report(&error);
        return Err("the allocators refuse the map");
    }
    GIVEN.set(given);
    Ok(())
}

fn report(error: &InitError) {
    println!("kmem: {error}");
}

/// Maps memory above 4 GiB one to one, in pages of 2 MiB.
fn map_above_4_gib(nr_frames: u64, carver: &mut Carver) -> Option<()> {
    let gibs = (nr_frames << 12).div_ceil(1 << 30);
    for gib in 4..gibs {
        let table = carver.take(Layout::from_size_align(PAGE_SIZE, PAGE_SIZE).ok()?)?.cast::<u64>();
        for i in 0..512 {
            // SAFETY: one of the table's 512 entries.
            unsafe { table.add(i as usize).write((gib << 30) + (i << 21) + 0x83) };
        }
        let entry = (&raw const boot_pdpt).cast_mut().cast::<u64>();
        // SAFETY: a free entry of the boot tables; `gib` is below 512, and this is the only CPU.
        unsafe { entry.add(gib as usize).write_volatile(table.as_ptr().expose_provenance() as u64 + 3) };
    }
    asm::invalidate_all();
    Some(())
}

/// Carves the frame table, zeroed, and maps it where `frames` wants it.
fn map_words(nr_frames: u64, carver: &mut Carver) -> Option<()> {
    let page = Layout::from_size_align(PAGE_SIZE, PAGE_SIZE).ok()?;
    let bytes = (nr_frames as usize).checked_mul(size_of::<FrameWords>())?.next_multiple_of(PAGE_SIZE);
    let words = carver.take(Layout::from_size_align(bytes, PAGE_SIZE).ok()?)?.expose_provenance().get();
    let root = (&raw const boot_pml4).cast_mut().cast::<u64>();
    for (i, at) in (words..words + bytes).step_by(PAGE_SIZE).enumerate() {
        let address = frames::WORDS + i * PAGE_SIZE;
        let mut table = root;
        for level in [3, 2, 1] {
            // SAFETY: one of the table's 512 entries.
            let entry = unsafe { table.add(address >> (12 + 9 * level) & 511) };
            // SAFETY: as above; this is the only CPU.
            if unsafe { entry.read_volatile() } == 0 {
                let new = carver.take(page)?.expose_provenance().get() as u64;
                // SAFETY: as above.
                unsafe { entry.write_volatile(new | 3) };
            }
            // SAFETY: as above; tables are mapped one to one.
            let below = unsafe { entry.read_volatile() } as usize & !(PAGE_SIZE - 1);
            table = core::ptr::with_exposed_provenance_mut(below);
        }
        // SAFETY: as above. Global is not used, so nothing lingers that was not there.
        unsafe { table.add(address >> 12 & 511).write_volatile(at as u64 | 3) };
    }
    Some(())
}
