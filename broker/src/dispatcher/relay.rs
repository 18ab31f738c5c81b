//! What clients have done to bytes through the broker (FIG. 2).
//!
//! ```text
//!  client -- Data --> rights, room? -- Data --> daemon
//!         <-- Data --------------------- Data --
//! ```
//!
//! # Invariants
//!
//! 1. The rights of a session are looked at for each request. The daemon looks at the range.
//! 2. Nobody waits for a daemon that does not answer: who asks is told `BUSY`, and who was waiting
//!    `UNAVAILABLE`, since the daemon may do it yet. Both ask again.
//! 3. What is under way is bounded: of a connection by [`CONNECTION_BYTES_MAX`], of a user by
//!    [`USER_BYTES_MAX`], to a daemon by [`DAEMON_BYTES_MAX`].

use std::collections::BTreeMap;

use dmce_abi::Status;
use dmce_abi::block::{DaemonId, SessionId};
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::ClientReply;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonRequest};
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest};

use super::Dispatcher;
use super::action::Action;
use super::asking::{Answer, lost};
use super::clients::ReplyTo;
use super::event::{ClientConn, RequestId};
use super::requests::{Outcome, Served, refuse};

/// Bytes under way of one connection.
const CONNECTION_BYTES_MAX: usize = 256 << 10;

/// Bytes under way of one user.
const USER_BYTES_MAX: usize = 512 << 10;

/// Bytes under way to and from one daemon: less than the shell keeps for a daemon.
const DAEMON_BYTES_MAX: usize = 4 << 20;

/// What a request costs beside the bytes that travel with it or its answer.
const REQUEST_BYTES: usize = 4096;

/// A request that a daemon has not answered.
#[derive(Debug)]
struct Relayed {
    daemon: DaemonId,
    to: ReplyTo,
    uid: u32,
    /// Without the bytes that it brought.
    request: DataRequest,
    bytes: usize,
}

impl Relayed {
    /// Whether a reply can be one to the request.
    fn fits(&self, reply: &DataReply) -> bool {
        match reply {
            // The bytes that are counted are still known of what was to be written.
            DataReply::Part { bytes } => {
                let is_write = self.request.writes() && !self.request.counts();
                is_write && *bytes as usize + REQUEST_BYTES < self.bytes
            }
            other => self.request.fits(other),
        }
    }
}

/// Bytes that are under way, by whose they are.
#[derive(Debug)]
struct Load<K>(BTreeMap<K, usize>);

impl<K: Ord + Copy> Load<K> {
    fn of(&self, key: K) -> usize {
        self.0.get(&key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: K, bytes: usize) {
        *self.0.entry(key).or_default() += bytes;
    }

    fn take(&mut self, key: K, bytes: usize) {
        let rest = self.of(key).saturating_sub(bytes);
        if rest == 0 {
            self.0.remove(&key);
        } else {
            self.0.insert(key, rest);
        }
    }
}

/// All requests that are under way.
#[derive(Debug)]
pub(super) struct Relays {
    under_way: BTreeMap<u64, Relayed>,
    connections: Load<ClientConn>,
    users: Load<u32>,
    daemons: Load<DaemonId>,
}

impl Default for Relays {
    fn default() -> Self {
        Self {
            under_way: BTreeMap::new(),
            connections: Load(BTreeMap::new()),
            users: Load(BTreeMap::new()),
            daemons: Load(BTreeMap::new()),
        }
    }
}

impl Relays {
    /// Whether one more request fits.
    fn admit(&self, relayed: &Relayed) -> Result<(), Refusal> {
        let Relayed { daemon, to, uid, bytes, .. } = relayed;
        for (whose, under_way, limit) in [
            ("of this connection", self.connections.of(to.conn), CONNECTION_BYTES_MAX),
            ("of this user", self.users.of(*uid), USER_BYTES_MAX),
            ("to the daemon", self.daemons.of(*daemon), DAEMON_BYTES_MAX),
        ] {
            if under_way + bytes > limit {
                let text = format!("{under_way} bytes {whose} are under way, limit {limit}");
                return refuse(Status::Busy, text);
            }
        }
        Ok(())
    }

    fn add(&mut self, number: u64, relayed: Relayed) {
        self.connections.add(relayed.to.conn, relayed.bytes);
        self.users.add(relayed.uid, relayed.bytes);
        self.daemons.add(relayed.daemon, relayed.bytes);
        self.under_way.insert(number, relayed);
    }

    fn take(&mut self, number: u64) -> Option<Relayed> {
        let relayed = self.under_way.remove(&number)?;
        self.connections.take(relayed.to.conn, relayed.bytes);
        self.users.take(relayed.uid, relayed.bytes);
        self.daemons.take(relayed.daemon, relayed.bytes);
        Some(relayed)
    }

