//! The command line.

use crate::program::Level;
use crate::replay::Order;
use crate::target::MachineShape;
use crate::trace::Trace;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Replay the allocation trace of a real kernel on kmem, and put the outcome beside what Linux used.
///
/// Without a command the bundled trace of a kernel's start is replayed.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to replay the bundled trace.
    #[command(flatten)]
    pub options: Options,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a trace in the text format of ftrace or trace-cmd.
    Replay {
        /// The trace, plain or compressed with zstd; `-` is standard input.
        file: PathBuf,
        /// How.
        #[command(flatten)]
        options: Options,
    },
    /// Count page faults: a page-reference trace against the generations, the classic lists, LRU, CLOCK and Belady's optimum.
    Lru {
        /// How.
        #[command(flatten)]
        options: crate::lru::LruOptions,
    },
    /// Store real files in a compressed block device, page by page, beside what Linux's zram and zsmalloc did.
    Zram {
        /// What, and how.
        #[command(flatten)]
        options: crate::zram::ZramOptions,
    },
    /// Fragment a machine with a trace's mix of page requests and ask it for large blocks, before and after compaction; free huge
    /// pages after the trace's page events, beside other page allocators.
    Fragment {
        /// How.
        #[command(flatten)]
        options: crate::fragment::FragmentOptions,
    },
    /// A machine too small for its work: pages with contents, swap, caches, atomic requests; what reclaim does about it, and
    /// whether anything was lost.
    Pressure {
        /// How.
        #[command(flatten)]
        options: crate::pressure::PressureOptions,
    },
    /// Replay a trace and print the machine's views in the kernel's formats: buddyinfo, zoneinfo, slabinfo, pagetypeinfo, vmstat,
    /// vmallocinfo.
    Machine {
        /// The trace; the bundled one if there is none.
        file: Option<PathBuf>,
        /// Print only this view.
        #[arg(long, value_name = "NAME")]
        view: Option<String>,
        /// How.
        #[command(flatten)]
        options: Options,
    },
}

/// How to replay.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// CPUs of the machine; the trace's CPU k runs on CPU k modulo N [default: as many as the recorded machine had if the
    /// file tells, otherwise 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: Option<u32>,
    /// Memory of the machine, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub ram: u64,
    /// Which requests to replay.
    #[arg(long, value_enum, default_value_t)]
    pub level: Level,
    /// Run every CPU on a thread of its own, at once; frees on another CPU wait for their allocation.
    #[arg(long)]
    pub parallel: bool,
    /// Write the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs no network.
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
}

impl Options {
    /// The machine for `trace`. The bundled trace is of a machine with one CPU and runs on several all the same.
    #[must_use]
    pub fn shape(&self, trace: &Trace, bundled: bool) -> MachineShape {
        let recorded = trace.cpus.filter(|n| !bundled && *n <= 1024);
        MachineShape { cpus: self.cpus.or(recorded).unwrap_or(4), ram_bytes: self.ram }
    }

    /// In which order operations of different CPUs run.
    #[must_use]
    pub const fn order(&self) -> Order {
        if self.parallel { Order::Parallel } else { Order::Trace }
    }
}

/// `512M`, `2G`, `65536K`, `1048576`: bytes, with binary units.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).map(str::to_ascii_uppercase).as_deref() {
        Some("" | "B") => 0,
        Some("K" | "KB" | "KIB") => 10,
        Some("M" | "MB" | "MIB") => 20,
        Some("G" | "GB" | "GIB") => 30,
        Some("T" | "TB" | "TIB") => 40,
        _ => return Err("expected a size such as 512M or 2G".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size such as 512M or 2G".to_owned())?;
    number.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(|| "this size is not possible".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["lab", "replay", "-", "--cpus", "2", "--ram", "1G", "--level", "pages", "--parallel"])
                .unwrap();
        match cli.command {
            Some(Command::Replay { file, options }) => {
                assert_eq!((file.to_str(), options.cpus, options.ram), (Some("-"), Some(2), 1 << 30));
                assert_eq!((options.level, options.order()), (Level::Pages, Order::Parallel));
            }
            other => panic!("{other:?}"),
        }
        assert!(Cli::try_parse_from(["lab", "--json", "x.json"]).unwrap().command.is_none());
        assert!(Cli::try_parse_from(["lab", "replay"]).is_err());
        assert!(Cli::try_parse_from(["lab", "--cpus", "0"]).is_err());
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "M", "x", "12Q", "0", "99999999999T", "-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
