//! The language of `slab_debug=`: blocks of option letters, each for all caches or for those named.

use crate::SlabFlags;

/// What one block of letters asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheDebug {
    /// The debug options.
    pub flags: SlabFlags,
    /// Letter `O`: leave out what makes objects larger, if that raises the smallest slab order.
    pub not_if_larger: bool,
}

/// A parsed option string.
///
/// ```
/// use kmem_slab::{DebugOptions, SlabFlags};
///
/// let options = DebugOptions::parse("-;FZ,dentry,kmalloc-*");
/// assert_eq!(options.for_cache("dentry", SlabFlags::empty()).flags.bits(), 0b11 << 9);
/// assert!(options.for_cache("inode_cache", SlabFlags::empty()).flags.is_empty());
/// ```
#[doc(alias = "slab_debug")]
#[derive(Clone, Copy, Debug)]
pub struct DebugOptions<'t> {
    text: &'t str,
}

impl<'t> DebugOptions<'t> {
    /// Takes the text; an empty one asks for nothing.
    pub const fn parse(text: &'t str) -> Self {
        Self { text }
    }

    /// Every letter that means nothing, in order.
    pub fn unknown_letters(&self) -> impl Iterator<Item = char> + use<'t> {
        let known = |letter: &char| "fzputao-".contains(letter.to_ascii_lowercase());
        let blocks = self.text.split(';').flat_map(|block| block.split(',').next());
        blocks.flat_map(str::chars).filter(move |letter| !known(letter))
    }

    /// The options of a cache: the first block that names it, else the last block without names. Caches with
    /// [`SlabFlags::NO_USER_FLAGS`] get none; those hidden from leak tracing do not store users by default.
    pub fn for_cache(&self, name: &str, flags: SlabFlags) -> CacheDebug {
        if flags.contains(SlabFlags::NO_USER_FLAGS) || self.text.is_empty() {
            return CacheDebug::default();
        }
        let mut global = CacheDebug::default();
        for block in self.text.split(';') {
            let mut parts = block.splitn(2, ',');
            let options = letters(parts.next().unwrap_or(""));
            match parts.next() {
                Some(names) if names.split(',').any(|pattern| matches(pattern, name)) => return options,
                Some(_) => {}
                None => global = options,
            }
        }
        if flags.contains(SlabFlags::NOLEAKTRACE) {
            global.flags -= SlabFlags::STORE_USER;
        }
        global
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((prefix, _)) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn letters(text: &str) -> CacheDebug {
    let mut options = CacheDebug::default();
    if text.is_empty() {
        options.flags = SlabFlags::DEBUG_DEFAULT;
    }
    for letter in text.chars() {
        match letter.to_ascii_lowercase() {
            'f' => options.flags |= SlabFlags::CONSISTENCY_CHECKS,
            'z' => options.flags |= SlabFlags::RED_ZONE,
            'p' => options.flags |= SlabFlags::POISON,
            'u' => options.flags |= SlabFlags::STORE_USER,
            't' => options.flags |= SlabFlags::TRACE,
            'a' => options.flags |= SlabFlags::FAILSLAB,
            'o' => options.not_if_larger = true,
            '-' => options.flags = SlabFlags::empty(),
            _ => {}
        }
    }
    options
}
