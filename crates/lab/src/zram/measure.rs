//! The stages: fill, discard half, compact; after each, figures and a look at every page.

use super::recorded::{LinuxStage, Sizes, linux};
use super::{Algorithm, Source, ZramOptions};
use crate::LabError;
use crate::app::target;
use indicatif::{ProgressBar, ProgressStyle};
use kmem::zsmalloc::Config;
use kmem_hosted::{Lz4, Machine, MmStat, Recompress, Reports, Zram, ZramOptions as Device, Zstd};
use serde::Serialize;
use std::hash::{DefaultHasher, Hasher};
use std::time::{Duration, Instant};

/// What the device held at a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Which.
    pub name: &'static str,
    /// The device's line, as the kernel prints it.
    pub mm_stat: String,
    /// Linux's line for the recorded workload.
    pub linux_mm_stat: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes_stored: u64,
    /// Bytes of the frames that hold them.
    pub bytes_held: u64,
    /// The same with all metadata of the pool.
    pub bytes_with_metadata: u64,
    /// Linux at this stage, on the recorded workload.
    pub linux: Option<LinuxStage>,
}

impl Stage {
    /// Bytes stored by bytes held.
    #[must_use]
    pub fn density(&self) -> f64 {
        self.bytes_stored as f64 / self.bytes_held.max(1) as f64
    }

    /// Bytes stored by bytes of everything that the pool holds.
    #[must_use]
    pub fn density_with_metadata(&self) -> f64 {
        self.bytes_stored as f64 / self.bytes_with_metadata.max(1) as f64
    }
}

/// A size class of the filled device.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ClassRow {
    /// Bytes of a slot.
    pub size: usize,
    /// Frames of a zspage.
    pub frames_per_zspage: usize,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes_stored: u64,
    /// Frames.
    pub frames: u64,
}

/// Times of the device's calls, with nothing else in them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Speed {
    /// Nanoseconds to store a page.
    pub store_ns: f64,
    /// Nanoseconds to load one.
    pub load_ns: f64,
    /// Nanoseconds to discard one.
    pub discard_ns: f64,
    /// Seconds of the compaction.
    pub compact_s: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ZramReport {
    /// Where the pages are from.
    pub source: String,
    /// The compressor.
    pub algorithm: &'static str,
    /// Pages.
    pub pages: u64,
    /// By stage.
    pub stages: Vec<Stage>,
    /// Classes with objects, when filled.
    pub classes: Vec<ClassRow>,
    /// All classes as the kernel prints them, when filled.
    pub class_table: String,
    /// Frames that compaction gave back.
    pub frames_compacted: u64,
    /// How fast.
    pub speed: Speed,
    /// Pages compared with what was stored.
    pub verified: u64,
    /// Pages that were not the same.
    pub damaged: u64,
}

fn fingerprint(page: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(page);
    hasher.finish()
}

/// Which pages go: about half, always the same ones (xorshift64*, seed 11).
fn draws() -> impl FnMut() -> bool {
    let mut state = 11_u64;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32 & 1 == 1
    }
}

fn per(total: Duration, nr: u64) -> f64 {
    total.as_nanos() as f64 / nr.max(1) as f64
}

/// A device under way.
struct Run<'a> {
    device: Zram,
    bar: &'a ProgressBar,
    linux: Option<[LinuxStage; 3]>,
    /// A fingerprint of each page that is stored.
    held: Vec<Option<u64>>,
    report: ZramReport,
    loading: Duration,
    loads: u64,
}

