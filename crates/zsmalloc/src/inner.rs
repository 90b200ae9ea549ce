//! The part of a [zspage's record](crate::zspage) that belongs to its owner's section: usable slots, list links, counts.
//!
//! ```text
//! avail  a bit for each free slot whose frames are there; stores take the lowest
//! ```

use crate::zspage::NONE;

/// The part of a record that belongs to its owner's section.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Inner {
    /// Free slots whose frames are there.
    pub(crate) avail: [u64; 2],
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// Slots with an owner.
    pub(crate) inuse: u8,
    /// Which list the zspage is on.
    pub(crate) list: u8,
    /// Frames that are there.
    pub(crate) nr_frames: u8,
}

impl Inner {
    pub(crate) const fn new(list: u8) -> Self {
        Self { avail: [0; 2], next: NONE, prev: NONE, inuse: 0, list, nr_frames: 0 }
    }

    /// Free slots whose frames are there, counted.
    #[inline(always)]
    pub(crate) fn nr_avail(&self) -> u32 {
        self.avail[0].count_ones() + self.avail[1].count_ones()
    }

    #[inline(always)]
    pub(crate) fn has_avail(&self) -> bool {
        self.avail[0] | self.avail[1] != 0
    }

    #[inline(always)]
    pub(crate) fn first_avail(&self) -> Option<usize> {
        if self.avail[0] != 0 {
            Some(self.avail[0].trailing_zeros() as usize)
        } else if self.avail[1] != 0 {
            Some(64 + self.avail[1].trailing_zeros() as usize)
        } else {
            None
        }
    }

    /// Takes the first usable slot into use.
    #[inline(always)]
    pub(crate) fn take_first(&mut self) -> Option<usize> {
        let [low, high] = &mut self.avail;
        let slot = if *low != 0 {
            let slot = low.trailing_zeros();
            *low &= *low - 1;
            slot
        } else if *high != 0 {
            let slot = high.trailing_zeros() + 64;
            *high &= *high - 1;
            slot
        } else {
            return None;
        };
        self.inuse = self.inuse.wrapping_add(1);
        Some(slot as usize)
    }

    #[inline(always)]
    pub(crate) fn is_avail(&self, slot: usize) -> bool {
        self.avail.get(slot >> 6).is_some_and(|word| word >> (slot & 63) & 1 != 0)
    }

    #[inline(always)]
    pub(crate) fn set_avail(&mut self, slot: usize) {
        // A slot's number has seven bits.
        self.avail[slot >> 6 & 1] |= 1 << (slot & 63);
    }

    /// The bits of a word of `avail` that stand for slots `start..end`.
    #[inline(always)]
    fn bits(word: usize, start: usize, end: usize) -> u64 {
        let below = |slot: usize| match slot.saturating_sub(64 * word) {
            nr @ 0..64 => (1_u64 << nr) - 1,
            _ => u64::MAX,
        };
        below(end) & !below(start)
    }

    #[inline(always)]
    pub(crate) fn set_range(&mut self, start: usize, end: usize) {
        for (index, word) in self.avail.iter_mut().enumerate() {
            *word |= Self::bits(index, start, end);
        }
    }

    #[inline(always)]
    pub(crate) fn clear_range(&mut self, start: usize, end: usize) {
        for (index, word) in self.avail.iter_mut().enumerate() {
            *word &= !Self::bits(index, start, end);
        }
    }

    /// A sum over all fields.
    pub(crate) fn sum(&self) -> u32 {
        let words = [
            self.avail[0],
            self.avail[1],
            u64::from(self.next) | u64::from(self.prev) << 32,
            u64::from(self.inuse) | u64::from(self.list) << 16 | u64::from(self.nr_frames) << 32,
        ];
        words.iter().fold(1, |sum, &word| crate::handle::mix(sum ^ word)) as u32
    }
}
