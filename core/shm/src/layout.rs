//! How a shared layout is written down: one table of fields, checked and hashed at compile time.
//!
//! [`layout!`] takes a type as `docs/shared-memory.md` shows it, offsets and all, and makes the
//! `repr(C)` type, its field table, and the assertions that hold the two together.
//!
//! # Invariants
//!
//! 1. Every field lies where its table says, and the fields leave no gap: no implicit padding.
//! 2. The fingerprint depends on offsets and sizes alone, so it is the same on 32 and 64 bits.

/// One row of a layout's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Bytes from the start of the type.
    pub offset: usize,
    /// Bytes of the field.
    pub bytes: usize,
}

// The fields are little-endian in the documents and native in the atomics.
const _: () = assert!(cfg!(target_endian = "little"), "the shared objects are little-endian");

/// The fingerprint of an object whose tables are `tables`, in the document's order (section 8).
pub(crate) const fn fingerprint(tables: &[&[Field]]) -> u32 {
    let mut hash = Fnv1a::new();
    let mut table = 0;
    while table < tables.len() {
        let fields = tables[table];
        let mut index = 0;
        while index < fields.len() {
            hash = hash.word(fields[index].offset).word(fields[index].bytes);
            index += 1;
        }
        table += 1;
    }
    hash.0
}

/// Whether the fields follow each other without a gap and end at `bytes`.
pub(crate) const fn is_dense(fields: &[Field], bytes: usize) -> bool {
    let mut end = 0;
    let mut index = 0;
    while index < fields.len() {
        if fields[index].offset != end {
            return false;
        }
        end += fields[index].bytes;
        index += 1;
    }
    end == bytes
}

/// The 32-bit FNV-1a hash.
struct Fnv1a(u32);

impl Fnv1a {
    const fn new() -> Self {
        Self(0x811c_9dc5)
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u32).wrapping_mul(0x0100_0193))
    }

    /// Takes a number as four little-endian bytes.
    const fn word(self, number: usize) -> Self {
        assert!(number as u64 <= u32::MAX as u64, "an offset or size beyond 32 bits");
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        let [a, b, c, d] = (number as u32).to_le_bytes();
        self.byte(a).byte(b).byte(c).byte(d)
    }
}

/// Defines a `repr(C)` type of a fixed size with every field at the offset written before it.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident, $bytes:literal bytes {
            $($(#[$field_meta:meta])* $offset:literal => $field_vis:vis $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type,)+
        }

        // loom's atomics are objects of the model, with sizes of their own.
        #[cfg(not(loom))]
        impl $name {
            /// The rows of the type's table.
            pub(crate) const FIELDS: &'static [$crate::layout::Field] = &[
                $($crate::layout::Field {
                    offset: ::core::mem::offset_of!($name, $field),
                    bytes: ::core::mem::size_of::<$type>(),
                },)+
            ];
        }

        #[cfg(not(loom))]
        const _: () = {
            $(assert!(::core::mem::offset_of!($name, $field) == $offset);)+
            assert!(::core::mem::size_of::<$name>() == $bytes);
            assert!($crate::layout::is_dense($name::FIELDS, $bytes));
        };
    };
}
pub(crate) use layout;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // The published test vectors of the 32-bit hash.
        assert_eq!(Fnv1a::new().0, 0x811c_9dc5);
        assert_eq!(Fnv1a::new().byte(b'a').0, 0xe40c_292c);
        let foobar = b"foobar".iter().fold(Fnv1a::new(), |hash, byte| hash.byte(*byte));
        assert_eq!(foobar.0, 0xbf9c_f968);
    }

    #[test]
    fn a_field_that_moves_or_grows_changes_the_fingerprint() {
        let fields = [Field { offset: 0, bytes: 4 }, Field { offset: 4, bytes: 4 }];
        let moved = [Field { offset: 0, bytes: 4 }, Field { offset: 8, bytes: 4 }];
        let grown = [Field { offset: 0, bytes: 4 }, Field { offset: 4, bytes: 8 }];
        assert_ne!(fingerprint(&[&fields]), fingerprint(&[&moved]));
        assert_ne!(fingerprint(&[&fields]), fingerprint(&[&grown]));
        assert_eq!(fingerprint(&[&fields]), fingerprint(&[&fields[..1], &fields[1..]]));
    }

    #[test]
    fn a_gap_an_overlap_and_a_short_table_are_not_dense() {
        let field = |offset, bytes| Field { offset, bytes };
        assert!(is_dense(&[field(0, 4), field(4, 8)], 12));
        assert!(!is_dense(&[field(0, 4), field(8, 4)], 12));
        assert!(!is_dense(&[field(0, 8), field(4, 8)], 12));
        assert!(!is_dense(&[field(0, 4)], 12));
    }
}
