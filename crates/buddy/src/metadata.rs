//! The bookkeeping memory: how much a map needs, and how it is filled.
//!
//! ```text
//! per pageblock   free line 64 B, tail line 64 B, record, list, count 12 B, hints about 7 B      0.29 B a frame
//! with check_free one line more                                                                 0.13 B a frame
//! per CPU         slot, a zone set for each zone with memory, entries for what is left
//! ```
//!
//! The entries of the per-CPU sets take what remains below half a byte per frame, so machines of every size stay below
//! that, but for the very small ones whose fixed parts alone are more.

use core::alloc::Layout;

use kmem_gfp::select::ZoneTable;
use kmem_gfp::{MigrateType, NodeId, ZoneKind};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kmem_sync::{CpuId, IrqLock};

use crate::arena::{Arena, Gap, Span};
use crate::compact::Captures;
use crate::cpu::CpuBlock;
use crate::hints::Hints;
use crate::line::{Line, WORDS, largest_in};
use crate::map::{BlockOf, MapError, MemoryMap, Run, Runs};
use crate::options::BuddyOptions;
use crate::pcp::{MIDDLE_LARGE, MIDDLE_MORE, entries_for};
use crate::record::{MAX_ZONES, Record};
use crate::skips::Skips;
use crate::state::{CpuPointer, State, Tunables};
use crate::table::{Carver, Table};
use crate::zone::{Segment, Zone};

/// The fewest pages that an order-0 stack of a zone has room for: a word of the bitmaps where the zone is not very small.
const fn min_room(managed: u64) -> usize {
    match managed / 256 {
        0..8 => 8,
        room @ 8..64 => room as usize,
        _ => 64,
    }
}

/// The most.
const MAX_ROOM: usize = 4096;

/// What decides the size besides the map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) nr_cpus: u32,
    pub(crate) options: BuddyOptions,
}

/// The kinds of zone that a map has, lowest first, and how many.
pub(crate) fn kinds_of(map: &MemoryMap<'_>) -> ([ZoneKind; ZoneKind::COUNT], usize) {
    use kmem_gfp::select::OptionalZones;
    let optional = map.optional_zones();
    let mut kinds = [ZoneKind::Movable; ZoneKind::COUNT];
    let mut nr = 0;
    for kind in ZoneKind::ALL {
        let exists = match kind {
            ZoneKind::Dma => optional.contains(OptionalZones::DMA),
            ZoneKind::Dma32 => optional.contains(OptionalZones::DMA32),
            ZoneKind::HighMem => optional.contains(OptionalZones::HIGHMEM),
            ZoneKind::Normal | ZoneKind::Movable => true,
        };
        if let (true, Some(slot)) = (exists, kinds.get_mut(nr)) {
            *slot = kind;
            nr += 1;
        }
    }
    (kinds, nr)
}

/// Runs with the index of their first pageblock in the tables, and whether they continue the span before them.
fn indexed<'a>(map: &'a MemoryMap<'_>) -> Indexed<'a> {
    Indexed { runs: map.runs(), end: 0, number: u64::MAX }
}

/// See [`indexed`].
#[derive(Clone)]
struct Indexed<'a> {
    runs: Runs<'a>,
    end: usize,
    number: u64,
}

impl Iterator for Indexed<'_> {
    type Item = (usize, Run, bool);

    fn next(&mut self) -> Option<(usize, Run, bool)> {
        let run = self.runs.next()?;
        let continues = run.block.number == self.number;
        // A new span begins where an even pageblock has an even index.
        if !continues && self.end % 2 != (run.block.number % 2) as usize {
            self.end += 1;
        }
        let index = self.end;
        self.end += run.len as usize;
        self.number = run.block.number + run.len;
        Some((index, run, continues))
    }
}

/// Finds pageblocks by ascending index.
struct Cursor<'a> {
    runs: Indexed<'a>,
    current: Option<(usize, Run)>,
}

impl Cursor<'_> {
    fn at(&mut self, index: usize) -> Option<BlockOf> {
        while self.current.is_none_or(|(first, run)| index >= first + run.len as usize) {
            let (first, run, _) = self.runs.next()?;
            self.current = Some((first, run));
        }
        self.current.and_then(|(first, run)| (index >= first).then_some(run.block))
    }
}

