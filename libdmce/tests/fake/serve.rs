//! The fake broker's loop and its answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Half};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::client::{
    BlockInfo, Changed, ClientReply, ClientRequest, CopyInfo, Granted, Malloc, MallocKind, Opened,
    OpeningId, Ready, RegionKey, SpanKey,
};
use dmce_abi::wire::{self, FrameHeader, Refusal, Reply};
use dmce_sys::poll::{Interest, Poller};
use dmce_sys::socket::{Listener, Socket, SocketError};

use super::{BLOCK_BYTES, CELL_BITS, FakeBlock, Held, Shared, State, new_guid};

const STOP: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_CONNECTION: u64 = 2;

/// Serves until it is told to stop.
pub fn run(shared: &Shared, listener: &Listener) {
    let poller = Poller::new().unwrap();
    poller.add(shared.stop.as_fd(), STOP, Interest::READ).unwrap();
    poller.add(listener.as_fd(), LISTENER, Interest::READ).unwrap();
    let mut connections: Vec<Option<Socket>> = Vec::new();
    let mut ready = Vec::new();
    loop {
        poller.wait(None, &mut ready).unwrap();
        for event in &ready {
            match event.token {
                STOP => {
                    let held = shared.state.lock().unwrap().held.take();
                    let Some(Held { frame, fds }) = held else { return };
                    shared.stop.drain().unwrap();
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    for connection in connections.iter().flatten() {
                        let _ = connection.send(&frame, &fds);
                    }
                }
                LISTENER => {
                    let Ok(connection) = listener.accept_nonblocking() else { continue };
                    let token = FIRST_CONNECTION + connections.len() as u64;
                    poller.add(connection.as_fd(), token, Interest::READ).unwrap();
                    connections.push(Some(connection));
                }
                token => {
                    let place = usize::try_from(token - FIRST_CONNECTION).unwrap();
                    let Some(connection) = &connections[place] else { continue };
                    if !serve_one(&mut shared.state.lock().unwrap(), connection) {
                        connections[place] = None;
                    }
                }
            }
        }
    }
}

