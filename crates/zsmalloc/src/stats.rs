//! What a pool holds, in numbers and in the kernel's table.

use core::fmt;

use kmem_gfp::PAGE_SIZE;
use kmem_sync::{LocalCounter, ShardedCounter};

use crate::class::{Class, Counts, NR_LISTS};
use crate::geometry::{NR_GROUPS, Shape};
use crate::locked::Locked;
use crate::pool::FRAME_COUNTERS;
use crate::zspage::NONE;
use crate::{Pool, ZsEnv};

/// Sums over a pool, from [`Pool::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Objects stored.
    pub objects: u64,
    /// Their bytes.
    pub bytes_stored: u64,
    /// Frames that hold objects.
    pub object_frames: u64,
    /// Frames of metadata: classes, handle entries, zspage records.
    pub metadata_frames: u64,
    /// Zspages.
    pub zspages: u64,
    /// Frames that compaction could give back at most.
    pub freeable_frames: u64,
    /// Frames that calls of [`Pool::compact`] have given back.
    pub pages_compacted: u64,
}

impl PoolStats {
    /// Bytes stored per byte of frames that hold objects; 1 for an empty pool.
    pub fn density(&self) -> f64 {
        ratio(self.bytes_stored, self.object_frames)
    }

    /// Bytes stored per byte of everything the pool holds.
    pub fn density_with_metadata(&self) -> f64 {
        ratio(self.bytes_stored, self.object_frames + self.metadata_frames)
    }
}

fn ratio(bytes: u64, frames: u64) -> f64 {
    if frames == 0 { 1.0 } else { bytes as f64 / (frames as f64 * PAGE_SIZE as f64) }
}

/// One class's row, from [`Pool::class_stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassStats {
    /// The class's number.
    pub class: u8,
    /// How its zspages are cut.
    pub shape: Shape,
    /// Zspages in each fullness group.
    pub groups: [u64; NR_GROUPS],
    /// Objects that its zspages have room for, frames or not.
    pub objects_allocated: u64,
    /// Objects stored.
    pub objects: u64,
    /// Their bytes.
    pub bytes_stored: u64,
    /// Frames.
    pub frames: u64,
    /// Free slots whose frames are there.
    pub holes: u64,
    /// Frames that compaction could give back at most.
    pub freeable: u64,
}

/// What a class holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) frames: u64,
    pub(crate) zspages: u64,
    pub(crate) freeable: u64,
}

impl<E: ZsEnv> Pool<E> {
    /// Frames that hold objects. A few loads, and one for each CPU that has used the pool; what a memory limit is compared
    /// with. Counts the frames under objects whose free is [outstanding](Self::settle_frees).
    #[doc(alias = "zs_get_total_pages")]
    #[inline]
    pub fn total_pages(&self) -> u64 {
        let shared: i64 = self.frames.iter().map(ShardedCounter::estimate).sum();
        let of_cpus: i64 = self.parts().map(|(_, part)| part.frames.get()).sum();
        u64::try_from(shared + of_cpus).unwrap_or(0)
    }

    /// Counts frames that a class's shared state got or gave back.
    pub(crate) fn count_shared_frames(&self, class: &Class, nr: i64) {
        if let Some(counter) = self.frames.get(class.index as usize % FRAME_COUNTERS) {
            counter.add(nr);
        }
    }

    /// What a class holds, whoever holds it.
    pub(crate) fn totals(&self, class: &Class) -> Totals {
        let sum = |get: fn(&Counts) -> &LocalCounter| {
            u64::try_from(self.counts_of(class).map(|counts| get(counts).get()).sum::<i64>()).unwrap_or(0)
        };
        let (inuse, frames) = (sum(|counts| &counts.inuse), sum(|counts| &counts.frames));
        Totals {
            objects: inuse.saturating_sub(sum(|counts| &counts.pending)),
            bytes: sum(|counts| &counts.bytes),
            frames,
            zspages: sum(|counts| &counts.zspages),
            freeable: frames.saturating_sub(class.shape.frames_for(inuse)),
        }
    }

    /// Frames that calls of [`compact`](Self::compact) have given back.
    #[doc(alias = "zs_pool_stats")]
    pub fn pages_compacted(&self) -> u64 {
        self.pages_compacted.get().unsigned_abs()
    }

