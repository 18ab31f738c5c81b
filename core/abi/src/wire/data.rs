//! What is done to the bytes of blocks by message (FIG. 2, 3, 15, 16).
//!
//! A client sends a [`DataRequest`] to a daemon over its link, or in a
//! [`super::client::ClientRequest::Data`] to the broker, which passes it on.

use alloc::vec::Vec;
use core::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Reply;
use crate::block::{BlockId, Guid, Half};
use crate::limits::DATA_BYTES_MAX;

/// A connection between one session and one daemon, numbered by the broker that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// What a session may do over a link with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkGrant {
    /// The block.
    pub block: BlockId,
    /// Its GUID: an id may be another block's by now.
    pub guid: Guid,
    /// Whether it may be written.
    pub writable: bool,
}

/// The first of the bytes that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The block.
    pub block: BlockId,
    /// Its GUID: an old handle reaches nobody else's block.
    pub guid: Guid,
    /// The offset in the block.
    pub cell: u64,
}

/// Bytes of a block: at most [`DATA_BYTES_MAX`].
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// Reads or changes bytes of a block. None of them goes beyond what is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DataRequest {
    /// So many bytes (FIG. 15), at most [`DATA_BYTES_MAX`]. Answered by [`DataReply::Bytes`].
    Read {
        /// From here on.
        at: Target,
        /// Bytes.
        bytes: u32,
    },
    /// These bytes (FIG. 16), which are compared after the copy [0088]. Answered by
    /// [`DataReply::Done`], or [`DataReply::Part`] where several copies are written.
    Write {
        /// From here on.
        at: Target,
        /// The bytes.
        data: Bytes,
    },
    /// An aligned word becomes `desired` if it is `expected`. Answered by [`DataReply::Word`]:
    /// what it was.
    Cas64 {
        /// The word.
        at: Target,
        /// What it has to be.
        expected: u64,
        /// What it becomes.
        desired: u64,
    },
    /// So much is added to an aligned word. Answered by [`DataReply::Word`]: what it was.
    Add64 {
        /// The word.
        at: Target,
        /// So much, wrapping around.
        add: u64,
    },
    /// What an aligned word is. Who waits asks again while it is `while_equal`. Answered by
    /// [`DataReply::Word`].
    Wait64 {
        /// The word.
        at: Target,
        /// What is waited for to change.
        while_equal: u64,
    },
    /// Wakes processes that wait for an aligned word. Answered by [`DataReply::Done`].
    Wake {
        /// The word.
        at: Target,
        /// At most so many.
        count: u32,
    },
    /// [`Self::Read`] of one half and of no other (004 [88]-[94]).
    ReadHalf {
        /// From here on.
        at: Target,
        /// Bytes.
        bytes: u32,
        /// Which.
        half: Half,
    },
    /// [`Self::Write`] to one half and to no other.
    WriteHalf {
        /// From here on.
        at: Target,
        /// The bytes.
        data: Bytes,
        /// Which.
        half: Half,
    },
    /// All copies get so many bytes, at most [`DATA_BYTES_MAX`], as one half has them. Answered as
    /// [`Self::Write`].
    Level {
        /// From here on.
        at: Target,
        /// Bytes.
        bytes: u32,
        /// Which.
        half: Half,
    },
}

/// What became of a [`DataRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DataReply {
    /// As many bytes as were asked for.
    Bytes(Bytes),
    /// Done.
    Done,
    /// What a word was.
    Word(u64),
    /// Of what was to be written so many bytes are, from the first on, and not all. Of the rest a
    /// part may be. It is asked for again.
    Part {
        /// Bytes.
        bytes: u32,
    },
}

/// What travels over a link back to the client.
pub type DataAnswer = Reply<DataReply>;

impl DataRequest {
    /// What it is about.
    #[must_use]
    pub const fn target(&self) -> Target {
        match *self {
            Self::Read { at, .. }
            | Self::Write { at, .. }
            | Self::Cas64 { at, .. }
            | Self::Add64 { at, .. }
            | Self::Wait64 { at, .. }
            | Self::Wake { at, .. }
            | Self::ReadHalf { at, .. }
            | Self::WriteHalf { at, .. }
            | Self::Level { at, .. } => at,
        }
    }

    /// Whether it changes bytes.
    #[must_use]
    pub const fn writes(&self) -> bool {
        match self {
            Self::Write { .. } | Self::WriteHalf { .. } | Self::Level { .. } => true,
            _ => self.counts(),
        }
    }

    /// Whether done twice it is not what it is once.
    #[must_use]
    pub const fn counts(&self) -> bool {
        matches!(self, Self::Cas64 { .. } | Self::Add64 { .. })
    }

    /// Bytes of blocks that travel with it.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } | Self::WriteHalf { data, .. } => data.0.len(),
            _ => 0,
        }
    }

    /// Bytes of blocks that travel with the answer.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        match self {
            Self::Read { bytes, .. } | Self::ReadHalf { bytes, .. } => {
                (*bytes as usize).min(DATA_BYTES_MAX)
            }
            _ => 0,
        }
    }

    /// Bytes of blocks that it moves: those that travel with it or its answer, or from one copy to
    /// the others.
    #[must_use]
    pub fn moved_bytes(&self) -> usize {
        let carried = match self {
            Self::Level { bytes, .. } => (*bytes as usize).min(DATA_BYTES_MAX),
            _ => 0,
        };
        self.data_bytes() + self.answer_bytes() + carried
    }

    /// Whether a reply can be one to this request.
    #[must_use]
    pub fn fits(&self, reply: &DataReply) -> bool {
        match self {
            Self::Read { bytes, .. } | Self::ReadHalf { bytes, .. } => match reply {
                DataReply::Bytes(read) => u64::from(*bytes) == read.0.len() as u64,
                _ => false,
            },
            Self::Write { .. } | Self::WriteHalf { .. } | Self::Level { .. } => match reply {
                DataReply::Done => true,
                DataReply::Part { bytes } => (*bytes as usize) < self.moved_bytes(),
                _ => false,
            },
            Self::Wake { .. } => matches!(reply, DataReply::Done),
            Self::Cas64 { .. } | Self::Add64 { .. } | Self::Wait64 { .. } => {
                matches!(reply, DataReply::Word(_))
            }
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copied;

        impl Visitor<'_> for Copied {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {DATA_BYTES_MAX} bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                if bytes.len() > DATA_BYTES_MAX {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Bytes(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Copied)
    }
}
