//! What the file says, as the dispatcher needs it.

use dmce_abi::name::Instance;
use dmce_broker::dispatcher::{DispatcherConfig, Limits, Placement, Quota};
use dmce_config::{self as file, Config};
use dmce_sys::identity;

/// Connections that are no sessions, as of the command `dmce`, beyond one for each session.
const OTHER_CONNECTIONS: usize = 256;

/// Translates; the file has been checked.
pub fn dispatcher(instance: &Instance, config: &Config) -> DispatcherConfig {
    let defaults = DispatcherConfig::new(instance.clone(), identity::effective_uid());
    let all = file::Quota {
        bytes: config.quota.bytes,
        sessions: config.quota.sessions,
        blocks: config.quota.blocks,
        regions: config.quota.regions,
    };
    DispatcherConfig {
        pid: std::process::id(),
        layout: config.instance.layout,
        copies: config.instance.copies,
        placement: match config.broker.placement {
            file::Placement::RoundRobin => Placement::RoundRobin,
            file::Placement::LeastUsed => Placement::LeastUsed,
        },
        static_reservation: config.broker.static_reservation,
        quota: quota(all),
        quotas: config.quota.uid.iter().map(|(uid, of)| (*uid, quota(*of))).collect(),
        limits: limits(&config.limits),
        reattach_ms: config.broker.reattach_ms,
        sense_ms: config.broker.sense_ms,
        suspect_ms: config.broker.suspect_ms,
        idle_s: u32::try_from(config.broker.idle_s).unwrap_or(u32::MAX),
        ..defaults
    }
}

fn quota(of: file::Quota) -> Quota {
    Quota {
        bytes: of.bytes.map_or(u64::MAX, u64::from),
        sessions: of.sessions.map_or(u64::MAX, u64::from),
        blocks: of.blocks.map_or(u64::MAX, u64::from),
        regions: of.regions.map_or(u64::MAX, u64::from),
    }
}

fn limits(of: &file::Limits) -> Limits {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Limits {
        connections_max: count(of.sessions).saturating_add(OTHER_CONNECTIONS),
        sessions_max: count(of.sessions),
        blocks_max: count(of.blocks),
        regions_max: count(of.regions),
        daemons_max: count(of.daemons),
        outstanding_max: count(of.requests_outstanding),
        mappings_max: count(of.mappings_per_session),
    }
}
