//! `dmce map` without an address: which process has what mapped, and where.

use dmce_abi::wire::admin::MappedRow;
use dmce_config::Bytes;
use serde::Serialize;

use super::{Align, Row};

/// A range that a process says it has mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Mapped {
    pub session: u32,
    pub name: String,
    pub pid: u32,
    pub uid: u32,
    pub address: u64,
    pub os_address: u64,
    pub bytes: u64,
    pub writable: bool,
}

impl From<MappedRow> for Mapped {
    fn from(row: MappedRow) -> Self {
        Self {
            session: row.key.session,
            name: row.name,
            pid: row.pid,
            uid: row.uid,
            address: row.addr,
            os_address: row.key.os_address,
            bytes: row.bytes,
            writable: row.writable,
        }
    }
}

impl Row for Mapped {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("SESSION", Align::Right),
        ("PID", Align::Right),
        ("USER", Align::Right),
        ("ADDRESS", Align::Right),
        ("OS ADDRESS", Align::Right),
        ("SIZE", Align::Right),
        ("WRITABLE", Align::Left),
        ("NAME", Align::Left),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.session.to_string(),
            self.pid.to_string(),
            self.uid.to_string(),
            format!("{:#x}", self.address),
            format!("{:#x}", self.os_address),
            Bytes(self.bytes).to_string(),
            if self.writable { "yes" } else { "no" }.to_owned(),
            self.name.clone(),
        ]
    }
}
