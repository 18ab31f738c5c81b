//! Who and what: ids of blocks, sessions and daemons, and the description that a block carries.
//!
//! A [`BlockDescription`] crosses the wire when the broker asks a daemon for a block, lies in the
//! block's header, and comes back when the daemon reports what it holds. So the broker's tables
//! can be rebuilt from the blocks alone.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::limits::{
    BLOCK_IDS_MAX, COPIES_MAX, DAEMONS_MAX, PAGE_BYTES, PAGE_BYTES_MAX, PEERS_MAX,
    REGION_BYTES_MAX, SESSION_IDS_MAX, VOLUME_BYTES_MAX,
};
use crate::name;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $max:expr, $what:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u32", into = "u32")]
        pub struct $name(NonZeroU32);

        impl $name {
            /// The largest id.
            pub const MAX: u32 = $max;

            /// The number.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0.get()
            }

            /// The number as a place in a table that starts with id 0.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0.get() as usize
            }
        }

        impl TryFrom<u32> for $name {
            type Error = IdError;

            fn try_from(id: u32) -> Result<Self, IdError> {
                match NonZeroU32::new(id) {
                    Some(some) if id <= Self::MAX => Ok(Self(some)),
                    _ => Err(IdError { what: $what, id, max: Self::MAX }),
                }
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> u32 {
                id.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )+};
}

ids! {
    /// A block of this host. 0 is reserved, so that no address is 0.
    BlockId, BLOCK_IDS_MAX - 1, "block";
    /// A session of this instance.
    SessionId, SESSION_IDS_MAX, "session";
    /// A daemon of this instance. The broker is 0 in object names, and no `DaemonId`.
    DaemonId, DAEMONS_MAX, "daemon";
}

impl BlockId {
    /// The id `places` further on.
    ///
    /// # Errors
    ///
    /// [`IdError`] past the last id.
    pub fn checked_add(self, places: u32) -> Result<Self, IdError> {
        Self::try_from(self.get().saturating_add(places))
    }
}

/// An id that no table of an instance holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} id {id} is not between 1 and {max}")]
pub struct IdError {
    what: &'static str,
    id: u32,
    max: u32,
}

/// 128 bits that name one block, span, region or session for ever: never reused, although ids are
/// (002 [19]).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The run of consecutive block ids that a block is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Its first block; an address in the span counts from this block's start.
    pub first: BlockId,
    /// Its blocks. Every one but the last is full.
    pub count: u32,
    /// Names the span; for a block by itself, the block's own GUID.
    pub guid: Guid,
}

impl Span {
    /// Whether `block` is part of it.
    #[must_use]
    pub const fn contains(&self, block: BlockId) -> bool {
        match block.get().checked_sub(self.first.get()) {
            Some(place) => place < self.count,
            None => false,
        }
    }
}

/// A region's attributes (004), as every header of its blocks carries them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// The namespace that it is in.
    pub volume: String,
    /// Its name there.
    pub name: String,
    /// The user who owns it.
    pub uid: u32,
    /// The group that `mode` gives rights to.
    pub gid: u32,
    /// Nine permission bits, as of a file; execution means nothing.
    pub mode: u32,
    /// What a pointer to its first byte reads (004 [69]).
    pub base_pointer: u64,
    /// Bytes: valid pointers are `base_pointer .. base_pointer + region_size`.
    pub region_size: u64,
    /// Copies that were asked for.
    pub copies: u32,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The session that made it and its ticket: a repeated request finds its own region.
    pub created_by: Ticket,
}

/// Names one request of one session, so that a request which was answered into the void may be
/// repeated: the broker knows that it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// The session that asked.
    pub session: Guid,
    /// Which of its requests. 0: none.
    pub number: u64,
}

/// Whose a block is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// One session's: it goes when the session ends.
    Session {
        /// The session's id.
        session: SessionId,
        /// The session's GUID and the request that made the block.
        ticket: Ticket,
        /// Who pays.
        uid: u32,
        /// Copies that were asked for.
        copies: u32,
    },
    /// A region's: it stays until the region is deleted.
    Region(Region),
}

