//! `cargo lab`: replay the allocation trace of a real kernel on kmem.

use clap::Parser;
use kmem_lab::LabError;
use kmem_lab::app::{Bench, View, run};
use kmem_lab::cli::{Cli, Options};
use kmem_lab::model::{Fault, Model};
use std::process::ExitCode;

struct ModelBench;

impl Bench for ModelBench {
    type Machine = Model;

    fn boot(&self, options: &Options) -> Result<Model, LabError> {
        Model::new(options.cpus, options.ram as usize, Fault::None).map_err(LabError::Target)
    }

    fn views(&self, _machine: &Model) -> Vec<View> {
        Vec::new()
    }
}

fn main() -> ExitCode {
    match run(&ModelBench, Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
