//! A block that is not mapped: whoever holds it is asked for its bytes (FIG. 2, 3).
//!
//! ```text
//!   piece -> messages of 60 KiB, one after the other
//!              |
//!              +-- direct: a link to the daemon
//!              +-- relay:  the session's connection to the broker
//! ```
//!
//! # Invariants
//!
//! 1. Nothing here is done inside an operation: it may have to wait, and nothing is mapped that
//!    somebody could take away.
//! 2. A change of a word is asked for once. What may have been done is not asked for again.
//! 3. A daemon that is busy has done nothing, and is asked again. One that has written a part is
//!    asked for the rest; that nothing was written is said only if nothing was.
//! 4. Who waits for an answer does so until the session's time limit is over, or that of its own
//!    call, if that is shorter; or the session is closed.

#[cfg(test)]
pub(super) mod fake;
mod link;

use std::cmp::Ordering;
use std::fmt::Debug;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid, Half};
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest, Target};

use super::word::{Change, Watch};
use super::{Piece, Reach, Trouble};
use crate::connection::Deadline;
pub(crate) use link::{DaemonLink, LinkTable};

/// How long to wait before a daemon is asked again that was busy: a page is held for microseconds,
/// and copies are decided about in milliseconds.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Asks a daemon by way of the broker.
pub(crate) trait Relay: Debug + Send + Sync {
    /// The answer to a request, which fits it.
    fn relay(&self, request: &DataRequest, deadline: Deadline) -> Result<DataReply, Trouble>;
}

/// How the daemon of a block is asked.
#[derive(Clone, Debug)]
pub(crate) enum Carrier {
    /// Over a link (FIG. 3).
    Direct(Arc<DaemonLink>),
    /// Through the broker (FIG. 2).
    Relay(Arc<dyn Relay>),
}

/// A block whose bytes are asked for.
#[derive(Clone, Debug)]
pub(crate) struct AskedBlock {
    block: BlockId,
    guid: Guid,
    carrier: Carrier,
    timeout_ms: u32,
    limit: Option<Deadline>,
}

impl AskedBlock {
    /// The block of that GUID. An access waits for answers as long as `timeout_ms`.
    pub(crate) const fn new(block: BlockId, guid: Guid, carrier: Carrier, timeout_ms: u32) -> Self {
        Self { block, guid, carrier, timeout_ms, limit: None }
    }

    /// The same, for who waits for no answer longer than until then.
    pub(super) fn until(self, limit: Option<Deadline>) -> Self {
        Self { limit, ..self }
    }

    /// What a word is.
    pub(super) fn look(&self, cell: u64, while_equal: u64) -> Result<u64, Trouble> {
        self.ask_word(&DataRequest::Wait64 { at: self.at(cell), while_equal })
    }

    const fn at(&self, cell: u64) -> Target {
        Target { block: self.block, guid: self.guid, cell }
    }

    fn ask(&self, request: &DataRequest, deadline: Deadline) -> Result<DataReply, Trouble> {
        let link = match &self.carrier {
            Carrier::Relay(relay) => return relay.relay(request, deadline),
            Carrier::Direct(link) => link,
        };
        let mut pauses = Pauses::until(deadline);
        loop {
            match link.ask(request, deadline) {
                // Not done: somebody has the pages, or it is being decided which copies there are.
                Err(Trouble::Refused(Status::Busy)) => {}
                answer => return answer,
            }
            if !pauses.wait() {
                return Err(Trouble::Refused(Status::Timeout));
            }
        }
    }

