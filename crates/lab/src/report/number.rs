//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a binary unit, three or four digits.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.decimals$} {}", UNITS.get(unit).unwrap_or(&"B"))
}

/// A share as a percentage.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.*} %", if share > 0.0 && share < 0.05 { 2 } else { 1 }, share * 100.0)
}

/// One number as a share of another, or a dash.
pub(crate) fn ratio(a: u64, b: u64) -> String {
    if b == 0 { "–".into() } else { format!("{:.3}", a as f64 / b as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1023, 1024, 1536, 512 << 20, 5 << 40].map(bytes),
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "5 TiB"]
        );
        assert_eq!((percent(0.9512), ratio(1, 0), ratio(1, 4)), ("95.1 %".into(), "–".into(), "0.250".into()));
    }
}
