//! The broker's side of a session object: two kinds of `pwrite`, and copies by `pread`.
//!
//! # Invariants
//!
//! 1. Nothing here maps the object. A client that truncates it gets an error into the broker's log
//!    and nothing else; one that enlarges it is found by [`SessionObject::check_size`].
//! 2. Between [`SessionObject::publish`] and [`SessionObject::marks`] the broker issues the heavy
//!    half of the fence ([`Fence::heavy_host`]), once for all the sessions that it published to.
//!
//! Is a `pwrite` of the generation atomic enough? It goes into the same page that the client has
//! mapped. The client compares the word with the one it knows and does nothing else with it; while
//! the kernel copies, it may see the old word, the new one, or a mixture, and whatever is not the
//! old one makes it ask the broker. When `pwrite` has returned the word is whole, and the fence
//! that follows orders it before the look at the marks.

use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::block::DaemonId;
use zerocopy::{FromZeros, IntoBytes};

use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectError};

use super::pin::{self, Pin, PinClaim};
use super::{
    BARRIER_MEMBARRIER, PINS_OFFSET, SESSION_BYTES, SLOTS_OFFSET, SessionIdentity, SessionPage,
    UNDO_BYTES, UNDO_OFFSET, UNDO_READY,
};
use crate::atomic::{Ordering, fence};
use crate::fence::Fence;
use crate::slot::intent::IntentClaim;
use crate::slot::{self, Marks, Slot};

/// More than this is never held by an object of [`SESSION_BYTES`], with huge pages either.
const ALLOCATED_BYTES_MAX: u64 = 2 << 20;

const SLOTS_RANGE: Range<usize> = SLOTS_OFFSET..PINS_OFFSET;
const PINS_RANGE: Range<usize> = PINS_OFFSET..UNDO_OFFSET;

/// A session object, as the broker holds it.
#[derive(Debug)]
pub struct SessionObject {
    fd: OwnedFd,
}

/// What a client says that it uses: shown, never believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageClaim {
    /// Bytes in allocations.
    pub bytes_in_use: u64,
    /// Bytes free in its blocks.
    pub bytes_free: u64,
    /// Allocations.
    pub allocations: u64,
    /// Operations of all slots.
    pub operations: u64,
}