/// How much of everything an arena has.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    blocks: usize,
    spans: usize,
    segments: usize,
    gaps: usize,
    managed: u64,
}

fn has_gaps(block: &BlockOf) -> bool {
    block.managed != [u64::MAX; WORDS]
}

fn counts(map: &MemoryMap<'_>) -> Counts {
    let mut counts = Counts::default();
    let mut zone = None;
    for (index, run, continues) in indexed(map) {
        counts.blocks = index + run.len as usize;
        counts.spans += usize::from(!continues);
        counts.segments += usize::from(zone != Some((run.block.node, run.block.kind)));
        zone = Some((run.block.node, run.block.kind));
        counts.gaps += usize::from(has_gaps(&run.block));
        counts.managed += run.managed();
    }
    counts.blocks = counts.blocks.next_multiple_of(2);
    counts
}

/// Places (or measures) the arena of a map, filled in and with its hints set, but not yet known to any zone.
pub(crate) fn carve_arena(
    map: &MemoryMap<'_>,
    carver: &mut Carver,
    options: &BuddyOptions,
    zones: &Table<Zone>,
    zone_number: &dyn Fn(NodeId, ZoneKind) -> usize,
) -> (Table<Arena>, Table<Segment>) {
    let counts = counts(map);
    let blocks = || Cursor { runs: indexed(map), current: None };
    let mut cursor = blocks();
    let free = carver.table(counts.blocks, |i| Line::new(cursor.at(i).map_or([0; WORDS], |block| block.managed)));
    let tails = carver.table(counts.blocks, |_| Line::new([0; WORDS]));
    let owned = carver.table(if options.check_free { counts.blocks } else { 0 }, |_| Line::new([0; WORDS]));
    let mut cursor = blocks();
    let records = carver.table(counts.blocks, |i| {
        AtomicU32::new(cursor.at(i).map_or(0, |block| {
            let flags = Record::PRESENT | if has_gaps(&block) { Record::GAPS } else { 0 };
            let record = Record::new(zone_number(block.node, block.kind), MigrateType::Movable, flags);
            record.with_filed(largest_in(&block.managed).map_or(0, |order| order + 1)).0
        }))
    });
    let mut cursor = blocks();
    let lists = carver.table(counts.blocks, |i| {
        let zone = cursor.at(i).and_then(|block| zones.get(zone_number(block.node, block.kind)));
        AtomicU32::new(zone.map_or(0, |zone| zone.list_of(MigrateType::Movable)))
    });
    let counted = carver.table(counts.blocks, |_| AtomicU32::new(0));
    let mut with_gaps = indexed(map).filter(|(_, run, _)| has_gaps(&run.block));
    let gaps = carver.table(counts.gaps, |_| {
        let (index, block) = with_gaps.next().map_or((usize::MAX, None), |(index, run, _)| (index, Some(run.block)));
        let lines = block.map_or(([0; WORDS], [0; WORDS]), |block| (block.managed, block.present));
        Gap { index, line: Line::new(lines.0.map(|word| !word)), absent: lines.1.map(|word| !word) }
    });
    let mut starts = indexed(map).filter(|&(.., continues)| !continues).peekable();
    let mut ends = indexed(map).peekable();
    let spans = carver.table(counts.spans, |_| {
        let Some((index, run, _)) = starts.next() else { return Span { first: 0, len: 0, index: usize::MAX } };
        let mut len = 0;
        while let Some((i, r, _)) = ends.next_if(|&(i, ..)| starts.peek().is_none_or(|&(next, ..)| i < next)) {
            len = i + r.len as usize - index;
        }
        Span { first: run.block.number, len, index }
    });
    let hints = Hints::carve(carver, counts.blocks);
    let skips = Skips::carve(carver, counts.blocks);
    let full = Skips::carve(carver, counts.blocks);
    let arenas = carver.table(1, {
        let mut parts = Some((spans, free, tails, owned, records, lists, counted, gaps, hints, skips, full));
        move |_| {
            let (spans, free, tails, owned, records, lists, counted, gaps, hints, skips, full) =
                parts.take().unwrap_or((
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Table::empty(),
                    Hints::carve(&mut Carver::measuring(), 0),
                    Skips::carve(&mut Carver::measuring(), 0),
                    Skips::carve(&mut Carver::measuring(), 0),
                ));
            Arena {
                spans,
                free,
                tails,
                owned,
                records,
                lists,
                counted,
                gaps,
                hints,
                skips,
                full,
                zones: zones.start(),
                nr_zones: zones.len(),
                next: AtomicPtr::new(core::ptr::null_mut()),
            }
        }
    });
    let mut runs = indexed(map).peekable();
    let segments = carver.table(counts.segments, |_| {
        let mut range = (0, 0);
        if let Some((index, run, _)) = runs.next() {
            let zone = (run.block.node, run.block.kind);
            range = (index, index + run.len as usize);
            while let Some((i, r, _)) = runs.next_if(|(_, r, _)| (r.block.node, r.block.kind) == zone) {
                range.1 = i + r.len as usize;
            }
        }
        Segment { arena: arenas.start(), start: range.0, end: range.1, next: AtomicPtr::new(core::ptr::null_mut()) }
    });
    if let Some(arena) = arenas.first() {
        for (index, run, _) in indexed(map) {
            if let Some(order) = largest_in(&run.block.managed) {
                let list = Hints::list(MigrateType::Movable.index(), order);
                arena.hints.fill(list, index, index + run.len as usize);
            }
        }
    }
    (arenas, segments)
}

