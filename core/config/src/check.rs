//! Ranges of the values, and what must hold between them.

use core::fmt;
use std::ops::RangeInclusive;

use dmce_abi::block::is_page_size;
use dmce_abi::limits::{
    BLOCK_IDS_MAX, COPIES_MAX, DAEMONS_MAX, PAGE_BYTES, POLICIES_MAX, REBALANCE_NOTES,
    SESSION_IDS_MAX,
};

use crate::sections::{
    BrokerSection, DaemonSection, InstanceSection, Limits, PolicySection, Quota, QuotaSection,
};
use crate::{Bytes, Config};

/// The largest pool object: what is made ready ahead of need stays small against a daemon.
const POOL_OBJECT_BYTES_MAX: Bytes = Bytes::gib(1);
/// The largest capacity of a daemon, and the largest margin.
const CAPACITY_MAX: Bytes = Bytes(1 << 48);
const POOL_OBJECTS_MAX: u32 = 1024;
const REQUESTS_OUTSTANDING_MAX: u32 = 4096;
const MAPPINGS_MAX: u32 = 1 << 20;
/// Notes of one daemon: with as many daemons as there can be, they take some 100 MiB.
const USAGE_SAMPLES_MAX: u32 = 4096;
const SYNC_BLOCKS_MAX: u32 = 256;
const SYNC_RATE_MAX: Bytes = Bytes::mib(1 << 20);
const WEIGHT_MAX: u32 = 1_000_000;
/// The largest alignment of an allocation.
const ALIGN_MAX: u64 = 2 << 20;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_S: u64 = 86_400;

/// A value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The section, the way from there to the table of the key, and the key. Of a list, a step is
    /// the place of the entry, counted from 0.
    pub(crate) section: &'static str,
    pub(crate) within: Vec<String>,
    pub(crate) key: &'static str,
    /// A key of the same table that it does not go with: to blame where `key` has its default.
    pub(crate) against: Option<&'static str>,
    pub(crate) what: String,
}

impl Misfit {
    /// The same, said of a table within the section.
    fn within(self, steps: impl IntoIterator<Item = String>) -> Self {
        Self { within: steps.into_iter().collect(), ..self }
    }
}

/// Makes those defaults smaller that are too large for the layout. `written` tells whether a key
/// was written down: what was is never changed.
pub(crate) fn fit_defaults(config: &mut Config, written: impl Fn(&str, &str) -> bool) {
    let layout = config.instance.layout;
    if !written("limits", "blocks") {
        let ids = u32::try_from(layout.block_ids() - 1).unwrap_or(u32::MAX);
        config.limits.blocks = config.limits.blocks.min(ids);
    }
    if !written("daemon", "pool_object_bytes") {
        let bytes = &mut config.daemon.pool_object_bytes;
        *bytes = (*bytes).min(Bytes(layout.block_bytes()));
    }
}

/// Checks every value against its range and against the others.
pub(crate) fn check(config: &Config) -> Result<(), Misfit> {
    check_instance(&config.instance)?;
    check_broker(&config.broker)?;
    check_weights(config)?;
    check_policies(config)?;
    check_limits(&config.limits, &config.instance)?;
    check_quotas(&config.quota)?;
    check_daemon(&config.daemon, &config.instance)
}

fn check_instance(instance: &InstanceSection) -> Result<(), Misfit> {
    let section = Section("instance");
    section.within("copies", instance.copies, 1..=COPIES_MAX)?;
    section.within("region_copies", instance.region_copies, 1..=COPIES_MAX)?;
    let paths = [("dir", instance.dir.as_deref()), ("objects", Some(instance.objects.as_path()))];
    for (key, path) in paths {
        let relative = path.filter(|path| !path.is_absolute());
        if let Some(path) = relative {
            return section.misfit(key, format_args!("{} does not begin with /", path.display()));
        }
    }
    Ok(())
}

