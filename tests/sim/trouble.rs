//! What goes wrong with processes: they die, stop, hang up, talk nonsense.

use std::collections::BTreeSet;

use dmce_abi::block::BlockId;
use dmce_broker::dispatcher::{ClientConn, Event};

use crate::broker::Broker;
use crate::client::Arrival;
use crate::daemon::Daemon;
use crate::world::{Checked, World};

impl World {
    /// Something happens to a daemon.
    pub fn daemon_trouble(&mut self) {
        let unwell = |daemon: &Daemon| !daemon.alive || daemon.stopped;
        let unwell = (0..self.daemons.len()).filter(|place| unwell(&self.daemons[*place]));
        // What is broken is mostly mended before something else breaks.
        let mended = self.random.pick(unwell.collect::<Vec<_>>());
        let mended = mended.filter(|_| !self.random.once_in(3));
        let Some(place) = mended.or_else(|| self.random.pick(0..self.daemons.len())) else {
            return;
        };
        let id = self.daemons[place].id;
        if !self.daemons[place].alive {
            self.note(format!("daemon {id} starts"));
            self.daemons[place].start(&mut self.host);
            return;
        }
        if mended.is_some() {
            self.note(format!("daemon {id} goes on"));
            self.daemons[place].stopped = false;
            return;
        }
        match self.random.below(7) {
            // A broker that comes back finds that it lives, and hears nothing of it.
            6 if self.faults.broker_dies < u64::MAX => {
                self.note(format!("daemon {id} stops"));
                self.daemons[place].stopped = true;
                self.kill_broker();
            }
            0 | 1 => {
                self.note(format!("daemon {id} dies"));
                self.hang_up_daemon(place);
                self.daemons[place].kill(&mut self.host, &mut self.random);
            }
            2 | 3 => {
                let stopped = self.daemons[place].stopped;
                self.note(format!("daemon {id} stops: {}", !stopped));
                self.daemons[place].stopped = !stopped;
            }
            4 => {
                self.note(format!("daemon {id} hangs up"));
                self.hang_up_daemon(place);
            }
            _ => self.daemon_notices(place),
        }
    }

    /// Somebody outside does something to the folder.
    pub fn harm(&mut self) {
        if self.random.once_in(2) && self.bring_back() {
            return;
        }
        if self.random.once_in(2) {
            self.note("an object is harmed");
            if self.random.once_in(4) {
                if let Some(guid) = self.host.harm_table(&mut self.random) {
                    self.truth.knows_nothing_of(guid);
                }
                return;
            }
            self.host.harm(&mut self.random);
            let is_complete = |broker: &Broker| broker.dispatcher.snapshot().complete;
            if !self.broker.as_ref().is_some_and(is_complete) {
                self.hide_newest();
            }
            return;
        }
        // Low ids are the next to be given.
        let block = BlockId::try_from(1 + u32::try_from(self.random.below(40)).unwrap_or(0));
        let daemon = self.random.pick(self.daemons.iter().map(|daemon| daemon.id));
        if let (Some(daemon), Ok(block)) = (daemon, block) {
            self.note(format!("the name of block {block} on daemon {daemon} is taken"));
            self.host.squat(daemon, block);
        }
    }

    /// A copy of a region is gone, of which another is there, and its daemon sees that.
    pub fn lose_copy(&mut self) {
        let Some((daemon, block)) = self.host.lose_copy(&mut self.random) else { return };
        self.note(format!("daemon {daemon} loses its copy of block {block}"));
        if let Some(of) = self.daemons.iter_mut().find(|of| of.id == daemon) {
            of.lost(block);
        }
    }

    /// A broker that has not read all headers yet takes what it finds for the newest.
    pub fn hide_newest(&mut self) {
        for guid in self.host.superseded() {
            self.truth.knows_nothing_of(guid);
        }
    }

    /// What was taken from a daemon is there again, when its process starts anew.
    fn bring_back(&mut self) -> bool {
        let Some(daemon) = self.host.bring_back(&mut self.random, &self.truth.regions) else {
            return false;
        };
        self.note(format!("an object of daemon {daemon} is back"));
        if let Some(place) = self.daemons.iter().position(|of| of.id == daemon) {
            self.hang_up_daemon(place);
            self.daemons[place].kill(&mut self.host, &mut self.random);
            self.daemons[place].start(&mut self.host);
        }
        true
    }

    /// A daemon's connection ends at its side. What it was asked before it may still do.
    pub fn hang_up_daemon(&mut self, place: usize) {
        self.daemons[place].outbox.clear();
        let Some(conn) = self.daemons[place].conn.take() else { return };
        if let Some(broker) = &mut self.broker
            && broker.daemons.remove(&conn).is_some()
        {
            broker.soon.push_back(Event::DaemonHungUp { conn });
        }
    }