/// Adds the pageblocks of a new arena to their zones. Under the configuration lock, or before anybody else knows them.
pub(crate) fn link_arena(state: &State, map: &MemoryMap<'_>, arena: &Arena, segments: &Table<Segment>) {
    for run in map.runs() {
        let Some(zone) = state.zone(run.block.node, run.block.kind) else { continue };
        zone.present.fetch_add(run.present(), Ordering::Relaxed);
        zone.managed.fetch_add(run.managed(), Ordering::Relaxed);
        let first = run.block.number * 512;
        let edges = edges(&run.block);
        zone.span_start.fetch_min(first + edges.0, Ordering::Relaxed);
        zone.span_end.fetch_max(first + (run.len - 1) * 512 + edges.1, Ordering::Relaxed);
    }
    let mut link = &state.arenas;
    // SAFETY: arenas live as long as the allocator.
    while let Some(last) = unsafe { link.load(Ordering::Acquire).as_ref() } {
        link = &last.next;
    }
    link.store(core::ptr::from_ref(arena).cast_mut(), Ordering::Release);
    for segment in segments.iter() {
        let free: u64 =
            (segment.start..segment.end).filter_map(|i| arena.free.get(i)).map(|line| u64::from(line.count())).sum();
        if let Some(zone) = arena.block(segment.start).and_then(|block| block.zone()) {
            zone.append(segment);
            zone.free.fetch_add(free as i64, Ordering::SeqCst);
        }
    }
}

/// The first present frame of a pageblock, and one past the last.
fn edges(block: &BlockOf) -> (u64, u64) {
    let bit = |i: usize, bit: u32| i as u64 * 64 + u64::from(bit);
    let words = || block.present.iter().enumerate().filter(|&(_, &word)| word != 0);
    let first = words().next().map_or(0, |(i, word)| bit(i, word.trailing_zeros()));
    let last = words().next_back().map_or(0, |(i, word)| bit(i, 64 - word.leading_zeros()));
    (first, last)
}

/// What [`carve`] placed.
pub(crate) struct Placed {
    pub(crate) state: Table<State>,
    pub(crate) arena: Table<Arena>,
    pub(crate) segments: Table<Segment>,
}

