//! Blocks of several copies, read and written for clients that map nothing: on all copies, under
//! the page locks that mapped processes use.
//!
//! ```text
//!   broker: Seat --> a session object of this daemon's own
//!
//!   request -> mark, look -> the block's headers, copies, lock table -> read, or write to all
//!                 |                |                                        |
//!                 | moved:         | they do not agree: BUSY, and the       | a copy fails between
//!                 | views go       | broker is told if something is gone    v two stores
//!                 v                v                                    the seat is left: BUSY
//! ```
//!
//! # Invariants
//!
//! 1. This daemon is a writer like a client: what it does to such a block is an operation of the
//!    one slot that it uses, with an intent while it stores. Who repairs the dead repairs it.
//! 2. What is known of a block's copies was read from the headers of all of them, which agree, and
//!    is used no more once the generation has moved.
//! 3. Nobody is waited for: where a page is held, or the copies are being decided about, the answer
//!    is `BUSY`, and nothing was done; or it is said how much was. The client asks for the rest.
//! 4. A seat is of one connection to a broker. It is given up with it, and when a write cannot be
//!    brought to its end: its locks and its intent stay, and the broker repairs them.
//! 5. What is answered as done is on every copy that the headers name.

mod pointers;
mod quiet;
mod scrub;
mod sync;
mod view;
mod window;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::hint;
use std::os::fd::AsFd;
use std::thread;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Half, SessionId};
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::DaemonNotice;
use dmce_abi::wire::data::{Bytes, DataAnswer, DataReply, DataRequest, Target};
use dmce_shm::copies::Batch;
use dmce_shm::fence::Fence;
use dmce_shm::lock::{LockOwner, PageLock, Sequence};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::map::{SessionMap, SessionMapError};
use dmce_shm::slot::Moved;
use dmce_sys::clock;
use dmce_sys::object::ObjectError;
use dmce_sys::object::word::{ObjectWord, WordError};
use dmce_sys::transfer::word::WORD_BYTES;
use tracing::{debug, warn};

use super::access::no_half;
use super::folder::{BROKER, Folder, Found};
use super::{Held, Store};
pub(super) use quiet::Quiet;
pub(super) use sync::Part;
use view::View;
pub(super) use view::{Unseen, header};
use write::{Change, Halted, Unwritten, Where};

/// The slot that this daemon uses: it does one thing at a time.
const SLOT: u8 = 0;

/// The place of the copy that is read where nobody says which.
const FIRST: usize = 0;

/// Blocks whose copies are kept open. When there are as many, all are closed.
const VIEWS_MAX: usize = 64;

/// How often a reader looks at pages that somebody writes, before its client is to ask again.
const LOOKS: u32 = 64;
/// Of these, the first so many without leaving the processor to others.
const LOOKS_AT_ONCE: u32 = 8;

/// The broker is told of one block's damage, and asked for a seat, no more often than this.
const TELL_AGAIN_MS: u64 = 50;
/// Blocks of which it is remembered when the broker was told.
const TOLD_MAX: usize = 1024;

/// The session object of this daemon.
#[derive(Debug)]
struct Seat {
    session: SessionId,
    map: SessionMap,
    cell_bits: u8,
}

/// What is known of blocks of several copies.
#[derive(Debug, Default)]
pub(super) struct Copied {
    seat: Option<Seat>,
    views: HashMap<BlockId, View>,
    /// When the broker was told that a block is damaged.
    told: BTreeMap<BlockId, u64>,
    /// When it was asked for a seat.
    asked_ms: Option<u64>,
    /// The seat that was given up since the broker made one. It is named each time.
    left: Option<SessionId>,
}

/// Why something was not done.
#[derive(Debug)]
enum Failure {
    /// It cannot be.
    Refused(Refusal),
    /// Somebody has the pages, or decides about the copies.
    Busy(String),
    /// Something of the block is not as it should be.
    Damaged(String),
    /// There is no session object to do it by.
    Unseated,
    /// A copy failed after another was written.
    Abandoned(String),
    /// One of these, after so many bytes were written.
    Partly(u32, Box<Self>),
}