fn check_broker(broker: &BrokerSection) -> Result<(), Misfit> {
    let section = Section("broker");
    if broker.socket_mode > 0o777 {
        let mode = broker.socket_mode;
        return section.misfit("socket_mode", format_args!("{mode:04o} is beyond 0777"));
    }
    section.within("reattach_ms", broker.reattach_ms, 0..=HOUR_MS)?;
    section.within("sense_ms", broker.sense_ms, 10..=MINUTE_MS)?;
    section.within("suspect_ms", broker.suspect_ms, 10..=HOUR_MS)?;
    section.within("idle_s", broker.idle_s, 0..=DAY_S)?;
    section.within("sync_blocks", broker.sync_blocks, 0..=SYNC_BLOCKS_MAX)?;
    if broker.sync_rate != Bytes(0) {
        section.size_within("sync_rate", broker.sync_rate, Bytes::mib(1)..=SYNC_RATE_MAX)?;
    }
    section.within("slow_start_s", broker.slow_start_s, 0..=DAY_S)?;
    section.within("rebalance_percent", broker.rebalance_percent, 0..=100)?;
    if broker.scrub_rate != Bytes(0) {
        section.size_within("scrub_rate", broker.scrub_rate, Bytes::mib(1)..=SYNC_RATE_MAX)?;
    }
    section.within("scrub_every_s", broker.scrub_every_s, 0..=30 * DAY_S)?;
    section.within("hold_s", broker.hold_s, 0..=DAY_S)?;
    section.within("usage_ms", broker.usage_ms, 100..=HOUR_MS)?;
    section.within("usage_samples", broker.usage_samples, 0..=USAGE_SAMPLES_MAX)?;
    section.within("pressure_percent", broker.pressure_percent, 1..=100)?;
    section.within("relief_percent", broker.relief_percent, 1..=100)?;
    check_rebalancing(broker)?;
    let BrokerSection { pressure_percent, relief_percent, .. } = *broker;
    if relief_percent > pressure_percent {
        let what = format_args!(
            "{relief_percent} is more than pressure_percent, which is {pressure_percent}"
        );
        let misfit = section.misfit("relief_percent", what);
        return misfit.map_err(|misfit| Misfit { against: Some("pressure_percent"), ..misfit });
    }
    let BrokerSection { sense_ms, suspect_ms, .. } = *broker;
    if suspect_ms < sense_ms {
        let what = format_args!("{suspect_ms} is less than sense_ms, which is {sense_ms}");
        let misfit = section.misfit("suspect_ms", what);
        return misfit.map_err(|misfit| Misfit { against: Some("sense_ms"), ..misfit });
    }
    Ok(())
}

/// Blocks move by what the usage history tells, as copies that are made.
fn check_rebalancing(broker: &BrokerSection) -> Result<(), Misfit> {
    let BrokerSection { rebalance_percent, usage_samples, sync_blocks, .. } = *broker;
    let (key, needs, has) = match (usage_samples, sync_blocks) {
        (..REBALANCE_NOTES, _) => ("usage_samples", REBALANCE_NOTES, usage_samples),
        (_, 0) => ("sync_blocks", 1, sync_blocks),
        _ => return Ok(()),
    };
    if rebalance_percent == 0 {
        return Ok(());
    }
    let what = format_args!("blocks move where {key} is at least {needs}, and it is {has}");
    let misfit = Section("broker").misfit("rebalance_percent", what);
    misfit.map_err(|misfit| Misfit { against: Some(key), ..misfit })
}

fn check_weights(config: &Config) -> Result<(), Misfit> {
    let heavy = config.weight.iter().find(|(_, weight)| **weight > WEIGHT_MAX);
    match heavy {
        Some((daemon, weight)) => Section("weight")
            .misfit("daemon", format_args!("{daemon} has {weight}, limit {WEIGHT_MAX}"))
            .map_err(|misfit| misfit.within([daemon.to_string()])),
        None => Ok(()),
    }
}

fn check_policies(config: &Config) -> Result<(), Misfit> {
    let section = Section("policy");
    let policies = &config.policy;
    if policies.len() > POLICIES_MAX {
        let what = format_args!("{} entries, limit {POLICIES_MAX}", policies.len());
        let misfit = section.misfit("policy", what);
        return misfit.map_err(|misfit| misfit.within([POLICIES_MAX.to_string()]));
    }
    let block = config.instance.layout.block_bytes();
    for (index, policy) in policies.iter().enumerate() {
        let number = index + 1;
        check_policy(policy, block)
            .and_then(|()| check_distinct(policy, &policies[..index]))
            .or_else(|(key, what)| section.misfit(key, format_args!("entry {number}: {what}")))
            .map_err(|misfit| misfit.within([index.to_string()]))?;
    }
    Ok(())
}

/// Checks that an entry of the policy table is not for the same sizes as one of those `before` it.
fn check_distinct(
    policy: &PolicySection,
    before: &[PolicySection],
) -> Result<(), (&'static str, String)> {
    let Some(up_to) = policy.up_to else { return Ok(()) };
    match before.iter().position(|other| other.up_to == Some(up_to)) {
        Some(index) => Err(("up_to", format!("{} is that of {}", up_to.exact(), index + 1))),
        None => Ok(()),
    }
}

/// Checks an entry of the policy table, where a block has at most `block` bytes.
fn check_policy(policy: &PolicySection, block: u64) -> Result<(), (&'static str, String)> {
    if policy.up_to == Some(Bytes(0)) {
        return Err(("up_to", "there are no allocations of 0 bytes".to_owned()));
    }
    if let Some(copies) = policy.copies.filter(|copies| !(1..=COPIES_MAX).contains(copies)) {
        return Err(("copies", format!("{copies} is not between 1 and {COPIES_MAX}")));
    }
    let page = policy.page_size.map_or(PAGE_BYTES, Bytes::get);
    if !u32::try_from(page).is_ok_and(is_page_size) || page > block {
        let what = format!("{page} is no power of two from 4096 to 2097152 and to a block");
        return Err(("page_size", what));
    }
    let align = policy.align.map_or(1, Bytes::get);
    if !align.is_power_of_two() || align > ALIGN_MAX {
        return Err(("align", format!("{align} is no power of two up to {ALIGN_MAX}")));
    }
    let bytes = policy.block_bytes.map_or(block, Bytes::get);
    if !(page..=block).contains(&bytes) || !bytes.is_multiple_of(page) {
        let what = format!("{bytes} is no multiple of {page} up to {block}");
        return Err(("block_bytes", what));
    }
    Ok(())
}

