//! Clients that map nothing, over links and through the broker; the hostile ones among them.

use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::rate::Rate;
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest, LinkGrant, LinkId, Target};
use dmce_sys::clock;
use dmce_sys::socket::SocketError;

use super::*;

fn at(block: u32, cell: u64) -> Target {
    Target { block: id(block), guid: description(block).guid, cell }
}

fn grant(block: u32, writable: bool) -> LinkGrant {
    LinkGrant { block: id(block), guid: description(block).guid, writable }
}

fn read(at: Target, bytes: u32) -> DataRequest {
    DataRequest::Read { at, bytes }
}

fn write(at: Target, data: &[u8]) -> DataRequest {
    DataRequest::Write { at, data: Bytes(data.to_vec()) }
}

fn bytes(data: &[u8]) -> DataReply {
    DataReply::Bytes(Bytes(data.to_vec()))
}

/// A daemon with blocks of 2 MiB.
fn serving(blocks: u32) -> Broker {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    for block in 1..=blocks {
        assert_eq!(broker.ask(&create(block, 2 * MIB)), committed(2 * MIB));
    }
    broker
}

#[test]
fn bytes_and_words_are_those_of_the_object_in_both_ways() {
    let mut broker = serving(1);
    let link = broker.link(5, grant(1, true));
    let mapped = broker.open_data(1);
    assert_eq!(link.ask(&write(at(1, 4095), b"over a page")), Ok(DataReply::Done));
    let mut found = [0; 11];
    object::read_at(mapped.as_fd(), &mut found, 4095).unwrap();
    assert_eq!(&found, b"over a page");
    object::write_at(mapped.as_fd(), b"O", 4095).unwrap();
    assert_eq!(link.ask(&read(at(1, 4095), 4)), Ok(bytes(b"Over")));

    let word = at(1, 64);
    assert_eq!(link.ask(&DataRequest::Add64 { at: word, add: 1 << 40 }), Ok(DataReply::Word(0)));
    let cas = DataRequest::Cas64 { at: word, expected: 1 << 40, desired: 3 };
    assert_eq!(link.ask(&cas), Ok(DataReply::Word(1 << 40)));
    assert_eq!(link.ask(&cas), Ok(DataReply::Word(3)));
    let wait = DataRequest::Wait64 { at: word, while_equal: 3 };
    assert_eq!(link.ask(&wait), Ok(DataReply::Word(3)), "answered at once");
    assert_eq!(link.ask(&DataRequest::Wake { at: word, count: 1 }), Ok(DataReply::Done));

    let relayed = |request: DataRequest| DaemonRequest::Data(request);
    let reply = broker.ask(&relayed(read(at(1, 64), 8)));
    assert_eq!(reply, Ok(DaemonAnswer::Data(bytes(&3_u64.to_le_bytes()))));
    let reply = broker.ask(&relayed(write(at(1, 2 * MIB - 2), b"xyz")));
    assert_eq!(reply.unwrap_err().status, Status::Address);
    let all = vec![9; DATA_BYTES_MAX];
    assert_eq!(link.ask(&write(at(1, 0), &all)), Ok(DataReply::Done));
    assert_eq!(link.ask(&read(at(1, 0), 61_440)), Ok(bytes(&all)));
}

