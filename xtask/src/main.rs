//! `cargo xtask`: every check and measurement of the workspace.

mod boot;
mod boot_disk;
mod check;
mod conformance;
mod deny;
mod forward;
mod loom;
mod matrix;
mod process;
mod sizes;
mod source;
mod steps;
mod table;
mod tidy;
mod workspace;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

/// `println!` that ends the program quietly when nobody reads on (`cargo xtask conformance | head`).
macro_rules! say {
    ($($text:tt)*) => {
        if std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*))).is_err() {
            std::process::exit(1);
        }
    };
}
use say;

/// Every check and measurement of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything that must hold before a change goes in.
    Check(check::Options),
    /// What takes longer: ignored tests in release builds, all models.
    Long {
        /// Stop at the first failure.
        #[arg(long)]
        fail_fast: bool,
    },
    /// The concurrency models of each crate.
    Loom(loom::Options),
    /// Each fact of the behavioural reference: tested, different on purpose or out of scope.
    Conformance(conformance::Options),
    /// What the compiler cannot see: layers, headers, `no_std`, panics, leftovers.
    Tidy,
    /// Each crate alone, with no feature and with each feature alone.
    Features,
    /// Each crate below `hosted` linked without `std` and without an allocator.
    NoStd,
    /// Build the kernel of `tests/kernel` and boot it in an emulator.
    Boot(boot::Options),
    /// What each crate alone adds to an image.
    Sizes,
    /// Measure kmem beside its peers.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run `cargo fuzz` on the fuzz targets.
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            if !text.is_empty() {
                eprintln!("error: {text}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let workspace = Workspace::load()?;
    // Asked now: a step may rebuild this very program, after which the system calls the running one deleted.
    let this = std::env::current_exe().context("cannot find this program")?;
    match command {
        Command::Check(options) => check::run(&workspace, &options, &this),
        Command::Long { fail_fast } => check::long(&workspace, &this, fail_fast),
        Command::Loom(options) => loom::run(&workspace, &options),
        Command::Conformance(options) => conformance::run(&workspace, &options),
        Command::Tidy => tidy::run(&workspace),
        Command::Features => matrix::features(&workspace),
        Command::NoStd => matrix::no_std(&workspace),
        Command::Boot(options) => boot::run(&workspace, &options),
        Command::Sizes => sizes::run(&workspace),
        Command::Bench { args } => forward::bench(&workspace, &args),
        Command::Fuzz { args } => forward::fuzz(&workspace, &args),
    }
}
