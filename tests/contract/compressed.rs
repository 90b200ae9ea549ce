//! P03: many odd-sized compressed objects, packed densely.

use kmem::zsmalloc::{AccessError, Config, StoreError};
use kmem::{Gfp, PAGE_SIZE};
use kmem_tests::machine;

#[test]
fn p03_compressed_objects_are_packed_densely_and_come_back_whole() {
    let machine = machine();
    let kmem = machine.kmem();
    let pool = kmem.zs_create_pool(Config::new(), Gfp::KERNEL).unwrap();
    let gfp = Gfp::NOIO | Gfp::HIGHMEM | Gfp::MOVABLE;
    let bytes = |nth: usize| vec![nth as u8; 100 + nth * 37 % 3500];
    let mut objects: Vec<_> = (0..4000).map(|nth| (nth, kmem.zs_malloc(&pool, &bytes(nth), gfp).unwrap())).collect();
    let stats = kmem.zs_pool_stats(&pool);
    assert_eq!((stats.objects, stats.object_frames), (4000, kmem.zs_get_total_pages(&pool)));
    assert!(stats.density() > 0.95, "{stats:?}");
    let mut buffer = [0; PAGE_SIZE];
    for (nth, handle) in &objects {
        assert_eq!(*kmem.zs_obj_read(&pool, *handle, &mut buffer).unwrap(), bytes(*nth));
    }
    // Half of them go; compaction makes up for the holes, and handles stay.
    let (gone, kept): (Vec<_>, Vec<_>) = objects.drain(..).partition(|(nth, _)| nth * 7 % 13 < 6);
    for (_, handle) in &gone {
        kmem.zs_free(&pool, *handle).unwrap();
        assert_eq!(kmem.zs_free(&pool, *handle), Err(AccessError::Stale(*handle)));
    }
    assert!(kmem.zs_compact(&pool) > 0);
    assert!(kmem.zs_pool_stats(&pool).density() > 0.9);
    for (nth, handle) in &kept {
        let parts = kmem.zs_obj_read_parts(&pool, *handle).unwrap();
        assert_eq!([parts.parts().0, parts.parts().1].concat(), bytes(*nth));
    }
    kmem.zs_obj_write(&pool, kept[0].1, &vec![9; bytes(kept[0].0).len()]).unwrap();
    // What cannot be is refused.
    let other = kmem.zs_create_pool(Config::new(), Gfp::KERNEL).unwrap();
    assert_eq!(kmem.zs_free(&other, kept[0].1), Err(AccessError::Foreign(kept[0].1)));
    assert_eq!(kmem.zs_malloc(&pool, &[], gfp), Err(StoreError::Empty));
    assert_eq!(kmem.zs_malloc(&pool, &[0; PAGE_SIZE + 1], gfp), Err(StoreError::TooLarge { len: PAGE_SIZE + 1 }));
    let (pool, left) = kmem.zs_destroy_pool(pool).unwrap_err();
    assert_eq!(left.objects, kept.len() as u64);
    for (_, handle) in kept {
        kmem.zs_free(&pool, handle).unwrap();
    }
    assert!(kmem.zs_destroy_pool(pool).is_ok());
    drop(other);
    assert_eq!(machine.take_reports(), "");
}
