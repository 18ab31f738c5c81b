//! Frames that no client of ours would send.

use std::os::fd::{AsFd, BorrowedFd};

use dmce_abi::Status;
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::version::{SEGMENT_VERSION, WIRE_VERSION};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Setup};
use dmce_abi::wire::{self, FrameHeader, Reply};
use dmce_sys::socket::Socket;
use dmce_tests::{Client, Instance, Seeded, wait_until};

fn setup(segment_version: u32) -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: false,
        copies: 0,
        name: "hostile".into(),
    })
}

/// Sends a frame; what came back, or `None` if the broker hung up.
fn exchange(socket: &Socket, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Vec<u8>> {
    socket.send(frame, fds).ok()?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut fds = Vec::new();
    let received = socket.recv(&mut buffer, &mut fds).ok()?;
    buffer.truncate(received.bytes);
    (!buffer.is_empty()).then_some(buffer)
}

fn connect(instance: &Instance) -> Socket {
    Socket::connect(instance.socket()).unwrap()
}

fn frame(request: &ClientRequest) -> Vec<u8> {
    wire::encode(FrameHeader { request: 5, fds: 0 }, request).unwrap()
}

#[test]
fn another_version_is_refused_with_both_named() {
    let instance = Instance::start(1);
    let socket = connect(&instance);
    let mut other = frame(&setup(SEGMENT_VERSION));
    other[4] = 77;
    let answer = exchange(&socket, &other, &[]).expect("a refusal comes");
    let reply: Reply<ClientReply> = wire::decode_body(&answer).unwrap();
    let refusal = reply.unwrap_err();
    assert_eq!(refusal.status, Status::Version);
    let ours = format!("this side {WIRE_VERSION}");
    assert!(refusal.text.contains("77") && refusal.text.contains(&ours), "{}", refusal.text);
    assert!(
        exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]).is_none(),
        "the connection has ended"
    );

    let socket = connect(&instance);
    let answer =
        exchange(&socket, &frame(&setup(SEGMENT_VERSION + 8)), &[]).expect("a refusal comes");
    let reply: Reply<ClientReply> = wire::decode_body(&answer).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Version);
    assert_eq!(instance.status().sessions, 0);
}

#[test]
fn a_hostile_frame_ends_that_session_with_a_reason_and_nothing_else() {
    let instance = Instance::start(1);
    let mut witness = Client::open(&instance);
    let addr = witness.number("malloc 100000").unwrap();
    witness.ask(format!("fill {addr} 9 100000")).unwrap();

    let good = frame(&ClientRequest::Stat);
    let mut frames = vec![
        vec![0],
        good[..15].to_vec(),
        good[..16].to_vec(),
        [&good[..], b"more"].concat(),
        [&good[..8], &[0xff; FRAME_BYTES_MAX - 8]].concat(),
    ];
    let mut lying = good.clone();
    lying[0] = 200;
    frames.push(lying);
    let mut lying = good.clone();
    lying[6] = 3;
    frames.push(lying);
    for (place, bad) in frames.iter().enumerate() {
        let socket = connect(&instance);
        assert!(exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]).is_some());
        let sessions = instance.status().sessions;
        assert_eq!(sessions, 2, "frame {place}");
        assert!(exchange(&socket, bad, &[]).is_none(), "frame {place} was answered");
        wait_until("that session has ended", || instance.status().sessions == 1);
    }
    // A descriptor that was not announced, and one that no request takes.
    let socket = connect(&instance);
    let passed = socket.as_fd();
    assert!(exchange(&socket, &good, &[passed]).is_none());
    assert!(instance.log("broker").to_lowercase().contains("frame"));

    witness.ask(format!("check {addr} 9 100000")).unwrap();
    witness.ask("malloc 20000000").unwrap();
}

#[test]
fn random_frames_harm_nobody() {
    let instance = Instance::start(1);
    let mut witness = Client::open(&instance);
    let mut random = Seeded::new(0xf4a3e);
    for round in 0..3_000_u64 {
        let socket = connect(&instance);
        if round % 2 == 0 {
            let _ = exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]);
        }
        // A right header, so that the body is looked at; often a right first byte of it as well.
        let mut bytes = vec![0; 16 + random.below(200) as usize];
        random.fill(&mut bytes[16..]);
        if let Some(kind) = bytes.get_mut(16) {
            *kind %= 20;
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
        bytes[8] = 1;
        let _ = exchange(&socket, &bytes, &[]);
    }
    witness.ask("hold 3").unwrap();
    witness.kill();
    instance.wait_empty();
}

#[test]
fn a_client_that_never_reads_is_dropped_and_others_are_served() {
    let instance = Instance::start(1);
    let mut witness = Client::open(&instance);
    let socket = connect(&instance);
    assert!(exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]).is_some());
    let ask = frame(&ClientRequest::Stat);
    wait_until("the broker has had enough", || (0..64).any(|_| socket.send(&ask, &[]).is_err()));
    witness.ask("hold 2").unwrap();
}

#[test]
fn a_request_without_a_session_is_refused() {
    let instance = Instance::start(1);
    let socket = connect(&instance);
    for request in [ClientRequest::Stat, ClientRequest::Disconnect] {
        let answer = exchange(&socket, &frame(&request), &[]).expect("a refusal comes");
        let reply: Reply<ClientReply> = wire::decode_body(&answer).unwrap();
        assert_eq!(reply.unwrap_err().status, Status::Closed);
    }
    assert!(exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]).is_some());
    let answer = exchange(&socket, &frame(&setup(SEGMENT_VERSION)), &[]).expect("a refusal comes");
    let reply: Reply<ClientReply> = wire::decode_body(&answer).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Invalid, "a second setup");
}

#[test]
fn a_session_is_taken_up_by_its_own_process_alone() {
    let instance = Instance::start(1);
    let victim = Client::open(&instance);
    let row = &instance.sessions()[0];
    assert_eq!(row.pid, victim.pid());
    let attach = ClientRequest::Attach(wire::client::Attach {
        session: row.session.try_into().unwrap(),
        guid: dmce_abi::block::Guid([0; 16]),
        openings: Vec::new(),
    });
    let answer = exchange(&connect(&instance), &frame(&attach), &[]).expect("a refusal comes");
    let reply: Reply<ClientReply> = wire::decode_body(&answer).unwrap();
    assert!(matches!(reply.unwrap_err().status, Status::NotFound | Status::Denied));
    assert!(instance.sessions()[0].attached);
}

/// Each refusal finds the client gone. Whoever was not forgotten would take a connection from
/// others.
#[test]
fn clients_that_go_before_they_are_refused_are_forgotten() {
    let instance = Instance::builder().config("limits.sessions = 4\n").start();
    let mut other = frame(&setup(SEGMENT_VERSION));
    other[4] = 77;
    for _ in 0..600 {
        connect(&instance).send(&other, &[]).unwrap();
    }
    let mut client = Client::open(&instance);
    client.ask("hold 1").unwrap();
}
