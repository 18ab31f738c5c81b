//! Size classes: which sizes small allocations are rounded to, and how many share a slab.
//!
//! ```text
//! 16 32 48 .. 128 | 160 192 224 256 | .. | 2560 3072 3584 | 4096 8192 12288 .. 32768
//!   steps of 16   |          four steps to the double     |   whole pages
//! ```
//!
//! # Invariants
//!
//! 1. A class's size is a multiple of 16, and of a page from 4 KiB up: what is allocated is aligned
//!    by its size alone, since a slab begins at a page.
//! 2. A slab holds at least 8 objects, so that less than an eighth of it is left over; small ones
//!    hold more, so that slabs are made and given back seldom.
//! 3. The number of a class is below their count: here alone classes are made, of what is in the
//!    table of them, or counted.

use dmce_abi::limits::PAGE_BYTES;

/// The largest size of a class; more takes pages of its own.
pub(crate) const OBJECT_BYTES_MAX: u64 = 32 << 10;

/// How many classes there are.
pub(crate) const CLASSES: usize = SIZES.len();

const SIZES: [u32; 35] = [
    16, 32, 48, 64, 80, 96, 112, 128, // steps of 16
    160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, // four steps to the double
    1280, 1536, 1792, 2048, 2560, 3072, 3584, //
    4096, 8192, 12288, 16384, 20480, 24576, 28672, 32768, // pages
];

const SLAB_BYTES_MIN: u32 = 16 << 10;
const OBJECTS_MIN: u32 = 8;
/// So many objects a slab has where they fit into so many bytes.
const OBJECTS_WANTED: u32 = 32;
const SLAB_BYTES_WANTED: u32 = 64 << 10;
const STEP: u32 = 16;

const STEPS: usize = 2048 + 1;
const _: () = assert!((STEPS as u64 - 1) * STEP as u64 == OBJECT_BYTES_MAX);

/// The class of each number of 16-byte steps.
static BY_STEPS: [u8; STEPS] = classes_by_steps();

/// One size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class(u8);

impl Class {
    /// Every class, by rising size.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..).take(CLASSES).map(Self)
    }

    /// The smallest class that holds `bytes`, at a multiple of 16 and from 4 KiB up of 4 KiB.
    /// `None` for 0 and for too many.
    #[inline]
    pub(crate) fn natural(bytes: u64) -> Option<Self> {
        // 0 wraps and is too large as well.
        if bytes.wrapping_sub(1) >= OBJECT_BYTES_MAX {
            return None;
        }
        let steps = usize::try_from(bytes.div_ceil(STEP.into())).ok()?;
        BY_STEPS.get(steps).copied().map(Self)
    }

    /// The smallest class that holds `bytes` at a multiple of `align`; `None` if pages have to.
    pub(crate) fn of(bytes: u64, align: u64) -> Option<Self> {
        if bytes > OBJECT_BYTES_MAX || align > PAGE_BYTES {
            return None;
        }
        let steps = usize::try_from(bytes.div_ceil(STEP.into())).ok()?;
        let smallest = usize::from(*BY_STEPS.get(steps)?);
        let fits = |&class: &usize| u64::from(SIZES[class]).is_multiple_of(align);
        let class = (smallest..CLASSES).find(fits)?;
        u8::try_from(class).ok().map(Self)
    }

    /// Its place among all classes.
    pub(crate) const fn index(self) -> usize {
        // SAFETY: invariant 3.
        unsafe { std::hint::assert_unchecked((self.0 as usize) < CLASSES) };
        self.0 as usize
    }

    /// Bytes of one object.
    pub(crate) const fn object_bytes(self) -> u32 {
        SIZES[self.index()]
    }

    /// Pages of one slab.
    pub(crate) const fn slab_pages(self) -> u32 {
        let least = max(SLAB_BYTES_MIN, self.object_bytes() * OBJECTS_MIN);
        let wanted = self.object_bytes() * OBJECTS_WANTED;
        let bytes = max(least, if wanted < SLAB_BYTES_WANTED { wanted } else { SLAB_BYTES_WANTED });
        #[expect(clippy::cast_possible_truncation, reason = "a page is 4 KiB")]
        bytes.div_ceil(PAGE_BYTES as u32)
    }

    /// Bytes of one slab.
    pub(crate) const fn slab_bytes(self) -> u64 {
        self.slab_pages() as u64 * PAGE_BYTES
    }

    /// Objects of one slab.
    pub(crate) const fn objects(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a slab is less than 1 MiB")]
        let bytes = self.slab_pages() * PAGE_BYTES as u32;
        bytes / self.object_bytes()
    }

    /// Finds the object of a byte of a slab.
    pub(crate) const fn divider(self) -> Divider {
        let bytes = self.object_bytes();
        Divider { bytes, factor: (1 << FACTOR_BITS) / bytes as u64 + 1 }
    }
}

