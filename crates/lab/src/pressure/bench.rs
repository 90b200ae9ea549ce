//! The machine and the run: workers, the hog, the sampler, the reckoning.

use super::command::PressureOptions;
use super::latency::Quantiles;
use super::objects::{OBJECT_BYTES, ObjectCache};
use super::report::{Latencies, PressureReport, Reckoning, Sample};
use super::work::{Book, Times, Worker};
use crate::LabError;
use crate::report::grouped;
use kmem::reclaim::memcg::Wait;
use kmem::reclaim::{GroupId, ReclaimEvent, ShrinkerSlot};
use kmem::{CacheArgs, Gfp, PAGE_SIZE};
use kmem_hosted::{Access, HostMm, Machine, PageStore, ReclaimOptions, Reports, Task};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Samples between two lines.
const SAMPLES_A_LINE: usize = 4;
/// Between the death of a hog and the next one.
const HOG_PAUSE: Duration = Duration::from_millis(1500);

/// A machine under pressure.
pub(super) struct Bench {
    machine: &'static Machine,
    mm: &'static HostMm,
    options: PressureOptions,
    file: &'static PageStore,
    /// Pages that the allocators had for themselves at the start.
    own_pages: u64,
}

fn machine_error(error: impl std::error::Error + Send + Sync + 'static) -> LabError {
    LabError::Machine(Box::new(error))
}

impl Bench {
    pub(super) fn boot(options: &PressureOptions) -> Result<Self, LabError> {
        let machine = Machine::builder()
            .cpus(options.cpus + 2)
            .ram_bytes(options.ram)
            .reports(Reports::Capture)
            .kcompactd(true)
            .reclaim(ReclaimOptions { groups: 64, swap_bytes: options.ram, ..ReclaimOptions::default() })
            .boot()
            .map_err(machine_error)?;
        let mm = machine.mm().ok_or(LabError::Stopped)?;
        let file = machine.file_pages(3 * options.ram / 2 / PAGE_SIZE as u64).map_err(machine_error)?;
        machine.kmem().slabs().shrink_all();
        Ok(Self { machine, mm, options: options.clone(), file, own_pages: own_pages(machine)? })
    }

    /// Runs the workers for the time asked for. `line` gets a line now and then.
    pub(super) fn run(self, mut line: impl FnMut(&str)) -> Result<PressureReport, LabError> {
        let machine = self.machine;
        let cache = machine
            .kmem()
            .kmem_cache_create("pressure_dentry", OBJECT_BYTES, &CacheArgs::default())
            .map_err(machine_error)?;
        let objects = ObjectCache::new(machine, cache);
        let slot = ShrinkerSlot::new("pressure_dentry", &objects).needing(Gfp::FS);
        let outcome = self.mm.engine().with_shrinker(&slot, || self.run_all(&objects, &mut line));
        let mut report = outcome.map_err(machine_error)??;
        objects.trim(u64::MAX);
        report.reckoning.objects_shrunk = objects.shrunk.load(Ordering::Relaxed);
        report.reckoning.damaged += objects.damaged.load(Ordering::Relaxed) + objects.len();
        // SAFETY: the objects have been freed; nobody uses the cache any more.
        let destroyed = unsafe { machine.kmem().kmem_cache_destroy(cache) };
        report.reckoning.damaged += u64::from(destroyed.is_err());
        self.reckon(&mut report.reckoning)?;
        Ok(report)
    }

