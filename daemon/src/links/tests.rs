//! Links of several users, served in rounds.

use std::path::Path;
use std::time::Duration;

use dmce_abi::block::DaemonId;
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::name::Instance;
use dmce_abi::rate::Rate;
use dmce_abi::wire::data::Target;
use dmce_config::{Bytes, DaemonSection};
use dmce_sys::object::ObjectDir;
use dmce_sys::poll::Ready;

use super::*;
use crate::store::Settings;

const OBJECTS: &str = "/dev/shm";
const FLOOD: u32 = 1000;
const VICTIM: u32 = 1001;

/// A store without blocks, and links to it.
struct Rig {
    instance: Instance,
    store: Store,
    poller: Poller,
    links: Links,
    clients: Vec<Socket>,
    now_ms: u64,
}

impl Rig {
    fn new(name: &str) -> Self {
        let instance = Instance::new(&format!("test-{name}-{}", std::process::id())).unwrap();
        let section =
            DaemonSection { pool_objects: 0, margin: Bytes(0), ..DaemonSection::default() };
        let daemon = DaemonId::try_from(1).unwrap();
        let objects = Path::new(OBJECTS).to_owned();
        let settings = Settings { instance: instance.clone(), daemon, objects, section };
        let (store, poller) = (Store::open(settings).unwrap(), Poller::new().unwrap());
        let (links, clients) = (Links::new().unwrap(), Vec::new());
        Self { instance, store, poller, links, clients, now_ms: 1_000 }
    }

    /// A new link of a user, over which `count` reads of as much as a message carries were asked
    /// for. They will be refused, since there is no such block.
    fn link(&mut self, uid: u32, count: u64) {
        let bytes = DATA_BYTES_MAX.try_into().unwrap();
        self.link_at(Payer { uid, rate: Rate::UNLIMITED }, count, bytes);
    }

    /// The same at a rate, with reads of so many bytes.
    fn link_at(&mut self, payer: Payer, count: u64, bytes: u32) {
        let (ours, theirs) = Socket::pair().unwrap();
        let (block, guid) = (BlockId::try_from(1).unwrap(), Guid([1; 16]));
        let grant = LinkGrant { block, guid, writable: false };
        let id = LinkId(self.clients.len() as u64 + 1);
        let session = SessionId::try_from(1).unwrap();
        let new = NewLink { made_by: 1, id, session, payer, grant };
        self.links.add(&self.poller, new, theirs.into_fd());
        let request = DataRequest::Read { at: Target { block, guid, cell: 0 }, bytes };
        for request_id in 1..=count {
            let header = FrameHeader { request: request_id, fds: 0 };
            ours.try_send(&wire::encode(header, &request).unwrap(), &[]).unwrap();
        }
        self.clients.push(ours);
    }

    /// One pass of the daemon's loop: takes in what is due and ready, and serves a round.
    fn pass(&mut self) {
        self.links.read_again(self.now_ms);
        for one in self.ready() {
            self.links.on_ready(one.token);
        }
        self.links.begin_round();
        while let Some(token) = self.links.next_in_round() {
            let unsure = self.links.serve(&self.poller, token, &mut self.store, self.now_ms);
            assert!(!unsure, "it is granted");
        }
    }

    /// Passes until the loop would wait; how many answers each client has got.
    fn settle(&mut self) -> Vec<usize> {
        let mut answers = vec![0; self.clients.len()];
        loop {
            self.pass();
            for (sum, more) in answers.iter_mut().zip(self.answers()) {
                *sum += more;
            }
            if self.ready().is_empty() && !self.links.is_waited_for() {
                return answers;
            }
        }
    }

    fn ready(&self) -> Vec<Ready> {
        let mut ready = Vec::new();
        self.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        ready
    }

    /// How many answers each client has got since it was asked last.
    fn answers(&self) -> Vec<usize> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut count = |client: &Socket| {
            let received = || client.try_recv(&mut buffer, &mut Vec::new()).ok();
            std::iter::from_fn(received).count()
        };
        self.clients.iter().map(&mut count).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in ObjectDir::open(OBJECTS).unwrap().names(&self.instance.prefix()).unwrap() {
            let _ = std::fs::remove_file(Path::new(OBJECTS).join(name));
        }
    }
}

#[test]
fn a_user_with_a_hundred_links_has_one_turn_to_that_of_another() {
    let mut rig = Rig::new("links-turns");
    for _ in 0..100 {
        rig.link(FLOOD, 2);
    }
    rig.link(VICTIM, 3);
    for _ in 0..3 {
        rig.pass();
        let answers = rig.answers();
        let flood: usize = answers[..100].iter().sum();
        // A message of 60 KiB and one more are a turn.
        assert_eq!((flood, answers[100]), (2, 1));
    }
}

#[test]
fn the_links_of_a_user_are_served_one_after_the_other() {
    let mut rig = Rig::new("links-order");
    for _ in 0..6 {
        rig.link(FLOOD, 2);
    }
    let mut served = vec![0; 6];
    for pass in 1..=6 {
        rig.pass();
        for (served, answers) in served.iter_mut().zip(rig.answers()) {
            *served += answers;
        }
        let (most, least) = (served.iter().max().unwrap(), served.iter().min().unwrap());
        assert!(served.iter().sum::<usize>() == 2 * pass && most - least <= 1, "{served:?}");
    }
    assert_eq!(served, [2; 6]);
    assert!(!rig.links.is_waited_for());
}

