//! `dmce regions`: the memory that has a name and outlives its sessions.

use dmce_abi::wire::admin::RegionRow;
use dmce_config::Bytes;
use serde::Serialize;

use super::blocks::state_word;
use super::{Align, Row};

/// One region, under the names of its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
#[allow(clippy::struct_field_names, reason = "the names are those of the attributes")]
pub struct Region {
    pub volume: String,
    pub name: String,
    pub state: &'static str,
    pub region_size: u64,
    pub base_pointer: u64,
    pub first: u64,
    pub copies: u32,
    pub page_size: u32,
    pub owner: u32,
    pub group: u32,
    pub mode: u32,
    pub created_at: u64,
    pub opens: u32,
}

impl From<RegionRow> for Region {
    fn from(row: RegionRow) -> Self {
        Self {
            volume: row.region.volume,
            name: row.region.name,
            state: state_word(row.state),
            region_size: row.region_size,
            base_pointer: row.base_pointer,
            first: row.first,
            copies: row.copies,
            page_size: row.page_size,
            owner: row.uid,
            group: row.gid,
            mode: row.mode,
            created_at: row.created_at,
            opens: row.opens,
        }
    }
}

impl Row for Region {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("VOLUME", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("FIRST", Align::Right),
        ("BASE", Align::Right),
        ("COPIES", Align::Right),
        ("PAGE", Align::Right),
        ("USER", Align::Right),
        ("GROUP", Align::Right),
        ("MODE", Align::Right),
        ("OPENS", Align::Right),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.name.clone(),
            self.state.to_owned(),
            Bytes(self.region_size).to_string(),
            format!("{:#x}", self.first),
            format!("{:#x}", self.base_pointer),
            self.copies.to_string(),
            Bytes(self.page_size.into()).to_string(),
            self.owner.to_string(),
            self.group.to_string(),
            format!("{:04o}", self.mode),
            self.opens.to_string(),
        ]
    }
}
