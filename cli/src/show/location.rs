//! `dmce map`: what an address means, and who has it mapped where.

use dmce_abi::wire::admin::{self, MappedRow};
use dmce_config::Bytes;
use serde::Serialize;

use crate::address::Address;

use super::blocks::{Block, Copy, Owner};
use super::{Align, Show, Table};

/// Where a byte is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Location {
    pub address: u64,
    pub server: u32,
    pub block: u32,
    pub cell: u64,
    pub state: &'static str,
    pub bytes: u64,
    pub committed: u64,
    pub page_size: u32,
    pub epoch: u64,
    pub span_first: u32,
    pub span_count: u32,
    pub owner: Owner,
    pub copies: Vec<Copy>,
    pub mappings: Vec<Mapping>,
}

/// A process that says it has the byte mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Mapping {
    pub session: u32,
    pub pid: u32,
    pub os_address: u64,
    pub writable: bool,
    pub name: String,
    pub range: Range,
}

/// What of that process's memory it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Range {
    pub address: u64,
    pub os_address: u64,
    pub bytes: u64,
}

impl Location {
    /// What the broker answered about `address`, and of the ranges that contain it.
    #[must_use]
    pub fn new(Address(address): Address, found: admin::Location, mapped: Vec<MappedRow>) -> Self {
        let block = Block::from(found.block);
        Self {
            address,
            server: found.server,
            block: block.id,
            cell: found.cell,
            state: block.state,
            bytes: block.bytes,
            committed: block.committed,
            page_size: block.page_size,
            epoch: block.epoch,
            span_first: block.span_first,
            span_count: block.span_count,
            owner: block.owner,
            copies: block.copies,
            mappings: mapped.into_iter().map(|row| Mapping::of(address, row)).collect(),
        }
    }
}

impl Mapping {
    /// The byte of an address in a range that contains it.
    fn of(address: u64, row: MappedRow) -> Self {
        let start = row.key.os_address;
        Self {
            session: row.key.session,
            pid: row.pid,
            // What a client claims may be anything.
            os_address: start.wrapping_add(address.wrapping_sub(row.addr)),
            writable: row.writable,
            name: row.name,
            range: Range { address: row.addr, os_address: start, bytes: row.bytes },
        }
    }
}

impl Show for Location {
    fn text(&self) -> String {
        let copies: Vec<_> = self.copies.iter().map(Copy::to_string).collect();
        let span = match self.span_count {
            0 | 1 => "this block alone".to_owned(),
            count => format!(
                "blocks {} to {}",
                self.span_first,
                self.span_first.saturating_add(count - 1)
            ),
        };
        let fields = Table::of_fields([
            ("address", format!("{:#x}", self.address)),
            ("server", self.server.to_string()),
            ("block", format!("{}, {}", self.block, self.state)),
            ("cell", format!("{:#x}", self.cell)),
            ("size", Bytes(self.bytes).to_string()),
            ("committed", Bytes(self.committed).to_string()),
            ("page", Bytes(self.page_size.into()).to_string()),
            ("epoch", self.epoch.to_string()),
            ("span", span),
            ("owner", self.owner.to_string()),
            ("copies", copies.join(", ")),
        ]);
        if self.mappings.is_empty() {
            return format!("{fields}\nno process says that it has it mapped\n");
        }
        let mut mappings = Table::new(&[
            ("SESSION", Align::Right),
            ("PID", Align::Right),
            ("OS ADDRESS", Align::Right),
            ("WRITABLE", Align::Left),
            ("RANGE", Align::Right),
            ("AT", Align::Right),
            ("NAME", Align::Left),
        ]);
        for mapping in &self.mappings {
            mappings.add(vec![
                mapping.session.to_string(),
                mapping.pid.to_string(),
                format!("{:#x}", mapping.os_address),
                if mapping.writable { "yes" } else { "no" }.to_owned(),
                Bytes(mapping.range.bytes).to_string(),
                format!("{:#x}", mapping.range.os_address),
                mapping.name.clone(),
            ]);
        }
        format!("{fields}\n{mappings}")
    }
}
