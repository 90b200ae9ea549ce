//! Lookup tables of a program: slots, objects by address, numbers by page frame.

use super::Ref;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes one 64-bit key by a multiplication; addresses are no adversaries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b) ^ self.0);
        }
    }

    #[inline]
    fn write_u64(&mut self, key: u64) {
        let wide = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }
}

/// A map from 64-bit keys.
pub(crate) type KeyMap<V> = HashMap<u64, V, BuildHasherDefault<KeyHasher>>;

/// Slots that are in use, and their turns.
///
/// # Invariants
/// A slot in `free` is in use by nobody; its `turns` entry is that of its next use.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    turns: Vec<u32>,
    free: VecDeque<u32>,
}

impl Slots {
    /// A slot for a new object or block. The slot that has been free for longest is taken, so that threads of a parallel
    /// replay seldom wait for each other over a slot.
    pub(crate) fn take(&mut self, seen: bool) -> Ref {
        let slot = self.free.pop_front().unwrap_or_else(|| {
            self.turns.push(0);
            (self.turns.len() - 1) as u32
        });
        Ref { slot, turn: self.turns.get(slot as usize).copied().unwrap_or(0), seen }
    }

    /// The last operation on this use of the slot has been written.
    pub(crate) fn retire(&mut self, used: Ref) {
        if let Some(turn) = self.turns.get_mut(used.slot as usize) {
            *turn = used.turn.wrapping_add(2);
            self.free.push_back(used.slot);
        }
    }

    /// The allocation of this use has been withdrawn: the turn is not used up.
    pub(crate) fn withdraw(&mut self, used: Ref) {
        self.free.push_front(used.slot);
    }
}

const CHUNK: u64 = 512;
const DENSE_CHUNKS: u64 = 1 << 16;

/// Numbers by page frame; 0 is "none". Any frame number is possible; the first 128 GiB are found without hashing.
#[derive(Debug, Default)]
pub(crate) struct FrameMap {
    dense: Vec<Option<Box<[u32; CHUNK as usize]>>>,
    sparse: KeyMap<Box<[u32; CHUNK as usize]>>,
}

impl FrameMap {
    #[inline]
    pub(crate) fn get(&self, pfn: u64) -> u32 {
        let (chunk, at) = (pfn / CHUNK, (pfn % CHUNK) as usize);
        let found = if chunk < DENSE_CHUNKS {
            self.dense.get(chunk as usize).and_then(Option::as_ref)
        } else {
            self.sparse.get(&chunk)
        };
        found.and_then(|c| c.get(at)).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, pfn: u64, value: u32) {
        let (chunk, at) = (pfn / CHUNK, (pfn % CHUNK) as usize);
        let new = || Box::new([0; CHUNK as usize]);
        let entries = if chunk < DENSE_CHUNKS {
            if self.dense.len() <= chunk as usize {
                if value == 0 {
                    return;
                }
                self.dense.resize_with(chunk as usize + 1, || None);
            }
            self.dense.get_mut(chunk as usize).map(|c| c.get_or_insert_with(new))
        } else {
            Some(self.sparse.entry(chunk).or_insert_with(new))
        };
        if let Some(entry) = entries.and_then(|c| c.get_mut(at)) {
            *entry = value;
        }
    }

    pub(crate) fn set_range(&mut self, pfn: u64, count: u64, value: u32) {
        for p in pfn..pfn.saturating_add(count) {
            self.set(p, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_reused_with_another_turn() {
        let mut s = Slots::default();
        let (a, b) = (s.take(false), s.take(true));
        assert_ne!(a.slot, b.slot);
        s.retire(a);
        let c = s.take(false);
        assert_eq!((c.slot, c.turn), (a.slot, 2));
        s.withdraw(c);
        assert_eq!(s.take(false).turn, 2);
    }

    #[test]
    fn frames_far_apart_have_entries() {
        let mut m = FrameMap::default();
        for pfn in [0, 511, 512, 1 << 20, 1 << 40, u64::MAX] {
            assert_eq!(m.get(pfn), 0);
            m.set(pfn, 7);
            assert_eq!(m.get(pfn), 7);
            m.set(pfn, 0);
        }
        m.set_range(510, 4, 3);
        assert_eq!([509, 510, 513, 514].map(|p| m.get(p)), [0, 3, 3, 0]);
    }
}