/// Why a session object could not be made, or tells nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum SessionError {
    /// The client changed its size, or made it hold more.
    #[error(
        "the session object has {bytes} bytes and holds {allocated_bytes}, not {SESSION_BYTES}"
    )]
    Resized { bytes: u64, allocated_bytes: u64 },
    /// Its client relies on barriers that this broker cannot issue.
    #[error("the session was set up with membarrier, which this broker cannot use")]
    Barrier,
    /// It could not be read or written; [`ObjectError::Short`] if the client cut it.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl SessionObject {
    /// Writes the session object into a new, empty object. All of it but the undo buffers is
    /// written, so it is committed, and no store of the client there can fail.
    ///
    /// `fence` is what the broker uses after [`SessionObject::publish`] for as long as the session
    /// lives; the client reads it from the object.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`], with no space among them.
    pub fn create(
        fd: OwnedFd,
        identity: SessionIdentity,
        fence: Fence,
    ) -> Result<Self, SessionError> {
        let mut front = vec![0; UNDO_OFFSET];
        let page = SessionPage::new(identity, fence);
        front[..size_of::<SessionPage>()].copy_from_slice(page.as_bytes());
        object::write_at(fd.as_fd(), &front, 0)?;
        object::truncate(fd.as_fd(), SESSION_BYTES)?;
        point(Point::SessionWritten);
        Ok(Self { fd })
    }

    /// Takes up the object of a session whose record was believed.
    ///
    /// # Errors
    ///
    /// [`SessionError::Resized`], [`SessionError::Barrier`], [`SessionError::Object`]: the session
    /// cannot go on.
    pub fn open(fd: OwnedFd, fence: Fence) -> Result<Self, SessionError> {
        let object = Self { fd };
        object.check_size()?;
        let mut page = SessionPage::new_zeroed();
        object::read_at(object.as_fd(), page.as_mut_bytes(), 0)?;
        if page.barrier == BARRIER_MEMBARRIER && fence != Fence::Asymmetric {
            return Err(SessionError::Barrier);
        }
        Ok(object)
    }

    /// Commits the undo buffers, then says so: before the session has a block with copies.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`], with no space among them.
    pub fn commit_undo(&self) -> Result<(), SessionError> {
        object::commit(self.as_fd(), UNDO_OFFSET as u64, SESSION_BYTES - UNDO_OFFSET as u64)?;
        point(Point::UndoCommitted);
        let ready = UNDO_READY.to_le_bytes();
        object::write_at(self.as_fd(), &ready, offset_of!(SessionPage, undo_ready) as u64)?;
        point(Point::UndoReady);
        Ok(())
    }

    /// Stores the generation. After the heavy half of the fence every operation either sees it or
    /// is in the marks.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn publish(&self, generation: u64) -> Result<(), SessionError> {
        let bytes = generation.to_le_bytes();
        object::write_at(self.as_fd(), &bytes, offset_of!(SessionPage, generation) as u64)?;
        point(Point::GenerationPublished);
        Ok(())
    }

    /// The generation that the object shows. A broker that comes back goes on from there; a client
    /// that wrote another number has misled itself alone.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn generation(&self) -> Result<u64, SessionError> {
        let mut bytes = [0; 8];
        object::read_at(self.as_fd(), &mut bytes, offset_of!(SessionPage, generation) as u64)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The marks now, and whether an operation has left its intent behind.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn marks(&self) -> Result<Marks, SessionError> {
        let slots = self.copy(SLOTS_RANGE)?;
        Ok(Marks::of_copies(&slots, &self.copy(SLOTS_RANGE)?))
    }

    /// What the slots were changing, by slot. After the client's death: to a living one an intent
    /// belongs alone. Also of a slot that is not marked any more: an operation that could not come
    /// to an end leaves its intent.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn intents(&self) -> Result<Vec<(u8, IntentClaim)>, SessionError> {
        let slots = self.copy(SLOTS_RANGE)?;
        let copies = (0..=u8::MAX).zip(slots.chunks_exact(size_of::<Slot>()));
        Ok(copies.filter_map(|(slot, copy)| Some((slot, IntentClaim::of_copy(copy)?))).collect())
    }

    /// What those slots were changing that are in no operation, of a session whose client may live:
    /// its operations that could not come to an end. And whether no slot is in an operation.
    ///
    /// It has ended, and its generation was published after that: so what begins now ends before it
    /// has an intent.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn abandoned_intents(&self) -> Result<(Vec<(u8, IntentClaim)>, bool), SessionError> {
        // The marks first: a slot that was even then has no intent anymore that it would clear.
        let marks = self.marks()?;
        let in_flight: Vec<usize> = marks.in_flight().collect();
        let mut intents = self.intents()?;
        intents.retain(|(slot, _)| !in_flight.contains(&usize::from(*slot)));
        Ok((intents, in_flight.is_empty()))
    }

    /// Takes the intent of a slot away, when it was repaired.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn clear_intent(&self, slot: u8) -> Result<(), SessionError> {
        let offset = SLOTS_OFFSET + usize::from(slot) * size_of::<Slot>() + Slot::INTENT_BYTES;
        object::write_at(self.as_fd(), &[0; 8], offset as u64)?;
        point(Point::RepairEnded);
        Ok(())
    }

    /// Says in a slot of a client that is gone that bytes are brought from the copy of `first` to
    /// all others: the broker does so for its pointers. The slot has no intent, or the same, with
    /// another first copy.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn intend_to_carry(
        &self,
        slot: u8,
        (addr, bytes): (u64, u64),
        first: DaemonId,
    ) -> Result<(), SessionError> {
        let at = SLOTS_OFFSET + usize::from(slot) * size_of::<Slot>();
        for (offset, value) in Slot::carrying(addr, bytes, first) {
            object::write_at(self.as_fd(), &value, (at + offset) as u64)?;
        }
        point(Point::CarryIntended);
        Ok(())
    }

    /// The beginning of a slot's undo buffer.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    ///
    /// # Panics
    ///
    /// If `into` is longer than [`UNDO_BYTES`].
    pub fn undo(&self, slot: u8, into: &mut [u8]) -> Result<(), SessionError> {
        assert!(into.len() <= UNDO_BYTES, "an undo buffer has {UNDO_BYTES} bytes");
        let offset = UNDO_OFFSET + usize::from(slot) * UNDO_BYTES;
        object::read_at(self.as_fd(), into, offset as u64)?;
        Ok(())
    }

    /// The pins of a session that somebody else arbitrates: as [`Self::pins`].
    ///
    /// # Errors
    ///
    /// [`SessionError::Resized`], [`SessionError::Object`].
    pub fn pins_of(fd: OwnedFd) -> Result<Vec<PinClaim>, SessionError> {
        let object = Self { fd };
        object.check_size()?;
        object.pins()
    }

    /// The pins now. Who must not miss one asks after the marks have quiesced: a pin is taken
    /// inside an operation.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn pins(&self) -> Result<Vec<PinClaim>, SessionError> {
        let earlier = self.copy(PINS_RANGE)?;
        let later = self.copy(PINS_RANGE)?;
        Ok(pin::claims(&earlier, &later))
    }

    /// Frees a pin of a client that is gone: what its pointer stored is on all copies.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    ///
    /// # Panics
    ///
    /// If there is no such pin.
    pub fn free_pin(&self, pin: u16) -> Result<(), SessionError> {
        let at = PINS_OFFSET + usize::from(pin) * size_of::<Pin>() + Pin::STATE;
        assert!(at < UNDO_OFFSET, "a session has no pin {pin}");
        object::write_at(self.as_fd(), &[0; 4], at as u64)?;
        point(Point::PinCarried);
        Ok(())
    }

    /// What the client says that it uses.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn usage(&self) -> Result<UsageClaim, SessionError> {
        let mut page = SessionPage::new_zeroed();
        object::read_at(self.as_fd(), page.as_mut_bytes(), 0)?;
        Ok(UsageClaim {
            bytes_in_use: page.bytes_in_use.get(),
            bytes_free: page.bytes_free.get(),
            allocations: page.allocations.get(),
            operations: slot::operations_of_copy(&self.copy(SLOTS_RANGE)?),
        })
    }

    /// Looks whether the client changed the object's size, or made it hold more than its size.
    ///
    /// # Errors
    ///
    /// [`SessionError::Resized`]: the session is to be ended. [`SessionError::Object`].
    pub fn check_size(&self) -> Result<(), SessionError> {
        let stat = object::stat(self.as_fd())?;
        let (bytes, allocated_bytes) = (stat.bytes, stat.allocated_bytes);
        if bytes != SESSION_BYTES || allocated_bytes > ALLOCATED_BYTES_MAX {
            return Err(SessionError::Resized { bytes, allocated_bytes });
        }
        Ok(())
    }

    /// Takes away what the client added. What a session may use, and what is missing, stays so.
    ///
    /// # Errors
    ///
    /// [`SessionError::Object`].
    pub fn cut(&self) -> Result<(), SessionError> {
        if object::stat(self.as_fd())?.bytes >= SESSION_BYTES {
            object::truncate(self.as_fd(), SESSION_BYTES)?;
        }
        Ok(())
    }

    fn copy(&self, range: Range<usize>) -> Result<Vec<u8>, SessionError> {
        let mut copy = vec![0; range.len()];
        object::read_at(self.as_fd(), &mut copy, range.start as u64)?;
        // Acquire pairs with the releases of marks and of pins' states; the copy orders nothing.
        fence(Ordering::Acquire);
        Ok(copy)
    }
}

impl AsFd for SessionObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
