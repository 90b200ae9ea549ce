//! Snapshots of Linux's own views, taken when a trace ended: `/proc/slabinfo` and `/proc/buddyinfo`.

use crate::target::ZoneFree;
use std::collections::BTreeMap;
use std::path::Path;

/// One line of `/proc/slabinfo`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SlabLine {
    /// Objects in use or parked.
    pub active: u64,
    /// Pages of all its slabs.
    pub pages: u64,
}

/// What Linux said at the end of a trace. Whatever is not known is empty.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    /// Caches by name.
    pub slabinfo: BTreeMap<String, SlabLine>,
    /// Free blocks.
    pub free_blocks: Vec<ZoneFree>,
}

impl Snapshots {
    /// Reads the texts of `end-slabinfo.txt` and `end-buddyinfo.txt`; lines that are not understood are left out.
    #[must_use]
    pub fn parse(slabinfo: &str, buddyinfo: &str) -> Self {
        Self {
            slabinfo: slabinfo.lines().filter_map(slab_line).collect(),
            free_blocks: buddyinfo.lines().filter_map(buddy_line).collect(),
        }
    }

    /// The snapshots in a folder; those that are missing are empty.
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        Self::parse(&text("end-slabinfo.txt"), &text("end-buddyinfo.txt"))
    }

    /// Pages of all slabs, if known.
    #[must_use]
    pub fn slab_pages(&self) -> Option<u64> {
        (!self.slabinfo.is_empty()).then(|| self.slabinfo.values().map(|s| s.pages).sum())
    }
}

/// `name active num objsize objperslab pagesperslab : tunables a b c : slabdata active_slabs num_slabs shared`
fn slab_line(line: &str) -> Option<(String, SlabLine)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let name = words.first().filter(|w| !w.starts_with('#') && **w != "slabinfo")?;
    let (active, per_slab, slabs) = (number(1)?, number(5)?, number(14)?);
    Some(((*name).into(), SlabLine { active, pages: per_slab * slabs }))
}

/// `Node 0, zone   Normal    216     55 ...`
fn buddy_line(line: &str) -> Option<ZoneFree> {
    let mut words = line.split_whitespace();
    let node = words.nth(1)?.trim_end_matches(',').parse().ok()?;
    let zone = words.nth(1)?.to_owned();
    let blocks: Vec<u64> = words.map_while(|w| w.parse().ok()).collect();
    (!blocks.is_empty()).then_some(ZoneFree { node, zone, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_views_are_read() {
        let slabinfo = "slabinfo - version: 2.1\n# name            <active_objs> ...\ndentry             40560  40572    192   21    1 : tunables    0    0    0 : slabdata   1932   1932      0\n";
        let buddyinfo =
            "Node 0, zone      DMA      0      0      1 \nNode 1, zone    DMA32      2      2      9 \nrubbish\n";
        let s = Snapshots::parse(slabinfo, buddyinfo);
        assert_eq!(s.slabinfo.get("dentry"), Some(&SlabLine { active: 40560, pages: 1932 }));
        assert_eq!(s.slab_pages(), Some(1932));
        let zones: Vec<_> = s.free_blocks.iter().map(|z| (z.node, z.zone.as_str(), z.blocks.clone())).collect();
        assert_eq!(zones, [(0, "DMA", vec![0, 0, 1]), (1, "DMA32", vec![2, 2, 9])]);
        assert_eq!(Snapshots::read(Path::new("/nonexistent")).slab_pages(), None);
    }
}
