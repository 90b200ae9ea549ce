//! The events that a replay knows, with their fields as types.

use super::{FieldFault, Fields};

/// Page orders beyond this are no trace's; the kernel's greatest is 10.
const MAX_ORDER: u64 = 30;
/// Frames beyond this are no machine's: 4 PiB.
const MAX_PFN: u64 = 1 << 40;
/// Areas beyond this are no window's: 128 TiB.
const MAX_AREA: u64 = 1 << 47;
/// Objects of a cache are no larger than this.
const MAX_OBJECT: u64 = 4 << 20;

/// One event. Names, call sites, flags and lists are borrowed from the line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are the kernel's own, under the kernel's names")]
pub enum Event<'a> {
    /// `kmalloc`.
    Kmalloc { call_site: &'a [u8], ptr: u64, bytes_req: u64, bytes_alloc: u64, gfp: &'a [u8], node: i32 },
    /// `kmem_cache_alloc`.
    CacheAlloc {
        call_site: &'a [u8],
        ptr: u64,
        name: &'a [u8],
        bytes_req: u64,
        bytes_alloc: u64,
        gfp: &'a [u8],
        node: i32,
    },
    /// `kmem_cache_free`.
    CacheFree { ptr: u64, name: &'a [u8] },
    /// `kfree`.
    Kfree { ptr: u64 },
    /// `kvfree_rcu`: freed after a grace period.
    KvfreeRcu { ptr: u64 },
    /// `cache_free_bulk`; `ptrs` may hold fewer than `nr`.
    CacheFreeBulk { name: &'a [u8], nr: u64, ptrs: &'a [u8] },
    /// `cache_alloc_bulk`; `ptrs` may hold fewer than `nr`.
    CacheAllocBulk {
        call_site: &'a [u8],
        name: &'a [u8],
        bytes_req: u64,
        bytes_alloc: u64,
        gfp: &'a [u8],
        nr: u64,
        ok: bool,
        ptrs: &'a [u8],
    },
    /// `mm_page_alloc`; frame 0 is a failure.
    PageAlloc { pfn: u64, order: u8, migratetype: u8, gfp: &'a [u8] },
    /// `mm_page_free`.
    PageFree { pfn: u64, order: u8 },
    /// `mm_page_free_batched`: the same free once more.
    PageFreeBatched,
    /// `mm_page_alloc_extfrag`: a fallback to another migratetype.
    PageAllocExtfrag,
    /// `page_alloc_bulk`.
    PageAllocBulk { got: u64, migratetype: u8, gfp: &'a [u8], pfns: &'a [u8] },
    /// `slab_new`; frame 0 is a failure.
    SlabNew { name: &'a [u8], pfn: u64, order: u8 },
    /// `slab_free`.
    SlabFree { pfn: u64, order: u8 },
    /// `migrate_dst`: compaction took `dst` from the free lists; frame 0 means there was none.
    MigrateDst { dst: u64, order: u8 },
    /// `alloc_vmap_area`: addresses, `size` bytes with the guard page.
    AreaAlloc { start: u64, size: u64, align: u64, failed: bool },
    /// `free_vmap_area_noflush`: unmapped, to be flushed later; so many pages wait for that.
    AreaFree { start: u64, lazy_pages: u64, lazy_limit: u64 },
    /// `purge_vmap_area_lazy`: so many areas were flushed and can be handed out again.
    AreaPurge { purged: u64 },
    /// `tracing_mark_write`.
    Mark { text: &'a [u8] },
    /// An event of the kernel that a replay has no use for.
    Other(Known),
    /// An event that nobody here has heard of.
    Unknown,
}

/// Events that are known and have no counterpart to replay on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// Contiguous areas, compressed objects: requests to allocators that stand beside this one.
    OtherAllocator,
    /// Reclaim, compaction, migration, out of memory: what the kernel did, not what was asked of it.
    Activity,
}

impl<'a> Event<'a> {
    /// The event called `name` with the fields `text`.
    ///
    /// # Errors
    /// [`FieldFault`] if an event that is replayed lacks a field or has one with an impossible value.
    #[inline]
    pub fn parse(name: &[u8], text: &'a [u8]) -> Result<Self, FieldFault> {
        let mut f = Fields::new(text);
        let f = &mut f;
        Ok(match name {
            b"kmalloc" => Self::Kmalloc {
                call_site: f.get("call_site")?,
                ptr: f.hex("ptr")?,
                bytes_req: f.dec("bytes_req", u64::MAX)?,
                bytes_alloc: f.dec("bytes_alloc", u64::MAX)?,
                gfp: f.get("gfp_flags")?,
                node: f.signed("node").unwrap_or(-1),
            },
            b"kmem_cache_alloc" => Self::CacheAlloc {
                call_site: f.get("call_site")?,
                ptr: f.hex("ptr")?,
                name: f.get("name")?,
                bytes_req: f.dec("bytes_req", MAX_OBJECT)?,
                bytes_alloc: f.dec("bytes_alloc", 2 * MAX_OBJECT)?,
                gfp: f.get("gfp_flags")?,
                node: f.signed("node").unwrap_or(-1),
            },
            b"kmem_cache_free" => Self::CacheFree { ptr: f.hex("ptr")?, name: f.get("name")? },
            b"kfree" => Self::Kfree { ptr: f.hex("ptr")? },
            b"mm_page_alloc" => Self::PageAlloc {
                pfn: pfn(f, "pfn")?,
                order: order(f)?,
                migratetype: migratetype(f)?,
                gfp: f.get("gfp_flags")?,
            },
            b"mm_page_free" => Self::PageFree { pfn: pfn(f, "pfn")?, order: order(f)? },
            b"mm_page_free_batched" => Self::PageFreeBatched,
            b"kvfree_rcu" => Self::KvfreeRcu { ptr: f.hex("ptr")? },
            _ => return Self::parse_rare(name, text),
        })
    }

    fn parse_rare(name: &[u8], text: &'a [u8]) -> Result<Self, FieldFault> {
        let mut f = Fields::new(text);
        let f = &mut f;
        Ok(match name {
            b"slab_new" => Self::SlabNew { name: f.get("name")?, pfn: pfn(f, "pfn")?, order: order(f)? },
            b"slab_free" => Self::SlabFree { pfn: pfn(f, "pfn")?, order: order(f)? },
            b"cache_free_bulk" => Self::CacheFreeBulk {
                name: f.get("name")?,
                nr: f.dec("nr", u64::from(u32::MAX))?,
                ptrs: f.get("ptrs")?,
            },
            b"cache_alloc_bulk" => Self::CacheAllocBulk {
                call_site: f.get("call_site")?,
                name: f.get("name")?,
                bytes_req: f.dec("bytes_req", MAX_OBJECT)?,
                bytes_alloc: f.dec("bytes_alloc", 2 * MAX_OBJECT)?,
                gfp: f.get("gfp_flags")?,
                nr: f.dec("nr", u64::from(u32::MAX))?,
                ok: f.dec("ok", u64::MAX)? != 0,
                ptrs: f.get("ptrs")?,
            },
            b"page_alloc_bulk" => Self::PageAllocBulk {
                got: f.dec("got", u64::from(u32::MAX))?,
                migratetype: migratetype(f)?,
                gfp: f.get("gfp_flags")?,
                pfns: f.get("pfns")?,
            },
            b"migrate_dst" => Self::MigrateDst { dst: pfn(f, "dst")?, order: order(f)? },
            b"mm_page_alloc_extfrag" => Self::PageAllocExtfrag,
            b"tracing_mark_write" | b"print" => Self::Mark { text: text.trim_ascii() },
            b"alloc_vmap_area" => Self::AreaAlloc {
                start: f.dec_after_colon("va_start")?,
                size: f.dec("size", MAX_AREA)?,
                align: f.dec("align", MAX_AREA)?,
                failed: f.dec("failed", u64::MAX)? != 0,
            },
            b"free_vmap_area_noflush" => Self::AreaFree {
                start: f.hex("va_start")?,
                lazy_pages: f.dec("nr_lazy", MAX_PFN)?,
                lazy_limit: f.dec("nr_lazy_max", MAX_PFN)?,
            },
            b"purge_vmap_area_lazy" => Self::AreaPurge { purged: f.dec("num_purged", u64::from(u32::MAX))? },
            b"cma_alloc_start"
            | b"cma_alloc_finish"
            | b"cma_alloc_busy_retry"
            | b"cma_release"
            | b"zs_malloc"
            | b"zs_free" => Self::Other(Known::OtherAllocator),
            b"mm_shrink_slab_start"
            | b"mm_shrink_slab_end"
            | b"mm_vmscan_direct_reclaim_begin"
            | b"mm_vmscan_direct_reclaim_end"
            | b"mm_vmscan_kswapd_wake"
            | b"mm_vmscan_kswapd_sleep"
            | b"mm_compaction_begin"
            | b"mm_compaction_end"
            | b"mm_migrate_pages"
            | b"mark_victim" => Self::Other(Known::Activity),
            _ => Self::Unknown,
        })
    }
}

#[inline]
fn pfn(f: &mut Fields<'_>, key: &'static str) -> Result<u64, FieldFault> {
    Some(f.hex(key)?).filter(|pfn| *pfn < MAX_PFN).ok_or(FieldFault::Value(key))
}

#[inline]
fn order(f: &mut Fields<'_>) -> Result<u8, FieldFault> {
    Ok(f.dec("order", MAX_ORDER)? as u8)
}

#[inline]
fn migratetype(f: &mut Fields<'_>) -> Result<u8, FieldFault> {
    let value = f.signed("migratetype")?;
    // -1 stands for "not told" in some recorders; it is replayed as unmovable.
    Ok(u8::try_from(value.max(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_typed_fields() {
        let e = Event::parse(
            b"mm_page_alloc",
            b"page=ffffea0000149380 pfn=0x524e order=3 migratetype=1 gfp_flags=GFP_KERNEL|__GFP_COMP",
        );
        assert_eq!(e, Ok(Event::PageAlloc { pfn: 0x524e, order: 3, migratetype: 1, gfp: b"GFP_KERNEL|__GFP_COMP" }));
        let e =
            Event::parse(b"slab_new", b"name=kmalloc-2k pfn=0x5598 order=2 objects=8 bytes_req=2048 bytes_alloc=2048");
        assert_eq!(e, Ok(Event::SlabNew { name: b"kmalloc-2k", pfn: 0x5598, order: 2 }));
        assert_eq!(
            Event::parse(b"cache_free_bulk", b"name=x nr=0 ptrs="),
            Ok(Event::CacheFreeBulk { name: b"x", nr: 0, ptrs: b"" })
        );
    }

    #[test]
    fn impossible_fields_are_named() {
        assert_eq!(Event::parse(b"kfree", b"call_site=a"), Err(FieldFault::Missing("ptr")));
        assert_eq!(Event::parse(b"mm_page_free", b"page=1 pfn=0x1 order=64"), Err(FieldFault::Value("order")));
        assert_eq!(Event::parse(b"mm_page_free", b"page=1 pfn=0x10000000000 order=0"), Err(FieldFault::Value("pfn")));
        assert_eq!(Event::parse(b"kmalloc", b"call_site=a ptr=xyz"), Err(FieldFault::Value("ptr")));
        let area = b"va_start: -1 size=8192 align=1 vstart=0x0 vend=0x1 failed=0";
        assert_eq!(Event::parse(b"alloc_vmap_area", area), Err(FieldFault::Value("va_start")));
        assert_eq!(Event::parse(b"alloc_vmap_area", b"va_start=0x1"), Err(FieldFault::Missing("va_start")));
    }

    #[test]
    fn areas_are_read_though_one_address_is_decimal() {
        let area = b"va_start: 18446683600570044416 size=8192 align=4096 vstart=0xffffc90000000000 vend=0x1 failed=0";
        let start = 0xffff_c900_0000_5000;
        let alloc = Event::AreaAlloc { start, size: 8192, align: 4096, failed: false };
        assert_eq!(Event::parse(b"alloc_vmap_area", area), Ok(alloc));
        let free = b"va_start=0xffffc90000005000 nr_lazy=10 nr_lazy_max=8192";
        let lazy = Event::AreaFree { start, lazy_pages: 10, lazy_limit: 8192 };
        assert_eq!(Event::parse(b"free_vmap_area_noflush", free), Ok(lazy));
        let purge = b"start=0xffffffffffffffff end=0x0 num_purged=0";
        assert_eq!(Event::parse(b"purge_vmap_area_lazy", purge), Ok(Event::AreaPurge { purged: 0 }));
    }

    #[test]
    fn strangers_and_acquaintances_are_told_apart() {
        assert_eq!(Event::parse(b"sched_switch", b"prev_comm=a"), Ok(Event::Unknown));
        assert_eq!(Event::parse(b"zs_free", b"pool=a handle=b"), Ok(Event::Other(Known::OtherAllocator)));
        assert_eq!(Event::parse(b"mark_victim", b"pid=1"), Ok(Event::Other(Known::Activity)));
    }
}
