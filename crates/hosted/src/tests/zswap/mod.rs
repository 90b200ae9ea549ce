//! Tests of the cache in front of swap.

mod rules;
mod threads;

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Machine, PageBytes, Reports, SwapDevice};

/// A machine of 16 MiB: a fifth of it are 819 frames.
pub(super) fn machine() -> &'static Machine {
    Machine::builder().cpus(4).ram_bytes(16 << 20).reports(Reports::Capture).boot().unwrap()
}

/// A device in a map, which can be made to fail.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) pages: Mutex<HashMap<u64, Box<PageBytes>>>,
    pub(super) order: Mutex<Vec<u64>>,
    pub(super) fails: AtomicBool,
}

impl SwapDevice for Map {
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.order.lock().unwrap().push(offset);
        self.pages.lock().unwrap().insert(offset, Box::new(*page));
        Ok(())
    }
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()> {
        let pages = self.pages.lock().unwrap();
        *page = **pages.get(&offset).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }
    fn discard_page(&self, offset: u64) {
        self.pages.lock().unwrap().remove(&offset);
    }
}
