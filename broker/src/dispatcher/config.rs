//! What an administrator decides, as the dispatcher needs it. The shell makes it from the file.

use std::collections::BTreeMap;

use dmce_abi::addr::AddrLayout;
use dmce_abi::block::DaemonId;
use dmce_abi::limits::{BLOCK_IDS_MAX, DAEMONS_MAX};
use dmce_abi::name::Instance;
use dmce_abi::rate::Rate;
use dmce_abi::wire::client;

/// The page size of an instance that does not say.
const PAGE_SIZE_DEFAULT: u32 = 4096;

/// Which daemon gets the next block, or part of a reservation, of those that have room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the smallest part of its capacity taken; of equals, the one that did least of
    /// late [0068].
    LeastUsed,
    /// Of two that are drawn, the less used: nearly as even, and no crowd runs to one that is new.
    PowerOfTwo,
    /// Drawn, each as often as its weight says.
    Weighted,
}

/// An entry of the policy table (002 [20]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What clients are told of it.
    pub told: client::Policy,
    /// Which daemon; `None` as for all.
    pub placement: Option<Placement>,
}

/// When memory is called short. Percent of what the daemons that are up may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// From here up.
    pub high_percent: u32,
    /// Until it is below this; at most `high_percent`.
    pub low_percent: u32,
}

/// What one user may hold. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Connections of clients.
    pub connections: u64,
    /// Requests a second, in the long run.
    pub requests_per_s: u64,
    /// Requests at once, after a pause.
    pub requests_burst: u64,
    /// Bytes: reservations, and what is committed beyond them.
    pub bytes: u64,
    /// Sessions.
    pub sessions: u64,
    /// Blocks.
    pub blocks: u64,
    /// Regions.
    pub regions: u64,
}

impl Quota {
    /// No limit at all.
    pub const UNLIMITED: Self = Self {
        connections: u64::MAX,
        requests_per_s: u64::MAX,
        requests_burst: u64::MAX,
        bytes: u64::MAX,
        sessions: u64::MAX,
        blocks: u64::MAX,
        regions: u64::MAX,
    };
}

impl Quota {
    /// How much may be asked for: a request a second at least, since nothing is refused for it.
    #[must_use]
    pub fn rate(&self) -> Rate {
        if self.requests_per_s == u64::MAX {
            return Rate::UNLIMITED;
        }
        let whole = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).max(1);
        let per_s = whole(self.requests_per_s);
        let burst = match self.requests_burst {
            u64::MAX => per_s,
            burst => whole(burst),
        };
        Rate { per_s, burst }
    }

    /// The same with half of what there is for all where it sets no limit: of connections,
    /// sessions, blocks and regions.
    #[must_use]
    pub fn or_share_of(self, limits: &Limits) -> Self {
        let or_half = |limit: u64, of: usize| match limit {
            u64::MAX => (of as u64 / 2).max(1),
            limit => limit,
        };
        Self {
            connections: or_half(self.connections, limits.connections_max),
            sessions: or_half(self.sessions, limits.sessions_max),
            blocks: or_half(self.blocks, limits.blocks_max),
            regions: or_half(self.regions, limits.regions_max),
            ..self
        }
    }
}

/// How large the tables may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients, with a session or without.
    pub connections_max: usize,
    /// Sessions.
    pub sessions_max: usize,
    /// Blocks, those that are being destroyed included.
    pub blocks_max: usize,
    /// Regions.
    pub regions_max: usize,
    /// Daemons.
    pub daemons_max: usize,
    /// Requests of one connection that wait for an answer.
    pub outstanding_max: usize,
    /// Entries of one session in the OS-to-DMCE table.
    pub mappings_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            sessions_max: 1024,
            blocks_max: 1 << 16,
            regions_max: 4096,
            daemons_max: DAEMONS_MAX as usize,
            outstanding_max: 64,
            mappings_max: 16_384,
        }
    }
}

