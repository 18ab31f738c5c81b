//! `dmce-test-flood`: asks a broker for too much, until it is killed.
//!
//! `dmce-test-flood KIND` floods the broker at `DMCE_SOCKET` and writes a line for each hundred
//! things that it has got through, so that who started it can count them. Refusals count: the
//! broker has worked for them as well.
//!
//! | KIND | does |
//! |---|---|
//! | `requests` | a few sessions that ask without waiting for the answers |
//! | `large` | the same with requests that are as long as they can be |
//! | `sessions` | opens sessions and keeps them |
//! | `connections` | connects, keeps the connections, and connects again |
//! | `garbage` | sends what is no message, over one connection after the other |
//! | `blocks` | allocates the smallest blocks, and keeps them |
//! | `waits` | asks for more than there is, and waits for it, again and again |
//! | `regions` | makes regions |
//! | `reads`, `writes` | sessions that move as many bytes as a message carries, by the broker |
//! | `linked-reads`, `linked-writes` | the same over links to the daemons |

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;

use dmce_abi::limits::{DATA_BYTES_MAX, FRAME_BYTES_MAX};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::client::{
    BlockInfo, ClientReply, ClientRequest, Malloc, MallocKind, MallocWith, Reach, RegionCreate,
    RegionList, RegionName, Setup,
};
use dmce_abi::wire::data::{Bytes, DataRequest, LinkId, Target};
use dmce_abi::wire::{self, FrameHeader};
use dmce_sys::socket::Socket;
use libdmce::connection::Connection;

/// Connections of a flood that asks.
const ASKING: usize = 8;

/// Connections of a flood that moves bytes, and messages that each has under way.
const MOVING: usize = 100;
const UNDER_WAY: usize = 4;

/// Connections of a flood that keeps them: more than one user has.
const KEPT: usize = 3_000;

/// Requests that a connection sends before it reads the answers: fewer than a broker lets wait.
const AT_ONCE: u64 = 32;

fn main() {
    let path = std::env::var_os("DMCE_SOCKET").expect("DMCE_SOCKET names the broker");
    let kind = std::env::args().nth(1).unwrap_or_default();
    let connect = || Socket::connect(&path).ok();
    let mut progress = Progress::default();
    match kind.as_str() {
        "requests" => ask(connect, &mut progress, |_| ClientRequest::Stat),
        "large" => ask(connect, &mut progress, |_| large()),
        "blocks" => ask(connect, &mut progress, |ticket| {
            ClientRequest::Malloc(malloc(ticket, MallocKind::Span { bytes: 1 }))
        }),
        "waits" => ask(connect, &mut progress, |ticket| {
            let malloc = malloc(ticket, MallocKind::Span { bytes: 128 << 20 });
            ClientRequest::MallocWith(MallocWith { malloc, policy: 0, wait_ms: Some(0) })
        }),
        "regions" => ask(connect, &mut progress, region),
        "sessions" => keep(connect, &mut progress, true),
        "connections" => keep(connect, &mut progress, false),
        "garbage" => garbage(connect, &mut progress),
        "reads" => move_bytes(connect, &mut progress, (read, false)),
        "writes" => move_bytes(connect, &mut progress, (write, false)),
        "linked-reads" => move_bytes(connect, &mut progress, (read, true)),
        "linked-writes" => move_bytes(connect, &mut progress, (write, true)),
        _ => panic!("{kind:?} is no kind of flood"),
    }
}

/// What was got through.
#[derive(Default)]
struct Progress(u64);

impl Progress {
    fn one_more(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(100) {
            let mut out = io::stdout().lock();
            let told = writeln!(out, "{}", self.0).and_then(|()| out.flush());
            if told.is_err() {
                // Nobody counts any more.
                std::process::exit(0);
            }
        }
    }
}

fn frame(request: u64, body: &ClientRequest) -> Vec<u8> {
    wire::encode(FrameHeader { request, fds: 0 }, body).expect("the request fits a frame")
}

fn setup() -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version: SEGMENT_VERSION,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: false,
        copies: 0,
        name: "flood".into(),
    })
}

fn malloc(ticket: u64, kind: MallocKind) -> Malloc {
    Malloc { ticket, kind, page_size: 0, copies: 0 }
}

fn large() -> ClientRequest {
    let half = "x".repeat(30_000);
    ClientRequest::RegionList(RegionList { volume: half.clone(), after: half })
}

fn region(ticket: u64) -> ClientRequest {
    let name = format!("flood-{}-{ticket}", std::process::id());
    ClientRequest::RegionCreate(RegionCreate {
        ticket,
        region: RegionName { volume: "flood".into(), name },
        region_size: 1,
        base_pointer: 0,
        mode: 0,
        copies: 0,
        page_size: 0,
    })
}

