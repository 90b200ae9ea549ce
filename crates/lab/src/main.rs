//! `cargo lab`: replay the allocation trace of a real kernel on kmem.

use clap::Parser;
use kmem_lab::LabError;
use kmem_lab::app::{Bench, View, run};
use kmem_lab::cli::Cli;
use kmem_lab::hosted::HostedTarget;
use kmem_lab::target::MachineShape;
use std::process::ExitCode;

/// Kmem's hosted machines.
struct Hosted;

impl Bench for Hosted {
    type Machine = HostedTarget;

    fn boot(&self, shape: MachineShape) -> Result<HostedTarget, LabError> {
        HostedTarget::boot(shape).map_err(LabError::Target)
    }

    fn views(&self, machine: &HostedTarget) -> Vec<View> {
        machine.views()
    }
}

fn main() -> ExitCode {
    match run(&Hosted, Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
