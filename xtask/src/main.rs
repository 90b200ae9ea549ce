//! `cargo xtask`: every check and measurement of the workspace.

mod conformance;
mod source;
mod table;
mod tidy;
mod workspace;

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
    /// Show each fact of the behavioural reference as tested, different on purpose or out of scope.
    Conformance(conformance::Options),
    /// Check what the compiler cannot see: layers, headers, `no_std`, panics, leftovers.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = Workspace::load().and_then(|workspace| match Cli::parse().command {
        Command::Conformance(options) => conformance::run(&workspace, &options),
        Command::Tidy => tidy::run(&workspace),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
