//! The vocabulary of kmem: GFP flags, frames, orders, zones, errors and the seam traits
