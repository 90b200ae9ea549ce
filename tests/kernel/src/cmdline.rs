//! The command line: words of the form `name=value`.

use crate::late::Late;

/// The longest command line that is kept.
const LONGEST: usize = 512;

/// A copy of the loader's text.
#[derive(Debug)]
struct Text {
    bytes: [u8; LONGEST],
    len: usize,
}

static TEXT: Late<Text> = Late::new();

/// Keeps a copy of the loader's text.
pub(crate) fn keep(text: &[u8]) {
    let mut bytes = [0; LONGEST];
    let len = text.len().min(LONGEST);
    bytes[..len].copy_from_slice(&text[..len]);
    TEXT.set(Text { bytes, len });
}

fn words() -> impl Iterator<Item = &'static str> {
    let text = TEXT.get().map_or("", |text| core::str::from_utf8(&text.bytes[..text.len]).unwrap_or(""));
    text.split_ascii_whitespace()
}

/// The value of `name`, if it is given.
pub(crate) fn value(name: &str) -> Option<&'static str> {
    words().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The value of `name` as a number; decimal, or hexadecimal behind `0x`.
pub(crate) fn number(name: &str) -> Option<u64> {
    let value = value(name)?;
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// Whether the word stands there.
pub(crate) fn has(name: &str) -> bool {
    words().any(|word| word == name)
}
