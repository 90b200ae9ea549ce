//! What `krealloc` is to do, decided from numbers alone.
//!
//! ```text
//! fits usable?  aligned as asked?  on the node asked for?
//!     yes            yes                 yes             Keep: the block stays, whatever smaller class would do
//!     otherwise                                          Move { copy: min(usable, new) }
//! ```

/// What the block is and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResizeRequest {
    /// Bytes that the block has for its user.
    pub(crate) usable_bytes: usize,
    /// Bytes that the user asked for when they are tracked, else [`usable_bytes`](Self::usable_bytes).
    pub(crate) kept_bytes: usize,
    /// Bytes asked for; not zero.
    pub(crate) new_bytes: usize,
    /// The block's address.
    pub(crate) address: usize,
    /// The alignment asked for, a power of two.
    pub(crate) align: usize,
    /// Whether the block lies on a node that the request accepts.
    pub(crate) node_fits: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// The block serves the new size as it is.
    Keep,
    /// A new block is needed; this many bytes go along.
    Move {
        /// How many bytes to copy.
        copy_bytes: usize,
    },
}

impl ResizeRequest {
    /// Decides.
    #[inline]
    pub(crate) const fn decide(&self) -> Resize {
        let aligned = self.address & self.align.wrapping_sub(1) == 0;
        if self.new_bytes <= self.usable_bytes && aligned && self.node_fits {
            return Resize::Keep;
        }
        let copy_bytes = if self.kept_bytes < self.new_bytes { self.kept_bytes } else { self.new_bytes };
        Resize::Move { copy_bytes }
    }
}
