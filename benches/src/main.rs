//! `bench`: kmem beside its peers, in one process and one run.
//!
//! ```text
//! bench [pages] [objects] [caches] [zsmalloc] [vmalloc] [instructions]     the suites, all of them when none is named
//!       --quick            few, short runs: does everything work?
//!       --filter TEXT      only the rows whose `suite/name` contains TEXT
//!       --subject TEXT     only kmem and the subjects whose name contains TEXT
//!       --rounds N         how often each subject runs per row (25)
//!       --seed N           seed of every random sequence (printed with the results)
//!       --json FILE        all figures, `-` for standard output
//!       --list             name the rows and stop
//! ```
//!
//! A *row* is a workload with its parameters; a *subject* is an allocator (or a floor that no allocator can beat). Within
//! a row the subjects take turns, round after round, so that a noisy moment of the machine hits all of them. Each cell
//! shows the best run and, in brackets, the median.

mod areas;
mod caches;
mod cli;
mod instructions;
mod machine;
mod measure;
mod memory;
mod objects;
mod pages;
mod random;
mod report;
mod ring;
mod threads;
mod zsmalloc;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Children of this very program: a fresh process for memory figures, a short one for callgrind.
    match arguments.first().map(String::as_str) {
        Some(objects::density::CHILD) => return objects::density::child(&arguments[1..]),
        Some(zsmalloc::density::CHILD) => return zsmalloc::density::child(&arguments[1..]),
        Some(instructions::CHILD) => return instructions::child(&arguments[1..]),
        _ => {}
    }
    let options = match cli::parse(&arguments) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", cli::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("bench: {message}\n\n{}", cli::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &cli::Options) -> Result<(), String> {
    let mut out = report::Report::new(options);
    for suite in &options.suites {
        let rows: Vec<measure::Row> = match suite {
            cli::Suite::Pages => pages::rows(options),
            cli::Suite::Objects => objects::rows(options),
            cli::Suite::Caches => caches::rows(options),
            cli::Suite::Zsmalloc => zsmalloc::rows(options),
            cli::Suite::Vmalloc => areas::rows(options),
            cli::Suite::Instructions => instructions::rows(options),
        }
        .into_iter()
        .filter(|row| options.wants_row(suite.name(), &row.name))
        .collect();
        if options.list {
            for row in &rows {
                println!("{}/{}  ({})", suite.name(), row.name, row.parameters);
            }
            continue;
        }
        if rows.is_empty() {
            continue;
        }
        let missing = match suite {
            cli::Suite::Pages => pages::missing(),
            cli::Suite::Instructions | cli::Suite::Vmalloc => instructions::missing(),
            _ => None,
        };
        if let Some(notice) = missing {
            eprintln!("bench: {notice}");
            if *suite == cli::Suite::Instructions {
                continue;
            }
        }
        let mut results = Vec::new();
        for row in rows {
            eprintln!("{}/{} ...", suite.name(), row.name);
            results.push(measure::run(row, options));
        }
        out.suite(*suite, results);
    }
    if options.list {
        return Ok(());
    }
    out.finish()
}
