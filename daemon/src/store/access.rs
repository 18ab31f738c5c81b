//! Bytes of blocks, read and written for clients that map nothing.
//!
//! # Invariants
//!
//! 1. Nothing beyond what is committed is touched, and no object grows: its end is looked at before
//!    each write.
//! 2. A request does little: one message's bytes, or one word.
//! 3. A write is done when what is there was compared with what was to be written [0088].
//!
//! 4. What is done to an only copy, without a lock, is done while its header says that it is one:
//!    that is looked at before and after. If it moves by then, what was written is brought to the
//!    other copy.
//!
//! Blocks of several copies, and those that move, are those of [`super::copied`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid, Half};
use dmce_abi::limits::DATA_BYTES_MAX;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::data::{Bytes, DataAnswer, DataReply, DataRequest, Target};
use dmce_sys::object::word::{ObjectWord, WordError};
use dmce_sys::object::{self, ObjectError};
use dmce_sys::transfer::word::WORD_BYTES;

use super::Store;
use super::copied::{self, Unseen};
use super::folder::{Found, Own};
use super::requests::{lost, no_such_block};
use super::stamped::Stamped;

/// Objects that are kept open. When there are as many, all are closed.
const OPEN_MAX: usize = 256;

/// How often a write is tried whose bytes another process writes at the same time.
const WRITES_MAX: u32 = 3;

/// How often it is tried to bring a word to the other copy while somebody writes there.
const LEVELS_MAX: u32 = 64;

/// The objects that were reached of late, by block.
#[derive(Debug, Default)]
pub(super) struct OpenObjects {
    open: HashMap<BlockId, Only>,
}

/// The only copy of a block.
#[derive(Debug)]
struct Only {
    guid: Guid,
    data: Own,
    /// What says that it is; none if that could not be read, which is tried again each time.
    header: Option<Stamped>,
}

impl Only {
    fn is_current(&self) -> bool {
        self.header.as_ref().is_some_and(Stamped::is_current)
    }
}

impl OpenObjects {
    /// A block ends: its memory is not to be held by a descriptor.
    pub(super) fn close(&mut self, block: BlockId) {
        self.open.remove(&block);
    }
}

impl Store {
    /// Does what a client asks for, whose rights were checked.
    ///
    /// # Errors
    ///
    /// `ADDRESS` for bytes that the block has not, or another block's GUID; `LOST`, `IO`,
    /// `INVALID`; `BUSY` of a block of several copies, to be asked again.
    pub fn access(&mut self, request: &DataRequest) -> DataAnswer {
        let at = request.target();
        let bytes = match request {
            DataRequest::Read { bytes, .. }
            | DataRequest::ReadHalf { bytes, .. }
            | DataRequest::Level { bytes, .. } => u64::from(*bytes),
            DataRequest::Write { data, .. } | DataRequest::WriteHalf { data, .. } => {
                data.0.len() as u64
            }
            _ => WORD_BYTES as u64,
        };
        let end = self.end_of(at, bytes)?;
        if self.has_locks(at.block) || self.has_moved(at)? {
            return self.access_copied(request);
        }
        is_first(request)?;
        let only = self.reached(at)?;
        let object = only.data.as_fd();
        // A client that may write may also have cut it. Nothing is to make it longer again.
        match object::end(object) {
            Ok(found) if found >= end => {}
            Ok(_) => return Err(lost(at.block)),
            Err(error) => return Err(refusal(at, &error)),
        }
        let answer = match request {
            DataRequest::Read { .. } | DataRequest::ReadHalf { .. } => read(object, at, bytes),
            DataRequest::Write { data, .. } | DataRequest::WriteHalf { data, .. } => {
                write(object, at, &data.0)
            }
            // The only copy is as itself.
            DataRequest::Level { .. } => Ok(DataReply::Done),
            _ => on_word(object, at, request),
        };
        if only.is_current() { answer } else { self.access_moved(request, answer) }
    }

    /// The copy moves since something was done to it as the only one; or what says so cannot be
    /// read, and could not before.
    fn access_moved(&mut self, request: &DataRequest, answer: DataAnswer) -> DataAnswer {
        let at = request.target();
        let before = self.open_objects.open.remove(&at.block);
        if !request.counts() || answer.is_err() {
            let is_blind = before.is_some_and(|only| only.header.is_none());
            if is_blind && !self.has_locks(at.block) && !self.has_moved(at)? {
                return answer;
            }
            // Done once more, it is the same. If it is not done once more, the copies are equal.
            if let DataRequest::Write { data, .. } | DataRequest::WriteHalf { data, .. } = request {
                let bytes = u32::try_from(data.0.len()).unwrap_or(0);
                self.level_all(at, bytes);
            }
            return Err(Refusal::new(Status::Busy, format!("block {} moves", at.block)));
        }
        // A word is not changed twice: what it is by now is brought to the other copy.
        if self.level_all(at, u32::try_from(WORD_BYTES).unwrap_or(0)) {
            return answer;
        }
        let text = format!("block {} moves; the word may have been changed", at.block);
        Err(Refusal::new(Status::Io, text))
    }

    /// Has the other copy of a block, if there is one by now, have some bytes as the first has
    /// them. `false` if that cannot be.
    fn level_all(&mut self, at: Target, bytes: u32) -> bool {
        for _ in 0..LEVELS_MAX {
            match self.level_moved(at, bytes) {
                Ok(()) => return true,
                Err(refusal) if refusal.status == Status::Busy => thread::yield_now(),
                Err(_) => return false,
            }
        }
        false
    }

    fn level_moved(&mut self, at: Target, bytes: u32) -> Result<(), Refusal> {
        if !self.has_locks(at.block) && !self.has_moved(at)? {
            return Ok(());
        }
        self.access_copied(&DataRequest::Level { at, bytes, half: Half::PRIMARY }).map(|_| ())
    }

