//! Other crates' traits over the ones of this crate, each behind the feature named after that crate and its version.

#[cfg(feature = "virtio-drivers-013")]
mod virtio;
#[cfg(feature = "x86_64-015")]
mod x86_64;

#[cfg(feature = "virtio-drivers-013")]
pub use virtio::{DmaHolder, VirtioHal};
#[cfg(feature = "x86_64-015")]
pub use x86_64::PageFrames;