impl Owner {
    /// Copies that were asked for.
    #[must_use]
    pub const fn copies(&self) -> u32 {
        match self {
            Self::Session { copies, .. } => *copies,
            Self::Region(region) => region.copies,
        }
    }
}

/// What a copy is among the copies of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// It arbitrates and is read first.
    Primary,
    /// It follows the primary.
    Copy,
    /// It is written as the others are, and does not have all of their bytes yet: it is never read.
    Syncing,
}

/// Which of its block's copies one is, as they were made: whichever arbitrates now (004).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Half(u8);

impl Half {
    /// The one that was the primary when the block was made.
    pub const PRIMARY: Self = Self(0);
    /// Its mirror.
    pub const MIRROR: Self = Self(1);

    /// The one that was made in a place, from 0 on; `None` beyond the copies that a block has.
    #[must_use]
    pub fn of(place: usize) -> Option<Self> {
        let place = u8::try_from(place).ok()?;
        (u32::from(place) < COPIES_MAX).then_some(Self(place))
    }

    /// Its place.
    #[must_use]
    pub const fn place(self) -> u8 {
        self.0
    }

    const fn exists(self) -> bool {
        (self.0 as u32) < COPIES_MAX
    }
}

/// What a copy is, and where the others are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// What it is.
    pub role: Role,
    /// What it was made as.
    pub half: Half,
    /// The daemons of the other good ones, at most [`PEERS_MAX`], each once, the primary's first.
    pub peers: Vec<DaemonId>,
    /// Whose is syncing, of a good one.
    pub syncing: Option<DaemonId>,
    /// The first epoch in which it was written: 0 if it was made with the block. Who knows the
    /// block by an earlier one knows another object of that daemon, or none.
    pub since: u64,
    /// Whether who writes it locks its pages though one copy was asked for: because that moves.
    pub locked: bool,
}

impl Membership {
    /// The only copy of a block.
    #[must_use]
    pub const fn alone() -> Self {
        Self {
            role: Role::Primary,
            half: Half::PRIMARY,
            peers: Vec::new(),
            syncing: None,
            since: 0,
            locked: false,
        }
    }

    /// The copy of `daemon`, made as `half` with its block, where the good ones are those of
    /// `daemons`, the primary's first, and that of `syncing` is syncing.
    #[must_use]
    pub fn of(
        (daemon, half): (DaemonId, Half),
        daemons: &[DaemonId],
        syncing: Option<DaemonId>,
    ) -> Self {
        let role = match (syncing == Some(daemon), daemons.first() == Some(&daemon)) {
            (true, _) => Role::Syncing,
            (false, true) => Role::Primary,
            (false, false) => Role::Copy,
        };
        let peers = daemons.iter().copied().filter(|other| *other != daemon).collect();
        let syncing = syncing.filter(|syncing| *syncing != daemon);
        Self { role, half, peers, syncing, since: 0, locked: false }
    }

    /// The daemons of all good copies, the primary's first and the others by their ids, as the copy
    /// of `daemon` says: copies that agree say the same.
    #[must_use]
    pub fn daemons(&self, daemon: DaemonId) -> Vec<DaemonId> {
        let mut daemons = self.peers.clone();
        match self.role {
            Role::Primary => daemons.insert(0, daemon),
            Role::Copy => daemons.insert(daemons.len().min(1), daemon),
            Role::Syncing => {}
        }
        if let [_, others @ ..] = &mut daemons[..] {
            others.sort_unstable();
        }
        daemons
    }

    /// Whose copy is syncing, as the copy of `daemon` says.
    #[must_use]
    pub fn syncing(&self, daemon: DaemonId) -> Option<DaemonId> {
        if self.role == Role::Syncing { Some(daemon) } else { self.syncing }
    }

