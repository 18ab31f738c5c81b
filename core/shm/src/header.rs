//! The header of a block: what makes the bytes of a `data-` object a block (section 3).
//!
//! ```text
//! 0                         2048                      4096
//! | slot 0: preamble, body  | slot 1: preamble, body  |
//! ```
//!
//! # Invariants
//!
//! 1. An update writes the slot that is not in force, and makes it ready last. So whoever dies
//!    during one leaves the earlier header in force.
//! 2. Of two ready slots the one with the higher sequence is in force. A slot that was ready and is
//!    damaged may have been the newer one: then none is in force, and the block is not served.
//! 3. What is read is copied first, and every field of the copy is checked before it becomes a
//!    type.
//!
//! Servers write headers and nobody maps them: everything here is `pread` and `pwrite`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use dmce_abi::AddrLayout;
use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Half, IdError, Membership, Owner, Region, Role,
    SessionId, Span, Ticket,
};
use dmce_abi::limits::PEERS_MAX;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectDir, ObjectError};

use crate::layout::{Field, fingerprint, layout};
use crate::preamble::{self, Flaw, Kind, READY, Seal, Step};

/// Bytes of a header object.
pub const HEADER_BYTES: u64 = 4096;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Whose object it is: under another daemon's name it is foreign.
    pub daemon: DaemonId,
    /// The block, and which of its copies this is. No peer is the own daemon.
    pub description: BlockDescription,
}

/// Why there is no header, or none was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum HeaderError {
    /// No slot was ever finished, so nobody was told of the block: its objects may be removed.
    #[error("the header was never finished")]
    NeverReady,
    /// It was written by another version: to be left alone.
    #[error("the header is of segment version {theirs}, this release reads {ours}")]
    OtherVersion { theirs: u32, ours: u32 },
    /// It was finished once and is not right now: to be left alone, reported, and not served.
    #[error("the header is damaged: {why}")]
    Damaged { why: String },
    /// The header cannot be written like this.
    #[error("no header can say this: {why}")]
    Unfit { why: String },
    /// The object could not be read or written.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl HeaderError {
    /// Whether the block's objects may be removed: nobody ever had them.
    #[must_use]
    pub const fn is_removable(&self) -> bool {
        matches!(self, Self::NeverReady)
    }

    fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged { why: why.into() }
    }
}

impl From<Flaw> for HeaderError {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::OtherVersion { theirs } => Self::OtherVersion { theirs, ours: SEGMENT_VERSION },
            Flaw::Damaged { why } => Self::damaged(why),
        }
    }
}

/// Makes the header object of a block whose data has its name, or none. The last write makes the
/// block whole.
///
/// # Errors
///
/// As [`create`]. [`ObjectError::Exists`]: what has that name is left.
pub fn make(dir: &ObjectDir, name: &str, header: &BlockHeader) -> Result<(), HeaderError> {
    let fd = dir.create(name)?;
    point(Point::HeaderCreated);
    let written = create(fd.as_fd(), header);
    if written.is_err() {
        dir.unlink(name)?;
    }
    written
}

/// Makes a header object of no block: it has its page, and no name.
///
/// # Errors
///
/// [`ObjectError::NoSpace`], [`ObjectError::Denied`], [`ObjectError::Io`].
pub fn blank(dir: &ObjectDir) -> Result<OwnedFd, ObjectError> {
    let fd = dir.create_unnamed()?;
    object::write_at(fd.as_fd(), &[0; SLOTS * SLOT_BYTES], 0)?;
    Ok(fd)
}

/// As [`make`], of an object that [`blank`] made: the header is whole when it gets its name, and
/// that makes the block whole. Whoever dies before leaves no header.
///
/// # Errors
///
/// As [`make`]. What `blank` is then goes with it.
pub fn make_of(
    blank: BorrowedFd<'_>,
    dir: &ObjectDir,
    name: &str,
    header: &BlockHeader,
) -> Result<(), HeaderError> {
    let mut slot = HeaderSlot::encode(header, 1)?;
    slot.ready = READY.into();
    object::write_at(blank, slot.as_bytes(), 0)?;
    dir.name_new(blank, name)?;
    point(Point::HeaderNamed);
    Ok(())
}

