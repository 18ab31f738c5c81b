//! Sizes as people write them: bytes, or binary units.
#![forbid(unsafe_code)]

/// Reads `4096`, `64KiB`, `64MiB`, `3GiB`, `1TiB`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];
    let text = text.trim();
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    digits.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bytes_and_binary_units() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse(" 64MiB "), Some(64 << 20));
        assert_eq!(parse("3 GiB"), Some(3 << 30));
        for text in ["", "MiB", "-1", "1.5GiB", "64MB", "20000000TiB", "1 2"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