    /// Something happens to a client.
    pub fn client_trouble(&mut self) -> Checked {
        let living = (0..self.clients.len()).filter(|place| self.clients[*place].alive);
        let living: Vec<usize> = living.collect();
        if living.len() < 3 {
            self.add_client();
        }
        let is_writing = |place: &usize| self.clients[*place].writing.is_some();
        let writer = living.iter().copied().find(is_writing).filter(|_| self.random.once_in(2));
        let Some(place) = writer.or_else(|| self.random.pick(living)) else { return Ok(()) };
        let pid = self.clients[place].peer.pid;
        match self.random.below(8) {
            0 | 1 => {
                self.note(format!("process {pid} dies"));
                self.kill_client(place);
                Ok(())
            }
            2 | 3 => {
                let stopped = self.clients[place].stopped;
                self.note(format!("process {pid} stops: {}", !stopped));
                self.clients[place].stopped = !stopped;
                Ok(())
            }
            4..=6 => {
                self.note(format!("process {pid} loses its connection"));
                self.lose_connection(place);
                Ok(())
            }
            _ if self.random.once_in(3) => self.misuse(place),
            _ => self.talk_nonsense(place),
        }
    }

    /// A client enlarges its session object, and the shell finds out.
    fn misuse(&mut self, place: usize) -> Checked {
        let session = self.clients[place].view.as_ref().map(|view| view.session);
        let record = session.and_then(|session| self.host.records.get(&session));
        let own = record.filter(|record| record.record.pid == self.clients[place].peer.pid);
        let Some(session) = own.map(|record| record.record.session) else { return Ok(()) };
        self.clients[place].excuses += 1;
        let reason = "its session object has another size".to_owned();
        self.event(Event::Misused { session, reason })
    }

    /// Kills a client. The broker hears of it by the connection, by the process, or by both.
    pub fn kill_client(&mut self, place: usize) {
        self.hang_up_client(place);
        let client = &mut self.clients[place];
        client.alive = false;
        client.writing = None;
        client.inbox.clear();
        client.outbox.clear();
        let pid = client.peer.pid;
        self.host.processes.remove(&pid);
        let Some(broker) = &mut self.broker else { return };
        let watched = broker.watched.iter().filter(|(_, watched)| **watched == pid);
        let sessions: BTreeSet<_> = watched.map(|(session, _)| *session).collect();
        for session in sessions {
            broker.soon.push_back(Event::Died { session });
        }
    }

    /// A client's connection breaks, and the client notices.
    fn lose_connection(&mut self, place: usize) {
        self.hang_up_client(place);
        let client = &mut self.clients[place];
        if let Some(conn) = client.conn {
            client.inbox.push_back((conn, Arrival::Closed));
        }
    }

    fn hang_up_client(&mut self, place: usize) {
        let Some(broker) = &mut self.broker else { return };
        let conns = broker.clients.iter().filter(|(_, of)| **of == place);
        let conns: Vec<ClientConn> = conns.map(|(conn, _)| *conn).collect();
        for conn in conns {
            broker.clients.remove(&conn);
            broker.soon.push_back(Event::HungUp { conn });
        }
        let pid = self.clients[place].peer.pid;
        for (session, record) in &self.host.records {
            if record.record.pid == pid {
                self.truth.detached(*session, self.now.millis);
            }
        }
    }

    fn talk_nonsense(&mut self, place: usize) -> Checked {
        let Some(broker) = &mut self.broker else { return Ok(()) };
        let conn = broker.clients.iter().find(|(_, of)| **of == place).map(|(conn, _)| *conn);
        let Some(conn) = conn else { return Ok(()) };
        broker.clients.remove(&conn);
        self.clients[place].excuses += 1;
        self.clients[place].inbox.push_back((conn, Arrival::Closed));
        self.event(Event::Hostile { conn, reason: "the body is not a message".into() })
    }

    /// A daemon reports something, be it true or not.
    fn daemon_notices(&mut self, place: usize) {
        let store = self.host.stores.get(&self.daemons[place].id);
        let blocks: Vec<BlockId> =
            store.into_iter().flat_map(|store| store.keys().copied()).collect();
        if let Some(block) = self.random.pick(blocks)
            && self.daemons[place].conn.is_some()
        {
            self.daemons[place].notice(block, &mut self.random);
        }
    }

    /// A daemon says that a block is too long: the session that has it is to blame, if one has.
    pub fn blame(&mut self, block: BlockId) {
        let Some(broker) = &self.broker else { return };
        let snapshot = broker.dispatcher.snapshot();
        let session = snapshot.blocks.get(&block).and_then(|block| block.session);
        let record = session.and_then(|session| self.host.records.get(&session));
        let Some(pid) = record.map(|record| record.record.pid) else { return };
        if let Some(client) = self.clients.iter_mut().find(|client| client.peer.pid == pid) {
            client.excuses += 1;
        }
    }
}
