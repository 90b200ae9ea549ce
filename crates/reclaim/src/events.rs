//! Counters of a node's reclaim, under the names of `/proc/vmstat`.

use core::fmt;

use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::const_fn;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ReclaimEvent {
            $($(#[$doc])* $variant,)*
        }

        impl ReclaimEvent {
            /// All of them, in the order of the view.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The kernel's spelling.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl Events {
            const_fn! {
                pub(crate) fn new() -> Self {
                    Self([$(zero($name)),*])
                }
            }
        }
    };
}

events! {
    /// Pages that background reclaim freed.
    StealKswapd => "pgsteal_kswapd",
    /// Pages that requests freed themselves.
    StealDirect => "pgsteal_direct",
    /// Pages that proactive reclaim freed.
    StealProactive => "pgsteal_proactive",
    /// Pages that background reclaim looked at.
    ScanKswapd => "pgscan_kswapd",
    /// Pages that requests looked at themselves.
    ScanDirect => "pgscan_direct",
    /// Pages that proactive reclaim looked at.
    ScanProactive => "pgscan_proactive",
    /// Requests that waited for background reclaim at the entry.
    ScanDirectThrottle => "pgscan_direct_throttle",
    /// Node reclaim that freed enough.
    NodeReclaimSuccess => "zone_reclaim_success",
    /// Node reclaim that did not.
    NodeReclaimFailed => "zone_reclaim_failed",
    /// Objects that shrinkers looked at.
    SlabsScanned => "slabs_scanned",
    /// Runs of background reclaim.
    PageOutRun => "pageoutrun",
    /// Naps of background reclaim that a request cut short.
    LowWmarkHitQuickly => "kswapd_low_wmark_hit_quickly",
    /// Times that background reclaim wanted to sleep and the high mark was missed again.
    HighWmarkHitQuickly => "kswapd_high_wmark_hit_quickly",
    /// Times that all shrinkers were emptied on demand.
    DropSlab => "drop_slab",
    /// Sleeps because pages under writeback filled the lists.
    ThrottleWriteback => "reclaim_throttle_writeback",
    /// Sleeps because other runs had taken too many pages off the lists.
    ThrottleIsolated => "reclaim_throttle_isolated",
    /// Sleeps because nothing could be freed.
    ThrottleNoProgress => "reclaim_throttle_noprogress",
    /// Sleeps because dirty pages filled the lists.
    ThrottleCongested => "reclaim_throttle_congested",
}

const_fn! {
    fn zero(_of: &str) -> AtomicU64 {
        AtomicU64::new(0)
    }
}

/// The counters of a node. Written on reclaim's own paths only.
#[derive(Debug)]
pub(crate) struct Events([AtomicU64; ReclaimEvent::ALL.len()]);

impl Events {
    pub(crate) fn add(&self, event: ReclaimEvent, n: u64) {
        if let Some(count) = self.0.get(event as usize)
            && n > 0
        {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self, event: ReclaimEvent) -> u64 {
        self.0.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// The sums over all nodes; prints as lines of `/proc/vmstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimStats(pub(crate) [u64; ReclaimEvent::ALL.len()]);

impl ReclaimStats {
    /// One counter.
    pub fn get(&self, event: ReclaimEvent) -> u64 {
        self.0.get(event as usize).copied().unwrap_or(0)
    }
}

impl fmt::Display for ReclaimStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in ReclaimEvent::ALL {
            writeln!(f, "{} {}", event.name(), self.get(event))?;
        }
        Ok(())
    }
}
