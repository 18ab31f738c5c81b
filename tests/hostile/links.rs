//! Clients that map nothing and lie: to the broker about links, and to a daemon over one.

use std::os::fd::AsFd;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::client::{
    BlockInfo, ClientReply, ClientRequest, Delete, Malloc, MallocKind, Reach, Reached, Setup,
};
use dmce_abi::wire::data::{Bytes, DataAnswer, DataReply, DataRequest, LinkId, Target};
use dmce_abi::wire::{self, FrameHeader};
use dmce_sys::socket::Socket;
use dmce_tests::client::{ROUTES, own_client};
use dmce_tests::{Client, Instance, Seeded, WATCHDOG, wait_until};
use libdmce::connection::Connection;

/// A session that speaks for itself.
struct Raw {
    broker: Connection,
    tickets: u64,
}

/// Its end of a link.
struct RawLink(Socket);

impl Raw {
    fn open(instance: &Instance) -> Self {
        let mut broker = Connection::connect(instance.socket()).unwrap();
        let setup = Setup {
            segment_version: dmce_abi::version::SEGMENT_VERSION,
            pointer_bits: 64,
            bytes: 0,
            accept_partial: false,
            copies: 0,
            name: "hostile".into(),
        };
        broker.request(&ClientRequest::Setup(setup)).unwrap();
        Self { broker, tickets: 0 }
    }

    fn malloc(&mut self) -> BlockInfo {
        self.tickets += 1;
        let kind = MallocKind::Heap { committed: 1 << 20 };
        let malloc = Malloc { ticket: self.tickets, kind, page_size: 0, copies: 0 };
        match self.broker.request(&ClientRequest::Malloc(malloc)).unwrap().0 {
            ClientReply::Granted(granted) => granted.first,
            other => panic!("{other:?}"),
        }
    }

    fn reach(&mut self, reach: Reach) -> Result<(LinkId, Option<RawLink>), Status> {
        match self.broker.request(&ClientRequest::Reach(reach)) {
            Ok((ClientReply::Reached(Reached { link, .. }), mut fds)) => {
                Ok((link, fds.pop().map(|fd| RawLink(Socket::from_fd(fd).unwrap()))))
            }
            Ok((other, _)) => panic!("{other:?}"),
            Err(error) => Err(error.status()),
        }
    }
}

impl RawLink {
    /// The answer, or `None` if the link has ended.
    fn ask(&self, request: &DataRequest) -> Option<DataAnswer> {
        self.exchange(&wire::encode(FrameHeader { request: 9, fds: 0 }, request).unwrap())
    }

    fn exchange(&self, frame: &[u8]) -> Option<DataAnswer> {
        self.0.send(frame, &[]).ok()?;
        let socket = self.0.as_fd();
        assert!(dmce_sys::poll::wait_readable(socket, Some(WATCHDOG)).unwrap(), "no answer");
        let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        let received = self.0.recv(&mut buffer, &mut fds).ok()?;
        let frame = &buffer[..received.bytes];
        let header = wire::decode_header(frame, fds.len()).unwrap();
        (header.request != 0).then(|| wire::decode_body(frame).unwrap())
    }

    fn status(&self, request: &DataRequest) -> Status {
        self.ask(request).expect("the link stands").expect_err("it is refused").status
    }
}

fn target(info: BlockInfo) -> Target {
    Target { block: info.block, guid: info.guid, cell: 0 }
}

fn reach(info: BlockInfo) -> Reach {
    Reach { block: info.block, writable: true, direct: true, broken: LinkId(0) }
}

fn write(at: Target) -> DataRequest {
    DataRequest::Write { at, data: Bytes(b"mine now".to_vec()) }
}

