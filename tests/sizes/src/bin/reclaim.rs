//! The engine of reclaim alone: background and direct, shrinkers; lists, zones and groups are the user's.
#![cfg_attr(bare_metal, no_std, no_main)]

#[cfg(bare_metal)]
mod engine {
    //! An environment whose answers are constants, and one shrinker.

    use kmem_gfp::{NodeId, Order, PlainContext, Watermark, ZoneKind};
    use kmem_reclaim::{
        GroupId, ListCounts, NoGroups, NoOom, Node, PageLists, Polled, Protection, ReclaimEnv, Scan, ShrinkControl,
        ShrinkCount, ShrinkScan, Shrinker, Zones,
    };
    use kmem_sizes::MACHINE;
    use kmem_sync::SingleCpu;

    /// One node.
    pub(crate) struct Env(pub(crate) [Node; 1]);

    impl Zones for Env {
        fn managed(&self, _: NodeId, _: ZoneKind) -> u64 {
            core::hint::black_box(1000)
        }
        fn free(&self, _: NodeId, _: ZoneKind) -> u64 {
            core::hint::black_box(100)
        }
        fn mark(&self, _: NodeId, _: ZoneKind, _: Watermark) -> u64 {
            core::hint::black_box(50)
        }
        fn watermark_ok(&self, _: NodeId, _: ZoneKind, _: Order, _: Watermark, _: ZoneKind) -> bool {
            core::hint::black_box(false)
        }
    }

    impl PageLists for Env {
        fn shrink(&self, _: NodeId, _: GroupId, _: Protection, scan: &mut Scan<'_>) {
            scan.reclaimed += core::hint::black_box(1);
        }
        fn age(&self, _: NodeId, _: GroupId, _: &mut Scan<'_>) {}
        fn counts(&self, _: NodeId, _: Option<ZoneKind>) -> ListCounts {
            core::hint::black_box(ListCounts::default())
        }
        fn group_counts(&self, node: NodeId, _: GroupId) -> ListCounts {
            self.counts(node, None)
        }
        fn reparent(&self, _: GroupId, _: GroupId) {}
    }

    impl ReclaimEnv for Env {
        type Cpu = SingleCpu;
        type Context = PlainContext;
        type Zones = Self;
        type Lists = Self;
        type Groups = NoGroups;
        type Park = Polled;
        type Oom = NoOom;
        fn cpu(&self) -> &SingleCpu {
            &MACHINE.cpu
        }
        fn context(&self) -> &PlainContext {
            &PlainContext
        }
        fn zones(&self) -> &Self {
            self
        }
        fn lists(&self) -> &Self {
            self
        }
        fn groups(&self) -> &NoGroups {
            &NoGroups
        }
        fn park(&self) -> &Polled {
            &Polled
        }
        fn oom(&self) -> &NoOom {
            &NoOom
        }
        fn nodes(&self) -> &[Node] {
            &self.0
        }
    }

    /// Has as many objects as nobody knows.
    pub(crate) struct Objects;

    impl Shrinker for Objects {
        fn count_objects(&self, _: &ShrinkControl<'_>) -> ShrinkCount {
            ShrinkCount::Objects(core::hint::black_box(10))
        }
        fn scan_objects(&self, _: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
            ShrinkScan::Scanned { freed: core::hint::black_box(nr), scanned: nr }
        }
    }
}

kmem_sizes::image! {
    fn body() {
        use core::hint::black_box;
        use kmem_gfp::{Gfp, MigrateType, NodeId, Order, PlainContext, ReclaimRequest, Reclaimer, ZoneKind};
        use kmem_reclaim::{Node, Reclaim, ShrinkerSlot};

        static ENGINE: Reclaim<engine::Env> = Reclaim::new(engine::Env([Node::new()]));
        let request = ReclaimRequest {
            gfp: black_box(Gfp::KERNEL),
            order: Order::ZERO,
            ceiling: ZoneKind::Normal,
            node: NodeId(0),
            this_node_only: false,
            migratetype: MigrateType::Movable,
        };
        ENGINE.wake_background(NodeId(0), &request);
        black_box(ENGINE.kswapd_poll(NodeId(0), black_box(0)));
        let slot = ShrinkerSlot::new("objects", &engine::Objects);
        let _ = black_box(ENGINE.with_shrinker(&slot, || ENGINE.reclaim(&PlainContext, &request)));
    }
}
