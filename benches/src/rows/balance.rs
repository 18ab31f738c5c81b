//! Daemons that hold more than others give blocks: what the broker takes to decide which, where
//! there are many and where there are few.
//!
//! Both sides are one step of a dispatcher in this process: the note of the usage history after
//! which blocks begin to move. Each round has dispatchers of its own, with one daemon that reports
//! all blocks of a region, and another one that has none. They stop where a lock table is to be
//! made: what a move costs is measured by others.

use std::time::Instant;

use dmce_abi::AddrLayout;
use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, Region, Span, Ticket,
};
use dmce_abi::name::Instance;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::daemon::{DaemonMessage, HeldBlock, Register};
use dmce_broker::dispatcher::{
    Action, DaemonConn, Dispatcher, DispatcherConfig, Event, Millis, Now, Peer, RequestId, Started,
};

use crate::Result;
use crate::measure::Pair;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit};

/// The design's number of small blocks, and a few.
const MANY: u32 = 65_000;
const FEW: u32 = 1_000;
const BLOCK_BYTES: u64 = 1 << 20;
const NOTE_MS: u64 = 10_000;
/// As many as fit a frame.
const PAGE: usize = 100;

/// Measures the group.
///
/// # Errors
///
/// None: it is in the signature of all groups.
#[allow(clippy::unnecessary_wraps, reason = "as all groups")]
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let rounds = setting.effort.pick(15, 2);
    let sides: Vec<[f64; 2]> = (0..rounds).map(|_| [MANY, FEW].map(decide)).collect();
    let side = |side: usize| sides.iter().map(|both| both[side]).collect();
    let subject = Subject {
        quantity: "a decision which blocks move".to_owned(),
        state: format!("{MANY} blocks"),
        against: "the same, 1000 blocks",
        unit: Unit::Time,
        // Nothing of it grows with their number but a tree's height.
        goal: Goal::AtLeast(0.5),
    };
    Ok(vec![super::told(Row::new(subject, &Pair::of_rounds(side(0), side(1))))])
}

/// The seconds of the step in which the first blocks begin to move.
fn decide(blocks: u32) -> f64 {
    let mut broker = Broker::new(blocks);
    for note in 1..=100 {
        let (begin, actions) = (Instant::now(), broker.step(note * NOTE_MS, Event::Tick));
        let elapsed = begin.elapsed();
        if actions.iter().any(|action| matches!(action, Action::MakeLocks { .. })) {
            return elapsed.as_secs_f64();
        }
    }
    unreachable!("one daemon has all, and the other nothing");
}

struct Broker(Dispatcher);

impl Broker {
    fn new(blocks: u32) -> Self {
        let instance = Instance::new("bench").expect("a plain name");
        let mut config = DispatcherConfig::new(instance, 0);
        config.layout = AddrLayout::new(27, 17, 20).expect("64 bits in all");
        (config.rebalance_percent, config.usage_ms, config.syncs_max) = (10, NOTE_MS, 4);
        // Nobody answers here.
        (config.sense_ms, config.suspect_ms) = (u64::MAX / 4, u64::MAX / 2);
        let mut broker = Self(Dispatcher::new(config, 1));
        broker.step(0, Event::Started(Started::default()));
        let capacity = 2 * u64::from(blocks) * BLOCK_BYTES;
        broker.daemon(1, capacity, &held(blocks));
        broker.daemon(2, capacity, &[]);
        broker
    }

    fn step(&mut self, millis: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let now = Now { millis: Millis(millis), unix_s: 0 };
        self.0.step(now, event, &mut actions);
        actions
    }

    /// A daemon comes that holds all of these.
    fn daemon(&mut self, id: u32, capacity: u64, held: &[HeldBlock]) {
        let conn = DaemonConn(id.into());
        let daemon = DaemonId::try_from(id).expect("a small id");
        let peer = Peer { pid: id, lived_at: 1, uid: 0, gid: 0, groups: Vec::new() };
        self.step(0, Event::DaemonConnected { conn, peer });
        let (instance, segment_version) = ("bench".to_owned(), SEGMENT_VERSION);
        let register = Register { daemon, instance, segment_version, capacity };
        self.tell(conn, DaemonMessage::Register(register));
        let mut pages = held.chunks(PAGE).peekable();
        if pages.peek().is_none() {
            let (blocks, damaged) = (Vec::new(), Vec::new());
            return self.tell(conn, DaemonMessage::Holds { blocks, damaged, last: true });
        }
        while let Some(page) = pages.next() {
            let (blocks, last) = (page.to_vec(), pages.peek().is_none());
            self.tell(conn, DaemonMessage::Holds { blocks, damaged: Vec::new(), last });
        }
    }

    fn tell(&mut self, conn: DaemonConn, message: DaemonMessage) {
        self.step(0, Event::DaemonMessage { conn, request_id: RequestId(0), message });
    }
}

/// All blocks of a region.
fn held(blocks: u32) -> Vec<HeldBlock> {
    let id = |id: u32| BlockId::try_from(id).expect("below the limit");
    let guid = |number: u32| Guid(u128::from(number).to_le_bytes());
    let region = Region {
        volume: "v".to_owned(),
        name: "r".to_owned(),
        uid: 0,
        gid: 0,
        mode: 0o600,
        base_pointer: 0,
        region_size: u64::from(blocks) * BLOCK_BYTES,
        copies: 1,
        created_at: 1,
        created_by: Ticket { session: guid(7), number: 1 },
    };
    let block = |place: u32| {
        let description = BlockDescription {
            block: id(1 + place),
            guid: guid(1000 + place),
            epoch: 1,
            page_size: 4096,
            bytes_max: BLOCK_BYTES,
            span: Span { first: id(1), count: blocks, guid: guid(5) },
            owner: Owner::Region(region.clone()),
            membership: Membership::alone(),
        };
        HeldBlock { description, committed: BLOCK_BYTES }
    };
    (0..blocks).map(block).collect()
}
