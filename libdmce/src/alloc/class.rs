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
//! 2. A slab holds at least 8 objects, so that less than an eighth of it is left over.

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
    #[cfg(test)]
    fn all() -> impl Iterator<Item = Self> {
        (0..).take(CLASSES).map(Self)
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
        self.0 as usize
    }

    /// Bytes of one object.
    pub(crate) const fn object_bytes(self) -> u32 {
        SIZES[self.index()]
    }

    /// Pages of one slab.
    pub(crate) const fn slab_pages(self) -> u32 {
        let wanted = self.object_bytes() * OBJECTS_MIN;
        let bytes = if wanted < SLAB_BYTES_MIN { SLAB_BYTES_MIN } else { wanted };
        #[expect(clippy::cast_possible_truncation, reason = "a page is 4 KiB")]
        bytes.div_ceil(PAGE_BYTES as u32)
    }

    /// Objects of one slab.
    pub(crate) const fn objects(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a slab is less than 1 MiB")]
        let bytes = self.slab_pages() * PAGE_BYTES as u32;
        bytes / self.object_bytes()
    }
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
            if class.index() > 0 {
                assert!(u64::from(SIZES[class.index() - 1]) < bytes);
            }
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
    fn little_of_a_slab_is_left_over() {
        for class in Class::all() {
            let bytes = class.slab_pages() * 4096;
            let left = bytes - class.objects() * class.object_bytes();
            assert!(class.objects() >= OBJECTS_MIN);
            assert!(left * 8 < bytes, "{left} of {bytes} for {}", class.object_bytes());
        }
    }
}