impl From<Unseen> for Failure {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::Undecided(text) => Self::Busy(text),
            Unseen::Damaged(text) => Self::Damaged(text),
        }
    }
}

impl Copied {
    /// Forgets a view whose headers are others by now, or damaged: the next look says which.
    fn forget_old(&mut self, block: BlockId) {
        if self.views.get(&block).is_some_and(|view| !view.is_current()) {
            self.views.remove(&block);
        }
    }

    /// A block ends, or its copies are others: nothing of it is to be held by a descriptor.
    pub(super) fn close(&mut self, block: BlockId) {
        self.views.remove(&block);
        self.told.remove(&block);
    }
}

impl Store {
    /// Takes the session object that the broker has made.
    pub(super) fn sit_down(&mut self, identity: SessionIdentity, cell_bits: u8) {
        let session = identity.session;
        self.unseat();
        match seat(&self.folder, identity) {
            Ok(map) => {
                debug!(%session, "seated");
                self.copied.seat = Some(Seat { session, map, cell_bits });
            }
            Err(error) => {
                warn!(%session, %error, "the session object of this daemon cannot be used");
                // It is given back when a client needs one, and no more often than others are
                // asked for: the next may be of no more use.
                self.copied.left = Some(session);
                self.copied.asked_ms = Some(clock::monotonic_ms());
            }
        }
    }

    /// Gives the session object up: its broker is gone, or takes it for ended.
    pub fn unseat(&mut self) {
        self.copied.views.clear();
        self.copied.seat = None;
        self.copied.asked_ms = None;
        self.copied.left = None;
    }

    /// Does what a client asks for of a block of several copies, whose rights and range were
    /// checked.
    pub(super) fn access_copied(&mut self, request: &DataRequest) -> DataAnswer {
        let block = request.target().block;
        let attempted = self.at_desk(block, |desk| desk.serve(request));
        let (written, failure) =
            match attempted.and_then(|(done, table)| table.judge(request, done)) {
                Ok(reply) => return Ok(reply),
                Err(Failure::Partly(bytes, failure)) => (Some(bytes), *failure),
                Err(failure) => (None, failure),
            };
        let busy = |text: String| match written {
            Some(bytes) => Ok(DataReply::Part { bytes }),
            None => Err(Refusal::new(Status::Busy, format!("block {block}: {text}"))),
        };
        match failure {
            Failure::Partly(..) => unreachable!("a failure is partly once"),
            Failure::Refused(refusal) => Err(refusal),
            Failure::Busy(text) => {
                self.copied.forget_old(block);
                busy(text)
            }
            Failure::Damaged(text) => {
                self.copied.views.remove(&block);
                self.tell_damaged(block, &text);
                busy(text)
            }
            Failure::Unseated => {
                self.ask_for_a_seat();
                busy("this daemon has no session object yet".to_owned())
            }
            Failure::Abandoned(text) => {
                self.tell_damaged(block, &text);
                self.leave_seat();
                if request.counts() {
                    // It may be brought to its end.
                    let text = format!("block {block}: {text}; the word may have been changed");
                    return Err(Refusal::new(Status::Io, text));
                }
                Ok(DataReply::Part { bytes: written.unwrap_or(0) })
            }
        }
    }