    /// Checks what a header or a message claims of a copy.
    ///
    /// # Errors
    ///
    /// [`DescriptionError`] for too many peers, one that is named twice, or a copy without any.
    pub fn validate(&self) -> Result<(), DescriptionError> {
        let Self { role, half, peers, syncing, .. } = self;
        let field = |field, fits: bool| if fits { Ok(()) } else { Err(DescriptionError { field }) };
        let is_new = |(place, peer): (usize, &DaemonId)| !peers[..place].contains(peer);
        field("half", half.exists())?;
        field("peers", peers.len() <= PEERS_MAX && peers.iter().enumerate().all(is_new))?;
        field("peers", *role == Role::Primary || !peers.is_empty())?;
        let is_another = |syncing| *role != Role::Syncing && !peers.contains(&syncing);
        field("syncing", syncing.is_none_or(is_another))
    }
}

/// All that is known of a copy of a block apart from its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDescription {
    /// Its id.
    pub block: BlockId,
    /// Names this block for ever.
    pub guid: Guid,
    /// Raised by every change of its copyset or place. The first is that of the broker which made
    /// it: the moment of its start, in milliseconds since the host's.
    pub epoch: u64,
    /// The unit of accounting, 4 KiB to 2 MiB [0074].
    pub page_size: u32,
    /// Bytes that it may grow to; at most the range of a cell.
    pub bytes_max: u64,
    /// The span that it is part of.
    pub span: Span,
    /// Whose it is.
    pub owner: Owner,
    /// Which of its copies this is.
    pub membership: Membership,
}

impl BlockDescription {
    /// Whether it has a lock table, and who writes it locks its pages.
    #[must_use]
    pub const fn has_locks(&self) -> bool {
        self.owner.copies() > 1 || self.membership.locked
    }

    /// Checks all that can be checked without a table: what a message or a header claims must hold
    /// together.
    ///
    /// # Errors
    ///
    /// [`DescriptionError`] names the first field that cannot be.
    pub fn validate(&self, block_bytes: u64) -> Result<(), DescriptionError> {
        let field = |field, fits: bool| if fits { Ok(()) } else { Err(DescriptionError { field }) };
        field("epoch", self.epoch != 0)?;
        field("page_size", is_page_size(self.page_size))?;
        let whole_pages = self.bytes_max.is_multiple_of(PAGE_BYTES);
        field("bytes_max", (1..=block_bytes).contains(&self.bytes_max) && whole_pages)?;
        field("span", self.span.contains(self.block))?;
        field("span", self.span.first.checked_add(self.span.count - 1).is_ok())?;
        match &self.owner {
            Owner::Session { copies, .. } => field("copies", (1..=COPIES_MAX).contains(copies))?,
            Owner::Region(region) => region.validate()?,
        }
        self.membership.validate()
    }
}

impl Region {
    /// Checks names, mode, copies and that the pointers do not wrap.
    ///
    /// # Errors
    ///
    /// [`DescriptionError`] names the first field that cannot be.
    pub fn validate(&self) -> Result<(), DescriptionError> {
        let field = |field, fits: bool| if fits { Ok(()) } else { Err(DescriptionError { field }) };
        field("volume", name::check("volume", &self.volume, VOLUME_BYTES_MAX).is_ok())?;
        field("name", name::check("region", &self.name, REGION_BYTES_MAX).is_ok())?;
        field("mode", self.mode <= 0o777)?;
        field("copies", (1..=COPIES_MAX).contains(&self.copies))?;
        field("region_size", self.region_size != 0)?;
        field("base_pointer", self.base_pointer.checked_add(self.region_size).is_some())
    }
}

/// Whether a block may have this page size: a power of two, 4 KiB to 2 MiB.
#[must_use]
pub const fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes as u64 >= PAGE_BYTES && bytes <= PAGE_BYTES_MAX
}

/// A description that contradicts itself or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the block's {field} cannot be")]
pub struct DescriptionError {
    /// The field.
    pub field: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn plain() -> BlockDescription {
        let block = BlockId::try_from(9).unwrap();
        let guid = Guid([7; 16]);
        BlockDescription {
            block,
            guid,
            epoch: 1,
            page_size: 4096,
            bytes_max: 1 << 30,
            span: Span { first: block, count: 1, guid },
            owner: Owner::Session {
                session: SessionId::try_from(1).unwrap(),
                ticket: Ticket { session: guid, number: 1 },
                uid: 0,
                copies: 1,
            },
            membership: Membership::alone(),
        }
    }

