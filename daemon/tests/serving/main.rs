//! A daemon as a process, under a broker of the test's own that speaks the wire format.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod broker;
mod copies;
mod deaths;
mod lending;
mod links;

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Instant;

use dmce_abi::Status;
use dmce_abi::block::{
    BlockDescription, BlockId, Guid, Membership, Owner, SessionId, Span, Ticket,
};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest};
use dmce_abi::wire::{self, FrameHeader, Reply};
use dmce_sys::object::{self, ObjectDir};
use dmce_sys::pidfd::Signal;

use broker::{Broker, Introduction, WATCHDOG};

const MIB: u64 = 1 << 20;

fn id(block: u32) -> BlockId {
    BlockId::try_from(block).unwrap()
}

fn description(block: u32) -> BlockDescription {
    let guid = Guid(u128::from(block).to_le_bytes());
    BlockDescription {
        block: id(block),
        guid,
        epoch: 1,
        page_size: 4096,
        bytes_max: 1 << 30,
        span: Span { first: id(block), count: 1, guid },
        owner: Owner::Session {
            session: SessionId::try_from(1).unwrap(),
            ticket: Ticket { session: guid, number: 1 },
            uid: 0,
            copies: 1,
        },
        membership: Membership::alone(),
    }
}

fn create(block: u32, committed: u64) -> DaemonRequest {
    DaemonRequest::Create { description: description(block), committed }
}

fn grow(block: u32, committed: u64) -> DaemonRequest {
    DaemonRequest::Grow { block: id(block), committed }
}

fn destroy(block: u32) -> DaemonRequest {
    DaemonRequest::Destroy { block: id(block) }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with replies")]
fn committed(committed: u64) -> Reply<DaemonAnswer> {
    Ok(DaemonAnswer::Committed { committed })
}

fn held(introduction: &Introduction) -> Vec<(u32, u64)> {
    let blocks = introduction.blocks.iter();
    blocks.map(|held| (held.description.block.get(), held.committed)).collect()
}

#[test]
fn blocks_outlive_the_daemon_that_was_killed() {
    let mut broker = Broker::new();
    broker.start_daemon();
    let introduction = broker.accept();
    assert_eq!(introduction.register.capacity, 256 * MIB);
    assert_eq!(introduction.register.instance, broker.instance.as_str());
    assert_eq!(held(&introduction), []);
    for block in 1..=3 {
        assert_eq!(broker.ask(&create(block, 2 * MIB)), committed(2 * MIB));
    }
    assert_eq!(broker.ask(&grow(2, 40 * MIB)), committed(40 * MIB));
    assert_eq!(broker.ask(&destroy(3)), Ok(DaemonAnswer::Done));
    let client = broker.open_data(2);
    object::write_at(client.as_fd(), &[7; 4096], 39 * MIB).unwrap();

    broker.kill_daemon();
    // A client goes on while there is no daemon.
    object::write_at(client.as_fd(), &[8; 4096], 38 * MIB).unwrap();
    broker.start_daemon();
    let introduction = broker.accept();
    assert_eq!(held(&introduction), [(1, 2 * MIB), (2, 40 * MIB)]);
    assert_eq!(introduction.blocks[1].description, description(2));
    assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB), "repeated");
    let mut page = [0; 4096];
    for (at, byte) in [(39, 7), (38, 8)] {
        object::read_at(client.as_fd(), &mut page, at * MIB).unwrap();
        assert_eq!(page, [byte; 4096]);
    }
    assert_eq!(broker.ask(&grow(2, 48 * MIB)), committed(48 * MIB));
    for block in [1, 2] {
        assert_eq!(broker.ask(&destroy(block)), Ok(DaemonAnswer::Done));
        assert!(!broker.path(ObjectKind::Data(block)).exists());
    }
    assert_eq!(object::stat(client.as_fd()).unwrap().allocated_bytes, 0);
}

#[test]
fn more_blocks_than_a_frame_holds_are_all_reported() {
    const BLOCKS: u32 = 400;
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    for block in 1..=BLOCKS {
        broker.request(&create(block, 4096));
    }
    for _ in 1..=BLOCKS {
        assert_eq!(broker.receive_reply().1, committed(4096));
    }
    broker.restart();
    let expected: Vec<_> = (1..=BLOCKS).map(|block| (block, 4096)).collect();
    assert_eq!(held(&broker.accept()), expected);
    broker.kill_daemon();
    broker.start_daemon();
    assert_eq!(held(&broker.accept()), expected);
}