#[test]
fn a_link_reaches_no_block_of_others_and_none_that_is_gone() {
    let instance = Instance::start(1);
    let mut victim = Raw::open(&instance);
    let theirs = victim.malloc();
    let mut raw = Raw::open(&instance);
    let own = raw.malloc();
    let link = raw.reach(reach(own)).unwrap().1.expect("a new link");
    assert_eq!(link.ask(&write(target(own))), Some(Ok(DataReply::Done)));
    assert_eq!(raw.reach(reach(theirs)).err(), Some(Status::Address));
    for block in 1..200 {
        let block = BlockId::try_from(block).unwrap();
        for guid in [theirs.guid, own.guid, Guid::default()] {
            let at = Target { block, guid, cell: 0 };
            if at != target(own) {
                assert_eq!(link.status(&write(at)), Status::NotFound, "{at:?}");
                let data = ClientRequest::Data(write(at));
                assert_eq!(raw.broker.request(&data).unwrap_err().status(), Status::Address);
            }
        }
    }
    // A link of the victim's cannot be named, and neither can one of nobody's.
    let theirs_link = victim.reach(reach(theirs)).unwrap();
    for number in 0..1000 {
        let broken = LinkId(number);
        raw.reach(Reach { direct: false, broken, ..reach(own) }).unwrap();
    }
    let read = DataRequest::Read { at: target(theirs), bytes: 8 };
    let zeros = DataReply::Bytes(Bytes(vec![0; 8]));
    assert_eq!(theirs_link.1.expect("a new link").ask(&read), Some(Ok(zeros)));

    let link = raw.reach(reach(own)).unwrap().1.expect("the old one was called broken");
    let addr = u64::from(own.block.get()) << 30;
    raw.broker.request(&ClientRequest::Delete(Delete { addr, guid: own.guid })).unwrap();
    assert_eq!(link.status(&write(target(own))), Status::NotFound);
    // The next of that id is another's.
    let next = raw.malloc();
    raw.reach(reach(next)).unwrap();
    assert_eq!(link.status(&write(Target { guid: own.guid, ..target(next) })), Status::NotFound);
    raw.broker.request(&ClientRequest::Disconnect).unwrap();
    wait_until("the session's link has ended", || link.ask(&write(target(next))).is_none());
}

/// Half frames, lengths that lie, noise: over a link and as data for the broker.
#[test]
fn noise_ends_its_own_link_and_others_go_on() {
    let instance = Instance::start(1);
    let mut witnesses = ROUTES.map(|route| Client::open_with(&own_client(), &instance, &route));
    let addrs = [0, 1].map(|place: usize| {
        let client = &mut witnesses[place];
        let addr = client.number("malloc 200000").unwrap();
        client.ask(format!("fill {addr} {place} 200000")).unwrap();
        addr
    });
    let mut raw = Raw::open(&instance);
    let own = raw.malloc();
    let mut random = Seeded::new(11);
    let plain = wire::encode(FrameHeader { request: 9, fds: 0 }, &write(target(own))).unwrap();
    let mut broken = LinkId(0);
    for round in 0..60 {
        let (id, link) = raw.reach(Reach { broken, ..reach(own) }).unwrap();
        let link = link.expect("a new link");
        broken = id;
        let mut frame = plain.clone();
        match round % 4 {
            0 => frame.truncate(random.below(frame.len() as u64) as usize + 1),
            1 => frame[random.below(16) as usize] ^= 1 << random.below(8),
            2 => frame.extend(std::iter::repeat_n(0xee, 1 + random.below(5000) as usize)),
            _ => frame = (0..=random.below(300)).map(|_| random.below(256) as u8).collect(),
        }
        // It is understood as something harmless, or the link ends.
        let answered = link.exchange(&frame);
        if let Some(Ok(reply)) = answered {
            assert_eq!(reply, DataReply::Done);
        }
    }
    for (place, client) in witnesses.iter_mut().enumerate() {
        client.ask(format!("check {} {place} 200000", addrs[place])).unwrap();
    }
}

#[test]
fn more_data_than_may_be_under_way_is_refused_and_others_are_served() {
    let instance = Instance::start(1);
    let mut witness = Client::open_with(&own_client(), &instance, &ROUTES[1]);
    let addr = witness.number("malloc 100000").unwrap();
    let mut raw = Raw::open(&instance);
    let own = raw.malloc();
    let data = Bytes(vec![1; dmce_abi::limits::DATA_BYTES_MAX]);
    let request = ClientRequest::Data(DataRequest::Write { at: target(own), data });
    // Not answered: nobody has to take the answers.
    for _ in 0..2000 {
        raw.broker.notice(&request, libdmce::connection::Deadline::after_ms(60_000)).unwrap();
    }
    for round in 0..20 {
        witness.ask(format!("fill {addr} {round} 100000")).unwrap();
        witness.ask(format!("check {addr} {round} 100000")).unwrap();
    }
}
