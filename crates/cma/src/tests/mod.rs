//! Tests of areas and devices' memory over a small machine made for them.

#[cfg(not(loom))]
mod rig;
mod toy;

#[cfg(loom)]
mod loom;

#[cfg(all(test, not(loom), any(feature = "virtio-drivers-013", feature = "x86_64-015")))]
mod adapters;
#[cfg(not(loom))]
mod areas;
#[cfg(not(loom))]
mod bitmaps;
#[cfg(not(loom))]
mod declare;
#[cfg(not(loom))]
mod devices;
#[cfg(not(loom))]
mod failures;
#[cfg(not(loom))]
mod pools;
#[cfg(not(loom))]
mod properties;
