//! Connections of several users, served in rounds, and who connects meanwhile.

use std::iter;
use std::path::PathBuf;
use std::time::Duration;

use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::wire::data::{DataRequest, Target};
use dmce_sys::poll::Ready;

use super::*;

/// Its connections are made here, since those that connect are all of the test's own user.
const FLOOD: u32 = u32::MAX - 1;
const VICTIM: u32 = u32::MAX - 2;

/// Connections of the flood.
const CROWD: usize = 100;

/// Clients of a broker that has nothing else, in a folder of its own.
struct Rig {
    path: PathBuf,
    poller: Poller,
    clients: Clients,
    /// The other ends.
    others: Vec<Socket>,
    events: VecDeque<Event>,
}

impl Rig {
    fn new(label: &str) -> Self {
        let name = format!("dmce-test-clients-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let poller = Poller::new().unwrap();
        let clients = Clients::listen(&poller, &path, &BrokerSection::default()).unwrap();
        Self { path, poller, clients, others: Vec::new(), events: VecDeque::new() }
    }

    /// A connection of a user, over which something was asked so many times.
    fn add(&mut self, uid: u32, asked: &ClientRequest, times: usize) {
        let (ours, theirs) = Socket::pair().unwrap();
        let peer = Peer { pid: process::own_pid(), lived_at: 0, uid, gid: uid, groups: Vec::new() };
        self.clients.take_in(&self.poller, ours, peer, &mut self.events);
        for _ in 0..times {
            theirs.try_send(&frame(asked), &[]).unwrap();
        }
        self.others.push(theirs);
        self.events.clear();
    }

    /// One more in the queue of the listener.
    fn connect(&mut self) {
        self.others.push(Socket::connect(self.path.join("broker.sock")).unwrap());
    }

    /// One pass of the broker's loop: takes in what is ready, and reads a round.
    fn pass(&mut self) -> Vec<Event> {
        for one in self.ready() {
            match Source::of(one.token) {
                (Source::ClientListener, _) => self.clients.knock(),
                (_, number) => self.clients.ready(&self.poller, number, &mut self.events),
            }
        }
        self.clients.accept(&self.poller, &mut self.events);
        self.clients.receive(&self.poller, &mut self.events);
        self.events.drain(..).collect()
    }

    fn ready(&self) -> Vec<Ready> {
        let mut ready = Vec::new();
        self.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        ready
    }

    /// Whether the loop would wait.
    fn is_idle(&self) -> bool {
        self.ready().is_empty() && !self.clients.is_waited_for()
    }

    /// How many requests of a user there are among the events.
    fn requests_of(&self, uid: u32, events: &[Event]) -> usize {
        let is_theirs = |event: &&Event| match event {
            Event::Request { conn, .. } => self.clients.open[conn].uid == uid,
            _ => false,
        };
        events.iter().filter(is_theirs).count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn frame(request: &ClientRequest) -> Vec<u8> {
    wire::encode(FrameHeader { request: 1, fds: 0 }, request).unwrap()
}

/// A request that moves so many bytes.
fn read_of(bytes: usize) -> ClientRequest {
    let at = Target { block: BlockId::try_from(1).unwrap(), guid: Guid([1; 16]), cell: 0 };
    ClientRequest::Data(DataRequest::Read { at, bytes: bytes.try_into().unwrap() })
}

/// How many of it make a turn.
fn turn_of(request: &ClientRequest) -> usize {
    let cost = MESSAGE_BYTES + frame(request).len() + answer_bytes(request);
    TURN_BYTES.div_ceil(cost)
}

fn connected(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Connected { .. })).count()
}

/// Those who are taken in together are counted together: the dead would keep the living out.
#[test]
fn who_has_gone_before_it_is_taken_in_takes_no_place() {
    let mut rig = Rig::new("gone");
    for _ in 0..10 {
        rig.connect();
        rig.others.pop().unwrap().try_send(&frame(&ClientRequest::Stat), &[]).unwrap();
    }
    rig.connect();
    rig.others[0].try_send(&frame(&ClientRequest::Stat), &[]).unwrap();
    let mut events = rig.pass();
    // The first of a pass is not looked at.
    assert_eq!((connected(&events), rig.clients.open.len()), (2, 2));
    while !rig.is_idle() {
        events.extend(rig.pass());
    }
    let asked = events.iter().filter(|event| matches!(event, Event::Request { .. })).count();
    assert_eq!((asked, rig.clients.open.len()), (2, 1), "who lives is heard, and stays");
}

#[test]
fn a_user_with_a_hundred_connections_has_one_turn_to_that_of_another() {
    let kinds = [(ClientRequest::Stat, "short"), (read_of(DATA_BYTES_MAX), "long")];
    for (asked, label) in kinds {
        let turn = turn_of(&asked);
        assert!((2..CROWD).contains(&turn), "{label}: {turn} are a turn");
        let mut rig = Rig::new(label);
        for _ in 0..CROWD {
            rig.add(FLOOD, &asked, 3);
        }
        rig.add(VICTIM, &asked, 3);
        for pass in 1..=3 {
            let events = rig.pass();
            let read = [FLOOD, VICTIM].map(|uid| rig.requests_of(uid, &events));
            assert_eq!(read, [turn, 1], "{label}: pass {pass}");
        }
    }
}

#[test]
fn who_connects_behind_a_crowd_waits_for_one_turn_for_each_64_of_it() {
    let mut rig = Rig::new("crowd");
    let asked = ClientRequest::Stat;
    let turn = turn_of(&asked);
    for _ in 0..CROWD {
        rig.add(FLOOD, &asked, 3);
    }
    for _ in 0..CROWD {
        rig.connect();
    }
    rig.connect();
    rig.others.last().unwrap().try_send(&frame(&asked), &[]).unwrap();
    let own = identity::effective_uid();
    let passes: Vec<_> = iter::repeat_with(|| {
        let events = rig.pass();
        let read = [FLOOD, own].map(|uid| rig.requests_of(uid, &events));
        (connected(&events), read)
    })
    .take(3)
    .collect();
    // The last of all connections is read in the pass after that which takes it in.
    let rest = CROWD + 1 - ACCEPTED_A_PASS;
    assert_eq!(passes, [(64, [turn, 0]), (rest, [turn, 0]), (0, [turn, 1])]);
}

#[test]
fn who_connects_takes_its_users_turn_and_so_does_its_first_message() {
    let mut rig = Rig::new("first");
    let asked = ClientRequest::Stat;
    let (own, turn) = (identity::effective_uid(), turn_of(&asked));
    for _ in 0..CROWD {
        rig.add(own, &asked, 1);
    }
    for _ in 0..CROWD {
        rig.connect();
        rig.others.last().unwrap().try_send(&frame(&asked), &[]).unwrap();
    }
    rig.add(VICTIM, &asked, 5);
    let passes: Vec<_> = iter::repeat_with(|| {
        let events = rig.pass();
        (connected(&events), [own, VICTIM].map(|uid| rig.requests_of(uid, &events)))
    })
    .take(5)
    .collect();
    let rest = CROWD - ACCEPTED_A_PASS;
    // Those that connect leave one message of the first turn, and some of the second.
    let second = (TURN_BYTES - rest * MESSAGE_BYTES).div_ceil(MESSAGE_BYTES + frame(&asked).len());
    let last = 2 * CROWD - 1 - second - 2 * turn;
    assert!((1..turn).contains(&second) && last < turn, "{second}, {last}");
    assert_eq!(
        passes,
        [(64, [1, 1]), (rest, [second, 1]), (0, [turn, 1]), (0, [turn, 1]), (0, [last, 1])]
    );
}

#[test]
fn who_is_held_is_not_read_and_takes_nobodys_turn() {
    let mut rig = Rig::new("held");
    let asked = ClientRequest::Stat;
    rig.add(FLOOD, &asked, 2);
    rig.add(VICTIM, &asked, 2);
    rig.clients.hold(&rig.poller, ClientConn(1));
    let mut both = || {
        let events = rig.pass();
        [FLOOD, VICTIM].map(|uid| rig.requests_of(uid, &events))
    };
    assert_eq!([both(), both(), both()], [[0, 1], [0, 1], [0, 0]]);
    assert!(rig.is_idle(), "what is held wakes nobody");
    rig.clients.read(&rig.poller, ClientConn(1));
    let events = rig.pass();
    assert_eq!(rig.requests_of(FLOOD, &events), 1);
    // Its end is noticed while it is held, and what it sent last is not read.
    rig.clients.hold(&rig.poller, ClientConn(1));
    rig.others.remove(0);
    let events = rig.pass();
    assert!(matches!(events[..], [Event::HungUp { conn: ClientConn(1) }]), "{events:?}");
    assert!(rig.is_idle());
}

#[test]
fn a_crowd_is_taken_in_while_the_poller_tells_of_others_alone() {
    let mut rig = Rig::new("told-once");
    for _ in 0..CROWD {
        rig.connect();
    }
    rig.clients.knock();
    let taken_in: Vec<_> = iter::repeat_with(|| {
        rig.clients.accept(&rig.poller, &mut rig.events);
        let taken_in = connected(rig.events.make_contiguous());
        rig.events.clear();
        taken_in
    })
    .take(3)
    .collect();
    assert_eq!(taken_in, [ACCEPTED_A_PASS, CROWD - ACCEPTED_A_PASS, 0]);
    // Who is behind them has to be told of.
    rig.connect();
    rig.clients.accept(&rig.poller, &mut rig.events);
    assert!(rig.events.is_empty());
    assert_eq!(connected(&rig.pass()), 1);
}