    /// Does something to the copies of a block, inside an operation; and what became of its lock
    /// table meanwhile.
    fn at_desk<T>(
        &mut self,
        block: BlockId,
        act: impl FnOnce(&Desk<'_>) -> T,
    ) -> Result<(T, Table), Failure> {
        self.look_at_seat();
        let Some(held) = self.blocks.get(&block) else {
            return Err(Failure::Busy("it is gone".to_owned()));
        };
        if held.condition.is_lost() {
            return Err(Failure::Damaged("this daemon's copy is lost".to_owned()));
        }
        let Copied { seat, views, .. } = &mut self.copied;
        let Some(seat) = seat else { return Err(Failure::Unseated) };
        // The broker may have moved it since: the client asks again.
        let operation = seat
            .map
            .begin(SLOT.into())
            .map_err(|Moved| Failure::Busy("its copies have changed a moment ago".to_owned()))?;
        let view = view_of(&self.folder, held, views)?;
        let done = act(&Desk { seat, view });
        drop(operation);
        if !view.locks.is_harmed() {
            return Ok((done, Table::Whole));
        }
        self.tell_damaged(block, "its lock table is gone");
        self.copied.views.remove(&block);
        Ok((done, Table::Gone))
    }

    /// Forgets what was known under an earlier generation of the session object.
    fn look_at_seat(&mut self) {
        let moved = self.copied.seat.as_ref().filter(|seat| seat.map.has_moved());
        let Some((known, now)) = moved.map(|seat| (seat.map.known(), seat.map.generation())) else {
            return;
        };
        self.copied.views.clear();
        match (known, now) {
            // No broker counts up to it: the session has ended.
            (_, u64::MAX) => self.copied.seat = None,
            // No operation begins in it any more.
            (u64::MAX, _) => self.leave_seat(),
            (_, now) => self.copied.seat.iter().for_each(|seat| seat.map.settle(now)),
        }
    }

    fn tell_damaged(&mut self, block: BlockId, text: &str) {
        let now = clock::monotonic_ms();
        let told = &mut self.copied.told;
        if told.get(&block).is_some_and(|at| now < at.saturating_add(TELL_AGAIN_MS)) {
            return;
        }
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        told.insert(block, now);
        debug!(%block, text, "the broker is told that something is damaged");
        self.notices.push(DaemonNotice::Damaged { block });
    }

    fn ask_for_a_seat(&mut self) {
        let now = clock::monotonic_ms();
        let asked = self.copied.asked_ms;
        if asked.is_none_or(|at| now >= at.saturating_add(TELL_AGAIN_MS)) {
            self.copied.asked_ms = Some(now);
            self.notices.push(DaemonNotice::Unseated { left: self.copied.left });
        }
    }

    /// A write is not brought to its end: its locks and its intent stay, for the broker.
    fn leave_seat(&mut self) {
        let Some(seat) = self.copied.seat.take() else { return };
        warn!(session = %seat.session, "a write to several copies is left to be repaired");
        self.copied.views.clear();
        self.copied.asked_ms = Some(clock::monotonic_ms());
        self.copied.left = Some(seat.session);
        self.notices.push(DaemonNotice::Unseated { left: Some(seat.session) });
    }
}

type DataAnswerOr = Result<DataReply, Failure>;

/// What became of a lock table while something was done under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Whole,
    Gone,
}

impl Table {
    /// What is said of a request. What was done without a table may have met who did something
    /// else. What was not done says why itself: above all, what was left to be repaired must not be
    /// asked for again.
    fn judge(self, request: &DataRequest, done: DataAnswerOr) -> DataAnswerOr {
        if self == Self::Whole {
            return done;
        }
        let gone = || Failure::Busy("its lock table is gone".to_owned());
        match done {
            Ok(_) if request.counts() => done,
            Ok(_) if request.writes() => Err(Failure::Partly(0, Box::new(gone()))),
            Ok(_) => Err(gone()),
            Err(Failure::Partly(_, failure)) => Err(Failure::Partly(0, failure)),
            Err(failure) => Err(failure),
        }
    }
}