    /// Who waits for an answer.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.under_way.values().map(|relayed| relayed.to)
    }

    /// Whether nothing is under way, or counted.
    pub(super) fn is_sound(&self) -> bool {
        let all: usize = self.under_way.values().map(|relayed| relayed.bytes).sum();
        let sum = |load: &mut dyn Iterator<Item = usize>| load.sum::<usize>() == all;
        sum(&mut self.connections.0.values().copied())
            && sum(&mut self.users.0.values().copied())
            && sum(&mut self.daemons.0.values().copied())
    }
}

impl Dispatcher {
    /// Has a daemon do something to bytes that a session may reach.
    pub(super) fn relay(&mut self, to: ReplyTo, id: SessionId, request: &DataRequest) -> Served {
        let at = request.target();
        let reached = self.reach(id, at.block)?;
        let (info, primary) = (reached.info(true), reached.block.primary());
        if info.guid != at.guid {
            let text = format!("block {} is another by now", at.block);
            return refuse(Status::Address, text);
        }
        if request.writes() && !reached.rights.write {
            let text = format!("block {} is open for reading alone", at.block);
            return refuse(Status::Denied, text);
        }
        let Some(primary) = primary.filter(|_| !info.lost) else {
            return Err(lost(at.block).into());
        };
        let server = self.server_of(at.block);
        let Some((daemon, conn)) = server.and_then(|(id, server)| Some((id, server.conn()?)))
        else {
            return Err(silent(primary).into());
        };
        let uid = self.uid_of_session(id);
        let bytes = REQUEST_BYTES + request.moved_bytes();
        let relayed = Relayed { daemon, to, uid, request: without_bytes(request), bytes };
        self.relays.admit(&relayed)?;
        let number = self.next_number();
        self.relays.add(number, relayed);
        let request = DaemonRequest::Data(request.clone());
        self.out.push(Action::ToDaemon { conn, request_id: RequestId(number), request });
        Ok(Outcome::Later)
    }

    /// Whether a daemon's answer was to a request of a client, who gets it then.
    ///
    /// # Errors
    ///
    /// Why the daemon cannot be believed any more.
    pub(super) fn relay_answered(
        &mut self,
        daemon: DaemonId,
        number: u64,
        answer: &Answer,
    ) -> Result<bool, String> {
        let under_way = self.relays.under_way.get(&number);
        let Some(relayed) = under_way.filter(|relayed| relayed.daemon == daemon) else {
            // One that comes late was answered for.
            return Ok(matches!(answer, Ok(DaemonAnswer::Data(_))));
        };
        let reply = match answer {
            Ok(DaemonAnswer::Data(reply)) if relayed.fits(reply) => {
                Ok(ClientReply::Data(reply.clone()))
            }
            Ok(other) => return Err(format!("it answered {other:?} to {:?}", relayed.request)),
            Err(refusal) => Err(refusal.clone()),
        };
        if let Some(Relayed { to, .. }) = self.relays.take(number) {
            self.reply(to, reply, Vec::new());
        }
        Ok(true)
    }

    /// A daemon does not answer: nobody waits for it.
    pub(super) fn drop_relays_of(&mut self, daemon: DaemonId) {
        let its = self.relays.under_way.iter().filter(|(_, relayed)| relayed.daemon == daemon);
        let its: Vec<u64> = its.map(|(number, _)| *number).collect();
        for number in its {
            if let Some(Relayed { to, .. }) = self.relays.take(number) {
                // Another status than before it was sent: the daemon may do it yet.
                let refusal = Refusal { status: Status::Unavailable, ..silent(daemon) };
                self.reply(to, Err(refusal), Vec::new());
            }
        }
    }
}

/// What is wrong with a request whatever the tables say.
pub(super) fn check_data(request: &DataRequest) -> Result<(), Refusal> {
    match request {
        DataRequest::Read { bytes, .. }
        | DataRequest::ReadHalf { bytes, .. }
        | DataRequest::Level { bytes, .. }
            if *bytes as usize > DATA_BYTES_MAX =>
        {
            let text = format!("{bytes} bytes in one message, limit {DATA_BYTES_MAX}");
            refuse(Status::Invalid, text)
        }
        _ => Ok(()),
    }
}

/// What is left to know of a request when it was sent.
fn without_bytes(request: &DataRequest) -> DataRequest {
    match request {
        DataRequest::Write { at, .. } => DataRequest::Write { at: *at, data: Bytes(Vec::new()) },
        DataRequest::WriteHalf { at, half, .. } => {
            DataRequest::WriteHalf { at: *at, data: Bytes(Vec::new()), half: *half }
        }
        other => other.clone(),
    }
}

fn silent(daemon: DaemonId) -> Refusal {
    Refusal::new(Status::Busy, format!("daemon {daemon} does not answer"))
}
