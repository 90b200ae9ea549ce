//! Physical page allocator: zones, pageblock bitmaps, per-CPU page sets, watermarks
