//! The vmalloc window: frames mapped a second time, faults that are real, translations that linger, the host's limit.

mod faults;
mod limit;

use std::collections::BTreeSet;

use kmem_gfp::{FrameTable, Gfp, Order, PAGE_SIZE, Pfn};
use kmem_vmalloc::{AddressSpace, Granule, MapError, Prot, Run, TableSource, VmFlags, VmRequest, VmallocError};
use proptest::prelude::*;

use crate::{BootError, HostSpace, Machine, MachineBuilder, RamBacking};

const MIB: usize = 1 << 20;

/// A machine of the test, ended with it.
pub(super) struct Ending(pub(super) &'static Machine);

impl std::ops::Deref for Ending {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        self.0
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // SAFETY: the tests keep nothing of their machines.
        unsafe { self.0.shut_down() };
    }
}

pub(super) fn boot(builder: MachineBuilder) -> Ending {
    Ending(builder.boot().unwrap())
}

pub(super) fn small() -> MachineBuilder {
    Machine::builder().cpus(2).ram_bytes(64 << 20)
}

/// What is at an address, as a CPU would find it: nothing if that is a fault.
pub(super) fn look(at: usize) -> Option<u64> {
    let mut word = 0_u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: core::ptr::without_provenance_mut(at), iov_len: 8 };
    // SAFETY: writes to `word` only; addresses that cannot be read are an error.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    (read == 8).then_some(word)
}

pub(super) fn write(at: usize, word: u64) {
    // SAFETY: tests write to what they own.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at).write_volatile(word) };
}

pub(super) fn read(at: usize) -> u64 {
    // SAFETY: tests read what they own.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at).read_volatile() }
}

/// The first word of a frame, by the direct map.
pub(super) fn word_of(machine: &Machine, pfn: Pfn) -> u64 {
    read(machine.kmem().platform().table.address_of(pfn).unwrap().addr().get())
}

/// Takes every frame that there is and gives every second one back, so that only single frames are left. The caller keeps
/// the others.
pub(super) fn scatter(machine: &Machine) -> Vec<Pfn> {
    let kmem = machine.kmem();
    let take = || kmem.alloc_page(Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NORETRY | Gfp::NOWARN);
    let mut frames: Vec<_> = std::iter::from_fn(|| take().ok()).collect();
    frames.sort();
    let (freed, kept): (Vec<_>, Vec<_>) = frames.into_iter().partition(|pfn| pfn.0 % 2 == 0);
    for pfn in freed {
        // SAFETY: ours, unused.
        unsafe { kmem.free_page(pfn) }.unwrap();
    }
    kept
}

/// How many mappings the host has in the window, by its own account.
fn mappings_by_proc(window: &std::ops::Range<usize>) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ranges = maps.lines().filter_map(|line| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    });
    ranges.filter(|&(from, to)| from < window.end && to > window.start).count()
}

#[test]
fn areas_are_contiguous_and_their_frames_are_not() {
    // V01
    let machine = boot(small().ram_bytes(16 << 20));
    let vmalloc = machine.kmem().vmalloc_layer();
    let _kept = scatter(&machine);
    // No blocks: single frames only.
    let nr = 200;
    let memory = vmalloc.vmalloc(nr * PAGE_SIZE).unwrap().addr().get();
    for i in 0..nr {
        write(memory + i * PAGE_SIZE, i as u64);
        write(memory + i * PAGE_SIZE + PAGE_SIZE - 8, !(i as u64));
    }
    let frames: Vec<_> =
        (0..nr).map(|i| vmalloc.vmalloc_to_pfn((memory + i * PAGE_SIZE) as *const u8).unwrap()).collect();
    assert!(frames.windows(2).all(|pair| pair[0].0 + 1 != pair[1].0), "{frames:?}");
    assert_eq!(machine.space_stats().host_mappings, nr + 1);
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), nr);
    for (i, &pfn) in frames.iter().enumerate() {
        assert_eq!(word_of(&machine, pfn), i as u64);
    }
    // SAFETY: ours; the bytes were written.
    let bytes = unsafe { std::slice::from_raw_parts(memory as *const u8, nr * PAGE_SIZE) };
    assert!(bytes.chunks(PAGE_SIZE).zip(0..).all(|(page, i)| page[..8] == u64::to_ne_bytes(i)));
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(memory as *mut u8) }.unwrap();
    assert_eq!(machine.space_stats().host_mappings, 1, "one mapping again: the reservation");
}

#[test]
fn neighbours_are_one_mapping_of_the_host() {
    let machine = boot(small());
    let vmalloc = machine.kmem().vmalloc_layer();
    let area = vmalloc.area(&VmRequest::new(4 * MIB, Gfp::KERNEL)).unwrap();
    let (runs, pages) = (machine.space_stats().host_mappings, 4 * MIB / PAGE_SIZE);
    assert!(runs < pages / 16, "{runs} mappings for {pages} pages");
    let huge = VmRequest { flags: VmFlags::ALLOW_HUGE, ..VmRequest::new(4 * MIB, Gfp::KERNEL) };
    let area = (area, vmalloc.area(&huge).unwrap());
    assert_eq!(area.1.as_ptr().addr() % (2 * MIB), 0);
    assert!(machine.space_stats().host_mappings <= runs + 3);
    drop(area);
    assert_eq!(machine.space_stats().host_mappings, 1);
}

