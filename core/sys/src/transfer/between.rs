//! Bytes that go from one object to another one, and are compared there.

use std::cmp::Ordering;
use std::os::fd::BorrowedFd;

use super::{Gone, Store, compare, load, store};
use crate::map::{self, FileRange, MapError, MappedRange, Protection, Reservation};

/// How often bytes are stored that another process writes at the same time.
const STORES_MAX: u32 = 3;
/// Loaded, stored and compared at a time: both sides stay in the nearest cache meanwhile.
const PIECE_BYTES: usize = 4096;

/// The same range of two objects, mapped. It is touched by [`Between::carry`] alone, which needs
/// [`crate::fault::install`].
#[derive(Debug)]
pub struct Between {
    from: Reservation,
    to: Reservation,
}

impl Between {
    /// Maps a range of both, with all of its pages. Where `align_bytes` is the size of a huge page
    /// and the range begins at a multiple of it, huge pages are mapped as such.
    ///
    /// # Errors
    ///
    /// [`MapError`]; [`MapError::Lost`] if one of them has not all of the range.
    ///
    /// # Panics
    ///
    /// If `align_bytes` is no power of two.
    pub fn map(
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        range: FileRange,
        align_bytes: u64,
    ) -> Result<Self, MapError> {
        let from = Reservation::mapped(from, range, align_bytes, Protection::Read)?;
        let to = Reservation::mapped(to, range, align_bytes, Protection::ReadWrite)?;
        map::populate_read(from.whole())?;
        map::populate_write(to.whole())?;
        Ok(Self { from, to })
    }

    /// Brings as many bytes as the buffer has from one to the other, `offset` bytes behind where
    /// the range begins; they are in the buffer afterwards. False if other bytes are there after
    /// some stores: somebody writes them as well.
    ///
    /// # Errors
    ///
    /// [`Gone`]: one of them was cut.
    ///
    /// # Panics
    ///
    /// If that is not in the range.
    pub fn carry(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Gone> {
        let pieces = buffer.chunks_mut(PIECE_BYTES);
        for (at, piece) in (offset..).step_by(PIECE_BYTES).zip(pieces) {
            if !self.carry_piece(at, piece)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn carry_piece(&self, offset: u64, piece: &mut [u8]) -> Result<bool, Gone> {
        let (from, to) = (part(&self.from, offset, piece), part(&self.to, offset, piece));
        // SAFETY: the buffer is as long, and the caller's alone.
        unsafe { load(from, piece.as_mut_ptr(), Store::Cached) }?;
        for _ in 0..STORES_MAX {
            // SAFETY: as above; this side is writable.
            unsafe { store(to, piece.as_ptr(), Store::Cached) }?;
            // SAFETY: as above.
            if unsafe { compare(to, piece.as_ptr()) }? == Ordering::Equal {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn part<'a>(side: &'a Reservation, offset: u64, buffer: &[u8]) -> MappedRange<'a> {
    side.range(offset, buffer.len() as u64).expect("a part of the range")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::fault;
    use crate::map::page_bytes;
    use crate::object::{self, read_at};
    use crate::testing::lend;

    #[test]
    fn bytes_are_carried_where_both_have_them() {
        fault::install().unwrap();
        let [from, to] = [lend(4, 7), lend(4, 1)];
        let page = page_bytes();
        let range = FileRange { offset: page as u64, bytes: 3 * page as u64 };
        let between = Between::map(from.fd.as_fd(), to.fd.as_fd(), range, page as u64).unwrap();
        object::write_at(from.fd.as_fd(), b"carried", page as u64 + 10).unwrap();
        let mut buffer = vec![0; 20];
        assert_eq!(between.carry(5, &mut buffer), Ok(true));
        assert_eq!(&buffer, b"\x07\x07\x07\x07\x07carried\x07\x07\x07\x07\x07\x07\x07\x07");
        let mut found = vec![0; 22];
        read_at(to.fd.as_fd(), &mut found, page as u64 + 4).unwrap();
        assert_eq!((found[0], &found[1..21], found[21]), (1, &buffer[..], 1));
        for cut in [&to, &from] {
            cut.keep_pages(2);
            assert!(between.carry(2 * page as u64, &mut buffer).is_err());
            assert_eq!(between.carry(0, &mut buffer), Ok(true));
        }
        let mapped = Between::map(from.fd.as_fd(), to.fd.as_fd(), range, page as u64);
        assert!(matches!(mapped, Err(MapError::Lost)));
    }
}