/// Places (or measures) everything an allocator over `map` needs.
pub(crate) fn carve(
    map: &MemoryMap<'_>,
    machine: Machine,
    carver: &mut Carver,
    node_of_cpu: &dyn Fn(CpuId) -> NodeId,
) -> Result<Placed, MapError> {
    map.check()?;
    let (kinds, nr_kinds) = kinds_of(map);
    let nr_nodes = map.nodes() as usize;
    let nr_zones = nr_nodes.checked_mul(nr_kinds).filter(|&nr| nr < MAX_ZONES).ok_or(MapError::TooLarge)?;
    let nr_cpus = machine.nr_cpus as usize;
    let id_of = |number: usize| {
        (NodeId((number / nr_kinds) as u32), kinds.get(number % nr_kinds).copied().unwrap_or(ZoneKind::Normal))
    };
    let managed_of = |number: usize| -> u64 {
        map.runs().filter(|run| (run.block.node, run.block.kind) == id_of(number)).map(|run| run.managed()).sum()
    };
    let has_set = |number: usize| {
        let id = id_of(number);
        map.hotplug.contains(&id) || map.runs().any(|run| (run.block.node, run.block.kind) == id)
    };
    let nr_sets = (0..nr_zones).filter(|&number| has_set(number)).count();
    let mut next_set = 0;
    let zones = carver.table(nr_zones, |number| {
        let set = has_set(number).then(|| {
            next_set += 1;
            next_set - 1
        });
        let (node, kind) = id_of(number);
        Zone::new(number, node, kind, set)
    });
    let zone_number = |node: NodeId, kind: ZoneKind| {
        let rank = kinds.iter().take(nr_kinds).position(|&k| k == kind).unwrap_or(0);
        node.index() * nr_kinds + rank
    };
    let zonelists = carver.table(nr_zones.saturating_mul(nr_nodes), |_| AtomicU32::new(0));
    let (arena, segments) = carve_arena(map, carver, &machine.options, &zones, &zone_number);
    let stride = CpuBlock::size(nr_sets);
    let memory = carver.bytes(stride.checked_mul(nr_cpus));
    let placing = carver.is_placing();
    let blocks = carver.table(nr_cpus, |cpu| {
        let id = CpuId(cpu as u32);
        debug_assert!(placing);
        // SAFETY: this CPU's part of the memory just carved.
        CpuPointer(unsafe { CpuBlock::write(memory.add(cpu * stride), id, node_of_cpu(id), nr_sets) })
    });
    let total = counts(map).managed;
    // What is left of half a byte per frame.
    let fixed = carver.used_bytes().saturating_add(size_of::<State>() + 512);
    let budget = (total as usize / 2).saturating_sub(fixed) / size_of::<u64>();
    let rooms = |number: usize| room_for(managed_of(number), total, budget, nr_cpus);
    let nr_entries: usize = (0..nr_zones)
        .filter(|&number| managed_of(number) > 0)
        .map(|number| entries_for(rooms(number)).saturating_mul(nr_cpus))
        .sum();
    let entries = carver.table(nr_entries, |_| 0u64);
    let mut next = 0;
    for zone in zones.iter() {
        let (Some(set), room) = (zone.set, rooms(zone.number)) else { continue };
        if managed_of(zone.number) == 0 {
            continue;
        }
        for pointer in blocks.iter() {
            // SAFETY: written just above.
            let zone_set = unsafe { pointer.0.as_ref() }.set(set);
            if let (Some(zone_set), true) = (zone_set, next < entries.len()) {
                // SAFETY: `nr_entries` counted this part; nobody else knows the set yet.
                unsafe { zone_set.open(entries.start().add(next), room as u32) };
                next += entries_for(room);
            }
        }
    }
    let optional = map.optional_zones();
    let mut parts = Some((zones, zonelists, blocks));
    let state = carver.table(1, |_| {
        let (zones, zonelists, blocks) = parts.take().unwrap_or((Table::empty(), Table::empty(), Table::empty()));
        State {
            zones,
            kinds,
            nr_kinds,
            nr_nodes: nr_nodes as u32,
            zone_table: ZoneTable::new(optional),
            zonelists,
            blocks,
            arenas: AtomicPtr::new(core::ptr::null_mut()),
            tunables: Tunables::new(),
            grouping: AtomicBool::new(true),
            injecting: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            allowed_mask: AtomicU32::new(u32::MAX),
            last_failure_report: AtomicU64::new(0),
            last_stall_report: AtomicU64::new(0),
            captures: Captures::new(),
            events: core::array::from_fn(|_| AtomicU64::new(0)),
            config: IrqLock::new(()),
            metadata_bytes: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            warned: AtomicU32::new(0),
        }
    });
    Ok(Placed { state, arena, segments })
}