    /// Has all bytes of a piece changed, where `request` says how a part of them is: at what, and
    /// from which byte of the piece to which.
    fn put(
        &self,
        piece: Piece,
        request: impl Fn(Target, Range<usize>) -> DataRequest,
    ) -> Result<(), Trouble> {
        let deadline = self.deadline();
        let mut pauses = Pauses::until(deadline);
        let (mut done, mut may_be_begun) = (0, false);
        while done < piece.bytes {
            let part = done..piece.bytes.min(done + DATA_BYTES_MAX);
            let until = part.end;
            let at = self.at(piece.cell + done as u64);
            let is_over = match self.ask(&request(at, part), deadline) {
                Ok(DataReply::Part { bytes }) => {
                    done += bytes as usize;
                    !pauses.wait()
                }
                Ok(_) => {
                    done = until;
                    false
                }
                Err(Trouble::Refused(Status::Timeout)) if may_be_begun => true,
                Err(Trouble::Refused(status)) if may_be_begun => {
                    return Err(Trouble::Begun(status));
                }
                Err(trouble) if may_be_begun => return Err(trouble.behind_a_part()),
                Err(trouble) => return Err(trouble),
            };
            if is_over {
                return Err(Trouble::Partly);
            }
            may_be_begun = true;
        }
        Ok(())
    }

    fn ask_word(&self, request: &DataRequest) -> Result<u64, Trouble> {
        match self.ask(request, self.deadline())? {
            DataReply::Word(word) => Ok(word),
            _ => Err(Trouble::Unlinked),
        }
    }

    fn read_part(&self, cell: u64, bytes: usize, deadline: Deadline) -> Result<Vec<u8>, Trouble> {
        // A part is no longer than a message's bytes.
        let bytes = u32::try_from(bytes).map_err(|_| Trouble::Io)?;
        match self.ask(&DataRequest::Read { at: self.at(cell), bytes }, deadline)? {
            DataReply::Bytes(Bytes(data)) => Ok(data),
            _ => Err(Trouble::Unlinked),
        }
    }

    /// Copies a piece out of one half.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    pub(crate) unsafe fn read_half(
        &self,
        piece: Piece,
        half: Half,
        buffer: *mut u8,
    ) -> Result<(), Trouble> {
        let deadline = self.deadline();
        for (start, bytes) in parts(piece.bytes) {
            let at = self.at(piece.cell + start as u64);
            let wanted = u32::try_from(bytes).map_err(|_| Trouble::Io)?;
            let request = DataRequest::ReadHalf { at, bytes: wanted, half };
            let DataReply::Bytes(Bytes(data)) = self.ask(&request, deadline)? else {
                return Err(Trouble::Unlinked);
            };
            // SAFETY: the buffer is writable for the piece, of which this is a part; the data is a
            // vector of this function's own, and as long.
            unsafe { ptr::copy(data.as_ptr(), buffer.wrapping_add(start), bytes.min(data.len())) };
        }
        Ok(())
    }

    /// Copies a piece into one half.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`].
    pub(crate) unsafe fn write_half(
        &self,
        piece: Piece,
        half: Half,
        data: *const u8,
    ) -> Result<(), Trouble> {
        self.put(piece, |at, part| {
            // SAFETY: the data is readable for the piece, of which this is a part.
            let data = Bytes(unsafe { copy_of(data, part) });
            DataRequest::WriteHalf { at, data, half }
        })
    }

    /// Brings what one half has in a piece to all copies.
    pub(crate) fn resync(&self, piece: Piece, half: Half) -> Result<(), Trouble> {
        self.put(piece, |at, part| {
            let bytes = u32::try_from(part.len()).expect("no more than a message carries");
            DataRequest::Level { at, bytes, half }
        })
    }

    fn deadline(&self) -> Deadline {
        let deadline = Deadline::after_ms(self.timeout_ms);
        self.limit.map_or(deadline, |limit| limit.min(deadline))
    }
}

/// Pauses before something is asked for again, until the time is over.
struct Pauses {
    next: Duration,
    deadline: Deadline,
}

impl Pauses {
    const fn until(deadline: Deadline) -> Self {
        Self { next: PAUSE_MIN, deadline }
    }

    /// False if the time is over.
    fn wait(&mut self) -> bool {
        let Some(left) = self.deadline.left() else { return false };
        thread::sleep(self.next.min(left));
        self.next = PAUSE_MAX.min(self.next * 2);
        // What is asked for without time for an answer may be done, and nobody would know.
        self.deadline.left().is_some()
    }
}