    /// Whether the header of an only copy says by now that it moves.
    fn has_moved(&mut self, at: Target) -> Result<bool, Refusal> {
        let Target { block, .. } = at;
        if self.open_objects.open.get(&block).is_some_and(Only::is_current) {
            return Ok(false);
        }
        self.open_objects.close(block);
        // What can be read of it is read when it is reached.
        self.reached(at)?;
        Ok(self.has_locks(block))
    }

    /// The bytes that the object must have, if all that is asked for is committed.
    fn end_of(&self, at: Target, bytes: u64) -> Result<u64, Refusal> {
        let Target { block, guid, cell } = at;
        let held = self.blocks.get(&block).filter(|held| held.header.description.guid == guid);
        let held =
            held.ok_or_else(|| Refusal { status: Status::Address, ..no_such_block(block) })?;
        // Of several copies another may be there: the broker decides.
        if held.condition.is_lost() && !held.header.description.has_locks() {
            return Err(lost(block));
        }
        if bytes > DATA_BYTES_MAX as u64 {
            let text = format!("{bytes} bytes in one message, limit {DATA_BYTES_MAX}");
            return Err(Refusal::new(Status::Invalid, text));
        }
        let committed = held.data.bytes;
        if cell.checked_add(bytes).is_none_or(|end| end > committed) {
            let text =
                format!("{bytes} bytes at {cell:#x} of block {block}, which has {committed}");
            return Err(Refusal::new(Status::Address, text));
        }
        Ok(cell + bytes)
    }

    /// Whether who writes a block locks its pages.
    fn has_locks(&self, block: BlockId) -> bool {
        let held = self.blocks.get(&block);
        held.is_some_and(|held| held.header.description.has_locks())
    }

    /// An only copy, opened unless it is. Its header is read then, and believed.
    fn reached(&mut self, at: Target) -> Result<&Only, Refusal> {
        let Target { block, guid, .. } = at;
        let objects = &self.open_objects.open;
        if objects.get(&block).is_none_or(|only| only.guid != guid) {
            let header = match copied::header(&self.folder, self.folder.daemon(), block) {
                Ok((header, read)) => {
                    self.rewritten(read.description);
                    Some(header)
                }
                Err(Unseen::Damaged(_)) => None,
                Err(Unseen::Undecided(text)) => return Err(Refusal::new(Status::Busy, text)),
            };
            let inode = self.blocks.get(&block).map(|held| held.data.inode);
            let found = self.folder.look(ObjectKind::Data(block.get()));
            let data = match found.map_err(|error| refusal(at, &error))? {
                Found::Own(own) if Some(own.stat.inode) == inode => own,
                _ => return Err(lost(block)),
            };
            let objects = &mut self.open_objects.open;
            if objects.len() >= OPEN_MAX {
                objects.clear();
            }
            objects.insert(block, Only { guid, data, header });
        }
        self.open_objects.open.get(&block).ok_or_else(|| lost(block))
    }
}

/// A block that was asked for with one copy has no other half.
fn is_first(request: &DataRequest) -> Result<(), Refusal> {
    match *request {
        DataRequest::ReadHalf { at, half, .. }
        | DataRequest::WriteHalf { at, half, .. }
        | DataRequest::Level { at, half, .. }
            if half != Half::PRIMARY =>
        {
            Err(no_half(at.block))
        }
        _ => Ok(()),
    }
}

/// The half of a block that is asked for is away.
pub(super) fn no_half(block: BlockId) -> Refusal {
    Refusal::new(Status::NoCopy, format!("that half of block {block} is away"))
}

fn read(object: BorrowedFd<'_>, at: Target, bytes: u64) -> DataAnswer {
    let mut data = vec![0; usize::try_from(bytes).unwrap_or(DATA_BYTES_MAX)];
    object::read_at(object, &mut data, at.cell).map_err(|error| refusal(at, &error))?;
    Ok(DataReply::Bytes(Bytes(data)))
}

fn write(object: BorrowedFd<'_>, at: Target, data: &[u8]) -> DataAnswer {
    let mut found = vec![0; data.len()];
    for _ in 0..WRITES_MAX {
        object::write_at(object, data, at.cell).map_err(|error| refusal(at, &error))?;
        object::read_at(object, &mut found, at.cell).map_err(|error| refusal(at, &error))?;
        if found == data {
            return Ok(DataReply::Done);
        }
    }
    let text = format!("what was written to block {} reads back different", at.block);
    Err(Refusal::new(Status::Io, text))
}

fn on_word(object: BorrowedFd<'_>, at: Target, request: &DataRequest) -> DataAnswer {
    let done = ObjectWord::map(object, at.cell).and_then(|word| match *request {
        DataRequest::Cas64 { expected, desired, .. } => {
            word.compare_exchange(expected, desired).map(DataReply::Word)
        }
        DataRequest::Add64 { add, .. } => word.fetch_add(add).map(DataReply::Word),
        DataRequest::Wake { count, .. } => word.wake(count).map(|()| DataReply::Done),
        _ => word.load().map(DataReply::Word),
    });
    done.map_err(|error| {
        let status = match &error {
            WordError::Unaligned { .. } => Status::Invalid,
            WordError::Gone(_) => return lost(at.block),
            _ => Status::Io,
        };
        Refusal::new(status, format!("block {}: {error}", at.block))
    })
}

fn refusal(at: Target, error: &ObjectError) -> Refusal {
    match error {
        // Cut since its end was looked at; or a page that was given back has no room any more.
        ObjectError::Short { .. } | ObjectError::NoSpace { .. } => lost(at.block),
        error => Refusal::new(Status::Io, format!("block {}: {error}", at.block)),
    }
}