#[test]
fn given_frames_are_mapped_in_order_and_shared() {
    let machine = boot(small());
    let vmalloc = machine.kmem().vmalloc_layer();
    let mut frames: Vec<_> = (0..8).map(|_| machine.kmem().alloc_page(Gfp::KERNEL).unwrap()).collect();
    frames.reverse();
    // SAFETY: the frames are ours, and stay until both mappings are gone.
    unsafe {
        let first = vmalloc.vmap(&frames, VmFlags::empty(), Prot::KERNEL).unwrap();
        let second = vmalloc.vm_map_ram(&frames, None).unwrap();
        for (i, &pfn) in frames.iter().enumerate() {
            write(first.addr().get() + i * PAGE_SIZE, 100 + i as u64);
            assert_eq!(read(second.addr().get() + i * PAGE_SIZE), 100 + i as u64);
            assert_eq!(word_of(&machine, pfn), 100 + i as u64);
        }
        vmalloc.vm_unmap_ram(second.as_ptr(), frames.len()).unwrap();
        vmalloc.vunmap(first.as_ptr()).unwrap();
        assert_eq!((look(first.addr().get()), look(second.addr().get())), (None, None));
        for pfn in frames {
            machine.kmem().free_page(pfn).unwrap();
        }
    }
}

#[test]
fn frames_that_are_no_memory_are_not_mapped() {
    let machine = boot(small());
    let vmalloc = machine.kmem().vmalloc_layer();
    // SAFETY: refused.
    let device = unsafe { vmalloc.ioremap(0xfee0_0000, 4096, Prot::DEVICE) };
    assert!(matches!(device, Err(VmallocError::NotMapped { source: MapError::Refused { .. }, .. })), "{device:?}");
    assert_eq!(machine.space_stats().host_mappings, 1);
}

#[test]
fn resizing_keeps_what_is_in_it() {
    let machine = boot(small());
    let vmalloc = machine.kmem().vmalloc_layer();
    let mut area = vmalloc.area(&VmRequest::new(3 * PAGE_SIZE, Gfp::KERNEL)).unwrap();
    for (step, pages) in [40, 300, 7, 2, 900].into_iter().enumerate() {
        let before = area.as_ptr().addr();
        write(before + PAGE_SIZE, step as u64);
        area.resize(pages * PAGE_SIZE, Gfp::KERNEL).unwrap();
        let now = area.as_ptr().addr();
        assert_eq!(read(now + PAGE_SIZE), step as u64);
        write(now + pages * PAGE_SIZE - 8, 7);
        assert_eq!(look(now + pages * PAGE_SIZE), None, "the guard page");
        assert!(before == now || look(before).is_none());
    }
}

#[test]
fn a_window_needs_memory_that_can_be_mapped_twice() {
    let refused = small().ram_backing(RamBacking::Private).vmalloc_bytes(1 << 30).boot();
    assert!(matches!(refused.unwrap_err(), BootError::PrivateWindow(bytes) if bytes == 1 << 30));
    for machine in [small().vmalloc_bytes(0), small().ram_backing(RamBacking::Private)].map(boot) {
        assert_eq!(machine.kmem().vmalloc_layer().vmalloc(1), Err(VmallocError::NotReady));
        assert_eq!(machine.kmem().platform().space.window(), None);
    }
    let machine = boot(small().vmalloc_bytes(1));
    let window = machine.kmem().vmalloc_layer().window();
    assert_eq!((window.end - window.start, window.start % (2 * MIB)), (2 * MIB, 0));
}

#[test]
fn whatever_fails_nothing_is_lost() {
    for lingering in [false, true] {
        let mut failed = 0;
        for nth in 1.. {
            let machine =
                boot(small().ram_bytes(16 << 20).reports(crate::Reports::Discard).lingering_translations(lingering));
            let kmem = machine.kmem();
            let vmalloc = kmem.vmalloc_layer();
            let kept = scatter(&machine);
            let free = || {
                kmem.pages().drain_all_pages();
                kmem.pages().free_page_count()
            };
            let books = || machine.space_stats().table_frames + 2 * vmalloc.stats().metadata_blocks;
            let before = (free(), books());
            machine.fail_page_request(nth);
            let made = vmalloc.vmalloc(300 * PAGE_SIZE);
            if machine.failure_pending() {
                break;
            }
            failed += usize::from(made.is_err());
            if let Ok(memory) = made {
                // SAFETY: ours, unused.
                unsafe { vmalloc.vfree(memory.as_ptr()) }.unwrap();
            }
            vmalloc.vm_unmap_aliases();
            assert_eq!(machine.space_stats().host_mappings, 1);
            assert_eq!(machine.space_stats().lingering_pages, 0);
            let lost = before.0 - free();
            assert!(lost <= books() - before.1, "{lost} frames at request {nth}, {} for books", books() - before.1);
            assert!(kept.len() > 1000);
        }
        assert!(failed >= 2, "bookkeeping or a page table at least, and frames");
    }
}

