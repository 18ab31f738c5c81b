//! The copies of a block, and its lock table, as this daemon uses them.
//!
//! # Invariants
//!
//! 1. All headers say the same: block, GUID, epoch, and whose the copies are. Where they do not,
//!    the broker is changing them, or was when it died, and there is no view.
//! 2. Objects of other daemons are opened by name with the checks of this daemon's own. For clients
//!    copies are read and written by `pread` and `pwrite`; the lock table is mapped, with zeros to
//!    take its place where somebody cuts it.
//! 3. Who writes by a view looks, with the pages locked, whether the headers still say what it was
//!    made of, and who reads looks before: this daemon was told before the headers were written,
//!    and may have made the view since; another may write by the next ones already.
//! 4. No copy is made longer than somebody has cut it.

use std::os::fd::{AsFd, BorrowedFd};

use dmce_abi::block::{BlockId, DaemonId, Guid, Half};
use dmce_abi::name::ObjectKind;
use dmce_shm::header::{BlockHeader, HeaderError};
use dmce_shm::table::{LockTable, Size, TableFault};
use dmce_sys::map::Protection;
use dmce_sys::object::watched::{Watched, WatchedError};
use dmce_sys::object::word::ObjectWord;
use dmce_sys::object::{self, ObjectError, ObjectStat};
use dmce_sys::transfer::word::WORD_BYTES;

use super::super::Held;
use super::super::adopt;
use super::super::folder::{BROKER, Folder, Found, Own};
use super::super::stamped::Stamped;

/// The copies of a block.
#[derive(Debug)]
pub(super) struct View {
    /// The block's.
    pub guid: Guid,
    /// Bytes of this daemon's copy when it was opened.
    pub committed: u64,
    /// Those that are written: the good ones, the primary's first, and then one that is syncing.
    pub copies: Vec<Copy>,
    /// How many of these are good.
    good: usize,
    /// Its lock table.
    pub locks: LockTable,
    /// Tells that from another which is made in its place.
    pub table: u64,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Copy {
    /// Whose.
    pub daemon: DaemonId,
    /// What it was made as.
    pub half: Half,
    /// Bytes of this daemon's copy; the other may have more, or fewer.
    committed: u64,
    object: Own,
    header: Stamped,
}

/// Why there is no view, or not any more.
#[derive(Debug)]
pub(in crate::store) enum Unseen {
    /// The headers do not agree just now.
    Undecided(String),
    /// Something is gone, or is not what it should be.
    Damaged(String),
}

/// A copy cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    #[error("the copy of daemon {daemon} was removed, or cut")]
    Cut { daemon: DaemonId },
    #[error("the copy of daemon {daemon}: {source}")]
    Object { daemon: DaemonId, source: ObjectError },
}

impl From<ObjectError> for Unseen {
    fn from(error: ObjectError) -> Self {
        // For want of a descriptor, for example.
        Self::Undecided(error.to_string())
    }
}

impl View {
    /// Opens what belongs to a block that this daemon holds.
    pub(super) fn open(folder: &Folder, held: &Held) -> Result<Self, Unseen> {
        let known = &held.header.description;
        let (block, guid) = (known.block, known.guid);
        // The broker may have written it anew, and its word about it be on its way.
        let (own_object, own) = header(folder, folder.daemon(), block)?;
        let mut own_object = Some(own_object);
        let epoch = own.description.epoch;
        let daemons = own.description.membership.daemons(folder.daemon());
        let syncing = own.description.membership.syncing(folder.daemon());
        let committed = held.data.bytes;
        let mut copies = Vec::with_capacity(daemons.len() + 1);
        for daemon in daemons.iter().copied().chain(syncing) {
            let (header, said) = match own_object.take_if(|_| daemon == folder.daemon()) {
                Some(object) => (object, own.clone()),
                None => header(folder, daemon, block)?,
            };
            let said = said.description;
            let agrees = (said.guid, said.epoch) == (guid, epoch)
                && said.membership.daemons(daemon) == daemons
                && said.membership.syncing(daemon) == syncing;
            if !agrees {
                let text = format!("daemon {daemon} has epoch {}, this {epoch}", said.epoch);
                return Err(Unseen::Undecided(text));
            }
            let object = data(folder, daemon, block)?;
            if daemon == folder.daemon() && object.stat.inode != held.data.inode {
                return Err(Unseen::Damaged("another object has this copy's name".to_owned()));
            }
            copies.push(Copy { daemon, half: said.membership.half, committed, object, header });
        }
        let size = Size { committed, bytes_max: known.bytes_max };
        let (table, locks) = locks(folder, (block, guid, epoch), size)?;
        Ok(Self { guid, committed, copies, good: daemons.len(), locks, table })
    }

    /// Whether all headers still say so. Whoever writes by what they say next has read it from all
    /// of them, so who has a page after that sees it here.
    pub(super) fn is_current(&self) -> bool {
        self.copies.iter().all(|copy| copy.header.is_current())
    }

    /// The copy that is written first, and that who waits for a word looks at.
    pub(super) fn first(&self) -> &Copy {
        self.copies.first().expect("a block has a good copy")
    }

    /// The good copies, the primary's first.
    pub(super) fn good(&self) -> &[Copy] {
        &self.copies[..self.good]
    }

    /// The place of the good copy that is a half.
    pub(super) fn place_of(&self, half: Half) -> Option<usize> {
        self.good().iter().position(|copy| copy.half == half)
    }

