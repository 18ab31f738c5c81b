//! The OS-to-DMCE table as the administrator's command lists it: who has what mapped, and where.
//!
//! # Invariants
//!
//! 1. What is shown are claims ([`super::mappings`]).
//! 2. A user who does not see everything is shown what their own sessions say, and who maps memory
//!    that is theirs.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::wire::admin::{MappedRow, MappingKey};

use super::Dispatcher;
use super::event::Peer;
use super::mappings::Mapping;
use super::requests::{Failure, refuse};
use super::sessions::Session;

/// Rows, one by one.
type Rows<'a> = Box<dyn Iterator<Item = MappedRow> + 'a>;

impl Dispatcher {
    /// The entries after one: of a session or of all (0), that contain an address or whatever (0).
    pub(super) fn mapped(
        &self,
        peer: &Peer,
        (addr, session): (u64, u32),
        after: MappingKey,
    ) -> Result<Rows<'_>, Failure> {
        if addr != 0 {
            return self.mapped_at(peer, (addr, session), after);
        }
        let uid = (!self.sees_all(peer)).then_some(peer.uid);
        let from = after.session.max(session).saturating_sub(1);
        let sessions = self.sessions.after(from, uid);
        let until = if session == 0 { SessionId::MAX } else { session };
        let sessions = sessions.take_while(move |known| known.record.session.get() <= until);
        Ok(Box::new(sessions.flat_map(move |known| {
            let is_begun = known.record.session.get() == after.session;
            let entries = known.mappings.after(if is_begun { after.os_address } else { 0 });
            entries.map(move |mapping| row(known, mapping))
        })))
    }

    fn mapped_at(
        &self,
        peer: &Peer,
        (addr, session): (u64, u32),
        after: MappingKey,
    ) -> Result<Rows<'_>, Failure> {
        let parts = self.parts(addr)?;
        let block = BlockId::try_from(parts.block).ok().and_then(|id| self.blocks.get(id));
        let known = block.and_then(|block| Some((block.span, self.blocks.span(block.span)?)));
        let visible = known.filter(|(_, span)| self.sees_all(peer) || span.uid == peer.uid);
        let Some((first, _)) = visible else {
            return refuse(Status::Address, format!("no block of yours has {addr:#x}"));
        };
        let start = self.address(first);
        let mut rows: Vec<MappedRow> = Vec::new();
        // By id; of the one in whose midst the page before ended, and of those behind it.
        for id in self.holders(first) {
            let is_wanted = session == 0 || session == id.get();
            let Some(known) = self.sessions.get(id).filter(|_| is_wanted) else { continue };
            if id.get() < after.session {
                continue;
            }
            let found = known.mappings.find(start, addr).map(|mapping| row(known, mapping));
            let from = rows.len();
            rows.extend(found.filter(|row| row.key > after));
            rows[from..].sort_unstable_by_key(|row| row.key);
        }
        Ok(Box::new(rows.into_iter()))
    }
}

fn row(session: &Session, mapping: &Mapping) -> MappedRow {
    let record = &session.record;
    let session = record.session.get();
    MappedRow {
        key: MappingKey { session, os_address: mapping.os_address },
        pid: record.pid,
        uid: record.uid,
        name: record.name.clone(),
        addr: mapping.addr,
        bytes: mapping.bytes,
        writable: mapping.writable,
    }
}
