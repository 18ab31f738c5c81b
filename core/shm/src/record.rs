//! The session record: what a broker that comes back believes of a session (section 5).
//!
//! ```text
//! 0          24                      576                                    4096
//! | preamble | who, from which boot  | 440 grants, one word each             |
//!             `-- checksum ---------'
//! ```
//!
//! # Invariants
//!
//! 1. A record is believed whole or not at all: `ready` is stored last, and the checksum covers all
//!    but the grants.
//! 2. A grant is one aligned word, stored whole: it is there or it is not. It is stored before the
//!    opener is answered, so no client has a region open that its record does not name.
//! 3. Nobody but the broker has a descriptor of it.

use std::os::fd::BorrowedFd;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::limits::{GRANTS, SESSION_NAME_BYTES_MAX};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectError};
use dmce_sys::process::{self, ProcessError};

use crate::layout::{Field, fingerprint, layout};
use crate::preamble::{self, Flaw, Kind, Seal};
use crate::session::SessionIdentity;

/// Bytes of a session record.
pub const RECORD_BYTES: u64 = 4096;

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id and GUID.
    pub identity: SessionIdentity,
    /// The process whose it is.
    pub process: ProcessIdentity,
    /// The user who pays.
    pub uid: u32,
    /// The process's group.
    pub gid: u32,
    /// Bytes of the reservation.
    pub reserved: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Width of the client's pointers, for the administrator: 32 or 64.
    pub pointer_bits: u32,
    /// Copies of an allocation that does not say.
    pub copies: u32,
    /// What the client calls itself; may be empty.
    pub name: String,
}

/// One process of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its pid, as the broker's namespace numbers it.
    pub pid: u32,
    /// A moment at which it lived, in clock ticks since boot: who has the pid later, started later.
    pub lived_at: u64,
    /// The boot.
    pub boot_id: [u8; 16],
}

impl ProcessIdentity {
    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// [`ProcessError`] if that cannot be found out.
    pub fn is_alive(&self) -> Result<bool, ProcessError> {
        Ok(process::boot_id()? == self.boot_id && process::is_alive(self.pid, self.lived_at)?)
    }
}

/// The right of a session to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// The region's first block.
    pub block: BlockId,
    /// What it may do.
    pub rights: Rights,
}

/// What a session may do with a region. Never nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Rights {
    Read,
    Write,
    ReadWrite,
}

impl Rights {
    /// The rights that were asked for; none if neither was.
    #[must_use]
    pub const fn of(read: bool, write: bool) -> Option<Self> {
        match (read, write) {
            (true, false) => Some(Self::Read),
            (false, true) => Some(Self::Write),
            (true, true) => Some(Self::ReadWrite),
            (false, false) => None,
        }
    }

    /// Whether loads are among them.
    #[must_use]
    pub const fn can_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether stores are among them.
    #[must_use]
    pub const fn can_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// Why there is no record, or none was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum RecordError {
    /// Its writer died before the session was answered: the session belongs to nobody.
    #[error("the record was never finished")]
    NeverReady,
    /// Written by another version of the broker.
    #[error("the record is of segment version {theirs}, this release reads {ours}")]
    OtherVersion { theirs: u32, ours: u32 },
    /// It was finished once and is not right now.
    #[error("the record is damaged: {why}")]
    Damaged { why: String },
    /// The record has not so many places.
    #[error("grant {index} is not below {GRANTS}")]
    NoSuchGrant { index: usize },
    /// The session's name does not fit.
    #[error("a session's name of {bytes} bytes is longer than {SESSION_NAME_BYTES_MAX}")]
    NameTooLong { bytes: usize },
    /// The object could not be read or written.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl RecordError {
    fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged { why: why.into() }
    }
}

impl From<Flaw> for RecordError {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::OtherVersion { theirs } => Self::OtherVersion { theirs, ours: SEGMENT_VERSION },
            Flaw::Damaged { why } => Self::damaged(why),
        }
    }
}

/// Commits a record that is not ready, in a new, empty object: [`create`] cannot want for room
/// then.
///
/// # Errors
///
/// [`RecordError::Object`], with no space among them.
pub fn prepare(fd: BorrowedFd<'_>) -> Result<(), RecordError> {
    object::write_at(fd, RecordPage::new_zeroed().as_bytes(), 0)?;
    Ok(())
}

