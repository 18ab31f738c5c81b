//! What the file says, as the dispatcher needs it.

use dmce_abi::name::Instance;
use dmce_broker::dispatcher::{
    DispatcherConfig, Limits, PREPARED_MAX, Placement, Policy, Pressure, Quota,
};
use dmce_config::{self as file, Bytes, Config};
use dmce_sys::identity;
use dmce_sys::socket::FDS_PER_FRAME;
use tracing::warn;

use super::COPIES_SERVED;
use super::clients::ACCEPTED_A_PASS;
use super::headers::BLANKS_MAX;

/// Connections that are no sessions, as of the command `dmce`, beyond one for each session.
const OTHER_CONNECTIONS: usize = 256;

/// Descriptors of a session: its connection and process, and what it is made of.
const FDS_PER_SESSION: usize = 2 + FDS_PER_MADE;

/// Descriptors of what a session is made of: object, record, doorbell.
const FDS_PER_MADE: usize = 3;

/// Descriptors that every broker has: the standard streams, poller, signals, listeners, lock, the
/// folder of the objects, and the few that are opened and closed again where they are needed.
const OWN_FDS: usize = 24;

/// Descriptors for what is neither a connection that was let in nor a session's: the broker's own,
/// headers that are made ahead, sessions while they are made ahead (those that are ready have the
/// descriptors of sessions that there may be), who connects and may be refused, and what a frame
/// brings or takes along.
const OTHER_FDS: usize =
    OWN_FDS + BLANKS_MAX + PREPARED_MAX * FDS_PER_MADE + ACCEPTED_A_PASS + FDS_PER_FRAME;

/// Translates; the file has been checked. This process may have `open_files` descriptors.
pub fn dispatcher(instance: &Instance, config: &Config, open_files: u64) -> DispatcherConfig {
    let defaults = DispatcherConfig::new(instance.clone(), identity::effective_uid());
    DispatcherConfig {
        pid: std::process::id(),
        layout: config.instance.layout,
        copies: config.instance.copies,
        region_copies: config.instance.region_copies,
        copies_max: COPIES_SERVED,
        placement: placement(config.broker.placement),
        weights: config.weight.clone(),
        policies: config.policy.iter().map(policy).collect(),
        pressure: Pressure {
            high_percent: config.broker.pressure_percent,
            low_percent: config.broker.relief_percent,
        },
        usage_ms: config.broker.usage_ms,
        usage_samples: usize::try_from(config.broker.usage_samples).unwrap_or(usize::MAX),
        static_reservation: config.broker.static_reservation,
        quota: quota(config.quota.of_all()),
        quotas: config.quota.uid.iter().map(|(uid, of)| (*uid, quota(*of))).collect(),
        limits: limits(&config.limits, open_files),
        reattach_ms: config.broker.reattach_ms,
        sense_ms: config.broker.sense_ms,
        suspect_ms: config.broker.suspect_ms,
        idle_s: u32::try_from(config.broker.idle_s).unwrap_or(u32::MAX),
        syncs_max: usize::try_from(config.broker.sync_blocks).unwrap_or(usize::MAX),
        sync_rate: config.broker.sync_rate.0,
        slow_start_ms: config.broker.slow_start_s.saturating_mul(1000),
        rebalance_percent: config.broker.rebalance_percent,
        scrub_rate: config.broker.scrub_rate.0,
        scrub_every_ms: config.broker.scrub_every_s.saturating_mul(1000),
        hold_ms: config.broker.hold_s.saturating_mul(1000),
        ..defaults
    }
}

const fn placement(of: file::Placement) -> Placement {
    match of {
        file::Placement::RoundRobin => Placement::RoundRobin,
        file::Placement::LeastUsed => Placement::LeastUsed,
        file::Placement::PowerOfTwo => Placement::PowerOfTwo,
        file::Placement::Weighted => Placement::Weighted,
    }
}

/// What was not written is 0, which clients and the dispatcher read as no choice.
fn policy(of: &file::PolicySection) -> Policy {
    let small = |bytes: Option<Bytes>| {
        bytes.map_or(0, |bytes| u32::try_from(bytes.get()).unwrap_or(u32::MAX))
    };
    let told = dmce_abi::wire::client::Policy {
        up_to: of.up_to.map_or(0, Bytes::get),
        copies: of.copies.unwrap_or(0),
        page_size: small(of.page_size),
        block_bytes: of.block_bytes.map_or(0, Bytes::get),
        align: small(of.align),
        wait_ms: of.wait_ms,
    };
    Policy { told, placement: of.placement.map(placement) }
}

fn quota(of: file::Quota) -> Quota {
    Quota {
        connections: of.connections.map_or(u64::MAX, u64::from),
        requests_per_s: of.requests_per_s.map_or(u64::MAX, u64::from),
        requests_burst: of.requests_burst.map_or(u64::MAX, u64::from),
        bytes: of.bytes.map_or(u64::MAX, u64::from),
        sessions: of.sessions.map_or(u64::MAX, u64::from),
        blocks: of.blocks.map_or(u64::MAX, u64::from),
        regions: of.regions.map_or(u64::MAX, u64::from),
    }
}

fn limits(of: &file::Limits, open_files: u64) -> Limits {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let sessions_max = count(of.sessions).min(sessions_possible(of, open_files));
    if sessions_max < count(of.sessions) {
        let wanted = of.sessions;
        warn!("{open_files} open files are enough for {sessions_max} sessions of {wanted}");
    }
    Limits {
        connections_max: sessions_max.saturating_add(OTHER_CONNECTIONS),
        sessions_max,
        blocks_max: count(of.blocks),
        regions_max: count(of.regions),
        daemons_max: count(of.daemons),
        outstanding_max: count(of.requests_outstanding),
        mappings_max: count(of.mappings_per_session),
    }
}

/// The sessions that so many descriptors are enough for: at least one.
fn sessions_possible(of: &file::Limits, open_files: u64) -> usize {
    let daemons = usize::try_from(of.daemons).unwrap_or(usize::MAX);
    let others = daemons.saturating_add(OTHER_CONNECTIONS + OTHER_FDS);
    let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
    (open_files.saturating_sub(others) / FDS_PER_SESSION).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_sessions_are_let_in_than_there_are_descriptors_for() {
        let of = file::Limits { sessions: 4096, daemons: 16, ..file::Limits::default() };
        for (open_files, sessions) in [(u64::MAX, 4096), (100_000, 4096), (1024, 107), (256, 1)] {
            let limits = limits(&of, open_files);
            assert_eq!(limits.sessions_max, sessions, "{open_files} open files");
            assert_eq!(limits.connections_max, sessions + OTHER_CONNECTIONS);
        }
    }
}
