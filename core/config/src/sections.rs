//! The sections of the file, their keys and their defaults.
//!
//! Every limit of an instance that is no part of a format has its name here.
//! `docs/configuration.md` says the same to administrators; a test compares the two.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dmce_abi::AddrLayout;
use dmce_abi::block::DaemonId;
use dmce_abi::limits::{BLOCK_IDS_MAX, DAEMONS_MAX};
use dmce_abi::name::Instance;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use crate::Bytes;

/// `[instance]`: what all parts of an instance must agree on. Fixed for the instance's life.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct InstanceSection {
    /// The name that its shared memory objects carry. Absent: whoever starts the instance says.
    #[serde(deserialize_with = "instance_name")]
    pub name: Option<Instance>,
    /// The folder of `broker.sock` and `daemon.sock`. Absent: whoever starts the instance says.
    pub dir: Option<PathBuf>,
    /// The folder of the objects: the shared memory file system, or a tmpfs of one's own.
    pub objects: PathBuf,
    /// How an address is divided.
    #[serde(deserialize_with = "layout")]
    pub layout: AddrLayout,
    /// Copies of an allocation's blocks, where the request does not say. 1 to 3.
    pub copies: u32,
    /// The same of a region's.
    pub region_copies: u32,
}

/// `[broker]`: how the broker serves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct BrokerSection {
    /// Permission bits of `broker.sock`; in the file an octal text such as `"0660"`.
    #[serde(deserialize_with = "octal")]
    pub socket_mode: u32,
    /// The group of `broker.sock`, by name or number. Absent: the broker's own.
    pub socket_group: Option<String>,
    /// How the daemon of a new block is chosen.
    pub placement: Placement,
    /// When memory is called short: percent of the capacity that are taken.
    pub pressure_percent: u32,
    /// When it is short no more.
    pub relief_percent: u32,
    /// How often the usage of each daemon is noted [0068].
    pub usage_ms: u64,
    /// How many notes are kept of each daemon.
    pub usage_samples: u32,
    /// Whether the bytes that a session asks for at setup are kept free for it [0082].
    pub static_reservation: bool,
    /// How long a session whose connection broke, but whose process lives, may come back.
    pub reattach_ms: u64,
    /// How often a daemon that is silent is asked whether it is there.
    pub sense_ms: u64,
    /// How long a daemon may be silent before no new block is placed on it.
    pub suspect_ms: u64,
    /// How long a session's empty block is kept before it is given back.
    pub idle_s: u64,
    /// Blocks that get a copy again at one time.
    pub sync_blocks: u32,
    /// Bytes of copies that are made a second, in all; 0 for as many as can be.
    pub sync_rate: Bytes,
    /// Seconds in which a daemon that came without any block gets no more new ones than others; 0
    /// for none.
    pub slow_start_s: u64,
    /// By how many percent of their capacity daemons may differ before blocks move by themselves; 0
    /// for as many as they like.
    pub rebalance_percent: u32,
    /// Bytes that are compared a second, in all copies; 0 for as many as can be.
    pub scrub_rate: Bytes,
    /// Seconds after all copies were compared until they are again; 0 for not by themselves.
    pub scrub_every_s: u64,
    /// Seconds that a session may hold back what is to become of a copy; 0 for as long as it likes.
    pub hold_s: u64,
}

/// How the daemon of a new block is chosen among those that have room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the smallest part of its capacity taken.
    LeastUsed,
    /// Of two that are drawn, the less used.
    PowerOfTwo,
    /// Drawn by weight.
    Weighted,
}

/// `[[policy]]`: how allocations of some sizes are made (002 [20]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct PolicySection {
    /// Meant for allocations of at most so many bytes. Absent: for those that name its number.
    pub up_to: Option<Bytes>,
    /// Copies. Absent: as for all.
    pub copies: Option<u32>,
    /// The page size. Absent: as for all.
    pub page_size: Option<Bytes>,
    /// Bytes that a block with several allocations may grow to. Absent: what there is room for.
    pub block_bytes: Option<Bytes>,
    /// The alignment. Absent: as for all.
    pub align: Option<Bytes>,
    /// How the daemon is chosen. Absent: as for all.
    pub placement: Option<Placement>,
    /// How long to wait for room, 0 for ever. Absent: not at all.
    pub wait_ms: Option<u32>,
}

/// `[limits]`: bounds of the whole instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Limits {
    /// Sessions at one time.
    pub sessions: u32,
    /// Blocks at one time, and the largest block id.
    pub blocks: u32,
    /// Regions at one time.
    pub regions: u32,
    /// Daemons; their ids are 1 to this.
    pub daemons: u32,
    /// Requests of one session that wait for their answer.
    pub requests_outstanding: u32,
    /// Entries of one session in the OS-to-DMCE table.
    pub mappings_per_session: u32,
}

/// `[quota]` and `[quota.uid.N]`: what one user may hold. A user with a table of their own has
/// exactly what that table says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct QuotaSection {
    /// Connections at one time.
    pub connections: Option<u32>,
    /// Requests a second, in the long run.
    pub requests_per_s: Option<u32>,
    /// Requests at once. Absent: those of a second.
    pub requests_burst: Option<u32>,
    /// Bytes committed or reserved, copies counted.
    pub bytes: Option<Bytes>,
    /// Sessions at one time.
    pub sessions: Option<u32>,
    /// Blocks at one time.
    pub blocks: Option<u32>,
    /// Regions at one time.
    pub regions: Option<u32>,
    /// The users who have limits of their own, by number.
    #[serde(deserialize_with = "by_uid")]
    pub uid: BTreeMap<u32, Quota>,
}