/// All that the dispatcher is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatcherConfig {
    /// The instance's name.
    pub instance: Instance,
    /// The broker's process, for the status report.
    pub pid: u32,
    /// The user that the service runs as: sees all listings, and alone may be a daemon.
    pub service_uid: u32,
    /// How addresses are divided; fixed for the instance's life.
    pub layout: AddrLayout,
    /// Copies of what does not say.
    pub copies: u32,
    /// The same for a region.
    pub region_copies: u32,
    /// Copies that a block may have: who asks for more is refused.
    pub copies_max: u32,
    /// The page size of what does not say.
    pub page_size: u32,
    /// Which daemon gets the next block.
    pub placement: Placement,
    /// How often `Weighted` draws a daemon; 1 for one that is not named. One with weight 0 gets
    /// what no other has room for.
    pub weights: BTreeMap<DaemonId, u32>,
    /// The policy table: its numbers begin with 1.
    pub policies: Vec<Policy>,
    /// When memory is called short.
    pub pressure: Pressure,
    /// How often the usage of the daemons is noted [0068].
    pub usage_ms: u64,
    /// How many notes of a daemon are kept; 0 for none.
    pub usage_samples: usize,
    /// Whether Setup reserves. If not, a session is made without a reservation, whatever it asks.
    pub static_reservation: bool,
    /// What a user may hold who is not named in `quotas`.
    pub quota: Quota,
    /// What the users of these uids may hold.
    pub quotas: BTreeMap<u32, Quota>,
    /// How large the tables may become.
    pub limits: Limits,
    /// How long a session without a connection is kept while its process lives.
    pub reattach_ms: u64,
    /// How often a daemon is asked whether it is there.
    pub sense_ms: u64,
    /// How long a daemon that owes an answer may be silent before it is suspected.
    pub suspect_ms: u64,
    /// Seconds that a client keeps an empty block, for it to know.
    pub idle_s: u32,
    /// Blocks that get a copy again at one time; 0 for none.
    pub syncs_max: usize,
    /// Bytes of copies that are made a second, at most; 0 for as many as can be.
    pub sync_rate: u64,
    /// How long a daemon that came without any block is new: it gets no more new blocks than the
    /// others at first.
    pub slow_start_ms: u64,
    /// By how many percent of their capacity daemons may differ in what is taken before blocks
    /// move by themselves; 0 for as many as they like.
    pub rebalance_percent: u32,
    /// Bytes that are compared a second, in all copies; 0 for as many as can be.
    pub scrub_rate: u64,
    /// How long after all was gone through that is done again; 0 for not by itself.
    pub scrub_every_ms: u64,
    /// How long a session may hold back what is to become of a copy; 0 for as long as it likes.
    pub hold_ms: u64,
}

impl DispatcherConfig {
    /// The defaults for `instance`, served by `service_uid`.
    #[must_use]
    pub fn new(instance: Instance, service_uid: u32) -> Self {
        Self {
            instance,
            pid: 0,
            service_uid,
            layout: AddrLayout::IN_SERVER,
            copies: 1,
            region_copies: 1,
            copies_max: 1,
            page_size: PAGE_SIZE_DEFAULT,
            placement: Placement::RoundRobin,
            weights: BTreeMap::new(),
            policies: Vec::new(),
            pressure: Pressure { high_percent: 90, low_percent: 80 },
            usage_ms: 10_000,
            usage_samples: 360,
            static_reservation: true,
            quota: Quota::UNLIMITED,
            quotas: BTreeMap::new(),
            limits: Limits::default(),
            reattach_ms: 30_000,
            sense_ms: 500,
            suspect_ms: 2_000,
            idle_s: 10,
            syncs_max: 0,
            sync_rate: 0,
            slow_start_ms: 0,
            rebalance_percent: 0,
            scrub_rate: 0,
            scrub_every_ms: 0,
            hold_ms: 0,
        }
    }

    /// Block ids are below this.
    #[must_use]
    pub fn block_ids(&self) -> u32 {
        let ids = self.layout.block_ids().min(u64::from(BLOCK_IDS_MAX));
        u32::try_from(ids).unwrap_or(BLOCK_IDS_MAX)
    }
}