#[test]
fn a_long_commitment_holds_up_neither_others_nor_the_order_of_its_block() {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    // All of them are there before the daemon looks at the first.
    broker.stop();
    let long = broker.request(&create(1, 64 * MIB));
    let behind = broker.request(&grow(1, 96 * MIB));
    let refused = broker.request(&create(2, 300 * MIB));
    let short = broker.request(&create(3, 4096));
    let sense = broker.request(&DaemonRequest::Sense);
    broker.signal(Signal::CONT);
    let replies: Vec<_> = (0..5).map(|_| broker.receive_reply()).collect();
    let order: Vec<_> = replies.iter().map(|(request, _)| *request).collect();
    assert_eq!(order, [refused, short, sense, long, behind]);
    assert_eq!(replies[0].1.as_ref().unwrap_err().status, Status::NoSpace);
    assert_eq!(replies[1].1, committed(4096));
    assert!(matches!(replies[2].1, Ok(DaemonAnswer::Sensed { .. })));
    assert_eq!((&replies[3].1, &replies[4].1), (&committed(64 * MIB), &committed(96 * MIB)));
}

#[test]
fn a_daemon_waits_for_its_broker_and_reports_again() {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB));
    for _ in 0..3 {
        broker.restart();
        assert_eq!(held(&broker.accept()), [(1, 2 * MIB)]);
    }
    assert_eq!(broker.ask(&grow(1, 4 * MIB)), committed(4 * MIB));
    assert!(broker.daemon().try_wait().unwrap().is_none());
}

/// The next broker has looked at the names meanwhile, and may have given the ids away.
#[test]
fn a_daemon_does_nothing_for_a_broker_that_is_dead_when_it_goes_on() {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB));
    let (small, large) = (create(2, MIB), create(3, 64 * MIB));
    for _ in 0..5 {
        broker.stop();
        for request in [&small, &large, &grow(1, 4 * MIB), &destroy(1)] {
            broker.request(request);
        }
        broker.restart();
        broker.signal(Signal::CONT);
        // Stopped between its look at the connection and the next request, it does that one.
        let mut found = held(&broker.accept());
        found.retain(|block| *block != (2, MIB));
        assert_eq!(found, [(1, 2 * MIB)]);
    }
}

#[test]
fn a_frame_that_is_no_message_ends_the_connection_and_nothing_else() {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB));
    let plain = wire::encode(FrameHeader { request: 9, fds: 0 }, &destroy(1)).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut frame = plain.clone();
        frame[at] = byte;
        frame
    };
    let mut trailing = plain.clone();
    trailing.push(0);
    trailing[0] += 1;
    let hostile = [
        vec![0xff],
        vec![0; 100],
        vec![0xff; FRAME_BYTES_MAX + 1],
        plain[..plain.len() - 1].to_vec(),
        changed(0, 99),
        changed(4, 9),
        changed(6, 1),
        changed(16, 77),
        changed(17, 0),
        trailing,
    ];
    for frame in hostile {
        broker.connection().send(&frame, &[]).unwrap();
        broker.wait_for_hangup();
        assert_eq!(held(&broker.accept()), [(1, 2 * MIB)], "after {frame:?}");
    }
    // Descriptors are not for a daemon.
    let file = std::fs::File::open("/dev/null").unwrap();
    broker.connection().send(&plain, &[file.as_fd()]).unwrap();
    broker.wait_for_hangup();
    assert_eq!(held(&broker.accept()), [(1, 2 * MIB)]);
    assert_eq!(broker.ask(&destroy(1)), Ok(DaemonAnswer::Done));
}

#[test]
fn what_happens_to_an_object_is_told_unasked() {
    let mut broker = Broker::new();
    let foreign = broker.path(ObjectKind::Header(9));
    std::os::unix::fs::symlink("/etc/passwd", &foreign).unwrap();
    broker.start_daemon();
    broker.accept();
    let object = foreign.file_name().unwrap().to_str().unwrap().to_owned();
    let reason = "it is a link or denies access".to_owned();
    assert_eq!(
        broker.receive(),
        (0, DaemonMessage::Notice(DaemonNotice::Foreign { object, reason }))
    );
    for block in [1, 2] {
        assert_eq!(broker.ask(&create(block, 2 * MIB)), committed(2 * MIB));
    }
    let client = broker.open_data(1);
    object::truncate(client.as_fd(), 100 * MIB).unwrap();
    let excess = DaemonNotice::Excess { block: id(1), bytes: 100 * MIB };
    assert_eq!(broker.receive(), (0, DaemonMessage::Notice(excess)));
    std::fs::remove_file(broker.path(ObjectKind::Data(2))).unwrap();
    let lost = DaemonNotice::Lost { block: id(2) };
    assert_eq!(broker.receive(), (0, DaemonMessage::Notice(lost)));
    assert_eq!(broker.ask(&destroy(2)), Ok(DaemonAnswer::Done));
}

