//! A daemon's end of a link, for tests: one object, and what a daemon does with requests for it.
#![allow(clippy::unwrap_used, reason = "it belongs to tests")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::data::{Bytes, DataAnswer, DataReply, DataRequest, LinkId};
use dmce_abi::wire::{self, FrameHeader, Refusal};
use dmce_sys::object;
use dmce_sys::object::word::ObjectWord;
use dmce_sys::poll::EventFd;
use dmce_sys::socket::Socket;

use super::{AskedBlock, Carrier, LinkTable};

const TIMEOUT_MS: u32 = 60_000;

/// The block that an object is, asked for over a link of its own.
pub(crate) fn asked(object: OwnedFd) -> AskedBlock {
    linked(move |request| answer(&object, request))
}

/// A block whose daemon answers so. `None` ends the link.
pub(crate) fn linked(
    mut answer: impl FnMut(&DataRequest) -> Option<DataAnswer> + Send + 'static,
) -> AskedBlock {
    let (ours, theirs) = Socket::pair().unwrap();
    thread::spawn(move || {
        let (mut frame, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        while let Ok(received) = theirs.recv(&mut frame, &mut fds) {
            let frame = &frame[..received.bytes];
            let FrameHeader { request, .. } = wire::decode_header(frame, fds.len()).unwrap();
            let Some(answer) = answer(&wire::decode_body(frame).unwrap()) else { return };
            let reply = wire::encode(FrameHeader { request, fds: 0 }, &answer).unwrap();
            if theirs.send(&reply, &[]).is_err() {
                return;
            }
        }
    });
    link_to(&LinkTable::default(), ours)
}

/// A block over a link whose other end a test has.
pub(crate) fn link_to(links: &LinkTable, socket: Socket) -> AskedBlock {
    let interrupt = Arc::new(EventFd::new().unwrap());
    let link = links.add(LinkId(1), socket.into_fd(), interrupt).unwrap();
    let block = BlockId::try_from(1).unwrap();
    AskedBlock::new(block, Guid([1; 16]), Carrier::Direct(link), TIMEOUT_MS)
}

#[expect(clippy::unnecessary_wraps, reason = "this daemon never ends a link")]
fn answer(object: &OwnedFd, request: &DataRequest) -> Option<DataAnswer> {
    let cell = request.target().cell;
    let bytes = match request {
        DataRequest::Read { bytes, .. } => u64::from(*bytes),
        DataRequest::Write { data, .. } => data.0.len() as u64,
        _ => 8,
    };
    if object::end(object.as_fd()).unwrap() < cell + bytes {
        return Some(Err(Refusal::new(Status::Lost, "it was cut")));
    }
    let word = || ObjectWord::map(object.as_fd(), cell).unwrap();
    Some(Ok(match request {
        DataRequest::Read { bytes, .. } => {
            let mut data = vec![0; usize::try_from(*bytes).unwrap()];
            object::read_at(object.as_fd(), &mut data, cell).unwrap();
            DataReply::Bytes(Bytes(data))
        }
        DataRequest::Write { data, .. } => {
            object::write_at(object.as_fd(), &data.0, cell).unwrap();
            DataReply::Done
        }
        DataRequest::Cas64 { expected, desired, .. } => {
            DataReply::Word(word().compare_exchange(*expected, *desired).unwrap())
        }
        DataRequest::Add64 { add, .. } => DataReply::Word(word().fetch_add(*add).unwrap()),
        DataRequest::Wake { count, .. } => {
            word().wake(*count).unwrap();
            DataReply::Done
        }
        _ => DataReply::Word(word().load().unwrap()),
    }))
}
