//! Links of several users, served in rounds.

use std::path::Path;
use std::time::Duration;

use dmce_abi::block::DaemonId;
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::name::Instance;
use dmce_abi::wire::data::Target;
use dmce_config::{Bytes, DaemonSection};
use dmce_sys::object::ObjectDir;

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
        Self { instance, store, poller, links: Links::new().unwrap(), clients: Vec::new() }
    }

    /// A new link of a user, over which `count` reads were asked for. They will be refused, since
    /// there is no such block.
    fn link(&mut self, uid: u32, count: u64) {
        let (ours, theirs) = Socket::pair().unwrap();
        let (block, guid) = (BlockId::try_from(1).unwrap(), Guid([1; 16]));
        let grant = LinkGrant { block, guid, writable: false };
        let id = LinkId(self.clients.len() as u64 + 1);
        let session = SessionId::try_from(1).unwrap();
        let new = NewLink { made_by: 1, id, session, uid, grant };
        self.links.add(&self.poller, new, theirs.into_fd());
        let bytes = DATA_BYTES_MAX.try_into().unwrap();
        let request = DataRequest::Read { at: Target { block, guid, cell: 0 }, bytes };
        for request_id in 1..=count {
            let header = FrameHeader { request: request_id, fds: 0 };
            ours.try_send(&wire::encode(header, &request).unwrap(), &[]).unwrap();
        }
        self.clients.push(ours);
    }

    /// One pass of the daemon's loop: takes in what is ready, and serves a round.
    fn pass(&mut self) {
        let mut ready = Vec::new();
        self.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        for one in ready {
            self.links.on_ready(one.token);
        }
        self.links.begin_round();
        while let Some(token) = self.links.next_in_round() {
            assert!(!self.links.serve(&self.poller, token, &mut self.store), "it is granted");
        }
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
