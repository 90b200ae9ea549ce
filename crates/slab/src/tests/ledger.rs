//! A machine on which somebody pays: the test's [`TestEnv`], and a ledger of charges.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use kmem_gfp::{AllocError, FlatFrameTable, Gfp, Order};

use super::env::{TestContext, TestCpu, TestEnv, TestGrace, TestPages};
use crate::SlabEnv;

/// What an object costs beyond its stride.
pub(crate) const OVERHEAD: i64 = 8;

/// The machine and the ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) env: TestEnv,
    /// Who pays for what is allocated; zero is nobody.
    pub(crate) payer: AtomicU32,
    /// Bytes that each has paid for.
    charged: [AtomicI64; 4],
    /// Of these, bytes of objects that a shrinker can free.
    pub(crate) reclaimable: AtomicI64,
    /// Charges so far.
    pub(crate) charges: AtomicI64,
    /// Countdown to a charge that is refused; negative is never.
    pub(crate) refuse_in: AtomicI64,
    /// Whether all are, from there on.
    pub(crate) for_good: AtomicBool,
}

impl Ledger {
    pub(crate) fn new(nr_cpus: u32, nr_frames: usize) -> Self {
        Self {
            env: TestEnv::new(nr_cpus, nr_frames),
            payer: AtomicU32::new(0),
            charged: [const { AtomicI64::new(0) }; 4],
            reclaimable: AtomicI64::new(0),
            charges: AtomicI64::new(0),
            refuse_in: AtomicI64::new(-1),
            for_good: AtomicBool::new(false),
        }
    }

    /// From here on `payer` pays.
    pub(crate) fn pays(&self, payer: u32) {
        self.payer.store(payer, Ordering::Relaxed);
    }

    /// Bytes that `payer` has paid for.
    pub(crate) fn charged(&self, payer: u32) -> i64 {
        self.charged[payer as usize].load(Ordering::Relaxed)
    }

    fn refuses(&self) -> bool {
        let left = self.refuse_in.load(Ordering::Relaxed);
        if left > 0 || (left == 0 && !self.for_good.load(Ordering::Relaxed)) {
            self.refuse_in.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }
}

impl SlabEnv for Ledger {
    type Cpu = TestCpu;
    type Pages = TestPages;
    type Frames = FlatFrameTable;
    type Context = TestContext;
    type Grace = TestGrace;

    const ACCOUNTS: bool = true;

    fn charge_object(&self, gfp: Gfp, size: usize, reclaimable: bool) -> Result<Option<NonZeroU32>, AllocError> {
        let Some(payer) = NonZeroU32::new(self.payer.load(Ordering::Relaxed)) else { return Ok(None) };
        if self.refuses() && !gfp.contains(Gfp::NOFAIL) {
            return Err(AllocError::OverLimit { order: Order::ZERO, gfp });
        }
        self.charges.fetch_add(1, Ordering::Relaxed);
        let bytes = size as i64 + OVERHEAD;
        self.charged[payer.get() as usize].fetch_add(bytes, Ordering::Relaxed);
        self.reclaimable.fetch_add(if reclaimable { bytes } else { 0 }, Ordering::Relaxed);
        Ok(Some(payer))
    }
    fn uncharge_object(&self, payer: NonZeroU32, size: usize, reclaimable: bool) {
        let bytes = size as i64 + OVERHEAD;
        let before = self.charged[payer.get() as usize].fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "more given back than was paid");
        self.reclaimable.fetch_sub(if reclaimable { bytes } else { 0 }, Ordering::Relaxed);
    }
    fn cpu(&self) -> &TestCpu {
        self.env.cpu()
    }
    fn pages(&self) -> &TestPages {
        self.env.pages()
    }
    fn frames(&self) -> &FlatFrameTable {
        self.env.frames()
    }
    fn context(&self) -> &TestContext {
        self.env.context()
    }
    fn grace(&self) -> &TestGrace {
        self.env.grace()
    }
}
