//! The object caches of a trace: their names, sizes and alignment.

use std::collections::HashMap;

/// Number of a cache in order of first mention.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// With what arguments a replay creates a cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheSpec {
    /// Its name.
    pub name: String,
    /// Bytes of an object.
    pub size: u32,
    /// Bytes from one object to the next in Linux.
    pub stride: u32,
    /// Alignment of an object, a power of two.
    pub align: u32,
    /// Objects are freed to other types only after a grace period.
    pub typesafe_by_rcu: bool,
    /// Slabs are counted and grouped as reclaimable.
    pub reclaimable: bool,
    /// Objects are constructed once, with their slab, so that a free object keeps its bytes.
    pub constructed: bool,
}

/// Facts about a cache that a trace does not tell.
#[derive(Clone, Copy, Debug)]
struct Facts {
    object_size: u32,
    slab_size: u32,
    align: u32,
    typesafe_by_rcu: bool,
    reclaimable: bool,
    constructed: bool,
}

/// All caches of a trace, and what is known of them from elsewhere.
#[derive(Debug, Default)]
pub struct CacheBook {
    ids: HashMap<Box<[u8]>, CacheId>,
    specs: Vec<CacheSpec>,
    facts: HashMap<String, Facts>,
}

impl CacheBook {
    /// A book that knows the caches of a `caches.tsv`, by name. Lines that it does not understand tell it nothing.
    #[must_use]
    pub fn with_facts(tsv: &str) -> Self {
        let mut lines = tsv.lines();
        let header: Vec<&str> = lines.next().unwrap_or("").split('\t').collect();
        let column = |name: &str| header.iter().position(|h| *h == name);
        let mut book = Self::default();
        for line in lines {
            let cells: Vec<&str> = line.split('\t').collect();
            let number = |name: &str| column(name).and_then(|c| cells.get(c)).and_then(|v| v.parse::<u32>().ok());
            let (Some(name), Some(object_size), Some(slab_size), Some(align)) =
                (cells.first(), number("object_size"), number("slab_size"), number("align"))
            else {
                continue;
            };
            let facts = Facts {
                object_size,
                slab_size,
                align,
                typesafe_by_rcu: number("destroy_by_rcu") == Some(1),
                reclaimable: number("reclaim_account") == Some(1),
                constructed: column("ctor").and_then(|c| cells.get(c)).is_some_and(|c| !c.is_empty()),
            };
            book.facts.insert((*name).into(), facts);
        }
        book
    }

    /// The cache called `name`, whose objects have `size` bytes and stand `stride` bytes apart; both 0 if not known here.
    pub fn id(&mut self, name: &[u8], size: u32, stride: u32) -> CacheId {
        if let Some(&id) = self.ids.get(name) {
            // A slab may be made before its first object tells the size.
            if let Some(spec) = self.specs.get_mut(id.0 as usize)
                && spec.size == 0
                && size != 0
            {
                *spec = Self::spec(&self.facts, name, size, stride);
            }
            return id;
        }
        let id = CacheId(self.specs.len() as u32);
        self.specs.push(Self::spec(&self.facts, name, size, stride));
        self.ids.insert(name.into(), id);
        id
    }

    fn spec(facts: &HashMap<String, Facts>, name: &[u8], size: u32, stride: u32) -> CacheSpec {
        let name = String::from_utf8_lossy(name).into_owned();
        let known = facts.get(&name).filter(|f| f.object_size == size && f.slab_size == stride);
        CacheSpec {
            size,
            stride: stride.max(size),
            align: known.map_or_else(|| align_of(size, stride), |f| f.align).max(8).next_power_of_two(),
            typesafe_by_rcu: known.is_some_and(|f| f.typesafe_by_rcu),
            reclaimable: known.is_some_and(|f| f.reclaimable),
            constructed: known.is_some_and(|f| f.constructed),
            name,
        }
    }

    /// What a replay creates for `id`.
    #[must_use]
    pub fn get(&self, id: CacheId) -> Option<&CacheSpec> {
        self.specs.get(id.0 as usize)
    }

    /// All caches, in order of first mention.
    #[must_use]
    pub fn all(&self) -> &[CacheSpec] {
        &self.specs
    }
}