/// A copy of a part of what is to be written.
///
/// # Safety
///
/// `data` is readable up to the end of the part.
unsafe fn copy_of(data: *const u8, part: Range<usize>) -> Vec<u8> {
    let mut copy = vec![0; part.len()];
    // SAFETY: as the caller promises; the copy is this function's own, and as long.
    unsafe { ptr::copy(data.wrapping_add(part.start), copy.as_mut_ptr(), part.len()) };
    copy
}

/// The parts of so many bytes: where each begins, and how long it is.
fn parts(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..bytes).step_by(DATA_BYTES_MAX);
    starts.map(move |start| (start, DATA_BYTES_MAX.min(bytes - start)))
}

impl Reach for AskedBlock {
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        let deadline = self.deadline();
        for (start, bytes) in parts(piece.bytes) {
            let data = self.read_part(piece.cell + start as u64, bytes, deadline)?;
            debug_assert_eq!(data.len(), bytes, "an answer fits its request");
            // SAFETY: the buffer is writable for the piece, of which this is a part; the data is a
            // vector of this function's own, and as long.
            unsafe { ptr::copy(data.as_ptr(), buffer.wrapping_add(start), bytes.min(data.len())) };
        }
        Ok(())
    }

    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        self.put(piece, |at, part| {
            // SAFETY: the data is readable for the piece, of which this is a part.
            let data = Bytes(unsafe { copy_of(data, part) });
            DataRequest::Write { at, data }
        })
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        self.put(piece, |at, part| {
            let data = Bytes(vec![byte; part.len()]);
            DataRequest::Write { at, data }
        })
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        let deadline = self.deadline();
        for (start, bytes) in parts(piece.bytes) {
            let found = self.read_part(piece.cell + start as u64, bytes, deadline)?;
            // SAFETY: readable for the piece, of which this is a part, and written by nobody.
            let expected = unsafe { std::slice::from_raw_parts(data.wrapping_add(start), bytes) };
            match found.as_slice().cmp(expected) {
                Ordering::Equal => {}
                other => return Ok(other),
            }
        }
        Ok(Ordering::Equal)
    }

    fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble> {
        let at = self.at(piece.cell);
        match change {
            Change::None => self.look(piece.cell, 0),
            Change::Exchange { expected, desired } => {
                self.ask_word(&DataRequest::Cas64 { at, expected, desired })
            }
            Change::Add(add) => self.ask_word(&DataRequest::Add64 { at, add }),
        }
    }

    fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble> {
        let request = DataRequest::Wake { at: self.at(piece.cell), count };
        self.ask(&request, self.deadline()).map(|_| ())
    }

    fn watch(&self, piece: Piece) -> Result<Watch, Trouble> {
        Ok(Watch::asked(self.clone(), piece.cell))
    }
}

/// Whether something is another after it was done.
pub(crate) const fn is_a_change(request: &DataRequest) -> bool {
    request.writes()
}