/// How many pages an order-0 stack of a zone is to have room for.
pub(crate) fn room_for(managed: u64, total: u64, budget_entries: usize, nr_cpus: usize) -> usize {
    if managed == 0 {
        return 0;
    }
    let share = (budget_entries as u128 * u128::from(managed) / u128::from(total.max(1))) as usize / nr_cpus.max(1);
    // The stacks of one set together have room for about 4.5 times as many entries; the rest is for small zones' least.
    let room = share * 10 / 48;
    // Large sets spend more on the middle orders.
    let room = if room < MIDDLE_LARGE { room } else { (room - MIDDLE_MORE * 10 / 48).max(MIDDLE_LARGE - 1) };
    room.clamp(min_room(managed), MAX_ROOM)
}

/// The layout of everything for `map`.
pub(crate) fn layout(map: &MemoryMap<'_>, machine: Machine) -> Result<Layout, MapError> {
    let mut carver = Carver::measuring();
    carve(map, machine, &mut carver, &|_| NodeId(0))?;
    carver.layout().ok_or(MapError::TooLarge)
}

/// The layout of an arena for memory that is added later.
pub(crate) fn arena_layout(map: &MemoryMap<'_>, machine: Machine) -> Result<Layout, MapError> {
    map.check()?;
    let mut carver = Carver::measuring();
    carve_arena(map, &mut carver, &machine.options, &Table::empty(), &|_, _| 0);
    let budget = spare_budget(map, &carver);
    carver.table(spare_entries(map, budget, machine), |_| 0u64);
    carver.layout().ok_or(MapError::TooLarge)
}

/// Entries that fit what an added map leaves of half a byte per frame.
pub(crate) fn spare_budget(map: &MemoryMap<'_>, carver: &Carver) -> usize {
    (counts(map).managed as usize / 2).saturating_sub(carver.used_bytes()) / size_of::<u64>()
}

/// The zones of an added map, each once for each stretch of it, and their pages.
fn stretches(map: &MemoryMap<'_>) -> impl Iterator<Item = (NodeId, ZoneKind, u64)> {
    let mut runs = map.runs().peekable();
    core::iter::from_fn(move || {
        let first = runs.next()?;
        let id = (first.block.node, first.block.kind);
        let mut managed = first.managed();
        while let Some(run) = runs.next_if(|run| (run.block.node, run.block.kind) == id) {
            managed += run.managed();
        }
        Some((id.0, id.1, managed))
    })
}

/// Entries for the sets of zones that may have had no memory before.
pub(crate) fn spare_entries(map: &MemoryMap<'_>, budget: usize, machine: Machine) -> usize {
    let total = counts(map).managed;
    let cpus = machine.nr_cpus as usize;
    stretches(map).map(|(.., managed)| entries_for(room_for(managed, total, budget, cpus)) * cpus).sum()
}

/// Gives sets to the zones of an added map that had no memory before.
pub(crate) fn open_new_sets(state: &State, map: &MemoryMap<'_>, budget: usize, entries: &Table<u64>, machine: Machine) {
    let total = counts(map).managed;
    let cpus = machine.nr_cpus as usize;
    let mut next = 0;
    for (node, kind, managed) in stretches(map) {
        let room = room_for(managed, total, budget, cpus);
        let Some(zone) = state.zone(node, kind).filter(|zone| !zone.is_populated()) else { continue };
        for set in state.sets_of(zone) {
            let end = next + entries_for(room);
            if set.room(0) == 0 && end <= entries.len() {
                // SAFETY: `spare_entries` counted this part. The set had no room, so no CPU has used its entries.
                unsafe { set.open(entries.start().add(next), room as u32) };
            }
            next = end;
        }
    }
}
