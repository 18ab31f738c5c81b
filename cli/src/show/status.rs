//! `dmce status`: the instance as a whole.

use dmce_abi::wire::admin::{self, Health, StatusReport};
use dmce_config::Bytes;
use serde::Serialize;

use super::scrub::Found;
use super::{Show, Table};

/// The instance as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Status {
    pub instance: String,
    pub layout: String,
    pub state: &'static str,
    pub version: String,
    pub pid: u32,
    pub daemons: u32,
    pub daemons_up: u32,
    pub sessions: u32,
    pub blocks: u32,
    pub regions: u32,
    pub capacity: u64,
    pub committed: u64,
    pub reserved: u64,
    pub repair: Repair,
    pub scrub: Scrub,
}

/// Copies that are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Repair {
    pub lacking: u32,
    pub syncing: u32,
    pub left: u64,
    pub rate: u64,
    /// `None` while nothing is copied.
    pub seconds: Option<u64>,
}

/// Copies that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Scrub {
    pub passes: u32,
    pub done: u64,
    pub all: u64,
    pub rate: u64,
    /// `None` if this broker has never gone through all blocks.
    pub last: Option<Scrubbed>,
}

/// What all blocks were found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Scrubbed {
    pub at: u64,
    #[serde(flatten)]
    pub found: Found,
}

impl Status {
    /// Whether nothing is degraded or damaged.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.state == word(Health::Ok)
    }
}

impl From<StatusReport> for Status {
    fn from(report: StatusReport) -> Self {
        Self {
            instance: report.instance,
            layout: report.layout,
            state: word(report.state),
            version: report.version,
            pid: report.pid,
            daemons: report.daemons,
            daemons_up: report.daemons_up,
            sessions: report.sessions,
            blocks: report.blocks,
            regions: report.regions,
            capacity: report.capacity,
            committed: report.committed,
            reserved: report.reserved,
            repair: report.repair.into(),
            scrub: report.scrub.into(),
        }
    }
}

impl From<admin::Repair> for Repair {
    fn from(admin::Repair { lacking, syncing, left, rate }: admin::Repair) -> Self {
        let is_going = left > 0 && rate > 0;
        Self { lacking, syncing, left, rate, seconds: is_going.then(|| left.div_ceil(rate)) }
    }
}

impl From<admin::Scrub> for Scrub {
    fn from(of: admin::Scrub) -> Self {
        let admin::Scrub { passes, done, all, rate, last_at, last } = of;
        let last = (last_at > 0).then(|| Scrubbed { at: last_at, found: last.into() });
        Self { passes, done, all, rate, last }
    }
}

impl Scrub {
    fn text(&self) -> String {
        let last = self.last.map(|last| last.found.text());
        let last = last.unwrap_or_else(|| "not all was compared yet".to_owned());
        if self.passes == 0 {
            return last;
        }
        let [done, all, rate] = [self.done, self.all, self.rate].map(Bytes);
        format!("{done} of {all} are compared, {rate}/s; before: {last}")
    }
}

impl Repair {
    fn text(&self) -> String {
        if self.lacking == 0 {
            return "every block has its copies".to_owned();
        }
        let Self { lacking, syncing, left, .. } = *self;
        let text =
            format!("{lacking} blocks lack copies, {} in all; {syncing} are made", Bytes(left));
        match self.seconds {
            Some(seconds) => format!("{text}, {}/s, about {seconds} s left", Bytes(self.rate)),
            None => text,
        }
    }
}

impl Show for Status {
    fn text(&self) -> String {
        Table::of_fields([
            ("instance", self.instance.clone()),
            ("layout", self.layout.clone()),
            ("state", self.state.to_owned()),
            ("broker", format!("release {}, process {}", self.version, self.pid)),
            ("daemons", format!("{} of {} up", self.daemons_up, self.daemons)),
            ("sessions", self.sessions.to_string()),
            ("blocks", self.blocks.to_string()),
            ("regions", self.regions.to_string()),
            ("capacity", Bytes(self.capacity).to_string()),
            ("committed", Bytes(self.committed).to_string()),
            ("reserved", Bytes(self.reserved).to_string()),
            ("repair", self.repair.text()),
            ("scrub", self.scrub.text()),
        ])
        .to_string()
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        // A state that a newer broker adds is no reason to call the instance well.
        _ => "damaged",
    }
}