    fn workers<'a>(&self, objects: &'a ObjectCache) -> Result<Vec<(Task, Worker<'a>)>, LabError> {
        let cpus = u64::from(self.options.cpus);
        let ram = self.machine.kmem().pages().managed_pages();
        let groups = self.mm.groups();
        (0..cpus)
            .map(|nth| {
                let group = groups.create(GroupId::ROOT).map_err(machine_error)?;
                if nth == 0 {
                    // One of them lives within a limit.
                    groups.set_max(group, ram / (2 * cpus), Wait::MayBlock).map_err(machine_error)?;
                }
                let task = self.machine.task(&format!("worker{nth}")).map_err(machine_error)?;
                let task = task.in_group(group).with_oom_score_adj(-1000);
                let share = self.file.pages() / cpus;
                let file = Book::new(self.file, nth * share, share);
                let anon_pages = ram * 7 / 10 / cpus;
                let anon = Book::new(task.anonymous_pages(anon_pages).map_err(machine_error)?, 0, anon_pages);
                Ok((task, Worker::new(self.machine, self.options.seed + nth, file, anon, objects)))
            })
            .collect()
    }

    fn run_all(&self, objects: &ObjectCache, line: &mut impl FnMut(&str)) -> Result<PressureReport, LabError> {
        let mut workers = self.workers(objects)?;
        let (stop, kills) = (AtomicBool::new(false), AtomicU64::new(0));
        let begun = Instant::now();
        let samples = std::thread::scope(|scope| {
            for (task, worker) in &mut workers {
                let stop = &stop;
                scope.spawn(move || task.run(|| while !stop.load(Ordering::Relaxed) && worker.step() {}));
            }
            let (stop_hog, kills) = (&stop, &kills);
            scope.spawn(move || self.hogs(stop_hog, kills));
            let samples = self.sample(begun, kills, line);
            stop.store(true, Ordering::Relaxed);
            samples
        });
        let seconds = begun.elapsed().as_secs_f64();
        let stats = self.mm.engine().stats();
        let mut times = Times::new();
        let mut reckoning = Reckoning::default();
        let (mut steps, mut checked) = (0, 0);
        for (task, worker) in &mut workers {
            worker.finish();
            // Every page's bytes; what takes memory may still reclaim.
            let lost = task.run(|| worker.file.check_all() + worker.anon.check_all());
            checked += worker.file.pages() + worker.anon.pages();
            reckoning.lost += lost;
            reckoning.damaged += worker.damaged + worker.file.damaged + worker.anon.damaged;
            times.add(&worker.times);
            steps += worker.steps;
        }
        reckoning.pages_checked = checked;
        let file = self.file.stats();
        let anon = workers
            .iter()
            .map(|(_, worker)| worker.anon.store.stats())
            .fold((0, 0, 0), |sum, stats| (sum.0 + stats.refaults, sum.1 + stats.evictions, sum.2 + stats.writebacks));
        let reclaimed = stats.get(ReclaimEvent::StealKswapd) + stats.get(ReclaimEvent::StealDirect);
        let quantiles = |histogram: &super::latency::Histogram| -> Quantiles { histogram.quantiles() };
        Ok(PressureReport {
            cpus: self.options.cpus,
            ram_bytes: self.machine.ram_bytes(),
            seconds,
            steps,
            reclaimed_by_kswapd: stats.get(ReclaimEvent::StealKswapd),
            reclaimed_directly: stats.get(ReclaimEvent::StealDirect),
            reclaimed_per_second_and_cpu: reclaimed as f64 / seconds / f64::from(self.options.cpus),
            refaults_file: file.refaults,
            refaults_anon: anon.0,
            evictions: file.evictions + anon.1,
            writebacks: file.writebacks + anon.2,
            oom_kills: kills.load(Ordering::Relaxed),
            pressure: self.mm.pressure().to_string(),
            latencies: Latencies {
                page_kernel: quantiles(&times.pages),
                page_atomic: quantiles(&times.atomic),
                kmalloc: quantiles(&times.kmalloc),
                page_with_contents: quantiles(&times.faults),
            },
            samples,
            reckoning,
        })
    }

    /// One hog after another: takes anonymous memory until it is killed.
    fn hogs(&self, stop: &AtomicBool, kills: &AtomicU64) {
        let pages = (self.machine.ram_bytes() + self.options.ram) / PAGE_SIZE as u64;
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(HOG_PAUSE.min(Duration::from_secs(self.options.seconds) / 4));
            let Ok(task) = self.machine.task("hog") else { return };
            let task = task.with_oom_score_adj(500);
            let Ok(memory) = task.anonymous_pages(pages) else { return };
            task.run(|| {
                for index in 0..pages {
                    let gone = stop.load(Ordering::Relaxed) || kmem_hosted::current_task_killed();
                    let used =
                        memory.with_page(index, Access::Write, Gfp::HIGHUSER_MOVABLE, |page| page.fill(index as u8));
                    if gone || used.is_err() {
                        return;
                    }
                }
            });
            kills.fetch_add(u64::from(task.is_killed()), Ordering::Relaxed);
        }
    }

    fn sample(&self, begun: Instant, kills: &AtomicU64, line: &mut impl FnMut(&str)) -> Vec<Sample> {
        let end = begun + Duration::from_secs(self.options.seconds);
        let mut samples: Vec<Sample> = Vec::new();
        line(&format!(
            "{:>6} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11} {:>7} {:>5}",
            "s", "free", "file", "anon", "swapped", "reclaimed/s", "refaults/s", "stalled", "kills"
        ));
        while Instant::now() < end {
            std::thread::sleep(SAMPLE_EVERY.min(end.saturating_duration_since(Instant::now())));
            let info = self.mm.meminfo();
            let stats = self.mm.engine().stats();
            let file = self.file.stats();
            let now = Sample {
                second: begun.elapsed().as_secs_f64(),
                free: info.free,
                file: info.lists.inactive_file + info.lists.active_file,
                anon: info.lists.inactive_anon + info.lists.active_anon,
                swapped: info.swap_total - info.swap_free,
                reclaimed: stats.get(ReclaimEvent::StealKswapd) + stats.get(ReclaimEvent::StealDirect),
                refaults: file.refaults,
                stalled_us: self.mm.pressure().some_total_us,
                kills: kills.load(Ordering::Relaxed),
            };
            samples.push(now);
            if samples.len().is_multiple_of(SAMPLES_A_LINE) {
                let before = samples.len().checked_sub(1 + SAMPLES_A_LINE).and_then(|at| samples.get(at)).copied();
                line(&now.line(&before.unwrap_or_default()));
            }
        }
        samples
    }

    /// After everything has been given back: whether every page is where it should be.
    fn reckon(&self, reckoning: &mut Reckoning) -> Result<(), LabError> {
        let machine = self.machine;
        self.file.clear();
        machine.kmem().slabs().shrink_all();
        let (listed, stored) = machine.count_pages().map_err(machine_error)?;
        reckoning.listed_left = listed + stored;
        reckoning.pages_missing = own_pages(machine)?.abs_diff(self.own_pages);
        self.mm.groups().drain_stocks();
        reckoning.charges_left = self.mm.groups().usage(GroupId::ROOT);
        if let Some(swap) = machine.swap() {
            reckoning.swap_left = swap.total_pages() - swap.free_pages();
        }
        reckoning.reports = machine.take_reports().lines().filter(|line| line.contains("BUG")).count() as u64;
        Ok(())
    }
}