/// Writes the first header of a block into a new, empty object. The last write makes it ready.
///
/// # Errors
///
/// [`HeaderError::Unfit`] for a description that contradicts itself or does not fit;
/// [`HeaderError::Object`], with no space among them.
pub fn create(fd: BorrowedFd<'_>, header: &BlockHeader) -> Result<(), HeaderError> {
    let slot = HeaderSlot::encode(header, 1)?;
    let mut page: HeaderPage = [0; SLOTS * SLOT_BYTES];
    page[..SLOT_BYTES].copy_from_slice(slot.as_bytes());
    // Nothing in an empty object is ready, and to write the whole page is to commit it.
    object::write_at(fd, &page, 0)?;
    point(Point::HeaderWritten);
    let [_, _, ready] = preamble::steps(0, slot.as_bytes());
    object::write_at(fd, ready.bytes, ready.offset)?;
    point(Point::HeaderReady);
    Ok(())
}

/// Replaces the header. Until the last write the earlier one is in force, whoever dies when.
///
/// # Errors
///
/// As [`read`] if there is no header in force; as [`create`].
pub fn update(fd: BorrowedFd<'_>, header: &BlockHeader) -> Result<(), HeaderError> {
    let page = read_page(fd)?;
    let (slot, place) = next_slot(&page, header)?;
    carry_out(fd, preamble::steps(place, slot.as_bytes()))
}

/// Reads the header in force. Nothing about the bytes is taken for granted.
///
/// # Errors
///
/// [`HeaderError`] says whether the block may be removed or must be left alone.
pub fn read(fd: BorrowedFd<'_>, layout: AddrLayout) -> Result<BlockHeader, HeaderError> {
    let page = read_page(fd)?;
    let (_, slot) = slot_in_force(&page)?;
    slot.decode(layout)
}

/// What tells a header that is read again from one that was written anew since: the first bytes of
/// both of its slots, with what is ready there and the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([[u8; STAMP_BYTES]; SLOTS]);

/// As far as the sequence.
const STAMP_BYTES: usize = 32;

/// The stamp of a header as it is now. It changes before the next [`update`] is in force: one that
/// was taken before the header was read tells whether that is still what is there.
///
/// # Errors
///
/// As [`read`] of an object that cannot be read.
pub fn stamp(fd: BorrowedFd<'_>) -> Result<Stamp, HeaderError> {
    let mut stamp = Stamp([[0; STAMP_BYTES]; SLOTS]);
    for (place, bytes) in (0..).zip(&mut stamp.0) {
        // What the object does not have reads as a slot that was never written.
        object::read_at_most(fd, bytes, place * SLOT_BYTES as u64)?;
    }
    Ok(stamp)
}

layout! {
    /// One of the two places of a header.
    #[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    struct HeaderSlot, 2048 bytes {
        0 => magic: [u8; 8],
        8 => version: U32,
        12 => fingerprint: U32,
        16 => ready: U32,
        20 => crc: U32,
        24 => sequence: U64,
        32 => block: U32,
        36 => daemon: U32,
        40 => guid: [u8; 16],
        56 => epoch: U64,
        64 => bytes_max: U64,
        72 => page_size: U32,
        76 => span_first: U32,
        80 => span_count: U32,
        84 => owner_kind: U32,
        88 => span_guid: [u8; 16],
        104 => session: U32,
        108 => uid: U32,
        112 => ticket_session: [u8; 16],
        128 => ticket: U64,
        136 => gid: U32,
        140 => mode: U32,
        144 => base_pointer: U64,
        152 => region_size: U64,
        160 => created_at: U64,
        168 => copies: U32,
        172 => role: U32,
        176 => peers: U32,
        180 => peer: [U32; 3],
        192 => volume: [u8; 64],
        256 => name: [u8; 128],
        384 => half: U32,
        388 => syncing: U32,
        392 => since: U64,
        400 => locked: U32,
        404 => reserved: [u8; 1644],
    }
}

const SLOT_BYTES: usize = size_of::<HeaderSlot>();
const SLOTS: usize = 2;

type HeaderPage = [u8; SLOTS * SLOT_BYTES];

const _: () = assert!((SLOTS * SLOT_BYTES) as u64 == HEADER_BYTES);

/// The rows of the table in `docs/shared-memory.md`.
pub(crate) const FIELDS: &[Field] = HeaderSlot::FIELDS;

const KIND: Kind =
    Kind { magic: *b"DMCEHEAD", fingerprint: fingerprint(&[FIELDS]), checked_bytes: SLOT_BYTES };

const OWNER_SESSION: u32 = 1;
const OWNER_REGION: u32 = 2;
const ROLE_PRIMARY: u32 = 1;
const ROLE_COPY: u32 = 2;
const ROLE_SYNCING: u32 = 3;

