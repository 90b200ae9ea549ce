//! Tests of the synchronization primitives.