/// Answers one request. False if the connection is over.
fn serve_one(state: &mut State, connection: &Socket) -> bool {
    let (mut frame, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
    let received = match connection.try_recv(&mut frame, &mut fds) {
        Ok(received) => received,
        Err(SocketError::WouldBlock { .. }) => return true,
        Err(_) => return false,
    };
    let frame = &frame[..received.bytes];
    let header = wire::decode_header(frame, fds.len()).unwrap();
    let request: ClientRequest = wire::decode_body(frame).unwrap();
    let name = Some(name_of(&request));
    let is_ignored = state.moves_at_fetch && matches!(request, ClientRequest::Changes(_));
    let (reply, fds) = match answer(state, &request) {
        Ok((reply, fds)) => (Ok(reply), fds),
        Err(refusal) => (Err(refusal), Vec::new()),
    };
    if state.dies_after.take_if(|dies_after| Some(*dies_after) == name).is_some() {
        return false;
    }
    if header.request == 0 || is_ignored {
        return true;
    }
    let header = FrameHeader { fds: u16::try_from(fds.len()).unwrap(), ..header };
    let frame = wire::encode::<Reply<ClientReply>>(header, &reply).unwrap();
    if state.holds.take_if(|holds| Some(*holds) == name).is_some() {
        state.held = Some(Held { frame, fds });
        return true;
    }
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    connection.send(&frame, &fds).is_ok()
}

type Answer = Result<(ClientReply, Vec<OwnedFd>), Refusal>;

fn answer(state: &mut State, request: &ClientRequest) -> Answer {
    let done = || Ok((ClientReply::Done, Vec::new()));
    *state.asked.entry(name_of(request)).or_default() += 1;
    match request {
        ClientRequest::Setup(_) => {
            state.set_up();
            Ok(state.ready(Vec::new()))
        }
        ClientRequest::Attach(_) if state.refuses_attach => refuse(Status::NotFound),
        ClientRequest::Attach(attach) => {
            let told: Vec<_> = attach.openings.iter().map(|told| told.opening).collect();
            state.openings.retain(|opening, _| told.contains(opening));
            state.attached = Some(attach.clone());
            let is_unknown = |opening: &OpeningId| !state.openings.contains_key(opening);
            let unknown = told.into_iter().filter(is_unknown).collect();
            Ok(state.ready(unknown))
        }
        ClientRequest::Malloc(malloc) => state.malloc(*malloc),
        ClientRequest::Abandon(abandon) => {
            if let Some(made) = state.tickets.remove(&abandon.ticket) {
                state.blocks.retain(|_, block| block.first != made);
            }
            done()
        }
        ClientRequest::Grow(grow) => {
            let more = grow.committed - state.block(grow.block)?.committed;
            if state.committed() + more > state.capacity {
                return refuse(Status::NoSpace);
            }
            let block = state.block(grow.block)?;
            for object in [&block.fd].into_iter().chain(&block.others) {
                dmce_sys::object::commit(object.as_fd(), 0, grow.committed).unwrap();
            }
            block.committed = grow.committed;
            Ok((ClientReply::Grown { committed: grow.committed }, Vec::new()))
        }
        ClientRequest::Delete(delete) => {
            let first = u32::try_from(delete.addr >> CELL_BITS).unwrap();
            state.deletes.push(*delete);
            let known = state.blocks.get(&first).is_some_and(|b| b.guid == delete.guid);
            if !known {
                return refuse(Status::Address);
            }
            state.blocks.retain(|_, block| block.first != first);
            done()
        }
        ClientRequest::Fetch(fetch) => {
            if state.moves_at_fetch {
                state.publish(&[]);
            }
            state.block(fetch.block)?;
            let info = state.info(fetch.block.get(), fetch.writable);
            let fds = state.copies_of(fetch.block.get());
            Ok((ClientReply::Fetched(info), fds))
        }
        ClientRequest::Map(map) => {
            state.maps.insert(map.os_address, *map);
            done()
        }
        ClientRequest::Unmap(unmap) => {
            state.maps.remove(&unmap.os_address);
            done()
        }
        ClientRequest::Changes(changes) => {
            let after = |(at, _): &&(u64, BlockId)| *at > changes.since;
            let blocks = state.changes.iter().filter(after).map(|(_, block)| *block).collect();
            let answer = Changed { upto: state.generation, blocks, all: false };
            Ok((ClientReply::Changed(answer), Vec::new()))
        }
        ClientRequest::Damaged(block) => {
            state.damaged.push(*block);
            state.block(*block)?;
            state.look_at(block.get());
            done()
        }
        ClientRequest::RegionClose(opening) => {
            state.openings.remove(opening);
            state.closes.push(*opening);
            done()
        }
        ClientRequest::Disconnect => done(),
        ClientRequest::Spans(list) => {
            // Two at a time, so that a client has to ask again.
            let ids = state.blocks.iter().filter(|(id, block)| {
                **id == block.first
                    && **id > list.after
                    && !state.regions.values().any(|r| r == *id)
            });
            let key = |(id, block): (&u32, &FakeBlock)| SpanKey {
                first: BlockId::try_from(*id).unwrap(),
                guid: block.guid,
            };
            let mut spans: Vec<SpanKey> = ids.map(key).collect();
            let more = spans.len() > 2;
            spans.truncate(2);
            Ok((ClientReply::Spans { spans, more }, Vec::new()))
        }
        other => regions(state, other),
    }
}

fn regions(state: &mut State, request: &ClientRequest) -> Answer {
    match request {
        ClientRequest::RegionCreate(create) => {
            let bytes = create.region_size.next_multiple_of(4096);
            let kind = MallocKind::Span { bytes };
            let first = state.make(kind)?;
            state.regions.insert(create.region.clone(), first);
            Ok((ClientReply::Done, Vec::new()))
        }
        ClientRequest::RegionOpen(open) => {
            let Some(&first) = state.regions.get(&open.region) else {
                return refuse(Status::NotFound);
            };
            state.openings.insert(open.opening, first);
            let block = &state.blocks[&first];
            let last = block.first + block.count - 1;
            let whole = u64::from(block.count - 1) * BLOCK_BYTES;
            let opened = Opened {
                first: state.info(first, open.write),
                guid: block.guid,
                // Not a whole number of pages.
                region_size: whole + state.blocks[&last].committed - 96,
                base_pointer: state.base_pointer,
                copies: 1,
                primary_daemon: 1,
                mirror_daemon: 0,
            };
            let fds = state.copies_of(first);
            Ok((ClientReply::Opened(opened), fds))
        }
        ClientRequest::RegionFind(name) => {
            let Some(&first) = state.regions.get(name) else {
                return refuse(Status::NotFound);
            };
            let guid = state.blocks[&first].guid;
            let key = RegionKey { first: BlockId::try_from(first).unwrap(), guid };
            Ok((ClientReply::Found(key), Vec::new()))
        }
        ClientRequest::RegionDelete(region) => {
            if let Some(begun) = state.postpones_begun {
                let daemon = DaemonId::try_from(1).unwrap();
                return Ok((ClientReply::NotYet { daemon, begun }, Vec::new()));
            }
            let first = region.first.get();
            let known = state.blocks.get(&first);
            if known.is_none_or(|block| block.guid != region.guid) {
                // A repeated one is done.
                return Ok((ClientReply::Done, Vec::new()));
            }
            state.regions.retain(|_, known| *known != first);
            state.openings.retain(|_, known| *known != first);
            let ids: Vec<u32> = state.blocks.keys().copied().collect();
            let ids: Vec<u32> =
                ids.into_iter().filter(|id| state.blocks[id].first == first).collect();
            state.blocks.retain(|_, block| block.first != first);
            state.publish(&ids);
            Ok((ClientReply::Done, Vec::new()))
        }
        ClientRequest::RegionList(list) => {
            // Two at a time, so that a client has to ask again.
            let names = state.regions.keys().filter(|name| name.volume == list.volume);
            let mut names: Vec<String> =
                names.map(|name| name.name.clone()).filter(|name| *name > list.after).collect();
            let more = names.len() > 2;
            names.truncate(2);
            Ok((ClientReply::Names { names, more }, Vec::new()))
        }
        _ => refuse(Status::Unsupported),
    }
}

impl State {
    fn ready(&self, unknown_openings: Vec<OpeningId>) -> (ClientReply, Vec<OwnedFd>) {
        let session = self.session.as_ref().unwrap();
        let ready = Ready {
            session: session.identity.session,
            guid: session.identity.guid,
            instance: "test".into(),
            layout: [16, 48 - CELL_BITS, CELL_BITS],
            block_ids: 4096,
            block_bytes_max: BLOCK_BYTES,
            reserved: 0,
            quota: u64::MAX,
            copies: 1,
            idle_s: self.idle_s,
            has_policies: true,
            unknown_openings,
        };
        let fds = [&session.fd, &session.doorbell].map(|fd| fd.try_clone().unwrap());
        (ClientReply::Ready(ready), fds.into())
    }

    fn malloc(&mut self, malloc: Malloc) -> Answer {
        self.mallocs.push(malloc);
        let first = match self.tickets.get(&malloc.ticket) {
            Some(&first) => first,
            None => self.make(malloc.kind)?,
        };
        self.tickets.insert(malloc.ticket, first);
        let last = first + self.blocks[&first].count - 1;
        let last_committed = self.blocks[&last].committed;
        let granted = Granted { first: self.info(first, true), last_committed };
        Ok((ClientReply::Granted(granted), self.copies_of(first)))
    }

    /// Makes blocks; returns the first.
    pub fn make(&mut self, kind: MallocKind) -> Result<u32, Refusal> {
        let (bytes, bytes_max) = match kind {
            MallocKind::Heap { committed } => (committed, BLOCK_BYTES),
            MallocKind::Span { bytes } => (bytes, bytes),
        };
        if self.committed() + bytes > self.capacity {
            return Err(Refusal::new(Status::NoSpace, format!("{bytes} bytes")));
        }
        let (first, guid) = (self.next_block, new_guid());
        let count = u32::try_from(bytes_max.div_ceil(BLOCK_BYTES)).unwrap();
        self.next_block += count;
        for place in 0..count {
            let rest = bytes - u64::from(place) * BLOCK_BYTES;
            let (committed, most) = match kind {
                MallocKind::Heap { .. } => (bytes, BLOCK_BYTES),
                MallocKind::Span { .. } => (rest.min(BLOCK_BYTES), rest.min(BLOCK_BYTES)),
            };
            let epoch = 1;
            let block = FakeBlock {
                fd: self.object(committed),
                guid,
                committed,
                bytes_max: most,
                first,
                count,
                lost: false,
                good: (1..=self.copies).collect(),
                others: (1..self.copies).map(|_| self.object(committed)).collect(),
                locks: (self.copies > 1).then(|| self.table(first + place, (guid, epoch), most)),
                epoch,
            };
            self.blocks.insert(first + place, block);
        }
        Ok(first)
    }

    fn info(&self, id: u32, writable: bool) -> BlockInfo {
        let block = &self.blocks[&id];
        let copy = |place| {
            let id = *block.good.get(place).filter(|_| !block.lost)?;
            let (daemon, half) = (DaemonId::try_from(id).ok()?, Half::of(id as usize - 1)?);
            Some(CopyInfo { daemon, since: 0, half })
        };
        BlockInfo {
            block: BlockId::try_from(id).unwrap(),
            guid: block.guid,
            epoch: block.epoch,
            committed: block.committed,
            bytes_max: block.bytes_max,
            span_first: BlockId::try_from(block.first).unwrap(),
            span_count: block.count,
            page_size: 4096,
            writable,
            lost: block.lost,
            copies: std::array::from_fn(copy),
            syncing: None,
            has_locks: block.locks.is_some() && !block.lost,
            is_moving: false,
        }
    }

    fn block(&mut self, id: BlockId) -> Result<&mut FakeBlock, Refusal> {
        let none = Refusal::new(Status::Address, format!("no block {id}"));
        self.blocks.get_mut(&id.get()).ok_or(none)
    }

    /// What comes with the description of a block.
    fn copies_of(&self, id: u32) -> Vec<OwnedFd> {
        let block = &self.blocks[&id];
        if block.lost {
            return Vec::new();
        }
        let copies = block.good.iter().map(|daemon| block.copy(*daemon));
        copies.chain(&block.locks).map(|fd| fd.try_clone().unwrap()).collect()
    }
}

fn refuse(status: Status) -> Answer {
    Err(Refusal::new(status, "as the test wants it"))
}

fn name_of(request: &ClientRequest) -> &'static str {
    match request {
        ClientRequest::Setup(_) => "Setup",
        ClientRequest::Attach(_) => "Attach",
        ClientRequest::Malloc(_) => "Malloc",
        ClientRequest::Grow(_) => "Grow",
        ClientRequest::Delete(_) => "Delete",
        ClientRequest::Fetch(_) => "Fetch",
        ClientRequest::Changes(_) => "Changes",
        ClientRequest::Damaged(_) => "Damaged",
        ClientRequest::Map(_) => "Map",
        ClientRequest::Unmap(_) => "Unmap",
        ClientRequest::Disconnect => "Disconnect",
        ClientRequest::Abandon(_) => "Abandon",
        ClientRequest::Stat => "Stat",
        ClientRequest::RegionOpen(_) => "RegionOpen",
        ClientRequest::RegionClose(_) => "RegionClose",
        ClientRequest::RegionDelete(_) => "RegionDelete",
        _ => "other",
    }
}
