//! Synchronization of kmem: atomics, cells, locks, CPU pinning and per-CPU slots, with the one loom switch
