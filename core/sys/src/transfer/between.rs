//! Bytes that go from one object to another one, and are compared there.

use std::cmp::Ordering;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use super::{Gone, PIECE_BYTES, Store, compare, load, store};
use crate::map::{self, FileRange, MapError, MappedRange, Protection, Reservation};

/// How often bytes are stored that another process writes at the same time.
const STORES_MAX: u32 = 3;

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

    /// Brings bytes from one to the other, from `offset` bytes behind where the range begins. False
    /// if other bytes are there after some stores: somebody writes them as well.
    ///
    /// # Errors
    ///
    /// [`Gone`]: one of them was cut.
    ///
    /// # Panics
    ///
    /// If that is not in the range.
    pub fn carry(&self, offset: u64, bytes: usize) -> Result<bool, Gone> {
        let mut piece = [const { MaybeUninit::<u8>::uninit() }; PIECE_BYTES];
        let mut done = 0;
        while done < bytes {
            let bytes = PIECE_BYTES.min(bytes - done);
            if !self.carry_piece(offset + done as u64, &mut piece[..bytes])? {
                return Ok(false);
            }
            done += bytes;
        }
        Ok(true)
    }

    fn carry_piece(&self, offset: u64, piece: &mut [MaybeUninit<u8>]) -> Result<bool, Gone> {
        let bytes = piece.len();
        let [from, to] = [&self.from, &self.to].map(|side| part(side, offset, bytes));
        let piece: *mut u8 = piece.as_mut_ptr().cast();
        // SAFETY: the piece is as long, and the caller's alone.
        unsafe { load(from, piece, Store::Cached) }?;
        for _ in 0..STORES_MAX {
            // SAFETY: as above, and all of it was loaded; this side is writable.
            unsafe { store(to, piece, Store::Cached) }?;
            // SAFETY: as above.
            if unsafe { compare(to, piece) }? == Ordering::Equal {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn part(side: &Reservation, offset: u64, bytes: usize) -> MappedRange<'_> {
    side.range(offset, bytes as u64).expect("a part of the range")
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
        let bytes = 2 * PIECE_BYTES + 7;
        let data: Vec<u8> = (0..bytes).map(|at| (at % 251).to_le_bytes()[0]).collect();
        object::write_at(from.fd.as_fd(), &data, page as u64 + 5).unwrap();
        assert_eq!(between.carry(5, bytes), Ok(true));
        let mut found = vec![0; bytes + 2];
        read_at(to.fd.as_fd(), &mut found, page as u64 + 4).unwrap();
        assert_eq!((found[0], found[bytes + 1]), (1, 1));
        assert!(found[1..=bytes] == data);
        for cut in [&to, &from] {
            cut.keep_pages(2);
            assert!(between.carry(2 * page as u64, 20).is_err());
            assert_eq!(between.carry(0, 20), Ok(true));
        }
        let mapped = Between::map(from.fd.as_fd(), to.fd.as_fd(), range, page as u64);
        assert!(matches!(mapped, Err(MapError::Lost)));
    }
}
