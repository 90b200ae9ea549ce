//! The disk image that the kernel reads and writes: made of numbers, so that both sides know what belongs in it.
//!
//! ```text
//! sectors 0 .. 4096       word i is mix(i)            the kernel checks
//! sectors 4096 .. 8192    zero                        the kernel writes mix(i ^ WRITTEN), the host checks
//! ```

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};

const SECTOR_WORDS: usize = 64;
const SECTORS: usize = 8192;
/// What the numbers are mixed with that the kernel writes.
const WRITTEN: u64 = 0x6b6d_656d;

/// Spreads a number over 64 bits (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// An image on the host.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Writes a new image.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let words = SECTORS * SECTOR_WORDS;
        let bytes: Vec<u8> =
            (0..words).flat_map(|i| if i < words / 2 { mix(i as u64) } else { 0 }.to_le_bytes()).collect();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many sectors the kernel has written; `None` if none.
    ///
    /// # Errors
    /// If a sector is neither as it was nor as the kernel should have written it.
    pub(crate) fn check(&self) -> anyhow::Result<Option<usize>> {
        let bytes = std::fs::read(&self.path)?;
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|chunk| u64::from_le_bytes(std::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0))))
            .collect();
        let mut written = 0;
        for (sector, content) in words.chunks_exact(SECTOR_WORDS).enumerate() {
            let numbers = (sector * SECTOR_WORDS) as u64..;
            let is =
                |expected: fn(u64) -> u64| content.iter().zip(numbers.clone()).all(|(word, i)| *word == expected(i));
            let lower = sector < SECTORS / 2;
            if lower && !is(mix) {
                bail!("sector {sector} of the disk has changed");
            }
            if !lower {
                if is(|i| mix(i ^ WRITTEN)) {
                    written += 1;
                } else if !is(|_| 0) {
                    bail!("sector {sector} of the disk holds something else than the kernel should have written");
                }
            }
        }
        Ok((written > 0).then_some(written))
    }
}

#[cfg(test)]
mod tests {
    use super::{Disk, SECTOR_WORDS, SECTORS, WRITTEN, mix};

    #[test]
    fn a_changed_sector_is_found() -> anyhow::Result<()> {
        let path = std::env::temp_dir().join(format!("kmem-disk-{}.img", std::process::id()));
        let disk = Disk::create(&path)?;
        assert_eq!(disk.check()?, None, "nothing written yet");
        let mut bytes = std::fs::read(&path)?;
        for i in SECTORS / 2 * SECTOR_WORDS..(SECTORS / 2 + 1) * SECTOR_WORDS {
            let word = mix(i as u64 ^ WRITTEN).to_le_bytes();
            bytes[i * 8..i * 8 + 8].copy_from_slice(&word);
        }
        std::fs::write(&path, &bytes)?;
        assert_eq!(disk.check()?, Some(1));
        bytes[77] ^= 1;
        std::fs::write(&path, &bytes)?;
        assert!(disk.check().is_err());
        std::fs::remove_file(&path)?;
        Ok(())
    }
}
