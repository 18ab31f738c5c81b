//! `dmce daemons`: who holds memory.

use dmce_abi::wire::admin::{DaemonRow, DaemonState};
use dmce_config::Bytes;
use serde::Serialize;

use super::{Align, Row};

/// One daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Daemon {
    pub id: u32,
    pub state: &'static str,
    pub pid: Option<u32>,
    pub capacity: u64,
    pub committed: u64,
    pub reserved: u64,
    pub pool: u64,
    pub blocks: u32,
    pub draining: bool,
}

impl From<DaemonRow> for Daemon {
    fn from(row: DaemonRow) -> Self {
        Self {
            id: row.daemon,
            state: word(row.state),
            pid: (row.pid != 0).then_some(row.pid),
            capacity: row.capacity,
            committed: row.committed,
            reserved: row.reserved,
            pool: row.pool,
            blocks: row.blocks,
            draining: row.is_draining,
        }
    }
}

impl Row for Daemon {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("ID", Align::Right),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("CAPACITY", Align::Right),
        ("COMMITTED", Align::Right),
        ("RESERVED", Align::Right),
        ("POOL", Align::Right),
        ("BLOCKS", Align::Right),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            if self.draining { format!("{}, drained", self.state) } else { self.state.to_owned() },
            self.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            Bytes(self.capacity).to_string(),
            Bytes(self.committed).to_string(),
            Bytes(self.reserved).to_string(),
            Bytes(self.pool).to_string(),
            self.blocks.to_string(),
        ]
    }
}

fn word(state: DaemonState) -> &'static str {
    match state {
        DaemonState::Up => "up",
        DaemonState::Joining => "joining",
        DaemonState::Suspected => "suspected",
        DaemonState::Away => "away",
        _ => "unknown",
    }
}