/// The limits of one user. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Quota {
    /// Connections at one time.
    pub connections: Option<u32>,
    /// Requests a second, in the long run.
    pub requests_per_s: Option<u32>,
    /// Requests at once. Absent: those of a second.
    pub requests_burst: Option<u32>,
    /// Bytes committed or reserved, copies counted.
    pub bytes: Option<Bytes>,
    /// Sessions at one time.
    pub sessions: Option<u32>,
    /// Blocks at one time.
    pub blocks: Option<u32>,
    /// Regions at one time.
    pub regions: Option<u32>,
}

impl QuotaSection {
    /// What `uid` may hold.
    #[must_use]
    pub fn of(&self, uid: u32) -> Quota {
        self.uid.get(&uid).copied().unwrap_or_else(|| self.of_all())
    }

    /// What a user may hold who has no table.
    #[must_use]
    pub const fn of_all(&self) -> Quota {
        Quota {
            connections: self.connections,
            requests_per_s: self.requests_per_s,
            requests_burst: self.requests_burst,
            bytes: self.bytes,
            sessions: self.sessions,
            blocks: self.blocks,
            regions: self.regions,
        }
    }
}

/// `[daemon]`: how each daemon holds memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct DaemonSection {
    /// Bytes of blocks that a daemon may hold. The pool is not counted.
    pub capacity: Bytes,
    /// Objects that the pool keeps ready. 0 is no pool.
    pub pool_objects: u32,
    /// Bytes of a pool object: a first commitment of at most these is fast.
    pub pool_object_bytes: Bytes,
    /// Whether memory is made of huge pages where the kernel can: that of a new block at once, what
    /// it grows by in the background.
    pub huge_pages: bool,
    /// Bytes that a commitment leaves free in the file system, in the control group, and on the
    /// host.
    pub margin: Bytes,
    /// How often a part of the blocks is compared with what was committed.
    pub check_ms: u64,
}

impl Default for InstanceSection {
    fn default() -> Self {
        Self {
            name: None,
            dir: None,
            objects: PathBuf::from("/dev/shm"),
            layout: AddrLayout::IN_SERVER,
            copies: 1,
            region_copies: 2,
        }
    }
}

impl Default for BrokerSection {
    fn default() -> Self {
        Self {
            socket_mode: 0o600,
            socket_group: None,
            placement: Placement::RoundRobin,
            pressure_percent: 90,
            relief_percent: 80,
            usage_ms: 10_000,
            usage_samples: 360,
            static_reservation: true,
            reattach_ms: 5_000,
            sense_ms: 1_000,
            suspect_ms: 5_000,
            idle_s: 10,
            sync_blocks: 4,
            sync_rate: Bytes(0),
            slow_start_s: 30,
            rebalance_percent: 0,
            scrub_rate: Bytes::mib(64),
            scrub_every_s: 86_400,
            hold_s: 0,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 4_096,
            blocks: 65_536,
            regions: 16_384,
            daemons: DAEMONS_MAX,
            requests_outstanding: 64,
            mappings_per_session: 65_536,
        }
    }
}

const _: () = assert!(65_536 < BLOCK_IDS_MAX);

impl Default for DaemonSection {
    fn default() -> Self {
        Self {
            capacity: Bytes::gib(3),
            pool_objects: 4,
            pool_object_bytes: Bytes::mib(2),
            huge_pages: true,
            margin: Bytes::mib(256),
            check_ms: 1_000,
        }
    }
}

fn instance_name<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Instance>, D::Error> {
    let text = String::deserialize(value)?;
    Instance::new(&text)
        .map(Some)
        .map_err(|error| D::Error::custom(format_args!("{text:?}: {error}")))
}

fn by_uid<'de, D: Deserializer<'de>>(value: D) -> Result<BTreeMap<u32, Quota>, D::Error> {
    let users = BTreeMap::<Uid, Quota>::deserialize(value)?;
    Ok(users.into_iter().map(|(Uid(uid), quota)| (uid, quota)).collect())
}

/// Reads `[weight]`: the weights of daemons, by id.
pub(crate) fn by_daemon<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<BTreeMap<DaemonId, u32>, D::Error> {
    let weights = BTreeMap::<Daemon, u32>::deserialize(value)?;
    Ok(weights.into_iter().map(|(Daemon(daemon), weight)| (daemon, weight)).collect())
}

/// A daemon's id as the key of a table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Daemon(DaemonId);

impl<'de> Deserialize<'de> for Daemon {
    fn deserialize<D: Deserializer<'de>>(key: D) -> Result<Self, D::Error> {
        let text = String::deserialize(key)?;
        let id = text.parse::<u32>().ok().and_then(|id| DaemonId::try_from(id).ok());
        let id = id.filter(|id| id.get() <= DAEMONS_MAX);
        id.map(Self).ok_or_else(|| D::Error::custom(format_args!("{text:?} is no daemon's id")))
    }
}

/// A user's number as the key of a table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Uid(u32);

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(key: D) -> Result<Self, D::Error> {
        let text = String::deserialize(key)?;
        let number = text.parse().map(Self);
        number.map_err(|_| D::Error::custom(format_args!("{text:?} is no number of a user")))
    }
}

fn layout<'de, D: Deserializer<'de>>(value: D) -> Result<AddrLayout, D::Error> {
    let text = String::deserialize(value)?;
    text.parse().map_err(|error| D::Error::custom(format_args!("{text:?}: {error}")))
}

fn octal<'de, D: Deserializer<'de>>(value: D) -> Result<u32, D::Error> {
    let text = String::deserialize(value)?;
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    u32::from_str_radix(&text, 8).ok().filter(|_| digits).ok_or_else(|| {
        D::Error::custom(format_args!("{text:?} is no octal mode such as \"0600\" or \"0660\""))
    })
}