/// What a daemon's refusal means to an access.
pub(crate) const fn of_refusal(status: Status) -> Trouble {
    match status {
        // What was granted is not any more, or not yet: the broker knows.
        Status::NotFound | Status::Address | Status::Closed => Trouble::Unlinked,
        Status::Lost => Trouble::Lost,
        Status::NoCopy => Trouble::NoHalf,
        // No refusal says so.
        Status::Ok => Trouble::Refused(Status::Internal),
        status => Trouble::Refused(status),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use dmce_abi::wire::Refusal;

    use super::*;

    const WORD: Piece = Piece { cell: 0, bytes: 8, committed: 4096 };

    fn get(block: &AskedBlock) -> Result<[u8; 8], Trouble> {
        let mut buffer = [0; 8];
        // SAFETY: the buffer is as long as the piece.
        unsafe { block.read(WORD, buffer.as_mut_ptr()) }?;
        Ok(buffer)
    }

    /// A daemon that lies ends its link, and nothing of what it sent is used.
    #[test]
    fn what_is_no_answer_to_the_request_ends_the_link() {
        for lie in [
            DataReply::Done,
            DataReply::Word(1),
            DataReply::Bytes(Bytes(vec![1; 7])),
            DataReply::Bytes(Bytes(vec![1; 9])),
            DataReply::Bytes(Bytes(Vec::new())),
        ] {
            let asked = Arc::new(AtomicU32::new(0));
            let (count, answer) = (Arc::clone(&asked), lie.clone());
            let block = fake::linked(move |_| {
                count.fetch_add(1, SeqCst);
                Some(Ok(answer.clone()))
            });
            assert_eq!(get(&block), Err(Trouble::Unlinked), "{lie:?}");
            assert_eq!(get(&block), Err(Trouble::Unlinked), "{lie:?}");
            assert_eq!(asked.load(SeqCst), 1);
        }
    }

    #[test]
    fn a_refusal_leaves_the_link_and_says_what_is_to_be_done() {
        for (status, trouble) in [
            (Status::NotFound, Trouble::Unlinked),
            (Status::Address, Trouble::Unlinked),
            (Status::Lost, Trouble::Lost),
            (Status::Denied, Trouble::Refused(Status::Denied)),
            (Status::Io, Trouble::Refused(Status::Io)),
            (Status::Ok, Trouble::Refused(Status::Internal)),
        ] {
            let mut refuses = true;
            let block = fake::linked(move |_| {
                let answer = Ok(DataReply::Bytes(Bytes(vec![7; 8])));
                let refusal = Err(Refusal::new(status, ""));
                Some(if std::mem::take(&mut refuses) { refusal } else { answer })
            });
            assert_eq!(get(&block), Err(trouble), "{status:?}");
            assert_eq!(get(&block), Ok([7; 8]));
        }
    }

    /// It has done nothing: somebody had the page.
    #[test]
    fn a_daemon_that_is_busy_is_asked_again_until_the_time_is_over() {
        let mut refusals = 3;
        let block = fake::linked(move |_| {
            let busy = Err(Refusal::new(Status::Busy, ""));
            let is_busy = refusals > 0;
            refusals -= u32::from(is_busy);
            Some(if is_busy { busy } else { Ok(DataReply::Word(5)) })
        });
        assert_eq!(block.change(WORD, Change::Add(1)), Ok(5));
        let mut block = fake::linked(|_| Some(Err(Refusal::new(Status::Busy, ""))));
        block.timeout_ms = 20;
        assert_eq!(get(&block), Err(Trouble::Refused(Status::Timeout)));
    }

    /// What was written may be overwritten by another already.
    #[test]
    fn a_daemon_that_has_written_a_part_is_asked_for_the_rest_alone() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let mut parts = [5000, 0, 3].into_iter();
        let block = fake::linked(move |request| {
            let cell = request.target().cell;
            log.lock().unwrap().push((cell, request.moved_bytes()));
            let part = if cell < 100_000 { None } else { parts.next() };
            Some(Ok(part.map_or(DataReply::Done, |bytes| DataReply::Part { bytes })))
        });
        let piece = Piece { cell: 50_000, bytes: 2 * DATA_BYTES_MAX, committed: 1 << 20 };
        block.fill(piece, 7).unwrap();
        let (second, bytes) = (50_000 + DATA_BYTES_MAX as u64, DATA_BYTES_MAX);
        let asked = asked.lock().unwrap();
        assert_eq!(asked[..2], [(50_000, bytes), (second, bytes)]);
        assert_eq!(asked[2..4], [(second + 5000, bytes - 5000); 2]);
        assert_eq!(asked[4..], [(second + 5003, bytes - 5003)]);
    }

    #[test]
    fn a_write_of_which_a_part_is_done_is_not_called_undone() {
        let busy = || Some(Err(Refusal::new(Status::Busy, "")));
        // Of the first message nothing, a part, or all.
        let refused = Trouble::Refused(Status::Timeout);
        let firsts = [(None, refused), (Some(1), Trouble::Partly), (Some(2), Trouble::Partly)];
        let fill = |first: Option<u32>| {
            let mut first = first.map(|bytes| match bytes {
                1 => DataReply::Part { bytes },
                _ => DataReply::Done,
            });
            let mut block = fake::linked(move |_| first.take().map_or_else(busy, |r| Some(Ok(r))));
            block.timeout_ms = 20;
            block.fill(Piece { cell: 0, bytes: DATA_BYTES_MAX + 1, committed: 1 << 20 }, 7)
        };
        for (first, trouble) in firsts {
            // Where the time is over just while the daemon is asked, nobody knows.
            let known = (0..100).map(|_| fill(first)).find(|end| *end != Err(Trouble::Late));
            assert_eq!(known, Some(Err(trouble)));
        }
        assert_eq!(Trouble::Partly.status(), Status::Timeout);
        // Nor is time without an end for who is told again and again that nothing is done yet.
        let mut block = fake::linked(|_| Some(Ok(DataReply::Part { bytes: 0 })));
        block.timeout_ms = 20;
        assert!(matches!(block.fill(WORD, 7), Err(Trouble::Partly | Trouble::Late)));
    }

    /// Done twice, a change of a word is another.
    #[test]
    fn a_change_of_a_word_whose_answer_is_missing_is_not_called_undone() {
        let block = fake::linked(|_| None);
        assert_eq!(block.change(WORD, Change::Add(1)), Err(Trouble::Unsure));
        // This one was certainly not sent.
        assert_eq!(block.change(WORD, Change::Add(1)), Err(Trouble::Unlinked));
        let block = fake::linked(|_| None);
        assert_eq!(block.change(WORD, Change::None), Err(Trouble::Unlinked));
    }

    /// A daemon that has no room for a link closes it: its bytes are asked for through the broker.
    #[test]
    fn links_that_are_never_of_use_are_not_asked_for_again_and_again() {
        let links = LinkTable::default();
        for place in 0..3 {
            assert!(links.are_of_use(), "after {place}");
            let (ours, theirs) = dmce_sys::socket::Socket::pair().unwrap();
            let block = fake::link_to(&links, ours);
            drop(theirs);
            assert_eq!(get(&block), Err(Trouble::Unlinked));
        }
        assert!(!links.are_of_use());
    }

    /// A block whose daemon does not answer until the sender is dropped.
    fn silent() -> (std::sync::mpsc::Sender<()>, AskedBlock) {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let mut block = fake::linked(move |_| {
            let _ = receiver.recv();
            Some(Ok(DataReply::Done))
        });
        block.timeout_ms = 1;
        (sender, block)
    }

    #[test]
    fn what_was_sent_and_changes_something_is_not_called_undone() {
        let late = |block: &AskedBlock, change| block.change(WORD, change).unwrap_err();
        let exchange = Change::Exchange { expected: 0, desired: 1 };
        let (_open, block) = silent();
        assert_eq!(late(&block, Change::Add(1)), Trouble::Late);
        let (_open, block) = silent();
        assert_eq!(late(&block, exchange), Trouble::Late);
        let (_open, block) = silent();
        assert_eq!(block.fill(WORD, 0), Err(Trouble::Late));
        // This changes nothing, whenever it is done.
        let (_open, block) = silent();
        assert_eq!(late(&block, Change::None), Trouble::Refused(Status::Timeout));
        assert_eq!(Trouble::Late.status(), Status::Timeout);
        assert!(Trouble::Late.to_string().contains("may be done yet"));
        for trouble in [Trouble::Silent, Trouble::Unsure] {
            assert_eq!(trouble.status(), Status::Io);
            let text = trouble.to_string();
            assert!(text.contains("may have been changed") && !text.contains("died"), "{text}");
        }
    }

    #[test]
    fn who_gets_no_answer_in_time_has_the_link_closed() {
        let (sender, block) = silent();
        assert_eq!(get(&block), Err(Trouble::Refused(Status::Timeout)));
        assert_eq!(get(&block), Err(Trouble::Unlinked));
        drop(sender);
    }
}