    /// The copy that is syncing.
    pub(super) fn syncing(&self) -> Option<&Copy> {
        self.copies.get(self.good)
    }

    /// The copy that is made in the place of a good one.
    pub(super) fn in_place_of(&self, good: &Copy) -> Option<&Copy> {
        self.syncing().filter(|copy| copy.half == good.half)
    }

    /// The good copy in whose place the syncing one is made, or the first if that is in no place.
    pub(super) fn source(&self) -> &Copy {
        let half = self.syncing().map(|copy| copy.half);
        let mut good = self.good().iter();
        good.find(|copy| Some(copy.half) == half).unwrap_or_else(|| self.first())
    }

    /// Reads from a copy.
    pub(super) fn read(&self, place: usize, cell: u64, into: &mut [u8]) -> Result<(), Unseen> {
        self.copies[place].read(cell, into).map_err(|gone| Unseen::Damaged(gone.to_string()))
    }
}

impl Copy {
    /// Whether it is there, with all bytes up to `needs`.
    pub(super) fn check(&self, needs: u64) -> Result<ObjectStat, Gone> {
        let stat = object::stat(self.as_fd()).map_err(|error| self.failed(error))?;
        if stat.links == 0 || stat.bytes < needs {
            return Err(Gone::Cut { daemon: self.daemon });
        }
        Ok(stat)
    }

    /// Reads what it has.
    pub(super) fn read(&self, cell: u64, into: &mut [u8]) -> Result<(), Gone> {
        let watched = self.watched(cell + into.len() as u64)?;
        watched.read(into, cell).map_err(|error| self.gone(error))
    }

    /// Writes to it.
    pub(super) fn write(&self, cell: u64, data: &[u8]) -> Result<(), Gone> {
        let watched = self.watched(cell + data.len() as u64)?;
        watched.write(data, cell).map_err(|error| self.gone(error))
    }

    /// The copy as it is now, with all bytes up to `needs`.
    pub(super) fn watched(&self, needs: u64) -> Result<Watched<'_>, Gone> {
        let before = self.check(needs)?;
        Ok(Watched { fd: self.as_fd(), before, committed: self.committed })
    }

    /// A word of it, mapped for as long as something is done to it. The whole copy is there, as far
    /// as can be known.
    pub(super) fn word(&self, cell: u64) -> Result<ObjectWord, Gone> {
        self.check(cell + WORD_BYTES as u64)?;
        ObjectWord::map(self.as_fd(), cell).map_err(|_| self.is_cut())
    }

    /// It was removed, or cut.
    pub(super) const fn is_cut(&self) -> Gone {
        Gone::Cut { daemon: self.daemon }
    }

    /// Why it cannot be read or written.
    pub(super) fn gone(&self, error: WatchedError) -> Gone {
        match error {
            WatchedError::Object(source) => self.failed(source),
            _ => Gone::Cut { daemon: self.daemon },
        }
    }

    fn failed(&self, source: ObjectError) -> Gone {
        Gone::Object { daemon: self.daemon, source }
    }
}

impl AsFd for Copy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.object.as_fd()
    }
}

/// The header of a copy, and what is remembered of it.
pub(in crate::store) fn header(
    folder: &Folder,
    daemon: DaemonId,
    block: BlockId,
) -> Result<(Stamped, BlockHeader), Unseen> {
    let damaged = |why: String| Unseen::Damaged(format!("the header of daemon {daemon}: {why}"));
    let object = match folder.look_at(daemon.get(), ObjectKind::Header(block.get()))? {
        Found::Own(object) => object,
        Found::Missing => return Err(damaged("there is none".to_owned())),
        found @ Found::Foreign { .. } => return Err(damaged(format!("{found:?} has its name"))),
    };
    let read = Stamped::before_reading(object).and_then(|stamped| {
        let header = adopt::read_header(daemon, block, stamped.object())?;
        Ok((stamped, header))
    });
    match read {
        Ok(read) => Ok(read),
        Err(HeaderError::Object(error)) => Err(error.into()),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn data(folder: &Folder, daemon: DaemonId, block: BlockId) -> Result<Own, Unseen> {
    match folder.look_at(daemon.get(), ObjectKind::Data(block.get()))? {
        Found::Own(own) => Ok(own),
        Found::Missing | Found::Foreign { .. } => {
            Err(Unseen::Damaged(format!("daemon {daemon} has no data of it")))
        }
    }
}

/// The lock table of a block, and what tells its object from another.
fn locks(
    folder: &Folder,
    whose: (BlockId, Guid, u64),
    size: Size,
) -> Result<(u64, LockTable), Unseen> {
    let own = match folder.look_at(BROKER, ObjectKind::LockTable(whose.0.get()))? {
        Found::Own(own) => own,
        Found::Missing | Found::Foreign { .. } => {
            return Err(Unseen::Damaged("it has no lock table".to_owned()));
        }
    };
    let mapped = LockTable::map(own.as_fd(), whose, size, Protection::ReadWrite);
    let locks = mapped.map_err(|fault| match fault {
        TableFault::Map(_) | TableFault::Object(_) | TableFault::Later { .. } => {
            Unseen::Undecided(fault.to_string())
        }
        fault => Unseen::Damaged(fault.to_string()),
    })?;
    Ok((own.stat.inode, locks))
}
