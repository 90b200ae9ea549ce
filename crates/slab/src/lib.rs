//! Object caches: sheaves, barns, slabs, bulk, RCU frees, mempools, debugging