fn check_limits(limits: &Limits, instance: &InstanceSection) -> Result<(), Misfit> {
    let section = Section("limits");
    section.within("sessions", limits.sessions, 1..=SESSION_IDS_MAX)?;
    section.within("blocks", limits.blocks, 1..=BLOCK_IDS_MAX - 1)?;
    section.within("regions", limits.regions, 1..=BLOCK_IDS_MAX - 1)?;
    section.within("daemons", limits.daemons, 1..=DAEMONS_MAX)?;
    section.within(
        "requests_outstanding",
        limits.requests_outstanding,
        1..=REQUESTS_OUTSTANDING_MAX,
    )?;
    section.within("mappings_per_session", limits.mappings_per_session, 0..=MAPPINGS_MAX)?;
    let (layout, ids) = (instance.layout, instance.layout.block_ids());
    if u64::from(limits.blocks) >= ids {
        let blocks = limits.blocks;
        let what = format_args!("{blocks} is beyond the {} block ids of layout {layout}", ids - 1);
        return section.misfit("blocks", what);
    }
    Ok(())
}

fn check_quotas(quota: &QuotaSection) -> Result<(), Misfit> {
    let section = Section("quota");
    let key = "requests_burst";
    let is_idle = |of: &Quota| of.requests_burst.is_some() && of.requests_per_s.is_none();
    let what = "without requests_per_s it has no effect";
    if is_idle(&quota.of_all()) {
        return section.misfit(key, format_args!("{what}"));
    }
    match quota.uid.iter().find(|(_, of)| is_idle(of)) {
        Some((uid, _)) => section
            .misfit(key, format_args!("user {uid}: {what}"))
            .map_err(|misfit| misfit.within(["uid".to_owned(), uid.to_string()])),
        None => Ok(()),
    }
}

fn check_daemon(daemon: &DaemonSection, instance: &InstanceSection) -> Result<(), Misfit> {
    let section = Section("daemon");
    let page = Bytes(PAGE_BYTES);
    section.size_within("capacity", daemon.capacity, page..=CAPACITY_MAX)?;
    section.size_within(
        "pool_object_bytes",
        daemon.pool_object_bytes,
        page..=POOL_OBJECT_BYTES_MAX,
    )?;
    section.size_within("margin", daemon.margin, Bytes(0)..=CAPACITY_MAX)?;
    section.within("pool_objects", daemon.pool_objects, 0..=POOL_OBJECTS_MAX)?;
    section.within("check_ms", daemon.check_ms, 10..=HOUR_MS)?;
    for (key, bytes) in
        [("capacity", daemon.capacity), ("pool_object_bytes", daemon.pool_object_bytes)]
    {
        if !bytes.get().is_multiple_of(PAGE_BYTES) {
            let what = format_args!("{} is no multiple of {}", bytes.exact(), page.exact());
            return section.misfit(key, what);
        }
    }
    let block = Bytes(instance.layout.block_bytes());
    if daemon.pool_object_bytes > block {
        let (bytes, layout) = (daemon.pool_object_bytes.exact(), instance.layout);
        let what =
            format_args!("{bytes} is more than a block of layout {layout}, {}", block.exact());
        return section.misfit("pool_object_bytes", what);
    }
    Ok(())
}

/// Checks the keys of one section.
struct Section(&'static str);

impl Section {
    fn within<T>(&self, key: &'static str, value: T, range: RangeInclusive<T>) -> Result<(), Misfit>
    where
        T: Copy + PartialOrd + fmt::Display,
    {
        if range.contains(&value) {
            return Ok(());
        }
        let (min, max) = (range.start(), range.end());
        self.misfit(key, format_args!("{value} is not between {min} and {max}"))
    }

    fn size_within(
        &self,
        key: &'static str,
        value: Bytes,
        range: RangeInclusive<Bytes>,
    ) -> Result<(), Misfit> {
        if range.contains(&value) {
            return Ok(());
        }
        let (value, min, max) = (value.exact(), range.start().exact(), range.end().exact());
        self.misfit(key, format_args!("{value} is not between {min} and {max}"))
    }

    fn misfit(&self, key: &'static str, what: fmt::Arguments<'_>) -> Result<(), Misfit> {
        let what = format!("{key}: {what}");
        Err(Misfit { section: self.0, within: Vec::new(), key, against: None, what })
    }
}