/// Sessions that ask many times before they read. One that is ended is opened anew.
fn ask(
    connect: impl Fn() -> Option<Socket>,
    progress: &mut Progress,
    request: impl Fn(u64) -> ClientRequest,
) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut sockets = VecDeque::new();
    let mut ticket = 0;
    loop {
        while sockets.len() < ASKING {
            sockets
                .extend(connect().filter(|socket| socket.send(&frame(1, &setup()), &[]).is_ok()));
            progress.one_more();
        }
        let Some(socket) = sockets.pop_front() else { continue };
        let mut asked = 0;
        for _ in 0..AT_ONCE {
            ticket += 1;
            if socket.try_send(&frame(ticket + 1, &request(ticket)), &[]).is_err() {
                break;
            }
            asked += 1;
        }
        let mut fds = Vec::new();
        let answered = (0..asked).all(|_| {
            fds.clear();
            let received = socket.recv(&mut buffer, &mut fds);
            progress.one_more();
            received.is_ok_and(|received| received.bytes > 0)
        });
        if answered {
            sockets.push_back(socket);
        }
    }
}

/// Connections that are kept, with sessions or without.
fn keep(connect: impl Fn() -> Option<Socket>, progress: &mut Progress, with_session: bool) {
    let mut kept = VecDeque::new();
    loop {
        if let Some(socket) = connect() {
            if with_session {
                // A refusal ends the connection; both are read by nobody.
                let _ = socket.send(&frame(1, &setup()), &[]);
            }
            kept.push_back(socket);
        }
        if kept.len() > KEPT {
            kept.pop_front();
        }
        progress.one_more();
    }
}

/// Frames that are none.
fn garbage(connect: impl Fn() -> Option<Socket>, progress: &mut Progress) {
    let good = frame(1, &setup());
    loop {
        if let Some(socket) = connect() {
            let _ = socket.send(&good, &[]);
            let _ = socket.send(&good[..good.len() - 1], &[]);
        }
        progress.one_more();
    }
}

fn read(at: Target) -> DataRequest {
    DataRequest::Read { at, bytes: DATA_BYTES_MAX.try_into().expect("a message is short") }
}

fn write(at: Target) -> DataRequest {
    DataRequest::Write { at, data: Bytes(vec![b'x'; DATA_BYTES_MAX]) }
}

/// A session with a block that moves bytes by message.
struct Mover {
    /// What ends the session when it is dropped.
    _broker: Connection,
    /// Where the bytes are asked for: a second descriptor of the same connection, or a link.
    asked: Socket,
    frame: Vec<u8>,
}

impl Mover {
    /// `None` if the broker, or its daemon, has no time for one more.
    fn open(socket: Socket, what: fn(Target) -> DataRequest, linked: bool) -> Option<Self> {
        let own = Socket::from_fd(socket.as_fd().try_clone_to_owned().ok()?).ok()?;
        let mut broker = Connection::over(socket);
        broker.request(&setup()).ok()?;
        let heap = malloc(1, MallocKind::Heap { committed: 64 << 10 });
        let (reply, _) = broker.request(&ClientRequest::Malloc(heap)).ok()?;
        let ClientReply::Granted(granted) = reply else { return None };
        let BlockInfo { block, guid, .. } = granted.first;
        let request = what(Target { block, guid, cell: 0 });
        if !linked {
            let frame = frame(u64::MAX, &ClientRequest::Data(request));
            return Some(Self { _broker: broker, asked: own, frame });
        }
        let reach = Reach { block, writable: true, direct: true, broken: LinkId(0) };
        let (_, mut fds) = broker.request(&ClientRequest::Reach(reach)).ok()?;
        let asked = Socket::from_fd(fds.pop()?).ok()?;
        let frame = wire::encode(FrameHeader { request: 1, fds: 0 }, &request).ok()?;
        Some(Self { _broker: broker, asked, frame })
    }
}

/// Sessions that all ask before any of them reads an answer.
fn move_bytes(
    connect: impl Fn() -> Option<Socket>,
    progress: &mut Progress,
    (what, linked): (fn(Target) -> DataRequest, bool),
) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut movers = Vec::new();
    loop {
        while movers.len() < MOVING {
            movers.extend(connect().and_then(|socket| Mover::open(socket, what, linked)));
        }
        let asked = |mover: &Mover| mover.asked.try_send(&mover.frame, &[]).is_ok();
        let mut sent = vec![0; movers.len()];
        for _ in 0..UNDER_WAY {
            for (count, mover) in sent.iter_mut().zip(&movers) {
                *count += usize::from(asked(mover));
            }
        }
        let mut counts = sent.into_iter();
        movers.retain(|mover| {
            (0..counts.next().unwrap_or(0)).all(|_| {
                let received = mover.asked.recv(&mut buffer, &mut Vec::new());
                progress.one_more();
                received.is_ok_and(|received| received.bytes > 0)
            })
        });
    }
}
