use alloc::string::ToString;
use alloc::vec;

use super::admin::{AdminReply, AdminRequest, MappedRow, MappingKey};
use super::client::{
    Attach, ClientReply, ClientRequest, Grow, Malloc, MallocKind, MallocWith, Opening, OpeningId,
    Policy, Reach, Reached, Ready, RegionKey, SessionEvent, Setup, SpanKey, SpanList,
};
use super::daemon::{DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest};
use super::data::{Bytes, DataAnswer, DataReply, DataRequest, LinkGrant, LinkId, Target};
use super::scrub::ScrubFound;
use super::*;
use crate::block::{
    BlockDescription, BlockId, DaemonId, Guid, Half, Membership, Owner, Role, SessionId, Span,
    Ticket,
};
use crate::limits::INSTANCE_BYTES_MAX;
use crate::rate::Rate;

const PLAIN: FrameHeader = FrameHeader { request: 0x0102_0304_0506_0708, fds: 0 };

fn setup() -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version: 1,
        pointer_bits: 32,
        bytes: 300,
        accept_partial: true,
        copies: 1,
        name: "hold".into(),
    })
}

/// `docs/protocol.md` shows these bytes; another implementation is made from them.
#[test]
fn golden_frames() {
    let header = [28, 0, 0, 0, 2, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
    let body = [0, 1, 32, 0xac, 2, 1, 1, 4, b'h', b'o', b'l', b'd'];
    assert_eq!(encode(PLAIN, &setup()).unwrap(), [&header[..], &body[..]].concat());
    let block = BlockId::try_from(300).unwrap();
    let grow = ClientRequest::Grow(Grow { block, committed: 1 << 21 });
    assert_eq!(encode(PLAIN, &grow).unwrap()[HEADER_BYTES..], [4, 0xac, 2, 0x80, 0x80, 0x80, 1]);
    let attach = ClientRequest::Attach(Attach {
        session: SessionId::try_from(7).unwrap(),
        guid: Guid([9; 16]),
        openings: vec![Opening { opening: OpeningId(5), first: block, read: true, write: false }],
    });
    let bytes = [&[1, 7][..], &[9; 16], &[1, 5, 0xac, 2, 1, 0]].concat();
    assert_eq!(encode(PLAIN, &attach).unwrap()[HEADER_BYTES..], bytes);
    let ready: Reply<ClientReply> = Ok(ClientReply::Ready(ready(vec![OpeningId(5)])));
    let widths = [1, b'i', 16, 18, 30, 0xac, 2];
    let rest = [0x80, 0x20, 0, 0x80, 0x40, 1, 60, 0, 1, 5];
    let bytes = [&[0, 0, 7][..], &[9; 16], &widths, &rest].concat();
    assert_eq!(encode(PLAIN, &ready).unwrap()[HEADER_BYTES..], bytes);
    let region = RegionKey { first: block, guid: Guid([9; 16]) };
    let delete = ClientRequest::RegionDelete(region);
    let bytes = [&[17, 0xac, 2][..], &[9; 16]].concat();
    assert_eq!(encode(PLAIN, &delete).unwrap()[HEADER_BYTES..], bytes);
    let daemon = DaemonId::try_from(3).unwrap();
    let not_yet: Reply<ClientReply> = Ok(ClientReply::NotYet { daemon, begun: true });
    assert_eq!(encode(PLAIN, &not_yet).unwrap()[HEADER_BYTES..], [0, 12, 3, 1]);
    let spans = ClientRequest::Spans(SpanList { after: 300 });
    assert_eq!(encode(PLAIN, &spans).unwrap()[HEADER_BYTES..], [20, 0xac, 2]);
    let spans = vec![SpanKey { first: block, guid: Guid([9; 16]) }];
    let listed: Reply<ClientReply> = Ok(ClientReply::Spans { spans, more: false });
    let bytes = [&[0, 11, 1, 0xac, 2][..], &[9; 16], &[0]].concat();
    assert_eq!(encode(PLAIN, &listed).unwrap()[HEADER_BYTES..], bytes);
    let kind = MallocKind::Heap { committed: 4096 };
    let malloc = Malloc { ticket: 300, kind, page_size: 0, copies: 0 };
    let with = ClientRequest::MallocWith(MallocWith { malloc, policy: 2, wait_ms: Some(250) });
    let bytes = [22, 0xac, 2, 0, 0x80, 0x20, 0, 0, 2, 1, 0xfa, 1];
    assert_eq!(encode(PLAIN, &with).unwrap()[HEADER_BYTES..], bytes);
    let lost_bytes = SessionEvent::Lost { addr: 300, bytes: 4096 };
    let events: Reply<ClientReply> = Ok(ClientReply::Events(vec![lost_bytes]));
    let bytes = [0, 15, 1, 2, 0xac, 2, 0x80, 0x20];
    assert_eq!(encode(PLAIN, &events).unwrap()[HEADER_BYTES..], bytes);
    let refused: Reply<ClientReply> = Err(Refusal::new(Status::Quota, "no"));
    assert_eq!(encode(PLAIN, &refused).unwrap()[HEADER_BYTES..], [1, 8, 2, b'n', b'o']);
    let lost = DaemonMessage::Notice(DaemonNotice::Lost { block });
    assert_eq!(encode(PLAIN, &lost).unwrap()[HEADER_BYTES..], [3, 0, 0xac, 2]);
}

#[test]
fn golden_mappings() {
    let key = MappingKey { session: 7, os_address: 1 << 21 };
    let list = AdminRequest::Mappings { addr: 300, session: 0, after: key };
    let bytes = encode(PLAIN, &ClientRequest::Admin(list)).unwrap();
    assert_eq!(bytes[HEADER_BYTES..], [19, 13, 0xac, 2, 0, 7, 0x80, 0x80, 0x80, 1]);
    let row = MappedRow {
        key,
        pid: 300,
        uid: 5,
        name: "hold".into(),
        addr: 1 << 30,
        bytes: 4096,
        writable: true,
    };
    let listed = AdminReply::Mappings { rows: vec![row], more: false };
    let listed: Reply<ClientReply> = Ok(ClientReply::Admin(listed));
    let key = [7, 0x80, 0x80, 0x80, 1];
    let rest = [0xac, 2, 5, 4, b'h', b'o', b'l', b'd', 0x80, 0x80, 0x80, 0x80, 4, 0x80, 0x20, 1, 0];
    let bytes = [&[0, 9, 12, 1][..], &key, &rest].concat();
    assert_eq!(encode(PLAIN, &listed).unwrap()[HEADER_BYTES..], bytes);
}

#[test]
fn golden_create() {
    let (block, guid) = (BlockId::try_from(300).unwrap(), Guid([9; 16]));
    let session = SessionId::try_from(7).unwrap();
    let ticket = Ticket { session: guid, number: 1 };
    let peers = vec![DaemonId::try_from(3).unwrap()];
    let description = BlockDescription {
        block,
        guid,
        epoch: 1,
        page_size: 4096,
        bytes_max: 8192,
        span: Span { first: block, count: 1, guid },
        owner: Owner::Session { session, ticket, uid: 1000, copies: 2 },
        membership: Membership {
            role: Role::Copy,
            half: Half::MIRROR,
            peers,
            syncing: None,
            since: 0,
            locked: false,
        },
    };
    let create = DaemonRequest::Create { description, committed: 4096 };
    let mut bytes = vec![0, 0xac, 2];
    bytes.extend([9; 16]);
    bytes.extend([1, 0x80, 0x20, 0x80, 0x40, 0xac, 2, 1]);
    bytes.extend([9; 16]);
    bytes.extend([0, 7]);
    bytes.extend([9; 16]);
    bytes.extend([1, 0xe8, 7, 2, 1, 1, 1, 3, 0, 0, 0, 0x80, 0x20]);
    assert_eq!(encode(PLAIN, &create).unwrap()[HEADER_BYTES..], bytes);
}

fn ready(unknown_openings: Vec<OpeningId>) -> Ready {
    Ready {
        session: SessionId::try_from(7).unwrap(),
        guid: Guid([9; 16]),
        instance: "i".into(),
        layout: [16, 18, 30],
        block_ids: 300,
        block_bytes_max: 4096,
        reserved: 0,
        quota: 8192,
        copies: 1,
        idle_s: 60,
        has_policies: false,
        unknown_openings,
    }
}

/// However many openings an Attach tells, of which there may be none.
#[test]
fn the_answer_to_every_attach_fits_a_frame() {
    for (number, openings) in [(0, 16_370), (u64::MAX, 5_036)] {
        let first = BlockId::try_from(1).unwrap();
        let told = Opening { opening: OpeningId(number), first, read: true, write: false };
        let attach = |openings| {
            let session = SessionId::try_from(7).unwrap();
            let openings = vec![told; openings];
            ClientRequest::Attach(Attach { session, guid: Guid([9; 16]), openings })
        };
        assert!(encode(PLAIN, &attach(openings)).is_ok());
        assert!(encode(PLAIN, &attach(openings + 20)).is_err());
        let mut most = ready(vec![told.opening; openings + 20]);
        most.instance = "i".repeat(INSTANCE_BYTES_MAX);
        (most.block_ids, most.copies, most.idle_s) = (u32::MAX, u32::MAX, u32::MAX);
        (most.block_bytes_max, most.reserved, most.quota) = (u64::MAX, u64::MAX, u64::MAX);
        let answer: Reply<ClientReply> = Ok(ClientReply::Ready(most));
        assert!(encode(PLAIN, &answer).is_ok());
    }
}

#[test]
fn a_frame_reads_back() {
    let frame = encode(PLAIN, &setup()).unwrap();
    assert_eq!(decode_header(&frame, 0), Ok(PLAIN));
    assert_eq!(decode_body::<ClientRequest>(&frame), Ok(setup()));
}

#[test]
fn each_cut_and_each_lie_is_refused() {
    let frame = encode(PLAIN, &setup()).unwrap();
    for bytes in 0..frame.len() {
        assert!(decode_header(&frame[..bytes], 0).is_err());
        assert!(decode_body::<ClientRequest>(&frame[..bytes]).is_err());
    }
    let mut longer = frame.clone();
    longer.push(0);
    assert!(matches!(decode_header(&longer, 0), Err(WireError::Length { .. })));
    assert_eq!(decode_body::<ClientRequest>(&longer), Err(WireError::Body));
    assert!(matches!(decode_header(&frame, 1), Err(WireError::Fds { .. })));

    let mut other = frame.clone();
    other[4] = 9;
    assert_eq!(
        decode_header(&other, 0).unwrap_err().to_string(),
        "the peer speaks message version 9, this side 2"
    );
    assert_eq!(peek_request(&other), PLAIN.request);
    let mut unknown = frame;
    unknown[HEADER_BYTES] = 200;
    assert_eq!(decode_body::<ClientRequest>(&unknown), Err(WireError::Body));
}

/// Whoever reads with a larger buffer than needed, to see what was cut, must not take more either.
#[test]
fn a_frame_that_is_longer_than_frames_may_be_is_refused_whatever_it_says() {
    let mut frame = encode(PLAIN, &setup()).unwrap();
    for (bytes, fits) in [(FRAME_BYTES_MAX, true), (FRAME_BYTES_MAX + 1, false)] {
        frame.resize(bytes, 0);
        frame[..4].copy_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
        let too_long = Err(WireError::TooLong { bytes: bytes as u64 });
        assert_eq!(decode_header(&frame, 0), if fits { Ok(PLAIN) } else { too_long });
    }
}

/// A length inside the body must not make the decoder allocate what it claims.
#[test]
fn a_claimed_length_beyond_the_frame_is_refused() {
    let mut frame = encode(PLAIN, &setup()).unwrap();
    let name = HEADER_BYTES + 7;
    assert_eq!(frame[name], 4);
    frame[name] = 0x7f;
    assert_eq!(decode_body::<ClientRequest>(&frame), Err(WireError::Body));
    frame.truncate(name);
    frame.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(decode_body::<ClientRequest>(&frame), Err(WireError::Body));
}

#[test]
fn an_id_that_no_table_holds_does_not_decode() {
    let mut frame = encode(PLAIN, &ClientRequest::Damaged(BlockId::try_from(1).unwrap())).unwrap();
    let last = frame.len() - 1;
    frame[last] = 0;
    assert_eq!(decode_body::<ClientRequest>(&frame), Err(WireError::Body));
}

#[test]
fn a_body_that_does_not_fit_is_not_sent() {
    let names = vec![alloc::string::String::from("0123456789abcdef"); 5000];
    let reply: Reply<ClientReply> = Ok(ClientReply::Names { names, more: false });
    assert!(matches!(encode(PLAIN, &reply), Err(WireError::TooLong { .. })));
}

/// A client may have to tell all its openings at once.
#[test]
fn as_many_openings_as_a_session_may_have_fit_a_frame() {
    let first = BlockId::try_from(crate::limits::BLOCK_IDS_MAX - 1).unwrap();
    let opening = Opening { opening: OpeningId(u64::MAX), first, read: true, write: true };
    let attach = ClientRequest::Attach(Attach {
        session: SessionId::try_from(crate::limits::SESSION_IDS_MAX).unwrap(),
        guid: Guid([0xff; 16]),
        openings: vec![opening; crate::limits::GRANTS],
    });
    let frame = encode(PLAIN, &attach).unwrap();
    assert_eq!(decode_body::<ClientRequest>(&frame), Ok(attach));
}

#[test]
fn as_many_spans_as_are_listed_at_once_fit_a_frame() {
    let first = BlockId::try_from(crate::limits::BLOCK_IDS_MAX - 1).unwrap();
    let spans = vec![SpanKey { first, guid: Guid([0xff; 16]) }; crate::limits::SPANS_LISTED];
    let reply: Reply<ClientReply> = Ok(ClientReply::Spans { spans, more: true });
    let frame = encode(PLAIN, &reply).unwrap();
    assert_eq!(decode_body::<Reply<ClientReply>>(&frame), Ok(reply));
}

#[test]
fn the_longest_table_of_policies_and_the_longest_queue_of_events_fit_a_frame() {
    let policy = Policy {
        up_to: u64::MAX,
        copies: u32::MAX,
        page_size: u32::MAX,
        block_bytes: u64::MAX,
        align: u32::MAX,
        wait_ms: Some(u32::MAX),
    };
    let event = SessionEvent::Lost { addr: u64::MAX, bytes: u64::MAX };
    for reply in [
        ClientReply::Policies(vec![policy; crate::limits::POLICIES_MAX]),
        ClientReply::Events(vec![event; crate::limits::EVENTS_QUEUED]),
    ] {
        let reply: Reply<ClientReply> = Ok(reply);
        let frame = encode(PLAIN, &reply).unwrap();
        assert_eq!(decode_body::<Reply<ClientReply>>(&frame), Ok(reply));
    }
}

fn target() -> Target {
    let block = BlockId::try_from(300).unwrap();
    Target { block, guid: Guid([9; 16]), cell: 4096 }
}

/// `docs/protocol.md` shows these bytes, too.
#[test]
fn golden_data() {
    let body = |request: &DataRequest| encode(PLAIN, request).unwrap()[HEADER_BYTES..].to_vec();
    let at = [&[0xac, 2][..], &[9; 16], &[0x80, 0x20]].concat();
    let read = DataRequest::Read { at: target(), bytes: 300 };
    assert_eq!(body(&read), [&[0][..], &at, &[0xac, 2]].concat());
    let data = Bytes(vec![7, 8, 9]);
    let write = DataRequest::Write { at: target(), data: data.clone() };
    assert_eq!(body(&write), [&[1][..], &at, &[3, 7, 8, 9]].concat());
    let cas = DataRequest::Cas64 { at: target(), expected: 1, desired: 2 };
    assert_eq!(body(&cas), [&[2][..], &at, &[1, 2]].concat());
    let add = DataRequest::Add64 { at: target(), add: 300 };
    assert_eq!(body(&add), [&[3][..], &at, &[0xac, 2]].concat());
    let wait = DataRequest::Wait64 { at: target(), while_equal: 5 };
    assert_eq!(body(&wait), [&[4][..], &at, &[5]].concat());
    let wake = DataRequest::Wake { at: target(), count: 1 };
    assert_eq!(body(&wake), [&[5][..], &at, &[1]].concat());
    let half = Half::MIRROR;
    let read = DataRequest::ReadHalf { at: target(), bytes: 300, half };
    assert_eq!(body(&read), [&[6][..], &at, &[0xac, 2, 1]].concat());
    let write = DataRequest::WriteHalf { at: target(), data: data.clone(), half };
    assert_eq!(body(&write), [&[7][..], &at, &[3, 7, 8, 9, 1]].concat());
    let level = DataRequest::Level { at: target(), bytes: 300, half };
    assert_eq!(body(&level), [&[8][..], &at, &[0xac, 2, 1]].concat());
    let answer: DataAnswer = Ok(DataReply::Bytes(data));
    assert_eq!(encode(PLAIN, &answer).unwrap()[HEADER_BYTES..], [0, 0, 3, 7, 8, 9]);
    let answer: DataAnswer = Ok(DataReply::Word(300));
    assert_eq!(encode(PLAIN, &answer).unwrap()[HEADER_BYTES..], [0, 2, 0xac, 2]);
    let answer: DataAnswer = Ok(DataReply::Part { bytes: 300 });
    assert_eq!(encode(PLAIN, &answer).unwrap()[HEADER_BYTES..], [0, 3, 0xac, 2]);
}

#[test]
fn golden_links() {
    let Target { block, guid, .. } = target();
    let broken = LinkId(4);
    let reach = ClientRequest::Reach(Reach { block, writable: true, direct: true, broken });
    assert_eq!(encode(PLAIN, &reach).unwrap()[HEADER_BYTES..], [24, 0xac, 2, 1, 1, 4]);
    let grant = LinkGrant { block, guid, writable: false };
    let session = SessionId::try_from(7).unwrap();
    let (id, rate) = (LinkId(5), Rate { per_s: 300, burst: 64 });
    let link = DaemonRequest::Link { link: id, session, uid: 1000, rate, grant };
    let bytes = [&[5, 5, 7, 0xe8, 7, 0xac, 2, 64, 0xac, 2][..], &[9; 16], &[0]].concat();
    assert_eq!(encode(PLAIN, &link).unwrap()[HEADER_BYTES..], bytes);
    let revoke = DaemonRequest::Revoke { link: LinkId(5), block };
    assert_eq!(encode(PLAIN, &revoke).unwrap()[HEADER_BYTES..], [8, 5, 0xac, 2]);
    let seat = DaemonRequest::Seat { session, guid, cell_bits: 30 };
    let bytes = [&[12, 7][..], &[9; 16], &[30]].concat();
    assert_eq!(encode(PLAIN, &seat).unwrap()[HEADER_BYTES..], bytes);
    let sync = DaemonRequest::Sync { block, guid, cell: 4096, bytes: 8192 };
    let bytes = [&[13, 0xac, 2][..], &[9; 16], &[0x80, 0x20, 0x80, 0x40]].concat();
    assert_eq!(encode(PLAIN, &sync).unwrap()[HEADER_BYTES..], bytes);
    let synced = DaemonMessage::Reply(Ok(DaemonAnswer::Synced { bytes: 8192 }));
    assert_eq!(encode(PLAIN, &synced).unwrap()[HEADER_BYTES..], [2, 0, 4, 0x80, 0x40]);
    let scrub = DaemonRequest::Scrub { block, guid, cell: 4096, bytes: 8192 };
    let bytes = [&[14, 0xac, 2][..], &[9; 16], &[0x80, 0x20, 0x80, 0x40]].concat();
    assert_eq!(encode(PLAIN, &scrub).unwrap()[HEADER_BYTES..], bytes);
    let found = ScrubFound { checked: 1, repaired: 300, ..ScrubFound::default() };
    let scrubbed = DaemonMessage::Reply(Ok(DaemonAnswer::Scrubbed { bytes: 8192, found }));
    let bytes = [2, 0, 5, 0x80, 0x40, 1, 0, 0, 0, 0, 0, 0xac, 2, 0];
    assert_eq!(encode(PLAIN, &scrubbed).unwrap()[HEADER_BYTES..], bytes);
    let damaged = DaemonMessage::Notice(DaemonNotice::Damaged { block });
    assert_eq!(encode(PLAIN, &damaged).unwrap()[HEADER_BYTES..], [3, 4, 0xac, 2]);
    let unseated = DaemonMessage::Notice(DaemonNotice::Unseated { left: Some(session) });
    assert_eq!(encode(PLAIN, &unseated).unwrap()[HEADER_BYTES..], [3, 5, 1, 7]);
    let copy = |daemon, half| {
        Some(super::client::CopyInfo { daemon: DaemonId::try_from(daemon).ok()?, since: 5, half })
    };
    let info = crate::wire::client::BlockInfo {
        block,
        guid,
        epoch: 1,
        committed: 4096,
        bytes_max: 8192,
        span_first: block,
        span_count: 1,
        page_size: 4096,
        writable: true,
        lost: false,
        copies: [copy(3, Half::MIRROR), copy(1, Half::PRIMARY), None],
        syncing: copy(2, Half::MIRROR),
        has_locks: true,
        is_moving: false,
    };
    assert_eq!(info.descriptors(), 4);
    let reached: Reply<ClientReply> = Ok(ClientReply::Reached(Reached { info, link: LinkId(5) }));
    let middle = [
        &[1, 0x80, 0x20, 0x80, 0x40, 0xac, 2, 1, 0x80, 0x20, 1, 0][..],
        &[1, 3, 5, 1, 1, 1, 5, 0, 0, 1, 2, 5, 1, 1, 0, 5],
    ]
    .concat();
    let bytes = [&[0, 16, 0xac, 2][..], &[9; 16], &middle].concat();
    assert_eq!(encode(PLAIN, &reached).unwrap()[HEADER_BYTES..], bytes);
}

/// Also with what the broker wraps around it.
#[test]
fn as_many_bytes_as_a_message_carries_fit_a_frame_and_no_more_are_read() {
    let at = Target {
        block: BlockId::try_from(crate::limits::BLOCK_IDS_MAX - 1).unwrap(),
        guid: Guid([0xff; 16]),
        cell: u64::MAX,
    };
    let data = Bytes(vec![0xff; crate::limits::DATA_BYTES_MAX]);
    let write = DataRequest::Write { at, data: data.clone() };
    let relayed = DaemonRequest::Data(write.clone());
    let frame = encode(PLAIN, &relayed).unwrap();
    assert_eq!(decode_body::<DaemonRequest>(&frame), Ok(relayed));
    assert!(encode(PLAIN, &ClientRequest::Data(write)).is_ok());
    let answer = DaemonMessage::Reply(Ok(DaemonAnswer::Data(DataReply::Bytes(data.clone()))));
    let frame = encode(PLAIN, &answer).unwrap();
    assert_eq!(decode_body::<DaemonMessage>(&frame), Ok(answer));
    let longer = Bytes(vec![0; crate::limits::DATA_BYTES_MAX + 1]);
    let frame = encode(PLAIN, &DataRequest::Write { at, data: longer }).unwrap();
    assert_eq!(decode_body::<DataRequest>(&frame), Err(WireError::Body));
}

/// What costs nothing could be asked for without end.
#[test]
fn bytes_that_a_daemon_moves_between_copies_count_as_those_that_are_written() {
    let (at, half) = (target(), Half::MIRROR);
    let write = DataRequest::WriteHalf { at, data: Bytes(vec![1; 5000]), half };
    assert_eq!(write.moved_bytes(), 5000);
    let level = |bytes| DataRequest::Level { at, bytes, half };
    assert_eq!((level(5000).moved_bytes(), level(5000).data_bytes()), (5000, 0));
    assert_eq!(level(u32::MAX).moved_bytes(), crate::limits::DATA_BYTES_MAX);
    assert_eq!(DataRequest::Read { at, bytes: 5000 }.moved_bytes(), 5000);
}

#[test]
fn a_reply_of_another_kind_or_length_does_not_fit_its_request() {
    let read = DataRequest::Read { at: target(), bytes: 2 };
    assert!(read.fits(&DataReply::Bytes(Bytes(vec![1, 2]))));
    assert!(!read.fits(&DataReply::Bytes(Bytes(vec![1]))));
    assert!(!read.fits(&DataReply::Done) && !read.fits(&DataReply::Word(0)));
    let add = DataRequest::Add64 { at: target(), add: 1 };
    assert!(add.fits(&DataReply::Word(3)) && !add.fits(&DataReply::Done));
    let part = |bytes| DataReply::Part { bytes };
    let write = DataRequest::Write { at: target(), data: Bytes(vec![1, 2]) };
    let level = DataRequest::Level { at: target(), bytes: 2, half: Half::MIRROR };
    for request in [write, level] {
        assert!(request.fits(&DataReply::Done) && !request.fits(&DataReply::Word(0)));
        assert!(request.fits(&part(0)) && request.fits(&part(1)) && !request.fits(&part(2)));
    }
    let wake = DataRequest::Wake { at: target(), count: 1 };
    assert!([read, add, wake].iter().all(|request| !request.fits(&part(0))));
}
