//! In reading order:
//!
//! - [`Cma`], [`AreaSpec`], [`layout`]: areas and how they come to be; [`CmaArea`]: handing out and taking back;
//!   [`CmaPages`]: what was handed out; [`CmaStats`], [`CmaFiles`]: how an area stands;
//! - [`CmaEnv`], [`Lender`]: what areas need;
//! - [`Dma`], [`DmaDevice`], [`DmaBuffer`]: coherent memory; [`DmaMapping`]: streaming maps; [`DmaPool`]: small blocks;
//! - [`DmaEnv`], [`DmaBus`], [`Contiguous`]: what devices' memory needs;
//! - [`adapter`]: the same for other crates' drivers, each behind a feature.
#![doc = include_str!("../README.md")]
#![no_std]

pub mod adapter;
mod area;
#[forbid(unsafe_code)]
mod bitmap;
mod book;
mod cma;
mod dma;
mod env;
#[forbid(unsafe_code)]
mod error;
mod place;
#[forbid(unsafe_code)]
mod spec;
#[forbid(unsafe_code)]
mod views;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use area::{CmaArea, CmaPages};
pub use cma::Cma;
pub use dma::{
    Coherent, Contiguous, CpuView, Dma, DmaBlock, DmaBuffer, DmaBus, DmaDevice, DmaDirection, DmaEnv, DmaError,
    DmaMapping, DmaPool, NoContiguous, PhysicalBus, PoolBlock, PoolError, PoolInfo, PoolSpec, RawMapping,
};
pub use env::{CmaEnv, Lender};
pub use error::{CmaError, DeclareError, ReleaseError};
pub use spec::{AreaSpec, MAX_RANGES, MIN_ALIGN_PAGES, NAME_MAX, Place, layout};
pub use views::{CmaFiles, CmaStats};
