//! The views of a whole machine: what the layers know, joined.

use kmem::Gfp;
use kmem_tests::machine;

fn counter(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect(name).trim().parse().expect("a number")
}

#[test]
fn views_join_what_the_layers_know() {
    let kmem = machine().kmem();
    let slab = |kmem: kmem_tests::Kmem| counter(&kmem.vmstat().to_string(), "nr_slab_unreclaimable");
    let before = slab(kmem);
    let large = kmem.kmalloc(1 << 20, Gfp::KERNEL).unwrap();
    assert_eq!(slab(kmem), before + 256, "large blocks count as slab");
    assert_eq!(kmem.slab_pages(), slab(kmem) + counter(&kmem.vmstat().to_string(), "nr_slab_reclaimable"));
    // SAFETY: ours, freed once.
    unsafe { kmem.kfree(large.as_ptr()) }.unwrap();

    let area = kmem.vmalloc(100_000).unwrap();
    assert_eq!(counter(&kmem.vmstat().to_string(), "nr_vmalloc"), 25);
    let vmallocinfo = kmem.vmallocinfo().to_string();
    assert!(vmallocinfo.contains("views.rs:") && vmallocinfo.contains(" pages=25 vmalloc N0=25"), "{vmallocinfo}");
    // SAFETY: ours, freed once.
    unsafe { kmem.vfree(area.as_ptr()) }.unwrap();
    assert_eq!(counter(&kmem.vmstat().to_string(), "nr_vmalloc"), 0);

    let buddyinfo = kmem.buddyinfo().to_string();
    assert_eq!(buddyinfo.lines().count(), 4, "a line for each zone");
    assert!(buddyinfo.starts_with("Node 0, zone"), "{buddyinfo}");
    let slabinfo = kmem.slabinfo().to_string();
    assert!(slabinfo.starts_with("slabinfo - version: 2.1\n"), "{slabinfo}");
    assert!(slabinfo.lines().any(|line| line.starts_with("kmalloc-64 ")), "{slabinfo}");
    assert!(kmem.zoneinfo().to_string().contains("nr_slab_unreclaimable"));
    assert!(kmem.pagetypeinfo().to_string().contains("Unmovable"));
}
