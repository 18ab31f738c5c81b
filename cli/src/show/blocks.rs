//! `dmce blocks`: where the bytes are, and whose.

use std::fmt;

use dmce_abi::block::Half;
use dmce_abi::wire::admin::{self, BlockRow, BlockState, CopyRow, CopyState, HeldBy, OwnerRow};
use dmce_config::Bytes;
use serde::Serialize;

use super::{Align, Row};

/// One block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Block {
    pub id: u32,
    pub guid: String,
    pub state: &'static str,
    pub bytes: u64,
    pub committed: u64,
    pub page_size: u32,
    pub epoch: u64,
    pub span_first: u32,
    pub span_count: u32,
    pub owner: Owner,
    pub copies: Vec<Copy>,
    pub left: u64,
    pub held_by: Vec<Holder>,
}

/// Who holds back what is to become of the copies of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Holder {
    pub session: u32,
    pub pid: Option<u32>,
    pub by: &'static str,
}

/// Whose a block is: the fields tell a session from a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub enum Owner {
    Session { session: u32, pid: u32, uid: u32 },
    Region { region: String, volume: String, uid: u32 },
}

/// One copy of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Copy {
    pub daemon: u32,
    pub state: &'static str,
    pub half: &'static str,
}

impl From<BlockRow> for Block {
    fn from(row: BlockRow) -> Self {
        Self {
            id: row.block,
            guid: row.guid.to_string(),
            state: state_word(row.state),
            bytes: row.bytes,
            committed: row.committed,
            page_size: row.page_size,
            epoch: row.epoch,
            span_first: row.span_first,
            span_count: row.span_count,
            owner: row.owner.into(),
            copies: row.copies.into_iter().map(Copy::from).collect(),
            left: row.left,
            held_by: row.held_by.iter().map(Holder::from).collect(),
        }
    }
}

impl From<&admin::Holder> for Holder {
    fn from(holder: &admin::Holder) -> Self {
        let by = match holder.by {
            HeldBy::Operation => "operation",
            HeldBy::Pointer => "pointer",
            HeldBy::Remains => "remains",
            _ => "unknown",
        };
        Self { session: holder.session, pid: (holder.pid != 0).then_some(holder.pid), by }
    }
}

/// Who holds something back, and by what.
pub fn holder_text(holder: &admin::Holder) -> String {
    let what = match holder.by {
        HeldBy::Operation => "an operation that does not end",
        HeldBy::Pointer => "a pointer",
        HeldBy::Remains => "what it left",
        _ => "something",
    };
    format!("process {} (session {}): {what}", holder.pid, holder.session)
}

impl From<OwnerRow> for Owner {
    fn from(owner: OwnerRow) -> Self {
        match owner {
            OwnerRow::Session { session, pid, uid } => Self::Session { session, pid, uid },
            OwnerRow::Region { region, uid } => {
                Self::Region { region: region.name, volume: region.volume, uid }
            }
        }
    }
}

impl From<CopyRow> for Copy {
    fn from(copy: CopyRow) -> Self {
        let state = match copy.state {
            CopyState::Good => "good",
            CopyState::Syncing => "syncing",
            CopyState::Stale => "stale",
            CopyState::Lost => "lost",
            _ => "unknown",
        };
        let half = match copy.half {
            Half::PRIMARY => "primary",
            Half::MIRROR => "mirror",
            _ => "third",
        };
        Self { daemon: copy.daemon, state, half }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { session, pid, uid } => {
                write!(f, "session {session}, process {pid}, user {uid}")
            }
            Self::Region { region, volume, uid } => {
                write!(f, "region {volume}/{region}, user {uid}")
            }
        }
    }
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "daemon {} {}", self.daemon, self.state)
    }
}

impl Block {
    /// The copies in one cell: daemon and state of each, the primary first.
    pub fn copies_text(&self) -> String {
        let copies: Vec<_> = self.copies.iter().map(Copy::to_string).collect();
        let mut text = copies.join(", ");
        if self.left > 0 {
            text = format!("{text}, {} left", Bytes(self.left));
        }
        for holder in &self.held_by {
            let pid = holder.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            text = format!("{text}, held back by process {pid}: {}", holder.by);
        }
        text
    }

    /// The block's place in its span, or nothing for a block by itself.
    pub fn span_text(&self) -> String {
        if self.span_count <= 1 {
            return "-".to_owned();
        }
        let place = self.id.saturating_sub(self.span_first).saturating_add(1);
        format!("{place}/{} of {}", self.span_count, self.span_first)
    }
}

impl Row for Block {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("ID", Align::Right),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("COMMITTED", Align::Right),
        ("PAGE", Align::Right),
        ("EPOCH", Align::Right),
        ("SPAN", Align::Left),
        ("COPIES", Align::Left),
        ("OWNER", Align::Left),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.state.to_owned(),
            Bytes(self.bytes).to_string(),
            Bytes(self.committed).to_string(),
            Bytes(self.page_size.into()).to_string(),
            self.epoch.to_string(),
            self.span_text(),
            self.copies_text(),
            self.owner.to_string(),
        ]
    }
}

/// The word of a block's state, for regions too.
pub(super) fn state_word(state: BlockState) -> &'static str {
    match state {
        BlockState::Ok => "ok",
        BlockState::Degraded => "degraded",
        BlockState::Lost => "lost",
        _ => "unknown",
    }
}