impl Run<'_> {
    fn fill(&mut self, source: &Source) -> Result<(), LabError> {
        let mut storing = Duration::ZERO;
        source.each(|number, page| {
            let start = Instant::now();
            self.device.write_page(number, page)?;
            storing += start.elapsed();
            self.held.push(Some(fingerprint(page)));
            self.bar.inc(1);
            Ok(())
        })?;
        self.report.speed.store_ns = per(storing, self.report.pages);
        Ok(())
    }

    fn discard_half(&mut self) {
        let (mut draw, mut discarding, mut nr) = (draws(), Duration::ZERO, 0);
        for (number, held) in (0..).zip(&mut self.held) {
            if draw() {
                let start = Instant::now();
                self.device.discard(number..number + 1);
                discarding += start.elapsed();
                *held = None;
                nr += 1;
            }
        }
        self.report.speed.discard_ns = per(discarding, nr);
    }

    /// Reads every page and compares it.
    fn verify(&mut self) -> Result<(), LabError> {
        let mut page = [0; 4096];
        let empty = fingerprint(&page);
        for (number, held) in (0..).zip(&self.held) {
            let start = Instant::now();
            let read = self.device.read_page(number, &mut page);
            self.loading += start.elapsed();
            self.loads += 1;
            if read.is_err() || fingerprint(&page) != held.unwrap_or(empty) {
                self.report.damaged += 1;
            }
            self.report.verified += 1;
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Notes the figures of a stage.
    fn note(&mut self, name: &'static str) {
        let (mm_stat, pool) = (self.device.mm_stat(), self.device.pool_stats());
        let nth = match name {
            "filled" => Some(0),
            "half discarded" => Some(1),
            "compacted" => Some(2),
            _ => None,
        };
        let all = self.linux;
        let linux = nth.and_then(|nth: usize| all?.get(nth).copied());
        let most = all.and_then(|all| all.iter().map(|stage| stage.bytes_held).max());
        let linux_mm_stat = linux.zip(all).map(|(stage, all)| {
            // What a stage stores is the workload's; what it holds is Linux's.
            let compacted = if nth == Some(2) { (all[1].bytes_held - all[2].bytes_held) / 4096 } else { 0 };
            let used = (stage.bytes_held, most.unwrap_or(0));
            MmStat {
                compr_data_size: stage.bytes_stored,
                mem_used_total: used.0,
                mem_used_max: used.1,
                pages_compacted: compacted,
                ..mm_stat
            }
            .to_string()
        });
        self.report.stages.push(Stage {
            name,
            mm_stat: mm_stat.to_string(),
            linux_mm_stat,
            objects: pool.objects,
            bytes_stored: pool.bytes_stored,
            bytes_held: pool.object_frames * 4096,
            bytes_with_metadata: (pool.object_frames + pool.metadata_frames) * 4096,
            linux,
        });
    }

    fn note_classes(&mut self) {
        let pool = self.device.pool();
        let rows = pool.class_stats().filter(|row| row.objects > 0).map(|row| ClassRow {
            size: row.shape.size(),
            frames_per_zspage: row.shape.frames(),
            objects: row.objects,
            bytes_stored: row.bytes_stored,
            frames: row.frames,
        });
        self.report.classes = rows.collect();
        // Writing to a string does not fail.
        let _ = pool.write_classes(&mut self.report.class_table);
    }
}

/// Stores the pages of `source`, discards half of them, compacts, and verifies them all on the way.
///
/// # Errors
/// [`LabError`] if a file cannot be read or the device not be made, or does not take a page.
pub fn measure(source: &Source, options: &ZramOptions) -> Result<ZramReport, LabError> {
    let pages = source.nr_pages();
    let bytes = pages * 4096;
    let refused = |error: &dyn std::fmt::Display| LabError::Device(error.to_string());
    // Even if nothing compresses, there is room.
    let ram = bytes + bytes / 4 + (64 << 20);
    let machine =
        Machine::builder().cpus(2).ram_bytes(ram).reports(Reports::Discard).boot().map_err(|error| refused(&error))?;
    let config = Config::new().with_chain(options.chain).with_moves_per_free(options.moves);
    let (device, linux) = match (source, options.algorithm) {
        (Source::Recorded(algorithm), _) => (Device::new(bytes, Sizes::of(*algorithm)), Some(linux(*algorithm))),
        (Source::Files(_), Algorithm::Lz4) => (Device::new(bytes, Lz4), None),
        (Source::Files(_), Algorithm::Zstd) => (Device::new(bytes, Zstd::default()), None),
    };
    let device = device.secondary(Zstd::new(if options.algorithm == Algorithm::Lz4 { 3 } else { 12 }));
    let bar = ProgressBar::with_draw_target(Some(pages * 4), target());
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} storing and loading [{bar:40}] {percent:>3} %  {elapsed}")
    {
        bar.set_style(style.progress_chars("━━ "));
    }
    let mut run = Run {
        device: Zram::new(machine, device.pool(config)).map_err(|error| refused(&error))?,
        bar: &bar,
        linux,
        held: Vec::new(),
        report: ZramReport {
            source: source.name(),
            algorithm: options.algorithm.name(),
            pages,
            stages: Vec::new(),
            classes: Vec::new(),
            class_table: String::new(),
            frames_compacted: 0,
            speed: Speed::default(),
            verified: 0,
            damaged: 0,
        },
        loading: Duration::ZERO,
        loads: 0,
    };
    run.fill(source)?;
    run.note("filled");
    run.note_classes();
    if options.recompress {
        run.device.recompress(Recompress::default())?;
        run.note("recompressed");
    }
    run.verify()?;
    run.discard_half();
    run.note("half discarded");
    run.verify()?;
    let start = Instant::now();
    run.report.frames_compacted = run.device.compact();
    run.report.speed.compact_s = start.elapsed().as_secs_f64();
    run.note("compacted");
    run.verify()?;
    run.report.speed.load_ns = per(run.loading, run.loads);
    bar.finish_and_clear();
    Ok(run.report)
}