/// Writes the record of a session, without grants, into an object that is empty or [`prepare`]d.
/// The last write makes it ready.
///
/// # Errors
///
/// [`RecordError::NameTooLong`]; [`RecordError::Object`], with no space among them.
pub fn create(fd: BorrowedFd<'_>, record: &SessionRecord) -> Result<(), RecordError> {
    let page = RecordPage::encode(record)?;
    // `ready` was never set here, and the page leaves it clear.
    let [_, body, ready] = preamble::steps(0, page.as_bytes());
    for (step, passed) in [(body, Point::RecordWritten), (ready, Point::RecordReady)] {
        object::write_at(fd, step.bytes, step.offset)?;
        point(passed);
    }
    Ok(())
}

/// Ends a record: nobody believes in the session any more, whatever becomes of its objects.
///
/// # Errors
///
/// [`RecordError::Object`].
pub fn end(fd: BorrowedFd<'_>) -> Result<(), RecordError> {
    let zeroed = RecordPage::new_zeroed();
    let [clear, ..] = preamble::steps(0, zeroed.as_bytes());
    object::write_at(fd, clear.bytes, clear.offset)?;
    point(Point::RecordEnded);
    Ok(())
}

/// Reads the record of a session.
///
/// # Errors
///
/// [`RecordError::NeverReady`], [`RecordError::OtherVersion`], [`RecordError::Damaged`]: there is
/// nobody to believe in. [`RecordError::Object`].
pub fn read(fd: BorrowedFd<'_>) -> Result<SessionRecord, RecordError> {
    read_page(fd)?.decode()
}

/// Stores a grant at a free place. It is in force when this returns.
///
/// # Errors
///
/// [`RecordError::NoSuchGrant`], [`RecordError::Object`].
pub fn grant(fd: BorrowedFd<'_>, index: usize, grant: Grant) -> Result<(), RecordError> {
    store_grant(fd, index, encode_grant(Some(grant)))?;
    point(Point::GrantStored);
    Ok(())
}

/// Frees the place of a grant.
///
/// # Errors
///
/// As [`grant`].
pub fn revoke(fd: BorrowedFd<'_>, index: usize) -> Result<(), RecordError> {
    store_grant(fd, index, encode_grant(None))?;
    point(Point::GrantRevoked);
    Ok(())
}

/// The grants with their places, by rising place.
///
/// # Errors
///
/// As [`read`]; [`RecordError::Damaged`] also for a word that is no grant.
pub fn grants(fd: BorrowedFd<'_>) -> Result<Vec<(usize, Grant)>, RecordError> {
    let page = read_page(fd)?;
    let words = page.grants.iter().enumerate();
    let granted = words.filter_map(|(index, word)| match decode_grant(word.get()) {
        Ok(None) => None,
        Ok(Some(grant)) => Some(Ok((index, grant))),
        Err(why) => Some(Err(RecordError::damaged(format!("grant {index}: {why}")))),
    });
    granted.collect()
}

layout! {
    /// The whole record.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    struct RecordPage, 4096 bytes {
        0 => magic: [u8; 8],
        8 => version: U32,
        12 => fingerprint: U32,
        16 => ready: U32,
        20 => crc: U32,
        24 => session: U32,
        28 => pid: U32,
        32 => guid: [u8; 16],
        48 => boot_id: [u8; 16],
        64 => lived_at: U64,
        72 => uid: U32,
        76 => gid: U32,
        80 => reserved_bytes: U64,
        88 => created_at: U64,
        96 => pointer_bits: U32,
        100 => copies: U32,
        104 => name: [u8; 64],
        168 => reserved: [u8; 408],
        576 => grants: [U64; 440],
    }
}

const GRANTS_OFFSET: usize = std::mem::offset_of!(RecordPage, grants);
const WORD_BYTES: usize = size_of::<U64>();

const _: () = {
    assert!(size_of::<RecordPage>() as u64 == RECORD_BYTES);
    assert!(GRANTS_OFFSET + GRANTS * WORD_BYTES == size_of::<RecordPage>());
    assert!(GRANTS_OFFSET.is_multiple_of(WORD_BYTES));
};