impl HeaderSlot {
    fn encode(header: &BlockHeader, sequence: u64) -> Result<Self, HeaderError> {
        let description = &header.description;
        let Membership { role, half, peers, syncing, since, locked } = &description.membership;
        check_peers(header.daemon, peers, *syncing).map_err(|why| HeaderError::Unfit { why })?;
        let mut slot = Self::new_zeroed();
        slot.sequence = sequence.into();
        slot.daemon = header.daemon.get().into();
        slot.role = match role {
            Role::Primary => ROLE_PRIMARY,
            Role::Copy => ROLE_COPY,
            Role::Syncing => ROLE_SYNCING,
        }
        .into();
        slot.since = (*since).into();
        slot.locked = u32::from(*locked).into();
        slot.syncing = syncing.map_or(0, DaemonId::get).into();
        slot.half = u32::from(half.place()).into();
        for (place, peer) in slot.peer.iter_mut().zip(peers) {
            *place = peer.get().into();
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most PEERS_MAX, checked above")]
        let peers = peers.len() as u32;
        slot.peers = peers.into();
        slot.block = description.block.get().into();
        slot.guid = description.guid.0;
        slot.epoch = description.epoch.into();
        slot.bytes_max = description.bytes_max.into();
        slot.page_size = description.page_size.into();
        slot.span_first = description.span.first.get().into();
        slot.span_count = description.span.count.into();
        slot.span_guid = description.span.guid.0;
        slot.encode_owner(&description.owner)?;
        KIND.fill_in(slot.as_mut_bytes());
        Ok(slot)
    }

    fn encode_owner(&mut self, owner: &Owner) -> Result<(), HeaderError> {
        let ticket = match owner {
            Owner::Session { session, ticket, uid, copies } => {
                self.owner_kind = OWNER_SESSION.into();
                self.session = session.get().into();
                self.uid = (*uid).into();
                self.copies = (*copies).into();
                ticket
            }
            Owner::Region(region) => {
                self.encode_region(region)?;
                &region.created_by
            }
        };
        self.ticket_session = ticket.session.0;
        self.ticket = ticket.number.into();
        Ok(())
    }

    fn encode_region(&mut self, region: &Region) -> Result<(), HeaderError> {
        // Names that are too long are among what this refuses.
        region.validate().map_err(|error| HeaderError::Unfit { why: error.to_string() })?;
        self.owner_kind = OWNER_REGION.into();
        self.uid = region.uid.into();
        self.gid = region.gid.into();
        self.mode = region.mode.into();
        self.base_pointer = region.base_pointer.into();
        self.region_size = region.region_size.into();
        self.created_at = region.created_at.into();
        self.copies = region.copies.into();
        self.volume[..region.volume.len()].copy_from_slice(region.volume.as_bytes());
        self.name[..region.name.len()].copy_from_slice(region.name.as_bytes());
        Ok(())
    }

    fn decode(&self, layout: AddrLayout) -> Result<BlockHeader, HeaderError> {
        let daemon = DaemonId::try_from(self.daemon.get()).map_err(bad_id)?;
        let role = match self.role.get() {
            ROLE_PRIMARY => Role::Primary,
            ROLE_COPY => Role::Copy,
            ROLE_SYNCING => Role::Syncing,
            other => return Err(HeaderError::damaged(format!("role {other} is no role"))),
        };
        let half = usize::try_from(self.half.get()).ok().and_then(Half::of);
        let no_half = || HeaderError::damaged(format!("half {} is no half", self.half));
        let half = half.ok_or_else(no_half)?;
        let span = Span {
            first: BlockId::try_from(self.span_first.get()).map_err(bad_id)?,
            count: self.span_count.get(),
            guid: Guid(self.span_guid),
        };
        let description = BlockDescription {
            block: BlockId::try_from(self.block.get()).map_err(bad_id)?,
            guid: Guid(self.guid),
            epoch: self.epoch.get(),
            page_size: self.page_size.get(),
            bytes_max: self.bytes_max.get(),
            span,
            owner: self.decode_owner()?,
            membership: self.decode_membership(daemon, role, half)?,
        };
        let checked = description.validate(layout.block_bytes());
        checked.map_err(|error| HeaderError::damaged(error.to_string()))?;
        Ok(BlockHeader { daemon, description })
    }

    fn decode_membership(
        &self,
        daemon: DaemonId,
        role: Role,
        half: Half,
    ) -> Result<Membership, HeaderError> {
        let count = usize::try_from(self.peers.get()).unwrap_or(usize::MAX);
        let Some(peers) = self.peer.get(..count) else {
            return Err(HeaderError::damaged(format!("{count} peers are more than {PEERS_MAX}")));
        };
        let peers = peers.iter().map(|peer| DaemonId::try_from(peer.get()));
        let peers = peers.collect::<Result<Vec<_>, _>>().map_err(bad_id)?;
        let syncing = match self.syncing.get() {
            0 => None,
            id => Some(DaemonId::try_from(id).map_err(bad_id)?),
        };
        check_peers(daemon, &peers, syncing).map_err(HeaderError::damaged)?;
        let locked = match self.locked.get() {
            0 => false,
            1 => true,
            other => return Err(HeaderError::damaged(format!("locked is {other}"))),
        };
        Ok(Membership { role, half, peers, syncing, since: self.since.get(), locked })
    }

    fn decode_owner(&self) -> Result<Owner, HeaderError> {
        let ticket = Ticket { session: Guid(self.ticket_session), number: self.ticket.get() };
        let uid = self.uid.get();
        match self.owner_kind.get() {
            OWNER_SESSION => {
                let session = SessionId::try_from(self.session.get()).map_err(bad_id)?;
                let copies = self.copies.get();
                Ok(Owner::Session { session, ticket, uid, copies })
            }
            OWNER_REGION => Ok(Owner::Region(Region {
                volume: text("volume", &self.volume)?,
                name: text("name", &self.name)?,
                uid,
                gid: self.gid.get(),
                mode: self.mode.get(),
                base_pointer: self.base_pointer.get(),
                region_size: self.region_size.get(),
                copies: self.copies.get(),
                created_at: self.created_at.get(),
                created_by: ticket,
            })),
            other => Err(HeaderError::damaged(format!("owner kind {other} is none"))),
        }
    }
}

/// No copy names itself, or another twice.
fn check_peers(
    daemon: DaemonId,
    peers: &[DaemonId],
    syncing: Option<DaemonId>,
) -> Result<(), String> {
    if peers.len() > PEERS_MAX {
        return Err(format!("{} peers are more than {PEERS_MAX}", peers.len()));
    }
    let named = peers.iter().chain(&syncing);
    for (index, peer) in named.enumerate() {
        if *peer == daemon || peers[..index].contains(peer) {
            return Err(format!("daemon {peer} is named twice"));
        }
    }
    Ok(())
}

fn bad_id(error: IdError) -> HeaderError {
    HeaderError::damaged(error.to_string())
}

/// The text before the first zero.
fn text(field: &str, bytes: &[u8]) -> Result<String, HeaderError> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    match str::from_utf8(&bytes[..end]) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(HeaderError::damaged(format!("the {field} is not UTF-8"))),
    }
}

