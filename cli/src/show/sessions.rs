//! `dmce sessions`: who works with the memory.

use dmce_abi::wire::admin::SessionRow;
use dmce_config::Bytes;
use serde::Serialize;

use super::{Align, Row};

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Session {
    pub id: u32,
    pub name: String,
    pub pid: u32,
    pub uid: u32,
    pub pointer_bits: u8,
    pub attached: bool,
    pub reserved: u64,
    pub committed: u64,
    pub blocks: u32,
    pub regions: u32,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        Self {
            id: row.session,
            name: row.name,
            pid: row.pid,
            uid: row.uid,
            pointer_bits: row.pointer_bits,
            attached: row.attached,
            reserved: row.reserved,
            committed: row.committed,
            blocks: row.blocks,
            regions: row.regions,
        }
    }
}

impl Row for Session {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("ID", Align::Right),
        ("PID", Align::Right),
        ("USER", Align::Right),
        ("BITS", Align::Right),
        ("CONNECTED", Align::Left),
        ("RESERVED", Align::Right),
        ("COMMITTED", Align::Right),
        ("BLOCKS", Align::Right),
        ("REGIONS", Align::Right),
        ("NAME", Align::Left),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.pid.to_string(),
            self.uid.to_string(),
            self.pointer_bits.to_string(),
            if self.attached { "yes" } else { "no" }.to_owned(),
            Bytes(self.reserved).to_string(),
            Bytes(self.committed).to_string(),
            self.blocks.to_string(),
            self.regions.to_string(),
            self.name.clone(),
        ]
    }
}