/// The rows of the table in `docs/shared-memory.md`.
pub(crate) const FIELDS: &[Field] = RecordPage::FIELDS;

const KIND: Kind =
    Kind { magic: *b"DMCERECD", fingerprint: fingerprint(&[FIELDS]), checked_bytes: GRANTS_OFFSET };

const RIGHT_READ: u32 = 1;
const RIGHT_WRITE: u32 = 2;

impl RecordPage {
    fn encode(record: &SessionRecord) -> Result<Self, RecordError> {
        let name = record.name.as_bytes();
        if name.len() > SESSION_NAME_BYTES_MAX {
            return Err(RecordError::NameTooLong { bytes: name.len() });
        }
        let mut page = Self::new_zeroed();
        page.session = record.identity.session.get().into();
        page.guid = record.identity.guid.0;
        page.pid = record.process.pid.into();
        page.boot_id = record.process.boot_id;
        page.lived_at = record.process.lived_at.into();
        page.uid = record.uid.into();
        page.gid = record.gid.into();
        page.reserved_bytes = record.reserved.into();
        page.created_at = record.created_at.into();
        page.pointer_bits = record.pointer_bits.into();
        page.copies = record.copies.into();
        page.name[..name.len()].copy_from_slice(name);
        KIND.fill_in(page.as_mut_bytes());
        Ok(page)
    }

    fn decode(&self) -> Result<SessionRecord, RecordError> {
        let session = SessionId::try_from(self.session.get());
        let session = session.map_err(|error| RecordError::damaged(error.to_string()))?;
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        let name = str::from_utf8(&self.name[..end]);
        let name = name.map_err(|_| RecordError::damaged("the name is not UTF-8"))?;
        Ok(SessionRecord {
            identity: SessionIdentity { session, guid: Guid(self.guid) },
            process: ProcessIdentity {
                pid: self.pid.get(),
                lived_at: self.lived_at.get(),
                boot_id: self.boot_id,
            },
            uid: self.uid.get(),
            gid: self.gid.get(),
            reserved: self.reserved_bytes.get(),
            created_at: self.created_at.get(),
            pointer_bits: self.pointer_bits.get(),
            copies: self.copies.get(),
            name: name.to_owned(),
        })
    }
}

fn read_page(fd: BorrowedFd<'_>) -> Result<RecordPage, RecordError> {
    // What the object does not have reads as what was never written.
    let mut page = RecordPage::new_zeroed();
    object::read_at_most(fd, page.as_mut_bytes(), 0)?;
    match KIND.examine(page.as_bytes())? {
        Seal::Ready => Ok(page),
        Seal::Open => Err(RecordError::NeverReady),
    }
}

fn store_grant(fd: BorrowedFd<'_>, index: usize, word: u64) -> Result<(), RecordError> {
    if index >= GRANTS {
        return Err(RecordError::NoSuchGrant { index });
    }
    let offset = GRANTS_OFFSET + index * WORD_BYTES;
    object::write_at(fd, &word.to_le_bytes(), offset as u64)?;
    Ok(())
}

fn encode_grant(grant: Option<Grant>) -> u64 {
    let Some(Grant { block, rights }) = grant else { return 0 };
    let rights = match rights {
        Rights::Read => RIGHT_READ,
        Rights::Write => RIGHT_WRITE,
        Rights::ReadWrite => RIGHT_READ | RIGHT_WRITE,
    };
    u64::from(rights) << 32 | u64::from(block.get())
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
fn decode_grant(word: u64) -> Result<Option<Grant>, String> {
    if word == 0 {
        return Ok(None);
    }
    let rights = match (word >> 32) as u32 {
        RIGHT_READ => Rights::Read,
        RIGHT_WRITE => Rights::Write,
        3 => Rights::ReadWrite,
        other => return Err(format!("{other:#x} are no rights")),
    };
    let block = BlockId::try_from(word as u32).map_err(|error| error.to_string())?;
    Ok(Some(Grant { block, rights }))
}

#[cfg(test)]
mod tests;