/// The least alignment that explains why objects of `size` bytes stand `stride` bytes apart.
fn align_of(size: u32, stride: u32) -> u32 {
    (3..=12).map(|shift| 1u32 << shift).find(|a| size.checked_next_multiple_of(*a) == Some(stride)).unwrap_or(8)
}

/// Linux's name for the kmalloc cache of `size` bytes with these flags.
pub(crate) fn kmalloc_name(size: u64, gfp: crate::trace::TraceGfp) -> String {
    use crate::trace::TraceGfp as G;
    let family = if gfp.contains(G::DMA) {
        "dma-kmalloc-"
    } else if gfp.contains(G::RECLAIMABLE) {
        "kmalloc-rcl-"
    } else if gfp.contains(G::ACCOUNT) {
        "kmalloc-cg-"
    } else {
        "kmalloc-"
    };
    if size >= 1024 { format!("{family}{}k", size / 1024) } else { format!("{family}{size}") }
}

/// True for memory that Linux's allocator takes for itself: sheaves, extension vectors, and everything that belongs to
/// a cache's own description. An allocator that is replayed on has its own of these.
pub(crate) fn is_metadata(call_site: &[u8], cache: Option<&[u8]>) -> bool {
    const SITES: [&[u8]; 15] = [
        b"__pcs_replace_empty_main",
        b"__pcs_replace_full_main",
        b"__alloc_empty_sheaf",
        b"alloc_empty_sheaf",
        b"alloc_full_sheaf",
        b"__kfree_rcu_sheaf",
        b"kmem_cache_prefill_sheaf",
        b"refill_sheaf",
        b"init_percpu_sheaves",
        b"bootstrap_cache_sheaves",
        b"alloc_slab_obj_exts",
        b"init_kmem_cache_nodes",
        b"do_kmem_cache_create",
        b"__kmem_cache_create_args",
        b"create_cache",
    ];
    if matches!(cache, Some(b"kmem_cache" | b"kmem_cache_node")) {
        return true;
    }
    let end = memchr::memchr2(b'+', b' ', call_site).unwrap_or(call_site.len());
    let name = call_site.get(..end).unwrap_or(call_site);
    // The compiler's parts of a function count as the function.
    let name = name.split(|&b| b == b'.').next().unwrap_or(name);
    let name = name.strip_suffix(b"_noprof").unwrap_or(name);
    SITES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_read_from_the_stride() {
        for (size, stride, align) in
            [(184, 192, 16), (100, 104, 8), (192, 192, 8), (232, 256, 32), (112, 120, 8), (2136, 2176, 64)]
        {
            assert_eq!(align_of(size, stride), align, "{size} {stride}");
        }
        let mut book = CacheBook::default();
        let id = book.id(b"filp", 184, 192);
        assert_eq!(book.get(id).map(|s| s.align), Some(16));
    }

    #[test]
    fn facts_count_only_for_caches_of_the_same_sizes() {
        let tsv = "name\tobject_size\tslab_size\talign\treclaim_account\tdestroy_by_rcu\nj\t112\t120\t8\t1\t1\n";
        let mut book = CacheBook::with_facts(tsv);
        let slab = book.id(b"j", 0, 0);
        assert_eq!(book.id(b"j", 112, 120), slab);
        assert!(book.get(slab).is_some_and(|s| s.typesafe_by_rcu && s.reclaimable && s.stride == 120));
        let mut book = CacheBook::with_facts(tsv);
        let other = book.id(b"j", 100, 104);
        assert!(book.get(other).is_some_and(|s| !s.typesafe_by_rcu));
    }

    #[test]
    fn metadata_is_known_by_call_site_and_by_cache() {
        assert!(is_metadata(b"__pcs_replace_empty_main+0x1a/0x2b0", None));
        assert!(is_metadata(b"alloc_slab_obj_exts.isra.0+0x1/0x2", None));
        assert!(is_metadata(b"anything+0x1/0x2", Some(b"kmem_cache_node")));
        assert!(!is_metadata(b"load_elf_phdrs+0x4b/0xb0", Some(b"dentry")));
    }
}