#[test]
fn a_link_reaches_what_was_granted_and_nothing_else() {
    let mut broker = serving(3);
    let link = broker.link(5, grant(1, false));
    let other = broker.link(6, grant(2, true));
    assert_eq!(link.status(&read(at(2, 0), 1)), Status::NotFound);
    assert_eq!(other.status(&read(at(1, 0), 1)), Status::NotFound);
    assert_eq!(link.status(&read(at(9, 0), 1)), Status::NotFound);
    let stale = Target { guid: Guid([0xee; 16]), ..at(1, 0) };
    assert_eq!(link.status(&read(stale, 1)), Status::NotFound);
    assert_eq!(link.status(&write(at(1, 0), b"x")), Status::Denied);
    assert_eq!(link.status(&DataRequest::Add64 { at: at(1, 0), add: 1 }), Status::Denied);
    assert!(link.ask(&read(at(1, 0), 1)).is_ok());

    // What lies, or is beyond an end.
    for (cell, bytes) in [(2 * MIB, 1), (2 * MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        assert_eq!(link.status(&read(at(1, cell), bytes)), Status::Address, "{bytes} at {cell}");
    }
    assert_eq!(link.status(&read(at(1, 0), 61_441)), Status::Invalid);
    assert_eq!(link.status(&read(at(1, 0), u32::MAX)), Status::Invalid);
    let odd = DataRequest::Wait64 { at: at(1, 4), while_equal: 0 };
    assert_eq!(link.status(&odd), Status::Invalid);

    broker.tell(&DaemonRequest::Grant { link: LinkId(5), grant: grant(2, true) });
    assert!(link.ask(&write(at(2, 0), b"x")).is_ok());
    broker.tell(&DaemonRequest::Revoke { link: LinkId(5), block: id(2) });
    assert!(matches!(broker.ask(&DaemonRequest::Sense), Ok(DaemonAnswer::Sensed { .. })));
    assert_eq!(link.status(&write(at(2, 0), b"y")), Status::NotFound);
    assert_eq!(other.ask(&read(at(2, 0), 1)), Ok(bytes(b"x")));
    broker.tell(&DaemonRequest::Unlink { link: LinkId(6) });
    assert_eq!(other.receive(), None);
    // A block that is gone is granted to nobody, whoever has its id.
    assert_eq!(broker.ask(&destroy(1)), Ok(DaemonAnswer::Done));
    assert_eq!(link.status(&read(at(1, 0), 1)), Status::Address);
}

/// The client may be faster than the broker's word about it.
#[test]
fn a_grant_that_the_broker_has_sent_is_never_missed() {
    let mut broker = serving(40);
    let link = broker.link(5, grant(1, true));
    for block in 2..=40 {
        broker.stop();
        link.send(&read(at(block, 0), 1));
        broker.tell(&DaemonRequest::Grant { link: LinkId(5), grant: grant(block, false) });
        broker.signal(Signal::CONT);
        assert_eq!(link.receive(), Some(Ok(bytes(&[0]))), "block {block}");
    }
}

#[test]
fn a_hostile_client_ends_its_own_link_and_nothing_else() {
    let broker = serving(1);
    let good = broker.link(1, grant(1, true));
    let plain = wire::encode(FrameHeader { request: 7, fds: 0 }, &read(at(1, 0), 1)).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut frame = plain.clone();
        frame[at] = byte;
        frame
    };
    let hostile = [
        vec![0xff],
        vec![0; 100],
        vec![0xff; FRAME_BYTES_MAX + 1],
        plain[..plain.len() - 1].to_vec(),
        changed(0, 99),
        changed(4, 9),
        changed(6, 1),
        changed(16, 77),
    ];
    for (number, frame) in (2..).zip(hostile) {
        let link = broker.link(number, grant(1, true));
        link.socket.send(&frame, &[]).unwrap();
        assert_eq!(link.receive(), None, "after {frame:?}");
        assert!(good.ask(&read(at(1, 0), 1)).is_ok());
    }
    let link = broker.link(99, grant(1, true));
    let file = std::fs::File::open("/dev/null").unwrap();
    link.socket.send(&plain, &[file.as_fd()]).unwrap();
    assert_eq!(link.receive(), None, "descriptors are not for a daemon");
}