/// Managed pages that are neither free, nor in per-CPU sets, nor slabs, nor on the page lists.
fn own_pages(machine: &Machine) -> Result<u64, LabError> {
    let kmem = machine.kmem();
    kmem.pages().drain_all_pages();
    let (listed, _) = machine.count_pages().map_err(machine_error)?;
    let pages = kmem.pages();
    let cached: u64 = pages.zones().map(|zone| pages.zone_stats(zone).cached_pages).sum();
    let slabs = kmem.slabs().stats();
    let known = pages.free_page_count() + cached + listed + slabs.slab_pages() + slabs.metadata_pages;
    Ok(pages.managed_pages().saturating_sub(known))
}

impl Sample {
    /// The line for a terminal, with what has happened since `before`.
    fn line(&self, before: &Self) -> String {
        let seconds = (self.second - before.second).max(0.001);
        let rate = |now: u64, then: u64| grouped((now.saturating_sub(then) as f64 / seconds) as u64);
        let stalled = self.stalled_us.saturating_sub(before.stalled_us) as f64 / seconds / 1e6;
        format!(
            "{:>6.1} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11} {:>6.1}% {:>5}",
            self.second,
            grouped(self.free),
            grouped(self.file),
            grouped(self.anon),
            grouped(self.swapped),
            rate(self.reclaimed, before.reclaimed),
            rate(self.refaults, before.refaults),
            stalled * 100.0,
            self.kills
        )
    }
}