/// Divides an offset in a slab by the size of its objects: a product and a shift.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Divider {
    /// Bytes of one object.
    pub bytes: u32,
    factor: u64,
}

/// Enough for each offset in each class's slab, as the tests try.
const FACTOR_BITS: u32 = 36;

impl Divider {
    /// The object that begins so far behind the start of the slab, if one does: else any number.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "else it may be any number")]
    pub(crate) const fn guess(self, offset: u64) -> usize {
        (offset.wrapping_mul(self.factor) >> FACTOR_BITS) as usize
    }

    /// The object that a byte of the slab is in, or the rest behind the last, and whether it is
    /// the object's first byte.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "a slab has fewer than 2^16 objects")]
    pub(crate) const fn object_at(self, offset: u32) -> (u16, bool) {
        let index = ((offset as u64 * self.factor) >> FACTOR_BITS) as u32;
        (index as u16, index.wrapping_mul(self.bytes) == offset)
    }
}

const fn max(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

const fn classes_by_steps() -> [u8; STEPS] {
    let mut table = [0; STEPS];
    let (mut steps, mut class) = (0, 0_u8);
    while steps < table.len() {
        while (SIZES[class as usize] as usize) < steps * (STEP as usize) {
            class += 1;
        }
        table[steps] = class;
        steps += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for bytes in 1..=OBJECT_BYTES_MAX {
            let class = Class::of(bytes, 16).unwrap();
            assert!(u64::from(class.object_bytes()) >= bytes);
            assert_eq!(Class::natural(bytes), Some(class));
            assert!(bytes < 4096 || class.object_bytes().is_multiple_of(4096));
            if class.index() > 0 {
                assert!(u64::from(SIZES[class.index() - 1]) < bytes);
            }
        }
        for bytes in [0, OBJECT_BYTES_MAX + 1, u64::MAX] {
            assert_eq!(Class::natural(bytes), None);
        }
        assert_eq!(Class::of(OBJECT_BYTES_MAX + 1, 16), None);
        assert_eq!(Class::all().count(), CLASSES);
    }

    #[test]
    fn sizes_align_themselves() {
        for class in Class::all() {
            let unit = if class.object_bytes() >= 4096 { 4096 } else { 16 };
            assert!(class.object_bytes().is_multiple_of(unit));
        }
        for align in [32, 64, 256, 512, 1024, 4096] {
            for bytes in [1, 100, 1000, 5000, OBJECT_BYTES_MAX] {
                let class = Class::of(bytes, align).unwrap();
                assert!(u64::from(class.object_bytes()).is_multiple_of(align));
            }
        }
        assert_eq!(Class::of(64, 8192), None);
    }

    #[test]
    fn every_byte_of_a_slab_is_of_the_object_that_division_finds() {
        for class in Class::all() {
            let (divider, bytes) = (class.divider(), class.object_bytes());
            // Differences of their numbers are signed.
            assert!(class.objects() < i16::MAX.unsigned_abs().into());
            for offset in 0..class.objects() * bytes {
                let (index, begins) = divider.object_at(offset);
                assert_eq!(u32::from(index), offset / bytes, "{offset} of {bytes}");
                assert_eq!(begins, offset.is_multiple_of(bytes));
                assert!(!begins || divider.guess(offset.into()) == usize::from(index));
            }
        }
    }

    #[test]
    fn little_of_a_slab_is_left_over() {
        for class in Class::all() {
            let bytes = class.slab_pages() * 4096;
            let left = bytes - class.objects() * class.object_bytes();
            assert!(class.objects() >= OBJECTS_MIN);
            assert!(left * 8 < bytes, "{left} of {bytes} for {}", class.object_bytes());
        }
    }
}
