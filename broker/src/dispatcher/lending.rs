//! What daemons lend: objects of their pools, of which the broker makes blocks itself
//! (`docs/protocol.md`, section 4.2).
//!
//! # Invariants
//!
//! 1. What was lent on a connection is used on that connection, once.
//! 2. A block that is made of a lent object is asked for like any other: it has a number in flight
//!    at its daemon, and if the daemon goes away before the shell has answered, nobody knows
//!    whether it is there.
//! 3. Whatever became of a lent object, its daemon is told, before it is asked anything more of the
//!    block but its end. The shell may wait a moment with that, and keeps the order.

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, DaemonId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonRequest};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::daemons::Op;
use super::event::{DaemonConn, Lent, Made, RequestId};

/// Objects that one daemon may have lent: as many as a configuration allows it.
const LENT_MAX: usize = 1024;

impl Dispatcher {
    /// A daemon lends an object.
    pub(super) fn lent(&mut self, daemon: DaemonId, lent: Lent) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let is_known = server.lent.iter().any(|other| other.place == lent.place);
        let is_possible = lent.bytes > 0 && lent.bytes.is_multiple_of(PAGE_BYTES);
        if is_possible && !is_known && server.lent.len() < LENT_MAX {
            server.lent.push_back(lent);
        } else {
            self.log(LogLevel::Warn, format!("daemon {daemon} cannot lend {lent:?}"));
        }
    }

    /// Takes an object that has as many bytes, if the daemon has lent one.
    pub(super) fn borrow(&mut self, daemon: DaemonId, bytes: u64) -> Option<Lent> {
        let lent = &mut self.daemons.servers.get_mut(&daemon)?.lent;
        let place = lent.iter().position(|object| object.bytes >= bytes)?;
        lent.remove(place)
    }

    /// Has the shell make a block.
    pub(super) fn make_of(
        &mut self,
        (daemon, conn): (DaemonId, DaemonConn),
        lent: Lent,
        description: BlockDescription,
        committed: u64,
    ) {
        let number = self.next_number();
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.sent(number, Op::Create { block: description.block, lent: Some(lent) });
        }
        let (request_id, description) = (RequestId(number), Box::new(description));
        let action = Action::MakeBlock { daemon, conn, request_id, lent, description, committed };
        self.out.push(action);
    }

    /// The shell has made a block, or has not.
    pub(super) fn block_made(&mut self, daemon: DaemonId, number: u64, made: Made) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let Some(Op::Create { block, lent: Some(lent) }) = server.in_flight(number) else { return };
        let (block, place) = (*block, lent.place);
        let Some(conn) = server.conn() else { return };
        server.answered(number);
        let copy = self.blocks.get(block).and_then(|block| block.copies.of(daemon));
        let committed = copy.filter(|_| made == Made::Whole).map_or(0, |copy| copy.charge.bytes());
        let request = DaemonRequest::Taken { place, block, committed };
        let taken = Action::ToDaemon { conn, request_id: RequestId(0), request };
        match made {
            Made::Whole => {
                let answer = DaemonAnswer::Committed { committed };
                self.create_answered(daemon, block, Ok(answer));
                // Behind the answer to the client, which waits.
                self.out.push(taken);
            }
            Made::NameTaken { reason } => {
                self.out.push(taken);
                let refusal = Refusal::new(Status::Exists, reason);
                self.create_answered(daemon, block, Err(refusal));
            }
            Made::Unusable { reason } => {
                self.out.push(taken);
                let text = format!("what daemon {daemon} lent cannot be used: {reason}");
                self.log(LogLevel::Warn, text);
                if let Some(server) = self.daemons.servers.get_mut(&daemon) {
                    server.push(Op::Create { block, lent: None });
                }
            }
        }
        self.pump(daemon);
    }
}