/// The copies of a block, opened unless they are.
fn view_of<'a>(
    folder: &Folder,
    held: &Held,
    views: &'a mut HashMap<BlockId, View>,
) -> Result<&'a View, Failure> {
    let description = &held.header.description;
    let (block, guid) = (description.block, description.guid);
    // One of a block that has grown since may lack words of its lock table.
    let of = (guid, held.data.bytes);
    if views.get(&block).is_none_or(|view| (view.guid, view.committed) != of) {
        let view = View::open(folder, held)?;
        if views.len() >= VIEWS_MAX {
            views.clear();
        }
        views.insert(block, view);
    }
    views.get(&block).ok_or_else(|| Failure::Busy("it is gone".to_owned()))
}

/// Why there is no seat.
#[derive(Debug, thiserror::Error)]
enum SeatError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Map(#[from] SessionMapError),
    #[error("what has its name is not the broker's: {0}")]
    Foreign(String),
    #[error("it has ended")]
    Ended,
}

/// Maps the session object of that identity.
fn seat(folder: &Folder, identity: SessionIdentity) -> Result<SessionMap, SeatError> {
    let kind = ObjectKind::Session(identity.session.get());
    let own = match folder.look_at(BROKER, kind)? {
        Found::Own(own) => own,
        other => return Err(SeatError::Foreign(format!("{other:?}"))),
    };
    let map = SessionMap::map(own.as_fd(), identity, Fence::register())?;
    if map.known() == u64::MAX { Err(SeatError::Ended) } else { Ok(map) }
}

/// What one request is done with.
struct Desk<'a> {
    seat: &'a Seat,
    view: &'a View,
}