/// Page tables without end.
struct Frames<'m>(&'m Machine);
impl TableSource for Frames<'_> {
    fn table(&mut self) -> Result<Pfn, kmem_gfp::AllocError> {
        self.0.kmem().alloc_page(Gfp::KERNEL | Gfp::ZERO)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map { at: usize, first: u64, len: u64, prot: bool },
    Unmap { at: usize, len: usize },
    Protect { at: usize, len: usize, prot: bool },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..60, 0_u64..64, 1_u64..9, any::<bool>())
            .prop_map(|(at, first, len, prot)| Op::Map { at, first, len, prot }),
        3 => (0_usize..60, 1_usize..20).prop_map(|(at, len)| Op::Unmap { at, len }),
        1 => (0_usize..60, 1_usize..9, any::<bool>()).prop_map(|(at, len, prot)| Op::Protect { at, len, prot }),
        1 => Just(Op::Flush),
    ]
}

fn prot_of(writable: bool) -> Prot {
    if writable { Prot::KERNEL } else { Prot::KERNEL_RO }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_host_has_what_the_page_tables_say(lingering: bool, ops in proptest::collection::vec(op(), 1..60)) {
        const PAGES: usize = 70;
        // The window of the space under test is not vmalloc's: the machine has none.
        let machine = boot(small().vmalloc_bytes(0).ram_backing(RamBacking::Memfd));
        let host = machine.kmem().platform();
        let space = crate::space::Space::new(*machine.cpu(), host.ram, PAGES * PAGE_SIZE, 1 << 20, lingering).unwrap();
        // It stays: a handle is for good.
        let space = HostSpace::new(Box::leak(Box::new(space)));
        let window = space.window().unwrap();
        let block = machine.kmem().alloc_pages(Gfp::KERNEL, Order::new(7).unwrap()).unwrap();
        for i in 0..128 {
            write(host.table.address_of(Pfn(block.0 + i)).unwrap().addr().get(), i);
        }
        // What the tables say, and what a CPU would find: one of the two by and by.
        let mut tables: [Option<(u64, bool)>; PAGES] = [None; PAGES];
        let mut cached = tables;
        for op in ops {
            match op {
                Op::Map { at, first, len, prot } => {
                    let run = Run::new(Pfn(block.0 + first), len).unwrap();
                    let range = at..at + len as usize;
                    let free = tables[range.clone()].iter().all(Option::is_none);
                    // SAFETY: our window.
                    let mapped = unsafe {
                        space.map(window.start + at * PAGE_SIZE, &[run], prot_of(prot), Granule::BASE, &mut Frames(&machine))
                    };
                    prop_assert_eq!(mapped.is_ok(), free, "{:?}", mapped);
                    if free {
                        for (page, i) in range.zip(first..) {
                            tables[page] = Some((i, prot));
                            cached[page] = cached[page].or(tables[page]);
                        }
                    }
                }
                Op::Unmap { at, len } => {
                    let range = at..(at + len).min(PAGES);
                    // SAFETY: our window.
                    unsafe { space.unmap(window.start + at * PAGE_SIZE, range.len() * PAGE_SIZE) };
                    tables[range.clone()].fill(None);
                    if !lingering {
                        cached[range].fill(None);
                    }
                }
                Op::Protect { at, len, prot } => {
                    let range = at..at + len;
                    let all = tables[range.clone()].iter().all(Option::is_some);
                    let from = window.start + at * PAGE_SIZE;
                    // SAFETY: our window.
                    let changed = unsafe { space.protect(from, len * PAGE_SIZE, prot_of(prot), &mut Frames(&machine)) };
                    prop_assert_eq!(changed.is_ok(), all);
                    if all {
                        for page in range {
                            tables[page] = tables[page].map(|(i, _)| (i, prot));
                            cached[page] = tables[page];
                        }
                    }
                }
                Op::Flush => {
                    space.flush(window.clone(), kmem_vmalloc::CpuSet::All);
                    cached = tables;
                }
            }
            for page in 0..PAGES {
                let at = window.start + page * PAGE_SIZE;
                prop_assert_eq!(look(at), cached[page].map(|(i, _)| i), "page {}", page);
                prop_assert_eq!(space.translate(at + 5), tables[page].map(|(i, _)| Pfn(block.0 + i)));
            }
            let stats = space.stats();
            prop_assert_eq!(stats.host_mappings, mappings_by_proc(&window));
            let stale = (0..PAGES).filter(|&page| cached[page].is_some() && cached[page] != tables[page]).count();
            prop_assert_eq!(stats.lingering_pages as usize, stale);
        }
    }
}
