//! What a frame makes its reader allocate is bounded by the frame, whatever it claims. Alone in its
//! program: all that any thread allocates is counted.
#![forbid(unsafe_code)]

use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::daemon::{DaemonMessage, DaemonRequest};
use dmce_abi::wire::data::{DataAnswer, DataRequest};
use dmce_abi::wire::{self, FrameHeader, Reply};
use dmce_fuzz::mutation::Mutator;
use dmce_fuzz::{Target, corpus};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const RUNS: u32 = 20_000;
const SEED: u64 = 5;

/// A list is given room for what its length claims, but no more than this ahead of its entries.
const AHEAD_BYTES_MAX: usize = 1 << 20;

/// An entry of one byte on the wire becomes an empty text; the list doubles as it grows.
const BYTES_PER_BYTE_MAX: usize = 128;

fn decode_as_everything(frame: &[u8]) {
    let _ = wire::decode_body::<ClientRequest>(frame);
    let _ = wire::decode_body::<Reply<ClientReply>>(frame);
    let _ = wire::decode_body::<DaemonRequest>(frame);
    let _ = wire::decode_body::<DaemonMessage>(frame);
    let _ = wire::decode_body::<DataRequest>(frame);
    let _ = wire::decode_body::<DataAnswer>(frame);
}

/// The body of a kept input, behind a header that is not looked at.
fn framed(input: &[u8]) -> Vec<u8> {
    let body = input.get(2..).unwrap_or_default();
    [&[0; wire::HEADER_BYTES], body].concat()
}

fn check(frame: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    decode_as_everything(frame);
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    let bound = AHEAD_BYTES_MAX + BYTES_PER_BYTE_MAX * frame.len();
    assert!(peak <= bound, "{} bytes made {peak}, limit {bound}: {frame:x?}", frame.len());
}

/// A frame with a list of `count` entries, all bytes of which are zeros, if it gets so far.
fn claiming(reply: &Reply<ClientReply>, count: u64, entries: usize) -> Vec<u8> {
    let frame = wire::encode(FrameHeader { request: 1, fds: 0 }, reply);
    let mut frame = frame.expect("an empty list fits");
    // The list is empty and the flag behind it clear.
    frame.truncate(frame.len() - 2);
    frame.extend(postcard::to_allocvec(&count).expect("a number can be written"));
    frame.resize(frame.len() + entries, 0);
    frame
}

#[test]
fn no_frame_takes_more_memory_than_its_bytes_account_for() {
    let kept = corpus::inputs(Target::named("frames").unwrap()).unwrap();
    let inputs: Vec<Vec<u8>> = kept.into_iter().map(|(_, input)| input).collect();
    for input in &inputs {
        check(&framed(input));
    }
    let mut mutator = Mutator::new(SEED);
    for _ in 0..RUNS {
        check(&framed(&mutator.next_input(&inputs, 4096)));
    }
    let names = Ok(ClientReply::Names { names: Vec::new(), more: false });
    let spans = Ok(ClientReply::Spans { spans: Vec::new(), more: false });
    for reply in [names, spans] {
        for count in [1 << 10, 60_000, u64::from(u32::MAX), u64::MAX] {
            check(&claiming(&reply, count, 0));
            check(&claiming(&reply, count, 60_000));
        }
    }
}