/// The slot in force and its place.
fn slot_in_force(page: &HeaderPage) -> Result<(usize, HeaderSlot), HeaderError> {
    let mut found: Option<(usize, HeaderSlot)> = None;
    for (place, bytes) in page.chunks_exact(SLOT_BYTES).enumerate() {
        if KIND.examine(bytes)? == Seal::Open {
            continue;
        }
        let slot = HeaderSlot::read_from_bytes(bytes).expect("a chunk is as long as a slot");
        match &found {
            Some((_, other)) if other.sequence == slot.sequence => {
                return Err(HeaderError::damaged("both slots have the same sequence"));
            }
            Some((_, other)) if other.sequence > slot.sequence => {}
            _ => found = Some((place, slot)),
        }
    }
    found.ok_or(HeaderError::NeverReady)
}

/// The slot of an update, and its offset.
fn next_slot(page: &HeaderPage, header: &BlockHeader) -> Result<(HeaderSlot, u64), HeaderError> {
    let (place, current) = slot_in_force(page)?;
    let sequence = current.sequence.get().checked_add(1);
    let sequence = sequence.ok_or_else(|| HeaderError::damaged("the sequence has no successor"))?;
    let other = (place + 1) % SLOTS;
    Ok((HeaderSlot::encode(header, sequence)?, (other * SLOT_BYTES) as u64))
}

fn read_page(fd: BorrowedFd<'_>) -> Result<HeaderPage, HeaderError> {
    // What the object does not have reads as a slot that was never written.
    let mut page = [0; SLOTS * SLOT_BYTES];
    object::read_at_most(fd, &mut page, 0)?;
    Ok(page)
}

fn carry_out(fd: BorrowedFd<'_>, steps: [Step<'_>; 3]) -> Result<(), HeaderError> {
    let points = [Point::HeaderCleared, Point::HeaderFilled, Point::HeaderRaised];
    for (step, passed) in steps.into_iter().zip(points) {
        object::write_at(fd, step.bytes, step.offset)?;
        point(passed);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
