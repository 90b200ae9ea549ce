//! The rows of the contract on the hosted machine, each by its name.

mod caches;
mod compressed;
mod contiguous;
mod flags;
mod freeing;
mod kmalloc;
mod pressure;
mod virtually;