    #[test]
    fn ids_are_never_zero_and_never_beyond_the_table() {
        assert!(BlockId::try_from(0).is_err());
        assert!(BlockId::try_from(BLOCK_IDS_MAX).is_err());
        assert_eq!(
            DaemonId::try_from(257).unwrap_err().to_string(),
            "daemon id 257 is not between 1 and 256"
        );
        assert!(BlockId::try_from(BLOCK_IDS_MAX - 1).unwrap().checked_add(1).is_err());
    }

    #[test]
    fn a_description_that_contradicts_itself_is_named() {
        assert_eq!(plain().validate(1 << 30), Ok(()));
        let refused = |change: fn(&mut BlockDescription)| {
            let mut description = plain();
            change(&mut description);
            description.validate(1 << 30).unwrap_err().field
        };
        assert_eq!(refused(|d| d.epoch = 0), "epoch");
        assert_eq!(refused(|d| d.page_size = 5000), "page_size");
        assert_eq!(refused(|d| d.bytes_max = (1 << 30) + 4096), "bytes_max");
        assert_eq!(refused(|d| d.bytes_max = 100), "bytes_max");
        assert_eq!(refused(|d| d.span.count = 0), "span");
        assert_eq!(refused(|d| d.span.first = BlockId::try_from(10).unwrap()), "span");
        assert_eq!(refused(|d| d.span.count = u32::MAX), "span");
        let daemon = |id| DaemonId::try_from(id).unwrap();
        let twice = [daemon(1), daemon(1)];
        assert_eq!(refused(|d| d.membership.role = Role::Copy), "peers");
        let mut description = plain();
        description.membership.peers.extend(twice);
        assert_eq!(description.validate(1 << 30).unwrap_err().field, "peers");
        let Owner::Session { copies, .. } = &mut description.owner else { panic!("a session's") };
        *copies = 4;
        assert_eq!(description.validate(1 << 30).unwrap_err().field, "copies");
    }

    #[test]
    fn every_copy_knows_all_copies_and_which_is_the_primary() {
        let daemons = [7, 9, 3].map(|id| DaemonId::try_from(id).unwrap());
        let syncing = DaemonId::try_from(8).unwrap();
        for (daemon, syncing) in daemons.into_iter().zip([None, Some(syncing), None]) {
            let membership = Membership::of((daemon, Half::MIRROR), &daemons, syncing);
            assert_eq!(membership.role == Role::Primary, daemon == daemons[0]);
            assert_eq!((membership.half, membership.validate()), (Half::MIRROR, Ok(())));
            let told = membership.daemons(daemon);
            assert_eq!(told, [daemons[0], daemons[2], daemons[1]]);
            assert_eq!(membership.syncing(daemon), syncing);
        }
        let alone = Membership::of((daemons[0], Half::PRIMARY), &daemons[..1], None);
        assert_eq!(alone, Membership::alone());
    }

    #[test]
    fn a_copy_that_is_syncing_knows_the_good_ones_and_is_none_of_them() {
        let daemons = [7, 9, 3].map(|id| DaemonId::try_from(id).unwrap());
        let syncing = DaemonId::try_from(8).unwrap();
        let membership = Membership::of((syncing, Half::MIRROR), &daemons, Some(syncing));
        assert_eq!((membership.role, membership.validate()), (Role::Syncing, Ok(())));
        assert_eq!(membership.daemons(syncing), [daemons[0], daemons[2], daemons[1]]);
        assert_eq!(membership.syncing(syncing), Some(syncing));
        let claims = [
            Membership { syncing: Some(daemons[0]), ..membership.clone() },
            Membership { role: Role::Copy, syncing: Some(daemons[0]), ..membership.clone() },
        ];
        for claim in claims {
            assert_eq!(claim.validate().unwrap_err().field, "syncing");
        }
        let of_none = Membership { peers: Vec::new(), ..membership };
        assert_eq!(of_none.validate().unwrap_err().field, "peers");
    }
}