    /// Sums over the pool; some loads for each class. [Settles outstanding frees](Self::settle_frees).
    pub fn stats(&self) -> PoolStats {
        self.settle_frees();
        let mut stats = PoolStats {
            metadata_frames: self.meta_frames.estimate().unsigned_abs(),
            pages_compacted: self.pages_compacted(),
            ..PoolStats::default()
        };
        for class in self.classes() {
            let totals = self.totals(class);
            stats.objects += totals.objects;
            stats.bytes_stored += totals.bytes;
            stats.object_frames += totals.frames;
            stats.zspages += totals.zspages;
            stats.freeable_frames += totals.freeable;
        }
        stats
    }

    /// Rows of all classes. Walks every zspage of a class inside its owner's section: for people, not for programs that are
    /// in a hurry. [Settles outstanding frees](Self::settle_frees).
    pub fn class_stats(&self) -> impl Iterator<Item = ClassStats> {
        self.settle_frees();
        self.classes().map(|class| self.row(class))
    }

    fn row(&self, class: &Class) -> ClassStats {
        let (mut groups, mut holes) = ([0; NR_GROUPS], 0);
        self.locked(class, |locked| locked.count_zspages(&mut groups, &mut holes));
        for (id, _) in self.parts() {
            self.with_local(id, class, |locked| locked.count_zspages(&mut groups, &mut holes));
        }
        let totals = self.totals(class);
        ClassStats {
            class: class.index,
            shape: class.shape,
            groups,
            objects_allocated: totals.zspages * class.shape.slots() as u64,
            objects: totals.objects,
            bytes_stored: totals.bytes,
            frames: totals.frames,
            holes,
            freeable: totals.freeable,
        }
    }

    /// Writes the table of the kernel's `/sys/kernel/debug/zsmalloc/<pool>/classes`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_classes(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, " {:>5} {:>5}", "class", "size")?;
        for tenth in 1..=9 {
            write!(out, " {:>8}%", tenth * 10)?;
        }
        writeln!(
            out,
            " {:>8}% {:>8}% {:>13} {:>10} {:>10} {:>16} {:>8}",
            99, 100, "obj_allocated", "obj_used", "pages_used", "pages_per_zspage", "freeable"
        )?;
        let (mut groups, mut sums) = ([0; NR_GROUPS], [0; 4]);
        for row in self.class_stats() {
            write!(out, " {:>5} {:>5}", row.class, row.shape.size())?;
            for (sum, nr) in groups.iter_mut().zip(row.groups).skip(1) {
                *sum += nr;
                write!(out, " {nr:>9}")?;
            }
            let values = [row.objects_allocated, row.objects, row.frames, row.freeable];
            let [allocated, used, frames, freeable] = values;
            writeln!(out, " {allocated:>13} {used:>10} {frames:>10} {:>16} {freeable:>8}", row.shape.frames())?;
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        write!(out, "\n {:>5} {:>5}", "Total", "")?;
        for nr in groups.iter().skip(1) {
            write!(out, " {nr:>9}")?;
        }
        let [allocated, used, frames, freeable] = sums;
        writeln!(out, " {allocated:>13} {used:>10} {frames:>10} {:>16} {freeable:>8}", "")
    }
}

impl<E: ZsEnv> Locked<'_, '_, E> {
    /// Adds the state's zspages to their fullness groups, and their holes.
    fn count_zspages(&self, groups: &mut [u64; NR_GROUPS], holes: &mut u64) {
        let mut count = |number: u32| {
            let zspage = self.zspage(number).map_err(|damage| self.pool.report_damage(damage)).ok()?;
            let inner = self.inner(&zspage);
            if let Some(group) = groups.get_mut(self.class.shape.group(inner.inuse.into())) {
                *group += 1;
            }
            *holes += u64::from(inner.nr_avail());
            Some(inner.next)
        };
        for number in [self.state.current, self.state.source] {
            if number != NONE {
                count(number);
            }
        }
        for list in 0..NR_LISTS {
            let mut number = self.state.head(list);
            while number != NONE {
                number = count(number).unwrap_or(NONE);
            }
        }
    }
}
