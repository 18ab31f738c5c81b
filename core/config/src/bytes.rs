//! Sizes as people write them: `4096`, `64MiB`, `3GiB`.
//!
//! # Invariants
//!
//! 1. What [`Bytes::exact`] prints parses back to the same number.
//! 2. What [`Display`](fmt::Display) prints has a decimal point exactly when it is rounded or is no
//!    whole number of its unit; so `3 GiB` is 3 GiB to the byte.

use core::fmt;
use core::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// Units from the largest to the smallest that has a prefix.
const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many KiB.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// So many GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size to the byte, as a configuration file takes it: `1536MiB`, `4097`.
    #[must_use]
    pub const fn exact(self) -> Exact {
        Exact(self)
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    /// Reads digits and a binary unit; a space between them is allowed, and no unit means bytes.
    fn from_str(text: &str) -> Result<Self, BytesError> {
        let error = || BytesError { text: text.to_owned() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let shift = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, shift)) => *shift,
            None if unit == "B" || text.len() == digits => 0,
            None => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(error)?;
        Ok(Self(bytes))
    }
}

/// Text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no size below 16384PiB: write bytes or a binary unit, as 4096, 64MiB or 3GiB")]
pub struct BytesError {
    text: String,
}

impl fmt::Display for Bytes {
    /// The short form for people: `512 B`, `3 GiB`, `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().rposition(|(_, shift)| tenths(self.0, *shift) < 10_240);
        let text = match whole {
            _ if self.0 < 1 << 10 => format!("{} B", self.0),
            Some(unit) => in_unit(self.0, UNITS[unit]),
            None => in_unit(self.0, UNITS[0]),
        };
        f.pad(&text)
    }
}

fn in_unit(bytes: u64, (name, shift): (&str, u32)) -> String {
    if bytes.trailing_zeros() >= shift {
        return format!("{} {name}", bytes >> shift);
    }
    let tenths = tenths(bytes, shift);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Tenths of the unit, rounded to the nearest.
fn tenths(bytes: u64, shift: u32) -> u128 {
    (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift
}

/// The exact form of a size; see [`Bytes::exact`].
#[derive(Clone, Copy, Debug)]
pub struct Exact(Bytes);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.0;
        let unit = UNITS.iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift);
        match unit {
            Some((name, shift)) if bytes != 0 => f.pad(&format!("{}{name}", bytes >> shift)),
            _ => f.pad(&format!("{bytes}")),
        }
    }
}

/// The exact form, which is read again.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.exact())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;

        impl Visitor<'_> for Size {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64MiB\" or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                let unsigned = u64::try_from(bytes);
                unsigned.map(Bytes).map_err(|_| E::custom(format_args!("{bytes} is no size")))
            }
        }

        deserializer.deserialize_any(Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_bytes_and_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4KiB", 4096),
            ("64MiB", 64 << 20),
            ("3 GiB", 3 << 30),
            ("2TiB", 2 << 40),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_could_be_taken_for_something_else() {
        let wrong = ["", "MiB", "64MB", "64M", "64mib", "1.5GiB", "-1", "+1", "1  GiB", "4096 "];
        for text in wrong.into_iter().chain(["16384PiB", "18446744073709551616"]) {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
        assert_eq!(
            "64MB".parse::<Bytes>().unwrap_err().to_string(),
            "\"64MB\" is no size below 16384PiB: write bytes or a binary unit, \
             as 4096, 64MiB or 3GiB"
        );
    }

    #[test]
    fn the_exact_form_reads_back() {
        let sizes = [0, 1, 1023, 1 << 10, 4097, 3 << 29, 3 << 30, 1 << 50, 1 << 63, u64::MAX];
        for bytes in sizes.map(Bytes) {
            assert_eq!(bytes.exact().to_string().parse(), Ok(bytes));
        }
        assert_eq!(Bytes(3 << 29).exact().to_string(), "1536MiB");
    }

    #[test]
    fn the_short_form_is_short_and_never_claims_more_than_it_knows() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 10, "1 KiB"),
            (3 << 29, "1.5 GiB"),
            (3 << 30, "3 GiB"),
            ((3 << 30) - 4096, "3.0 GiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (1000 << 10, "1000 KiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!(format!("[{:>8}]", Bytes::gib(3)), "[   3 GiB]");
    }
}
