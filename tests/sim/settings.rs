//! How the broker of a world is configured.

use dmce_abi::AddrLayout;
use dmce_abi::block::DaemonId;
use dmce_abi::name::Instance;
use dmce_abi::wire::client;
use dmce_broker::dispatcher::{DispatcherConfig, Limits, Placement, Policy, Quota};

use crate::random::Random;

/// The configuration of a broker, as chance will have it.
pub fn config(random: &mut Random, layout: AddrLayout) -> DispatcherConfig {
    let instance = Instance::new("test").expect("a plain name");
    let mut config = DispatcherConfig::new(instance, 999);
    config.layout = layout;
    if random.once_in(2) {
        config.copies_max = 3;
        config.copies = 1 + u32::from(random.once_in(3));
    }
    let placements =
        [Placement::RoundRobin, Placement::LeastUsed, Placement::PowerOfTwo, Placement::Weighted];
    config.placement = random.pick(placements).unwrap_or_default();
    config.weights = [(1, 3), (2, 0)]
        .map(|(id, weight)| (DaemonId::try_from(id).expect("a small id"), weight))
        .into();
    config.policies = policies(random, layout, placements);
    config.syncs_max = usize::try_from(random.below(4)).unwrap_or(0);
    config.sync_rate = random.pick([0, layout.block_bytes()]).unwrap_or(0);
    config.slow_start_ms = random.pick([0, 10_000]).unwrap_or(0);
    config.rebalance_percent = random.pick([0, 10, 40]).unwrap_or(0);
    config.scrub_every_ms = random.pick([0, 2000]).unwrap_or(0);
    config.scrub_rate = random.pick([0, layout.block_bytes()]).unwrap_or(0);
    config.usage_ms = 300;
    config.usage_samples = 4;
    config.static_reservation = !random.once_in(5);
    config.reattach_ms = 4000;
    config.suspect_ms = random.pick([200, 2000]).unwrap_or(2000);
    config.limits = Limits {
        connections_max: 20,
        sessions_max: 6,
        blocks_max: 60,
        regions_max: 5,
        daemons_max: 8,
        outstanding_max: 8,
        mappings_max: 6,
    };
    if random.once_in(2) {
        let bytes = layout.block_bytes() * (1 + random.below(6));
        config.quota = Quota { bytes, sessions: 3, blocks: 12, regions: 3, ..Quota::UNLIMITED };
    }
    if random.once_in(3) {
        config.quota.requests_per_s = 50 + random.below(200);
        config.quota.requests_burst = 1 + random.below(40);
    }
    config
}

/// As many as clients believe there are.
fn policies(random: &mut Random, layout: AddrLayout, placements: [Placement; 4]) -> Vec<Policy> {
    let full = layout.block_bytes();
    let up_to = [full / 64, 0, full];
    let policy = |up_to| {
        let told = client::Policy {
            up_to,
            page_size: random.pick([0, 4096, 16384]).unwrap_or(0),
            block_bytes: random.pick([0, full / 2]).unwrap_or(0),
            ..client::Policy::default()
        };
        Policy { told, placement: random.pick(placements) }
    };
    up_to.map(policy).into()
}
