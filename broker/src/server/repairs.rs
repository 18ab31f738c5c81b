//! What a session that has ended left half written is made equal on all copies, and its page locks
//! are given back (docs/shared-memory.md, sections 4.1 and 6).
//!
//! # Invariants
//!
//! 1. Objects are opened by name for one repair, with the usual checks. Of the lock table the words
//!    of its pages are mapped, and touched under the guard against SIGBUS; copies are not mapped.
//! 2. A copy that somebody cuts meanwhile stays recognised: nothing makes it whole to the eye
//!    again.
//! 3. A repair is of 16 pages at most.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_broker::dispatcher::{Repair, Repaired};
use dmce_shm::copies::{self, Carried, RepairError, Site, Wreck};
use dmce_shm::session::object::SessionError;
use dmce_shm::table;
use dmce_sys::object::watched::{Watched, WatchedError};
use dmce_sys::object::word::{ObjectWord, WordError};
use dmce_sys::object::{self, ObjectError};
use tracing::debug;

use super::objects::{ObjectFailure, Objects};
use super::sessions::Sessions;
use super::tables;

/// Why a repair does not come to its end.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Object(#[from] ObjectFailure),
    #[error(transparent)]
    File(#[from] ObjectError),
    #[error(transparent)]
    Table(#[from] tables::Unsound),
    #[error(transparent)]
    Word(#[from] WordError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("it has {bytes} bytes, and is to have {needs}")]
    Short { bytes: u64, needs: u64 },
    #[error(transparent)]
    Copy(#[from] WatchedError),
    #[error("it is not open")]
    Closed,
    #[error("there is no such session any more")]
    NoSession,
    #[error("nobody has a good copy")]
    NoCopy,
}

/// The block of a repair.
struct Place<'a> {
    objects: &'a Objects,
    sessions: &'a Sessions,
    job: &'a Repair,
    table: Option<(OwnedFd, u64)>,
    copies: BTreeMap<DaemonId, OwnedFd>,
    /// The words of its pages.
    words: BTreeMap<u64, ObjectWord>,
}

/// How far an attempt came.
enum Attempted {
    /// To its end, with these pages lost.
    Ended(Vec<u64>),
    /// Not far: somebody holds this page.
    Busy(u64),
}

/// Repairs what a slot left, or carries what a pointer stored.
pub fn repair(objects: &Objects, sessions: &Sessions, job: &Repair) -> Repaired {
    match attempt(objects, sessions, job, job.wreck) {
        // Its client cut its own object. What nothing is left of is lost.
        Err(RepairError::Undo(_)) => {
            settled(job, attempt(objects, sessions, job, job.wreck.without_undo()))
        }
        attempted => settled(job, attempted),
    }
}

fn attempt(
    objects: &Objects,
    sessions: &Sessions,
    job: &Repair,
    wreck: Wreck,
) -> Result<Attempted, RepairError<Trouble>> {
    let (table, copies, words) = (None, BTreeMap::new(), BTreeMap::new());
    let mut place = Place { objects, sessions, job, table, copies, words };
    if !job.has_locks {
        return copies::level(&wreck, &job.copies, &mut place).map(Attempted::Ended);
    }
    if let Some(range) = job.carried {
        place.intend(range).map_err(RepairError::Table)?;
        return Ok(match copies::carry(&wreck, &job.copies, &mut place)? {
            Carried::Done(repaired) => Attempted::Ended(repaired.lost),
            Carried::Busy { page } => Attempted::Busy(page),
        });
    }
    let repaired = copies::repair(&wreck, &job.copies, &mut place)?;
    Ok(Attempted::Ended(repaired.lost))
}

fn settled(job: &Repair, attempted: Result<Attempted, RepairError<Trouble>>) -> Repaired {
    match attempted {
        Ok(Attempted::Ended(lost)) => Repaired::Done { lost },
        Ok(Attempted::Busy(page)) => {
            debug!(block = %job.block, page, "it is held, and carried later");
            Repaired::Busy
        }
        Err(RepairError::Copy { copy, source }) => {
            Repaired::Copy { daemon: copy, reason: source.to_string() }
        }
        Err(RepairError::Table(source)) => Repaired::Table { reason: source.to_string() },
        Err(other) => Repaired::Table { reason: other.to_string() },
    }
}

impl Place<'_> {
    /// Says in the slot what is about to be done.
    fn intend(&self, range: (u64, u64)) -> Result<(), Trouble> {
        let Repair { session, slot, .. } = *self.job;
        let first = *self.job.copies.first().ok_or(Trouble::NoCopy)?;
        let said = self.sessions.intend_to_carry(session, slot, (range, first));
        Ok(said.ok_or(Trouble::NoSession)??)
    }

    /// The table, if it is the block's, and has the word of a page.
    fn table(&mut self, page: u64) -> Result<BorrowedFd<'_>, Trouble> {
        if self.table.is_none() {
            let (fd, identity, bytes) = tables::open(self.objects, self.job.block, true)?;
            if identity.guid != self.job.guid {
                return Err(tables::Unsound::Other { guid: identity.guid }.into());
            }
            self.table = Some((fd, bytes));
        }
        let (fd, bytes) = self.table.as_ref().ok_or(Trouble::Closed)?;
        let needs = table::word_offset(page * PAGE_BYTES) + 8;
        if *bytes < needs {
            return Err(Trouble::Short { bytes: *bytes, needs });
        }
        Ok(fd.as_fd())
    }

    fn lock_word(&mut self, page: u64) -> Result<&ObjectWord, Trouble> {
        if !self.words.contains_key(&page) {
            let offset = table::word_offset(page * PAGE_BYTES);
            let word = ObjectWord::map(self.table(page)?, offset)?;
            self.words.insert(page, word);
        }
        self.words.get(&page).ok_or(Trouble::Closed)
    }

    /// A copy, if it has all bytes up to `needs`.
    fn copy(&mut self, daemon: DaemonId, needs: u64) -> Result<Watched<'_>, Trouble> {
        if !self.copies.contains_key(&daemon) {
            let kind = ObjectKind::Data(self.job.block.get());
            let (fd, _) = self.objects.open(daemon.get(), kind, true)?;
            self.copies.insert(daemon, fd);
        }
        let fd = self.copies.get(&daemon).ok_or(Trouble::Closed)?.as_fd();
        let (before, committed) = (object::stat(fd)?, self.job.committed);
        let bytes = before.bytes;
        if bytes < needs {
            return Err(Trouble::Short { bytes, needs });
        }
        Ok(Watched { fd, before, committed })
    }
}

impl Site for Place<'_> {
    type Error = Trouble;

    fn word(&mut self, page: u64) -> Result<u64, Trouble> {
        Ok(self.lock_word(page)?.load()?)
    }

    fn exchange(&mut self, page: u64, expected: u64, desired: u64) -> Result<u64, Trouble> {
        Ok(self.lock_word(page)?.compare_exchange(expected, desired)?)
    }

    fn wake(&mut self, page: u64) -> Result<(), Trouble> {
        Ok(self.lock_word(page)?.wake(u32::MAX)?)
    }

    fn read(&mut self, copy: DaemonId, cell: u64, into: &mut [u8]) -> Result<(), Trouble> {
        Ok(self.copy(copy, cell + into.len() as u64)?.read(into, cell)?)
    }

    fn write(&mut self, copy: DaemonId, cell: u64, data: &[u8]) -> Result<(), Trouble> {
        Ok(self.copy(copy, cell + data.len() as u64)?.write(data, cell)?)
    }

    fn undo(&mut self, into: &mut [u8]) -> Result<(), Trouble> {
        let Repair { session, slot, .. } = *self.job;
        Ok(self.sessions.undo(session, slot, into).ok_or(Trouble::NoSession)??)
    }
}

#[cfg(test)]
mod tests;
