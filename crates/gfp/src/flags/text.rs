//! The text form of [`Gfp`]: `GFP_KERNEL|__GFP_ZERO`, as the kernel's traces and failure reports print it.
//!
//! Printing walks [`NAMES`] from the top: each entry whose bits are all still unprinted is named and removed; bits
//! without a name follow in hexadecimal, and no bits at all print as `none`. Parsing accepts every name in any order,
//! so printing and parsing are inverse to each other and a line of a trace survives the round trip unchanged.

use core::{fmt, str::FromStr};

use super::Gfp;

/// Names in the order in which a mask is taken apart: composites from the widest to the narrowest, then single bits.
const NAMES: &[(&str, Gfp)] = &[
    ("GFP_TRANSHUGE", Gfp::TRANSHUGE),
    ("GFP_TRANSHUGE_LIGHT", Gfp::TRANSHUGE_LIGHT),
    ("GFP_HIGHUSER_MOVABLE", Gfp::HIGHUSER_MOVABLE),
    ("GFP_HIGHUSER", Gfp::HIGHUSER),
    ("GFP_USER", Gfp::USER),
    ("GFP_KERNEL_ACCOUNT", Gfp::KERNEL_ACCOUNT),
    ("GFP_KERNEL", Gfp::KERNEL),
    ("GFP_NOFS", Gfp::NOFS),
    ("GFP_ATOMIC", Gfp::ATOMIC),
    ("GFP_NOIO", Gfp::NOIO),
    ("GFP_NOWAIT", Gfp::NOWAIT),
    ("GFP_DMA", Gfp::DMA),
    ("GFP_DMA32", Gfp::DMA32),
    ("__GFP_RECLAIM", Gfp::RECLAIM),
    ("__GFP_DMA", Gfp::DMA),
    ("__GFP_HIGHMEM", Gfp::HIGHMEM),
    ("__GFP_DMA32", Gfp::DMA32),
    ("__GFP_MOVABLE", Gfp::MOVABLE),
    ("__GFP_RECLAIMABLE", Gfp::RECLAIMABLE),
    ("__GFP_HIGH", Gfp::HIGH),
    ("__GFP_IO", Gfp::IO),
    ("__GFP_FS", Gfp::FS),
    ("__GFP_ZERO", Gfp::ZERO),
    ("__GFP_DIRECT_RECLAIM", Gfp::DIRECT_RECLAIM),
    ("__GFP_KSWAPD_RECLAIM", Gfp::KSWAPD_RECLAIM),
    ("__GFP_WRITE", Gfp::WRITE),
    ("__GFP_NOWARN", Gfp::NOWARN),
    ("__GFP_RETRY_MAYFAIL", Gfp::RETRY_MAYFAIL),
    ("__GFP_NOFAIL", Gfp::NOFAIL),
    ("__GFP_NORETRY", Gfp::NORETRY),
    ("__GFP_MEMALLOC", Gfp::MEMALLOC),
    ("__GFP_COMP", Gfp::COMP),
    ("__GFP_NOMEMALLOC", Gfp::NOMEMALLOC),
    ("__GFP_HARDWALL", Gfp::HARDWALL),
    ("__GFP_THISNODE", Gfp::THISNODE),
    ("__GFP_ACCOUNT", Gfp::ACCOUNT),
    ("__GFP_ZEROTAGS", Gfp::ZEROTAGS),
    ("__GFP_NO_OBJ_EXT", Gfp::NO_OBJ_EXT),
];

/// Names that a kernel with more facilities prints; they carry no bits here and are never printed.
const EMPTY_NAMES: &[&str] = &["__GFP_SKIP_ZERO", "__GFP_SKIP_KASAN", "__GFP_NOLOCKDEP"];

impl fmt::Display for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut left = *self;
        let mut separator = "";
        for &(name, bits) in NAMES {
            if left.contains(bits) {
                left = left.difference(bits);
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if !left.is_empty() {
            write!(f, "{separator}{:#x}", left.bits())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfp({:#x}: {self})", self.bits())
    }
}

/// Why a text is no [`Gfp`]. Positions are byte offsets into the parsed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseGfpError {
    /// Nothing stands where a name should, at the start, at the end or between two bars.
    #[error("a flag name is missing at byte {at}")]
    MissingName {
        /// Where the name should be.
        at: usize,
    },
    /// The `len` bytes from `at` name no flag.
    #[error("bytes {at}..{} name no GFP flag", at + len)]
    UnknownName {
        /// Where the unknown name begins.
        at: usize,
        /// How many bytes it has.
        len: usize,
    },
    /// The hexadecimal number at `at` is malformed or wider than 32 bits.
    #[error("the number at byte {at} is no 32-bit hexadecimal mask")]
    BadNumber {
        /// Where the number begins.
        at: usize,
    },
}

impl FromStr for Gfp {
    type Err = ParseGfpError;

    /// Reads names joined by `|`, in any order, blanks around a name allowed; `0x...` for raw bits; `none` for no flag.
    ///
    /// # Errors
    ///
    /// [`ParseGfpError`] says where the text stops making sense.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "none" {
            return Ok(Self::empty());
        }
        let mut gfp = Self::empty();
        let mut offset = 0;
        for token in text.split('|') {
            let name = token.trim();
            let at = offset + (token.len() - token.trim_start().len());
            gfp = gfp.union(parse_token(name, at)?);
            offset += token.len() + 1;
        }
        Ok(gfp)
    }
}

fn parse_token(name: &str, at: usize) -> Result<Gfp, ParseGfpError> {
    if name.is_empty() {
        return Err(ParseGfpError::MissingName { at });
    }
    if let Some(digits) = name.strip_prefix("0x") {
        return match u32::from_str_radix(digits, 16) {
            Ok(bits) if !digits.starts_with('+') => Ok(Gfp::from_bits_retain(bits)),
            _ => Err(ParseGfpError::BadNumber { at }),
        };
    }
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some(&(_, bits)) => Ok(bits),
        None if EMPTY_NAMES.contains(&name) => Ok(Gfp::empty()),
        None => Err(ParseGfpError::UnknownName { at, len: name.len() }),
    }
}
