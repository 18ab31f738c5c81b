//! A block all of whose good copies are lost goes on with a stale one, because an administrator
//! says so.
//!
//! ```text
//!         adopt                 its header names it alone,       a new lock table
//!  LOST ---------> LOSING (e) --------------------------> .. ----------------------> HELD (e),
//!    ^                |         nobody uses the old table                            one copy
//!    +----------------+
//!      its object or header is not what was reported
//! ```
//!
//! # Invariants
//!
//! 1. Nothing makes a stale copy good but this request, and only where none is good.
//! 2. What is adopted has all bytes that its block must have for its span.
//! 3. Its lock table is made anew: the old one speaks of other bytes.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::admin::AdminReply;
use dmce_abi::wire::client::ClientReply;

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::BlockState;
use super::clients::ReplyTo;
use super::copies::{Copy, CopyState};
use super::requests::{Outcome, Served, refuse};

impl Dispatcher {
    /// Has a block go on with a stale copy: that of a daemon, or the only one if that is 0.
    pub(super) fn adopt_stale(&mut self, to: ReplyTo, block: u32, from: u32) -> Served {
        let Some(client) = self.clients.get(&to.conn) else { return Ok(Outcome::Later) };
        if !self.sees_all(&client.peer) {
            let text = "stale copies are adopted by root and by the user of the service";
            return refuse(Status::Denied, text);
        }
        let (id, daemon) = self.find_stale(block, from)?;
        self.log(LogLevel::Warn, format!("block {id} is to go on with the copy of {daemon}"));
        self.adoptions.insert(id, to);
        self.put_in_force(id, daemon);
        self.raise(id);
        self.inspect(daemon, vec![id]);
        Ok(Outcome::Later)
    }

    /// The stale copy that is meant.
    fn find_stale(&self, block: u32, from: u32) -> Result<(BlockId, DaemonId), Refusal> {
        let found = BlockId::try_from(block).ok().and_then(|id| Some((id, self.blocks.get(id)?)));
        let Some((id, found)) = found.filter(|(_, found)| self.stands(found.span)) else {
            return Err(Refusal::new(Status::NotFound, format!("there is no block {block}")));
        };
        if found.state != BlockState::Lost {
            let held = found.copies.held().map(|copy| copy.daemon.to_string());
            let held = held.collect::<Vec<_>>().join(" and ");
            let text = format!("block {id} is not lost: it has a good copy on daemon {held}");
            return Err(Refusal::new(Status::Exists, text));
        }
        let is_stale = |copy: &&Copy| copy.state == CopyState::Stale;
        let all: Vec<&Copy> = found.copies.iter().filter(is_stale).collect();
        let meant: Vec<&&Copy> =
            all.iter().filter(|copy| from == 0 || copy.daemon.get() == from).collect();
        let copy = match meant[..] {
            [copy] => copy,
            [] if all.is_empty() => {
                let text = format!("no daemon has a stale copy of block {id}");
                return Err(Refusal::new(Status::NotFound, text));
            }
            [] => {
                let text = format!("daemon {from} has no stale copy of block {id}");
                return Err(Refusal::new(Status::NotFound, text));
            }
            _ => {
                let daemons: Vec<_> = all.iter().map(|copy| copy.daemon.to_string()).collect();
                let daemons = daemons.join(" and ");
                let text = format!("daemons {daemons} have stale copies of block {id}: name one");
                return Err(Refusal::new(Status::Invalid, text));
            }
        };
        let (daemon, bytes) = (copy.daemon, copy.committed);
        let region = self.regions.get(found.span).map(|region| region.attributes.region_size);
        let needs = self.bytes_needed(id, found.span, region).unwrap_or(0);
        if bytes < needs {
            let text = format!("the copy of daemon {daemon} has {bytes} bytes, and needs {needs}");
            return Err(Refusal::new(Status::Lost, text));
        }
        Ok((id, daemon))
    }

    /// The copy of a daemon is the only one of a block, which it is being decided about.
    fn put_in_force(&mut self, id: BlockId, daemon: DaemonId) {
        let stamp = self.next_number();
        let first = self.blocks.get(id).map(|block| block.span);
        let payer = first.and_then(|first| self.payer_of_span(first));
        let Some(block) = self.blocks.get_mut(id) else { return };
        for other in block.copies.daemons() {
            if let Some(copy) = block.copies.of_mut(other) {
                self.ledger.retire(&mut copy.charge);
            }
            block.copies.unname(other);
        }
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        // Nobody paid for it.
        let charge = self.ledger.force_charge(payer, daemon, copy.committed);
        self.ledger.refund(std::mem::replace(&mut copy.charge, charge));
        (copy.state, copy.named) = (CopyState::Held, true);
        block.committed = copy.committed;
        block.copies.sort_as(&[daemon]);
        block.stamp = stamp;
        self.blocks.set_state(id, BlockState::Losing);
        self.renew_locks(id);
    }

    /// It is decided about a block: who had it adopted is told.
    pub(super) fn end_adoption(&mut self, id: BlockId, why_not: Option<&str>) {
        let Some(to) = self.adoptions.remove(&id) else { return };
        let reply = match (why_not, self.blocks.get(id)) {
            (None, Some(block)) => {
                let (daemon, epoch) = (block.primary().map_or(0, DaemonId::get), block.epoch);
                Ok(ClientReply::Admin(AdminReply::Adopted { daemon, epoch }))
            }
            (why_not, _) => Err(Refusal::new(Status::Lost, why_not.unwrap_or("it is gone"))),
        };
        self.reply(to, reply, Vec::new());
    }
}
