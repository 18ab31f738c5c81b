//! MSMP, the Memory Sharing Messaging Protocol: frames and their bodies.
//!
//! `docs/protocol.md` is the specification; this module is its Rust form.
//!
//! ```text
//!  0        4         6      8               16
//!  | length | version | fds  | request       | body (postcard) ...
//!    u32      u16       u16    u64             at most 65,520 bytes
//! ```
//!
//! All fields are little-endian. `length` counts the whole frame; `fds` the descriptors that came
//! with it. A reply repeats its request's id; id 0 wants no reply.
//!
//! # Invariants
//!
//! 1. Enums only grow at their end; no `usize`; nothing here differs between 32 and 64 bits.
//! 2. A frame is decoded whole or refused whole: trailing bytes are an error.
//! 3. Every length is bounded by the frame, and the frame by [`FRAME_BYTES_MAX`].

pub mod admin;
pub mod client;
pub mod daemon;
pub mod data;
pub mod scrub;

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::limits::{FRAME_BYTES_MAX, FRAME_FDS_MAX};
use crate::status::Status;
use crate::version::WIRE_VERSION;

/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 16;

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Repeated by the reply; 0 wants none.
    pub request: u64,
    /// Descriptors that travel with the frame.
    pub fds: u16,
}

/// A request that was not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The code that the caller gets.
    pub status: Status,
    /// For `dmce_last_error` and logs: the numbers behind the code.
    pub text: String,
}

impl Refusal {
    /// A refusal with its reason.
    #[must_use]
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

/// What a reply's body is.
pub type Reply<T> = Result<T, Refusal>;

/// Writes a frame.
///
/// # Errors
///
/// [`WireError::TooLong`] if the body does not fit: the sender must ask for less at a time.
pub fn encode<T: Serialize>(header: FrameHeader, body: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = Vec::with_capacity(256);
    frame.resize(HEADER_BYTES, 0);
    let frame = postcard::to_extend(body, frame).map_err(|_| WireError::Body)?;
    let bytes = frame.len();
    if bytes > FRAME_BYTES_MAX {
        return Err(WireError::TooLong { bytes: bytes as u64 });
    }
    let mut frame = frame;
    #[expect(clippy::cast_possible_truncation, reason = "FRAME_BYTES_MAX fits in 32 bits")]
    frame[0..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    frame[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    frame[6..8].copy_from_slice(&header.fds.to_le_bytes());
    frame[8..16].copy_from_slice(&header.request.to_le_bytes());
    Ok(frame)
}

/// Reads the header of a frame that arrived as `frame` with `fds` descriptors.
///
/// # Errors
///
/// [`WireError`] says which field was wrong; [`WireError::Version`] is to be answered with a
/// refusal that names both versions, the rest with the end of the connection.
pub fn decode_header(frame: &[u8], fds: usize) -> Result<FrameHeader, WireError> {
    let Some((header, _)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(WireError::Short { bytes: frame.len() as u64 });
    };
    let [l0, l1, l2, l3, v0, v1, f0, f1, request @ ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let version = u16::from_le_bytes([v0, v1]);
    let claimed = u16::from_le_bytes([f0, f1]);
    if version != WIRE_VERSION {
        return Err(WireError::Version { theirs: version, ours: WIRE_VERSION });
    }
    if u64::from(length) != frame.len() as u64 {
        return Err(WireError::Length { claimed: length, bytes: frame.len() as u64 });
    }
    if frame.len() > FRAME_BYTES_MAX {
        return Err(WireError::TooLong { bytes: frame.len() as u64 });
    }
    if usize::from(claimed) != fds || fds > FRAME_FDS_MAX {
        return Err(WireError::Fds { claimed, came: fds as u64 });
    }
    Ok(FrameHeader { request: u64::from_le_bytes(request), fds: claimed })
}

/// Reads the body of a frame whose header was accepted.
///
/// # Errors
///
/// [`WireError::Body`] for bytes that are no `T`, or more than one.
pub fn decode_body<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    let body = frame.get(HEADER_BYTES..).ok_or(WireError::Body)?;
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(WireError::Body),
    }
}

/// The request id of a frame, as far as it can be read: an answer to a frame of another version
/// needs it.
#[must_use]
pub fn peek_request(frame: &[u8]) -> u64 {
    frame.get(8..16).and_then(|id| id.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A frame that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum WireError {
    /// Fewer bytes than a header.
    #[error("a frame of {bytes} bytes has no header")]
    Short { bytes: u64 },
    /// The length field is not the frame's length.
    #[error("the frame says {claimed} bytes and has {bytes}")]
    Length { claimed: u32, bytes: u64 },
    /// The peer speaks another version.
    #[error("the peer speaks message version {theirs}, this side {ours}")]
    Version { theirs: u16, ours: u16 },
    /// The descriptors are not what the header says, or too many.
    #[error("the frame says {claimed} descriptors and came with {came}")]
    Fds { claimed: u16, came: u64 },
    /// More bytes than a frame may have.
    #[error("a frame of {bytes} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong { bytes: u64 },
    /// The body is not one message.
    #[error("the body is not a message")]
    Body,
}

#[cfg(test)]
mod tests;
