//! What the pages of a block were, when all of its good copies agreed.
//!
//! # Invariants
//!
//! 1. Of a page there is the sequence that it had, and the checksum of its bytes: whoever writes it
//!    with its lock makes the sequence another one. What a pointer stores does not.
//! 2. It is of one lock table: another one counts from the beginning.
//! 3. Eight bytes for each page up to the last that was noted, of blocks that the daemon holds; it
//!    goes with its block. It is nowhere but in this process.

use dmce_shm::lock::Sequence;

/// What is known of a block.
#[derive(Debug, Default)]
pub(in crate::store) struct Quiet {
    /// The inode of the lock table.
    table: u64,
    pages: Vec<Page>,
}

/// A page, when it was looked at last.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Odd: nothing is known.
    sequence: u32,
    crc: u32,
}

const UNKNOWN: Page = Page { sequence: 1, crc: 0 };

/// What is to be known of a page from now on; nothing, if that is not said.
pub(super) type Note = (u64, Option<(Sequence, u32)>);

impl Quiet {
    /// The checksum of a page, if nobody who has had its lock has written it since.
    pub(super) fn crc(&self, table: u64, page: u64, now: Sequence) -> Option<u32> {
        let known = self.pages.get(index(page)).filter(|_| self.table == table)?;
        (known.sequence == now.number()).then_some(known.crc)
    }

    /// Takes in what was seen.
    pub(super) fn note(&mut self, table: u64, notes: &[Note]) {
        if self.table != table {
            *self = Self { table, pages: Vec::new() };
        }
        let end = notes.iter().map(|(page, _)| index(*page) + 1).max().unwrap_or(0);
        if end > self.pages.len() {
            self.pages.resize(end, UNKNOWN);
        }
        for (page, seen) in notes {
            let known = seen.map_or(UNKNOWN, |(sequence, crc)| {
                let sequence = sequence.number();
                Page { sequence, crc }
            });
            self.pages[index(*page)] = known;
        }
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use dmce_shm::lock::PageLock;

    use super::*;

    fn sequence(number: u32) -> Sequence {
        PageLock::of_words(0, number).begin_read().unwrap()
    }

    #[test]
    fn a_page_is_known_by_its_sequence_and_under_its_table_alone() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.crc(7, 3, sequence(0)), None);
        quiet.note(7, &[(3, Some((sequence(4), 99))), (1, Some((sequence(0), 5)))]);
        assert_eq!(quiet.crc(7, 3, sequence(4)), Some(99));
        assert_eq!(quiet.crc(7, 1, sequence(0)), Some(5));
        for (table, page, now) in [(7, 3, 6), (8, 3, 4), (7, 2, 0), (7, 4, 0), (7, 1 << 40, 0)] {
            assert_eq!(quiet.crc(table, page, sequence(now)), None, "{table} {page} {now}");
        }
        quiet.note(7, &[(3, None)]);
        assert_eq!(quiet.crc(7, 3, sequence(4)), None);
        quiet.note(8, &[(0, Some((sequence(2), 1)))]);
        assert_eq!((quiet.crc(8, 1, sequence(0)), quiet.crc(8, 0, sequence(2))), (None, Some(1)));
        assert_eq!(size_of::<Page>(), 8);
    }
}
