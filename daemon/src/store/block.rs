//! How a block comes to be and how it goes, one step at a time.
//!
//! The steps and what a death after each of them leaves are the tables of section 2 of
//! `docs/shared-memory.md`:
//!
//! ```text
//! Spare::make    pool-   committed            a pool object: removed by the next adoption
//! Spare::name    pool- -> data-               data without a header: removed
//! write_header   head-, ready last            not ready: both removed; ready: a whole block
//!                (of a lent object the broker does these two)
//!
//! unlink head-                                data without a header: removed
//! clear          data- emptied, unlinked      the same; gone
//! ```
//!
//! # Invariants
//!
//! 1. No step replaces an object that is there.
//! 2. A step that fails leaves what the step before it left.
//! 3. What a client has had is emptied before its name goes: who still holds it has nothing of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use dmce_abi::block::BlockId;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::daemon::PoolPlace;
use dmce_shm::header::{self, BlockHeader, HeaderError};
use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectError};

use super::commit::{self, CommitError, Growth};
use super::folder::{Folder, Found, Own};
use super::lay;

/// A committed object that nobody has seen, under a name of the pool.
#[derive(Debug)]
pub struct Spare {
    place: PoolPlace,
    fd: OwnedFd,
    inode: u64,
    bytes: u64,
    has_pages: bool,
}

/// The data of a block under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Tells the object from another that takes its name.
    pub inode: u64,
    /// What is committed.
    pub bytes: u64,
}

impl Spare {
    /// Makes an object of `bytes`.
    ///
    /// # Errors
    ///
    /// [`CommitError`]: there is no object.
    pub fn make(folder: &Folder, bytes: u64, cancelled: &AtomicBool) -> Result<Self, CommitError> {
        let (place, fd) = loop {
            let place = folder.next_place();
            match folder.dir().create(&folder.name(ObjectKind::Pool(place.0))) {
                Ok(fd) => break (place, fd),
                // A foreign object that adoption has left.
                Err(ObjectError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        };
        point(Point::PoolCreated);
        let inode = object::stat(fd.as_fd())?.inode;
        let has_pages = folder.huge_pages() && lay::lay_huge(fd.as_fd(), bytes, cancelled);
        point(Point::PoolLaid);
        let spare = Self { place, fd, inode, bytes, has_pages };
        match commit::commit(spare.fd.as_fd(), Growth { from: 0, to: bytes }, cancelled) {
            Ok(()) => {
                point(Point::PoolCommitted);
                Ok(spare)
            }
            Err(error) => {
                spare.discard(folder)?;
                Err(error.into())
            }
        }
    }

    /// What is committed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells it from another object.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Its number among the names of the pool.
    pub fn place(&self) -> PoolPlace {
        self.place
    }

    /// Says that its pages are there already.
    #[must_use]
    pub fn with_pages(self) -> Self {
        Self { has_pages: true, ..self }
    }

    /// Whether its pages are there already.
    pub fn has_pages(&self) -> bool {
        self.has_pages
    }

    /// Whether the object still has its name: the broker may have made a block of it, or someone
    /// have removed it.
    ///
    /// # Errors
    ///
    /// As [`Folder::look`].
    pub fn has_its_name(&self, folder: &Folder) -> Result<bool, ObjectError> {
        let found = folder.look(ObjectKind::Pool(self.place.0))?;
        Ok(matches!(found, Found::Own(own) if own.stat.inode == self.inode))
    }

    /// Makes it the data of `block`.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Exists`] if there is something of that name; it is a spare still.
    pub fn name(&self, folder: &Folder, block: BlockId) -> Result<Data, ObjectError> {
        let pool = folder.name(ObjectKind::Pool(self.place.0));
        folder.dir().rename_new(&pool, &folder.name(ObjectKind::Data(block.get())))?;
        point(Point::DataNamed);
        Ok(Data { inode: self.inode, bytes: self.bytes })
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// As [`Folder::unlink`].
    pub fn discard(&self, folder: &Folder) -> Result<(), ObjectError> {
        folder.unlink(ObjectKind::Pool(self.place.0))
    }

    /// The object alone; it keeps its name.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Spare {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the header of a block whose data has its name. Its last write makes the block whole.
///
/// # Errors
///
/// As [`header::make`].
pub fn write_header(folder: &Folder, header: &BlockHeader) -> Result<(), HeaderError> {
    let kind = ObjectKind::Header(header.description.block.get());
    header::make(folder.dir(), &folder.name(kind), header)
}

/// Replaces the header of a block, if it has one.
///
/// # Errors
///
/// As [`header::update`].
pub fn update_header(folder: &Folder, header: &BlockHeader) -> Result<(), HeaderError> {
    match folder.look(ObjectKind::Header(header.description.block.get()))? {
        Found::Own(own) => header::update(own.as_fd(), header),
        _ => Ok(()),
    }
}

/// Makes a block of a spare object: its name, then its header.
///
/// # Errors
///
/// [`HeaderError`]: there is no block, and the object is removed.
pub fn publish(folder: &Folder, spare: &Spare, header: &BlockHeader) -> Result<Data, HeaderError> {
    let block = header.description.block;
    let data = match spare.name(folder, block) {
        Ok(data) => data,
        Err(error) => {
            spare.discard(folder)?;
            return Err(error.into());
        }
    };
    match write_header(folder, header) {
        Ok(()) => Ok(data),
        Err(error) => {
            folder.unlink(ObjectKind::Data(block.get()))?;
            Err(error)
        }
    }
}

/// Empties the data of a block, if it is there and is the object that was meant, and removes its
/// name. The header must be gone.
///
/// # Errors
///
/// [`ObjectError`]: it is there still, perhaps empty.
pub fn clear(folder: &Folder, block: BlockId, inode: u64) -> Result<(), ObjectError> {
    let kind = ObjectKind::Data(block.get());
    match folder.look(kind)? {
        Found::Own(own) if own.stat.inode == inode => {
            empty(&own)?;
            point(Point::DataEmptied);
            folder.unlink(kind)?;
            point(Point::DataUnlinked);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The second step of a block's end.
///
/// # Errors
///
/// As [`object::truncate`].
pub fn empty(data: &Own) -> Result<(), ObjectError> {
    object::truncate(data.as_fd(), 0)
}