/// Who does not take its answers is not read from, and holds up nobody.
#[test]
fn a_flood_of_requests_leaves_others_served() {
    let broker = serving(1);
    let flooding = broker.link(1, grant(1, true));
    let good = broker.link(2, grant(1, true));
    let ask = read(at(1, 0), 61_440);
    let frame = wire::encode(FrameHeader { request: 7, fds: 0 }, &ask).unwrap();
    let mut sent = 0;
    loop {
        match flooding.socket.try_send(&frame, &[]) {
            Ok(()) => sent += 1,
            Err(SocketError::WouldBlock { .. }) if sent > 1_000_000 => break,
            Err(SocketError::WouldBlock { .. }) => {
                // As much as it takes: answered others mean that it had its turn.
                assert!(good.ask(&read(at(1, 0), 1)).is_ok());
                assert!(good.ask(&read(at(1, 0), 1)).is_ok());
                if flooding.socket.try_send(&frame, &[]).is_err() {
                    break;
                }
                sent += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    for round in 0..100_u8 {
        assert_eq!(good.ask(&write(at(1, 0), &[round])), Ok(DataReply::Done));
    }
    // It reads after all, and gets an answer to each of its requests.
    for _ in 0..sent {
        assert!(flooding.receive().expect("the link stands").is_ok());
    }
}

/// The tokens that a user has had by now are counted by the clock that the daemon looks at.
#[test]
fn a_user_gets_a_burst_and_then_what_time_brings_and_others_do_not_wait() {
    const RATE: Rate = Rate { per_s: 20, burst: 10 };
    const ASKED: u64 = 30;
    let mut broker = serving(1);
    let limited = [1, 2].map(|link| broker.link_of((1000, RATE), link, grant(1, false)));
    let other = broker.link_of((1001, Rate::UNLIMITED), 3, grant(1, true));
    let begin_ms = clock::monotonic_ms();
    for _ in 0..ASKED / 2 {
        for link in &limited {
            link.send(&read(at(1, 0), 1));
        }
    }
    let allowed = || {
        let ms = clock::monotonic_ms() - begin_ms;
        u64::from(RATE.burst) + ms * u64::from(RATE.per_s) / 1000
    };
    for answered in 1..=ASKED {
        let link = &limited[usize::from(answered % 2 == 0)];
        assert_eq!(link.receive(), Some(Ok(bytes(&[0]))), "nothing is refused");
        assert!(answered <= allowed(), "{answered} of {}", allowed());
        assert_eq!(other.ask(&write(at(1, 64), b"x")), Ok(DataReply::Done));
    }
    // Two that are held: the one is gone, and the other gets what it had asked for.
    let [gone, stays] = limited;
    for _ in 0..RATE.burst {
        gone.send(&write(at(1, 0), b"y"));
        stays.send(&read(at(1, 0), 1));
    }
    drop(gone);
    for _ in 0..RATE.burst {
        assert_eq!(stays.receive(), Some(Ok(bytes(&[0]))));
    }
    assert!(matches!(broker.ask(&DaemonRequest::Sense), Ok(DaemonAnswer::Sensed { .. })));
}

#[test]
fn links_outlive_their_broker_until_the_next_has_settled() {
    let mut broker = serving(1);
    let link = broker.link(5, grant(1, true));
    assert!(link.ask(&write(at(1, 0), b"a")).is_ok());
    broker.restart();
    for _ in 0..50 {
        assert_eq!(link.ask(&read(at(1, 0), 1)), Ok(bytes(b"a")));
    }
    broker.accept();
    assert_eq!(link.receive(), None);
    let link = broker.link(5, grant(1, true));
    assert_eq!(link.ask(&read(at(1, 0), 1)), Ok(bytes(b"a")));
}

#[test]
fn an_object_that_was_cut_or_removed_is_lost_and_not_made_longer() {
    let mut broker = serving(2);
    let link = broker.link(5, grant(1, true));
    broker.tell(&DaemonRequest::Grant { link: LinkId(5), grant: grant(2, true) });
    let mapped = broker.open_data(1);
    assert!(link.ask(&write(at(1, MIB), b"a")).is_ok());
    object::truncate(mapped.as_fd(), 4096).unwrap();
    assert_eq!(link.status(&read(at(1, MIB), 1)), Status::Lost);
    assert_eq!(link.status(&write(at(1, MIB), b"b")), Status::Lost);
    assert_eq!(link.status(&DataRequest::Add64 { at: at(1, MIB), add: 1 }), Status::Lost);
    assert_eq!(object::end(mapped.as_fd()).unwrap(), 4096);
    std::fs::remove_file(broker.path(ObjectKind::Data(2))).unwrap();
    assert_eq!(broker.receive().0, 0, "a notice");
    assert!(link.ask(&read(at(2, 0), 1)).is_err());
}