#[test]
fn a_link_that_ends_takes_nobodys_turn() {
    let mut rig = Rig::new("links-end");
    rig.link(FLOOD, 1);
    rig.link(FLOOD, 1);
    for token in [FIRST_TOKEN, FIRST_TOKEN + 1] {
        rig.links.on_ready(token);
    }
    rig.links.remove(&rig.poller, LinkId(1));
    rig.pass();
    // The first is told its end, and nothing else.
    assert_eq!(rig.answers(), [1, 1]);
    assert!(!rig.links.is_waited_for());
}

/// Ten a second, and five at once.
const LIMITED: Payer = Payer { uid: FLOOD, rate: Rate { per_s: 10, burst: 5 } };

#[test]
fn a_limited_user_is_read_when_there_is_a_token_and_others_always() {
    let mut rig = Rig::new("links-rate");
    rig.link_at(LIMITED, 8, 1);
    rig.link(VICTIM, 100);
    // A link without a token is not polled for, or the loop would never wait here.
    assert_eq!(rig.settle(), [5, 100]);
    for _ in 0..3 {
        let due_ms = rig.links.due_ms().unwrap();
        assert_eq!(due_ms, rig.now_ms + 100);
        rig.now_ms = due_ms - 1;
        assert_eq!(rig.settle(), [0, 0]);
        rig.now_ms = due_ms;
        assert_eq!(rig.settle(), [1, 0]);
    }
    // What comes after a pause is read at once.
    assert_eq!(rig.links.due_ms(), None);
    rig.now_ms += 10_000;
    rig.link_at(LIMITED, 6, 1);
    assert_eq!(rig.settle(), [0, 0, 5]);
}

#[test]
fn the_links_of_a_limited_user_share_the_tokens() {
    let mut rig = Rig::new("links-shared");
    // Fifteen tokens, of which there are five: the rest is made up for before the next.
    rig.link_at(LIMITED, 1, DATA_BYTES_MAX.try_into().unwrap());
    for _ in 0..3 {
        rig.link_at(LIMITED, 2, 1);
    }
    assert_eq!(rig.settle(), [1, 0, 0, 0]);
    assert_eq!(rig.links.due_ms(), Some(rig.now_ms + 1_100));
    let mut read = Vec::new();
    while let Some(due_ms) = rig.links.due_ms() {
        rig.now_ms = due_ms;
        let answers = rig.settle();
        read.extend((1..4).flat_map(|link| vec![link; answers[link]]));
    }
    assert_eq!(read, [1, 2, 3, 1, 2, 3]);
    assert_eq!(rig.now_ms, 1_000 + 1_100 + 500);
}

#[test]
fn the_end_of_a_link_that_is_held_is_noticed() {
    let mut rig = Rig::new("links-held-end");
    rig.link_at(LIMITED, 10, 1);
    rig.link_at(LIMITED, 10, 1);
    rig.link_at(LIMITED, 10, 1);
    assert_eq!(rig.settle().iter().sum::<usize>(), 5);
    // The client of one is gone, the broker ends another, and the third is read with the tokens.
    drop(rig.clients.remove(0));
    rig.links.remove(&rig.poller, LinkId(2));
    assert_eq!(rig.settle(), [1, 0], "it is told");
    assert_eq!(rig.links.open.len(), 1);
    rig.now_ms = rig.links.due_ms().unwrap();
    assert_eq!(rig.settle(), [0, 1]);
    rig.clients.clear();
    rig.settle();
    assert_eq!((rig.links.open.len(), rig.links.due_ms()), (0, None));
}

/// A link that waits for two things is woken by the one, and then by the other.
#[test]
fn who_takes_its_answers_late_is_read_no_sooner() {
    let mut rig = Rig::new("links-late");
    let payer = Payer { rate: Rate { per_s: 1, burst: 100_000 }, ..LIMITED };
    rig.link_at(payer, 0, 1);
    let (block, guid) = (BlockId::try_from(1).unwrap(), Guid([1; 16]));
    let request = DataRequest::Read { at: Target { block, guid, cell: 0 }, bytes: 1 };
    let frame = wire::encode(FrameHeader { request: 1, fds: 0 }, &request).unwrap();
    // As many as the daemon takes before its answers find no room.
    let mut sent = 0;
    while rig.clients[0].try_send(&frame, &[]).is_ok() {
        sent += 1;
        rig.pass();
    }
    let link = rig.links.open.get_mut(&FIRST_TOKEN).unwrap();
    assert!(link.waiting.is_some());
    link.payer.rate.burst = 1;
    // The one that had no room was paid for, and there is one token now.
    let mut answered = rig.settle()[0];
    assert!(answered < sent, "{answered}");
    while let Some(due_ms) = rig.links.due_ms() {
        rig.now_ms = due_ms;
        let more = rig.settle()[0];
        assert!(more <= 1);
        answered += more;
    }
    assert_eq!(answered, sent);
}