impl Desk<'_> {
    fn serve(&self, request: &DataRequest) -> DataAnswerOr {
        match *request {
            DataRequest::Read { at, bytes } => {
                self.read(at, FIRST, len(bytes)).map(|data| DataReply::Bytes(Bytes(data)))
            }
            DataRequest::ReadHalf { at, bytes, half } => {
                let data = self.read(at, self.place_of(at, half)?, len(bytes))?;
                Ok(DataReply::Bytes(Bytes(data)))
            }
            DataRequest::Write { at, ref data } => self.write(at, &data.0, Where::All),
            DataRequest::WriteHalf { at, ref data, half } => {
                self.write(at, &data.0, Where::Alone(self.place_of(at, half)?))
            }
            DataRequest::Level { at, bytes, half } => {
                let place = self.place_of(at, half)?;
                let leveled = self.level(at, len(bytes), place);
                leveled.map(|()| DataReply::Done).map_err(|halted| self.of_halted(at, halted))
            }
            DataRequest::Cas64 { at, expected, desired } => {
                self.change(at, Change::Exchange { expected, desired })
            }
            DataRequest::Add64 { at, add } => self.change(at, Change::Add(add)),
            DataRequest::Wake { at, count } => self.wake(at, count),
            DataRequest::Wait64 { at, .. } => {
                is_aligned(at)?;
                let word = self.read(at, FIRST, WORD_BYTES)?;
                let word = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
                Ok(DataReply::Word(word))
            }
            _ => {
                let text = "this daemon does not know the request";
                Err(Failure::Refused(Refusal::new(Status::Unsupported, text)))
            }
        }
    }

    fn place_of(&self, at: Target, half: Half) -> Result<usize, Failure> {
        self.view.place_of(half).ok_or_else(|| Failure::Refused(no_half(at.block)))
    }

    /// Reads from the copy of a place.
    fn read(&self, at: Target, place: usize, bytes: usize) -> Result<Vec<u8>, Failure> {
        // Another daemon may have written by the next headers, which leave this copy out.
        if !self.view.is_current() {
            return Err(Failure::Busy("its copies have changed a moment ago".to_owned()));
        }
        let mut data = vec![0; bytes];
        let (mut done, until) = (0, at.cell + bytes as u64);
        while done < bytes {
            let batch = Batch::first_of(at.cell + done as u64, until, self.view.committed);
            let part = usize::try_from(batch.bytes).expect("a batch is a part of the request");
            self.read_batch((at.block, place), batch, &mut data[done..done + part])?;
            done += part;
        }
        Ok(data)
    }

    /// Reads until nobody wrote meanwhile.
    fn read_batch(
        &self,
        (block, place): (BlockId, usize),
        batch: Batch,
        into: &mut [u8],
    ) -> Result<(), Failure> {
        let words = self.view.locks.words(batch.pages());
        for look in 0..LOOKS {
            let since: Option<Vec<Sequence>> = words.iter().map(PageLock::begin_read).collect();
            if let Some(since) = since {
                self.view.read(place, batch.cell, into)?;
                if words.iter().zip(since).all(|(word, since)| word.is_unchanged(since)) {
                    return Ok(());
                }
            } else if words.iter().any(PageLock::is_lost) {
                return Err(Failure::Refused(lost_page(block)));
            }
            if look < LOOKS_AT_ONCE { hint::spin_loop() } else { thread::yield_now() }
        }
        Err(Failure::Busy("somebody writes there".to_owned()))
    }

    fn write(&self, at: Target, data: &[u8], place: Where) -> DataAnswerOr {
        let written = self.put(at, data, place).map_err(|halted| self.of_halted(at, halted))?;
        if written {
            return Ok(DataReply::Done);
        }
        let text = format!("what was written to block {} reads back different", at.block);
        Err(Failure::Refused(Refusal::new(Status::Io, text)))
    }

    fn change(&self, at: Target, change: Change) -> DataAnswerOr {
        is_aligned(at)?;
        let changed = self.put_word(at, change);
        changed.map(DataReply::Word).map_err(|error| self.of_unwritten(at, error))
    }

    fn wake(&self, at: Target, count: u32) -> DataAnswerOr {
        is_aligned(at)?;
        // Who waits does so on the primary's.
        let word = ObjectWord::map(self.view.first().as_fd(), at.cell);
        match word.and_then(|word| word.wake(count)) {
            Ok(()) => Ok(DataReply::Done),
            Err(WordError::Gone(_)) => Err(Failure::Damaged("the primary is cut".to_owned())),
            Err(error) => Err(Failure::Busy(error.to_string())),
        }
    }

    fn of_halted(&self, at: Target, Halted { done, why }: Halted) -> Failure {
        match (done, self.of_unwritten(at, why)) {
            (1.., failure) => Failure::Partly(done, Box::new(failure)),
            (0, failure) => failure,
        }
    }

    fn of_unwritten(&self, at: Target, error: Unwritten) -> Failure {
        match error {
            Unwritten::Held => Failure::Busy("somebody has its pages".to_owned()),
            Unwritten::Lost => Failure::Refused(lost_page(at.block)),
            Unwritten::Untouched(text) => Failure::Damaged(text),
            Unwritten::Abandoned(text) => {
                // No operation begins in this session from now on.
                self.seat.map.settle(u64::MAX);
                Failure::Abandoned(text)
            }
        }
    }

    fn owner(&self) -> LockOwner {
        LockOwner::new(self.seat.session, SLOT)
    }

    /// The DMCE address of the first cell of a block of this server.
    fn base(&self, block: BlockId) -> u64 {
        u64::from(block.get()) << self.seat.cell_bits
    }
}

fn len(bytes: u32) -> usize {
    usize::try_from(bytes).map_or(DATA_BYTES_MAX, |bytes| bytes.min(DATA_BYTES_MAX))
}

fn is_aligned(at: Target) -> Result<(), Failure> {
    if at.cell.is_multiple_of(WORD_BYTES as u64) {
        return Ok(());
    }
    let text = format!("{:#x} of block {} is no multiple of {WORD_BYTES}", at.cell, at.block);
    Err(Failure::Refused(Refusal::new(Status::Invalid, text)))
}

fn lost_page(block: BlockId) -> Refusal {
    let text = format!("a page of block {block} is lost, until all of it is written");
    Refusal::new(Status::Lost, text)
}
