//! `key=value key=value ...`: the fields of one event.
//!
//! Fields are asked for in the order in which the kernel prints them, so that one pass over the text finds them all; a field
//! that stands elsewhere is still found, by starting over.

use memchr::memchr;

/// A field that is missing, or has a value that it cannot have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FieldFault {
    /// The field is not there.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// The field is not a number of its kind, or beyond what the kernel can print.
    #[error("the field `{0}` has an impossible value")]
    Value(&'static str),
}

/// A cursor over the fields of one event.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields in `text`, which is what follows `event: `.
    #[must_use]
    pub const fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// The value of `key`, which ends at the next blank.
    ///
    /// # Errors
    /// [`FieldFault::Missing`].
    #[inline]
    pub fn get(&mut self, key: &'static str) -> Result<&'a [u8], FieldFault> {
        if let Some(value) = self.scan(key) {
            return Ok(value);
        }
        self.at = 0;
        self.scan(key).ok_or(FieldFault::Missing(key))
    }

    #[inline]
    fn scan(&mut self, key: &'static str) -> Option<&'a [u8]> {
        loop {
            let rest = self.text.get(self.at..)?;
            let skip = rest.iter().position(|&b| b != b' ')?;
            let rest = rest.get(skip..)?;
            let len = memchr(b' ', rest).unwrap_or(rest.len());
            let (token, _) = rest.split_at_checked(len)?;
            self.at += skip + len;
            if let Some(value) = token.strip_prefix(key.as_bytes()).and_then(|v| v.strip_prefix(b"=")) {
                return Some(value);
            }
        }
    }

    /// The hexadecimal number `key`, with or without `0x`.
    ///
    /// # Errors
    /// [`FieldFault`] if it is missing or no such number.
    #[inline]
    pub fn hex(&mut self, key: &'static str) -> Result<u64, FieldFault> {
        parse_hex(self.get(key)?).ok_or(FieldFault::Value(key))
    }

    /// The decimal number `key`, at most `max`.
    ///
    /// # Errors
    /// [`FieldFault`] if it is missing, no such number or greater than `max`.
    #[inline]
    pub fn dec(&mut self, key: &'static str, max: u64) -> Result<u64, FieldFault> {
        parse_dec(self.get(key)?).filter(|&n| n <= max).ok_or(FieldFault::Value(key))
    }

    /// The decimal number behind `key: `, as one of the kernel's events prints an address.
    ///
    /// # Errors
    /// [`FieldFault`] if it is missing or no such number.
    pub fn dec_after_colon(&mut self, key: &'static str) -> Result<u64, FieldFault> {
        let mut words = self.text.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let found = words.any(|word| word.strip_suffix(b":") == Some(key.as_bytes()));
        let value = words.next().filter(|_| found).ok_or(FieldFault::Missing(key))?;
        // Above 2^63, so longer than the numbers of other fields.
        std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(FieldFault::Value(key))
    }

    /// The signed decimal number `key`.
    ///
    /// # Errors
    /// [`FieldFault`] if it is missing or no such number.
    #[inline]
    pub fn signed(&mut self, key: &'static str) -> Result<i32, FieldFault> {
        let value = self.get(key)?;
        let (digits, sign) = value.strip_prefix(b"-").map_or((value, 1), |d| (d, -1));
        parse_dec(digits).and_then(|n| i32::try_from(n).ok()).map(|n| n * sign).ok_or(FieldFault::Value(key))
    }
}

#[inline]
pub(crate) fn parse_dec(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = b.wrapping_sub(b'0');
        (digit < 10).then(|| n * 10 + u64::from(digit))
    })
}

#[inline]
pub(crate) fn parse_hex(text: &[u8]) -> Option<u64> {
    let text = text.strip_prefix(b"0x").unwrap_or(text);
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            _ => return None,
        };
        Some(n << 4 | u64::from(digit))
    })
}

/// The numbers of `a,b,c`; an empty list has none.
///
/// # Errors
/// [`FieldFault::Value`] with `key` at the first that is no hexadecimal number.
pub fn hex_list<'a>(list: &'a [u8], key: &'static str) -> impl Iterator<Item = Result<u64, FieldFault>> + 'a {
    list.split(|&b| b == b',').filter(|t| !t.is_empty()).map(move |t| parse_hex(t).ok_or(FieldFault::Value(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_order_and_out_of_order() {
        let mut f = Fields::new(b"call_site=a+0x1/0x2 ptr=ffff888005227f80 bytes_req=64  node=-1");
        assert_eq!(f.hex("ptr"), Ok(0xffff_8880_0522_7f80));
        assert_eq!(f.signed("node"), Ok(-1));
        assert_eq!(f.dec("bytes_req", 100), Ok(64));
        assert_eq!(f.get("call_site"), Ok(&b"a+0x1/0x2"[..]));
        assert_eq!(f.get("order"), Err(FieldFault::Missing("order")));
        assert_eq!(f.dec("bytes_req", 63), Err(FieldFault::Value("bytes_req")));
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for bad in ["", "0x", "g", "12345678901234567", "-1"] {
            assert_eq!(parse_hex(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["", "a", "-1", "99999999999999999999"] {
            assert_eq!(parse_dec(bad.as_bytes()), None, "{bad}");
        }
        let list: Result<Vec<_>, _> = hex_list(b"0x10,ff,", "ptrs").collect();
        assert_eq!(list, Ok(vec![16, 255]));
        assert!(hex_list(b"10,zz", "ptrs").any(|n| n.is_err()));
    }
}
