//! Bytes of an object that others can cut while they are read or written.
//!
//! # Invariants
//!
//! 1. An object is cut where bytes are gone of those that are committed: it ends before them, or
//!    has less memory than they need, and had more. What comes and goes behind them is no loss: a
//!    growth that fails is given back, and so is what somebody has made it longer by.
//! 2. One that was cut stays recognised: a write that may have made it longer again cuts it.

use std::os::fd::BorrowedFd;

use super::{ObjectError, ObjectStat, read_at, stat, truncate, write_at};

/// An object, as it was before it is read or written.
#[derive(Clone, Copy, Debug)]
pub struct Watched<'a> {
    /// The object.
    pub fd: BorrowedFd<'a>,
    /// What the kernel has said of it.
    pub before: ObjectStat,
    /// Bytes that were committed, as far as it has them.
    pub committed: u64,
}

/// Why bytes were not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchedError {
    /// It was cut meanwhile.
    #[error("somebody cut it")]
    Cut,
    /// The kernel did not do it.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl Watched<'_> {
    /// Fills `into` from `offset`.
    ///
    /// # Errors
    ///
    /// [`WatchedError`]: what was cut and made longer again is read as zeros.
    pub fn read(self, into: &mut [u8], offset: u64) -> Result<(), WatchedError> {
        read_at(self.fd, into, offset)?;
        self.confirm()
    }

    /// Looks whether it was there all the time, for who has it mapped.
    ///
    /// # Errors
    ///
    /// [`WatchedError`]: what was cut and made longer again was read as zeros.
    pub fn confirm(self) -> Result<(), WatchedError> {
        if self.is_cut()? { Err(WatchedError::Cut) } else { Ok(()) }
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    ///
    /// [`WatchedError`].
    pub fn write(self, data: &[u8], offset: u64) -> Result<(), WatchedError> {
        self.write_by(offset, |fd| write_at(fd, data, offset))
    }

    fn write_by(
        self,
        offset: u64,
        write: impl FnOnce(BorrowedFd<'_>) -> Result<(), ObjectError>,
    ) -> Result<(), WatchedError> {
        write(self.fd)?;
        if self.is_cut()? {
            // This may have made it longer again.
            truncate(self.fd, offset)?;
            return Err(WatchedError::Cut);
        }
        Ok(())
    }

    fn is_cut(self) -> Result<bool, ObjectError> {
        let after = stat(self.fd)?;
        let committed = self.committed.min(self.before.bytes);
        let had_memory = self.before.allocated_bytes >= committed;
        Ok(after.bytes < committed || had_memory && after.allocated_bytes < committed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;
    use crate::object::{commit, punch_hole};
    use crate::testing::TestObjects;

    const PAGE: u64 = 4096;
    const COMMITTED: u64 = 16 * PAGE;
    const TAIL: u64 = 8 * PAGE;

    /// An object of which more is being committed.
    struct Grows {
        fd: OwnedFd,
        _objects: TestObjects,
    }

    impl Grows {
        fn new(label: &str) -> Self {
            let objects = TestObjects::new(label);
            let fd = objects.dir.create(&objects.name("a")).unwrap();
            commit(fd.as_fd(), 0, COMMITTED + TAIL).unwrap();
            write_at(fd.as_fd(), &[7; 4096], COMMITTED - PAGE).unwrap();
            Self { fd, _objects: objects }
        }

        /// Writes the third page, and this happens then.
        fn write_and(&self, then: impl FnOnce(BorrowedFd<'_>)) -> Result<(), WatchedError> {
            let fd = self.fd.as_fd();
            let watched = Watched { fd, before: stat(fd).unwrap(), committed: COMMITTED };
            watched.write_by(2 * PAGE, |fd| {
                write_at(fd, &[1; 4096], 2 * PAGE)?;
                then(fd);
                Ok(())
            })
        }

        fn last_page(&self) -> Result<[u8; 4096], ObjectError> {
            let mut page = [0; 4096];
            read_at(self.fd.as_fd(), &mut page, COMMITTED - PAGE).map(|()| page)
        }
    }

    #[test]
    fn a_tail_that_was_never_committed_goes_without_harm() {
        let object = Grows::new("watched-tail");
        // Its pages alone, as when there is no room for all of them, and then its bytes.
        object.write_and(|fd| punch_hole(fd, COMMITTED, TAIL).unwrap()).unwrap();
        object.write_and(|fd| truncate(fd, COMMITTED).unwrap()).unwrap();
        assert_eq!(object.last_page().unwrap(), [7; 4096]);
        let fd = object.fd.as_fd();
        let watched = Watched { fd, before: stat(fd).unwrap(), committed: COMMITTED };
        watched.read(&mut [0; 16], 0).unwrap();
        // Others have grown by what this one has not.
        let watched = Watched { committed: COMMITTED + TAIL, ..watched };
        watched.write(&[2; 16], COMMITTED - 16).unwrap();
        assert_eq!(stat(fd).unwrap().bytes, COMMITTED);
    }

    #[test]
    fn who_cuts_what_is_committed_is_seen_also_where_it_was_made_longer_again() {
        let object = Grows::new("watched-cut");
        let cut = object.write_and(|fd| truncate(fd, 5 * PAGE).unwrap());
        assert!(matches!(cut, Err(WatchedError::Cut)));
        assert_eq!(stat(object.fd.as_fd()).unwrap().bytes, 2 * PAGE, "and stays so");
        let object = Grows::new("watched-long");
        truncate(object.fd.as_fd(), COMMITTED).unwrap();
        let cut = object.write_and(|fd| {
            truncate(fd, 5 * PAGE).unwrap();
            truncate(fd, COMMITTED).unwrap();
        });
        assert!(matches!(cut, Err(WatchedError::Cut)));
        assert!(object.last_page().is_err());
    }
}
