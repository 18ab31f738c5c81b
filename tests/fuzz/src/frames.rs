//! Frames and their bodies, both directions of every connection (docs/protocol.md).
//!
//! ```text
//! 0       1       2
//! | kind  | fds   | a body; or with the top bit of kind, a whole frame
//! ```

use std::fmt::Debug;

use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, SessionId};
use dmce_abi::limits::{
    DATA_BYTES_MAX, FRAME_BYTES_MAX, FRAME_FDS_MAX, INSTANCE_BYTES_MAX, PAGE_BYTES,
};
use dmce_abi::wire::client::{Attach, ClientReply, ClientRequest, Ready};
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonRequest};
use dmce_abi::wire::data::{DataAnswer, DataReply, DataRequest};
use dmce_abi::wire::{self, FrameHeader, HEADER_BYTES, Reply, WireError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bit of `kind` that says that a whole frame follows.
const WHOLE: u8 = 1 << 7;

pub fn run(data: &[u8]) {
    let Some((&[kind, fds], rest)) = data.split_first_chunk() else { return };
    let frame = if kind & WHOLE == 0 { around(rest, fds) } else { rest.to_vec() };
    let fds = usize::from(fds);
    match kind & !WHOLE {
        0 => check(&frame, fds, client_request),
        1 => check(&frame, fds, client_reply),
        2 => check(&frame, fds, daemon_request),
        3 => check(&frame, fds, daemon_message),
        4 => check(&frame, fds, data_request),
        _ => check(&frame, fds, data_answer),
    }
}

/// A frame with a right header around any body.
pub fn around(body: &[u8], fds: u8) -> Vec<u8> {
    let header = FrameHeader { request: 7, fds: fds.into() };
    let mut frame = wire::encode(header, &()).expect("an empty body fits");
    frame.extend_from_slice(body);
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// What is accepted reads the same after it was written again, in no more bytes.
fn check<T>(frame: &[u8], fds: usize, holds: fn(&T))
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let header = match wire::decode_header(frame, fds) {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().contains('\n')),
    };
    assert!(frame.len() <= FRAME_BYTES_MAX && fds <= FRAME_FDS_MAX);
    assert_eq!((header.request, header.fds as usize), (wire::peek_request(frame), fds));
    let Ok(message) = wire::decode_body::<T>(frame) else { return };
    holds(&message);
    let again = wire::encode(header, &message).expect("what was read fits a frame");
    assert!(again.len() <= frame.len(), "{} bytes became {}", frame.len(), again.len());
    assert_eq!(wire::decode_header(&again, fds), Ok(header));
    assert_eq!(wire::decode_body::<T>(&again).as_ref(), Ok(&message));
    refuses_more_and_less::<T>(again, fds);
}

/// A frame that is cut, or has something behind its message, is no frame.
fn refuses_more_and_less<T: DeserializeOwned + PartialEq + Debug>(mut frame: Vec<u8>, fds: usize) {
    let less = &frame[..frame.len() - 1];
    assert!(wire::decode_header(less, fds).is_err());
    // Of a message without a field the header is all that can be cut.
    assert!(less.len() < HEADER_BYTES || wire::decode_body::<T>(less) == Err(WireError::Body));
    frame.push(0);
    assert_eq!(wire::decode_body::<T>(&frame), Err(WireError::Body));
}

fn client_request(request: &ClientRequest) {
    match request {
        ClientRequest::Attach(attach) => {
            is_session(attach.session);
            attach.openings.iter().for_each(|opening| is_block(opening.first));
            is_answered(attach);
        }
        ClientRequest::Grow(grow) => is_block(grow.block),
        ClientRequest::Reach(reach) => is_block(reach.block),
        ClientRequest::Data(request) => data_request(request),
        _ => {}
    }
}

/// The longest answer to an Attach fits a frame, whatever that told.
fn is_answered(attach: &Attach) {
    let ready = ClientReply::Ready(Ready {
        session: attach.session,
        guid: attach.guid,
        instance: "i".repeat(INSTANCE_BYTES_MAX),
        layout: [u8::MAX; 3],
        block_ids: u32::MAX,
        block_bytes_max: u64::MAX,
        reserved: u64::MAX,
        quota: u64::MAX,
        copies: u32::MAX,
        idle_s: u32::MAX,
        has_policies: true,
        unknown_openings: attach.openings.iter().map(|opening| opening.opening).collect(),
    });
    let header = FrameHeader { request: u64::MAX, fds: 2 };
    let answer: Reply<ClientReply> = Ok(ready);
    wire::encode(header, &answer).expect("a number is shorter than the opening that it is of");
}

fn client_reply(reply: &Reply<ClientReply>) {
    match reply {
        Ok(ClientReply::Ready(ready)) => {
            is_session(ready.session);
            // What a client makes of these before it believes them.
            let [server, block, cell] = ready.layout;
            let _ = AddrLayout::new(server, block, cell);
        }
        Ok(ClientReply::Changed(changed)) => changed.blocks.iter().copied().for_each(is_block),
        Ok(ClientReply::NotYet { daemon, .. }) => is_daemon(*daemon),
        Ok(ClientReply::Data(reply)) => data_reply(reply),
        _ => {}
    }
}

fn daemon_request(request: &DaemonRequest) {
    match request {
        DaemonRequest::Create { description, .. } => described(description),
        DaemonRequest::Link { session, grant, .. } => {
            is_session(*session);
            is_block(grant.block);
        }
        DaemonRequest::Data(request) => data_request(request),
        _ => {}
    }
}

fn daemon_message(message: &DaemonMessage) {
    match message {
        DaemonMessage::Register(register) => is_daemon(register.daemon),
        DaemonMessage::Holds { blocks, .. } => {
            for held in blocks {
                described(&held.description);
            }
        }
        DaemonMessage::Reply(Ok(DaemonAnswer::Data(reply))) => data_reply(reply),
        _ => {}
    }
}

fn data_request(request: &DataRequest) {
    is_block(request.target().block);
    assert!(request.data_bytes() <= DATA_BYTES_MAX);
    // An answer fits one kind of request alone.
    let is_read = matches!(request, DataRequest::Read { .. } | DataRequest::ReadHalf { .. });
    let answers = [DataReply::Done, DataReply::Word(0)];
    let fitting = answers.iter().filter(|reply| request.fits(reply)).count();
    assert!(fitting == usize::from(!is_read));
    assert!(!request.counts() || request.writes());
}

fn data_answer(answer: &DataAnswer) {
    if let Ok(reply) = answer {
        data_reply(reply);
    }
}

fn data_reply(reply: &DataReply) {
    if let DataReply::Bytes(bytes) = reply {
        assert!(bytes.0.len() <= DATA_BYTES_MAX);
    }
}

/// What the broker computes with once a description is valid.
pub fn described(description: &BlockDescription) {
    is_block(description.block);
    let block_bytes = AddrLayout::IN_SERVER.block_bytes();
    if description.validate(block_bytes).is_err() {
        return;
    }
    let span = description.span;
    let last = span.first.checked_add(span.count - 1).expect("a valid span ends in the table");
    assert!(span.first <= description.block && description.block <= last);
    assert!(
        description.bytes_max <= block_bytes && description.bytes_max.is_multiple_of(PAGE_BYTES)
    );
}

fn is_block(block: BlockId) {
    assert!((1..=BlockId::MAX).contains(&block.get()));
}

fn is_session(session: SessionId) {
    assert!((1..=SessionId::MAX).contains(&session.get()));
}

fn is_daemon(daemon: DaemonId) {
    assert!((1..=DaemonId::MAX).contains(&daemon.get()));
}
