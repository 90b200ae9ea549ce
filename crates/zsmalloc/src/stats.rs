//! What a pool holds, in numbers and in the kernel's table.

use core::fmt;

use kmem_gfp::PAGE_SIZE;
use kmem_sync::ShardedCounter;
use kmem_sync::atomic::Ordering;

use crate::class::{Class, NR_LISTS};
use crate::geometry::{NR_GROUPS, Shape};
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

impl<E: ZsEnv> Pool<E> {
    /// Frames that hold objects. A few loads; what a memory limit is compared with.
    #[doc(alias = "zs_get_total_pages")]
    #[inline]
    pub fn total_pages(&self) -> u64 {
        self.frames.iter().map(ShardedCounter::estimate).sum::<i64>().unsigned_abs()
    }

    /// Frames that calls of [`compact`](Self::compact) have given back.
    #[doc(alias = "zs_pool_stats")]
    pub fn pages_compacted(&self) -> u64 {
        self.pages_compacted.load(Ordering::Relaxed)
    }

    /// Sums over the pool. Takes every class's lock in turn, for a few loads each.
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats {
            metadata_frames: self.meta_frames.estimate().unsigned_abs(),
            pages_compacted: self.pages_compacted(),
            ..PoolStats::default()
        };
        for class in self.classes() {
            self.locked(class, |class| {
                stats.objects += class.state.objects();
                stats.bytes_stored += class.state.bytes;
                stats.object_frames += class.state.frames;
                stats.zspages += class.state.zspages;
                stats.freeable_frames += class.freeable();
            });
        }
        stats
    }

    /// Rows of all classes. Walks every zspage of a class under its lock: for people, not for programs that are in a hurry.
    pub fn class_stats(&self) -> impl Iterator<Item = ClassStats> {
        self.classes().map(|class| self.row(class))
    }

    fn row(&self, class: &Class) -> ClassStats {
        self.locked(class, |locked| {
            let mut groups = [0; NR_GROUPS];
            let mut holes = 0;
            let mut count = |number: u32| {
                let zspage = locked.zspage(number).map_err(|damage| self.report_damage(damage)).ok()?;
                let inner = locked.inner(&zspage);
                if let Some(group) = groups.get_mut(class.shape.group(inner.inuse.into())) {
                    *group += 1;
                }
                holes += u64::from(inner.nr_avail);
                Some(inner.next)
            };
            for number in [locked.state.current, locked.state.source] {
                if number != NONE {
                    count(number);
                }
            }
            for list in 0..NR_LISTS {
                let mut number = locked.state.head(list);
                while number != NONE {
                    number = count(number).unwrap_or(NONE);
                }
            }
            ClassStats {
                class: class.index,
                shape: class.shape,
                groups,
                objects_allocated: locked.state.zspages * class.shape.slots() as u64,
                objects: locked.state.objects(),
                bytes_stored: locked.state.bytes,
                frames: locked.state.frames,
                holes,
                freeable: locked.freeable(),
            }
        })
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
