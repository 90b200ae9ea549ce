//! Memory that devices use: by a device's address mask, alignment, boundary and segment limit.
//!
//! ```text
//! alloc_coherent ─▶ contiguous area ─▶ any zone ─▶ DMA32 ─▶ DMA      the first that the device reaches
//! DmaPool        ─▶ chunks of coherent memory, cut into blocks
//! map_*          ─▶ the buffer itself, or a bounce buffer that the device reaches
//! ```

mod buffer;
mod bus;
mod coherent;
mod device;
mod env;
mod map;
mod pool;
mod pool_free;

pub use buffer::DmaBuffer;
pub use bus::{DmaBus, DmaDirection, PhysicalBus};
pub use coherent::{Coherent, Dma};
pub use device::{DmaDevice, DmaError};
pub use env::{Contiguous, DmaEnv, NoContiguous};
pub use map::{CpuView, DmaMapping, RawMapping};
pub use pool::{DmaBlock, DmaPool, PoolBlock, PoolInfo, PoolSpec};
pub use pool_free::PoolError;