#[test]
fn a_daemon_that_is_told_to_stop_leaves_its_blocks() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut broker = Broker::new();
        broker.start_daemon();
        broker.accept();
        assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB));
        broker.signal(signal);
        assert!(broker.wait_for_exit().success());
        broker.start_daemon();
        assert_eq!(held(&broker.accept()), [(1, 2 * MIB)]);
    }
}

#[test]
fn a_service_manager_hears_when_the_blocks_are_there_and_when_it_stops() {
    let mut broker = Broker::new();
    let path = broker.dir.join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(WATCHDOG)).unwrap();
    let mut command = broker.command();
    broker.start(command.env("NOTIFY_SOCKET", &path));
    let heard = || {
        let mut buffer = [0; 64];
        let bytes = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    };
    assert_eq!(heard(), "READY=1\n");
    broker.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\n");
    assert!(broker.wait_for_exit().success());
}

#[test]
fn a_second_daemon_of_the_same_id_says_why_it_does_not_start() {
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    let output = broker.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let instance = &broker.instance;
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("dmce-daemon: daemon 1 of instance {instance} is served by another process\n")
    );
    assert_eq!(broker.ask(&create(1, 4096)), committed(4096));
}

#[test]
fn a_daemon_that_cannot_serve_says_why_on_one_line() {
    let broker = Broker::new();
    let config = broker.dir.join("dmce.toml");
    std::fs::write(&config, "[daemon]\ncapcity = 1\n").unwrap();
    let started = |arguments: &[&str]| {
        let mut command = broker.command();
        command.args(arguments).stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    };
    let line = started(&["--config", config.to_str().unwrap()]);
    let place = format!("dmce-daemon: {}:2:1: unknown field `capcity`", config.display());
    assert!(line.starts_with(&place), "{line}");
    let line = started(&["--objects", "/nonexistent"]);
    assert_eq!(line, "dmce-daemon: open directory: /nonexistent does not exist\n");
}

#[test]
fn what_cannot_be_logged_is_refused_on_one_line() {
    let broker = Broker::new();
    for (directives, why) in
        [("nonsense=,,[[", "invalid filter directive"), ("a=loud", "error parsing level filter")]
    {
        let mut command = broker.command();
        let output = command.env("DMCE_LOG", directives).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with(&format!("dmce-daemon: DMCE_LOG is {directives:?}: {why}")));
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

/// A broker that came back has read the larger size from the object, and told a client.
#[test]
fn what_was_written_to_a_growth_stays_also_if_its_broker_is_dead() {
    const TO: u64 = 248 * MIB;
    let mut broker = Broker::new();
    broker.start_daemon();
    broker.accept();
    assert_eq!(broker.ask(&create(1, 2 * MIB)), committed(2 * MIB));
    let client = broker.open_data(1);
    broker.request(&grow(1, TO));
    let begin = Instant::now();
    while object::stat(client.as_fd()).unwrap().bytes == 2 * MIB {
        assert!(begin.elapsed() < WATCHDOG, "it does not grow");
    }
    // Wherever in the growth it is: what there is now may be told to anybody.
    broker.stop();
    let found = object::stat(client.as_fd()).unwrap().bytes;
    broker.restart();
    object::write_at(client.as_fd(), &[7; 4096], found - 4096).unwrap();
    broker.signal(Signal::CONT);
    let held = held(&broker.accept());
    assert!(held[0].1 >= found, "{held:?} of {found}");
    assert_eq!(object::stat(client.as_fd()).unwrap().bytes, held[0].1);
    let mut page = [0; 4096];
    object::read_at(client.as_fd(), &mut page, found - 4096).unwrap();
    assert_eq!(page, [7; 4096]);
    assert_eq!(broker.ask(&grow(1, TO)), committed(TO));
}
