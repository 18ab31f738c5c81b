//! The pages of a block: their lock words, and their bytes on all good copies.

use std::os::fd::AsFd;

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_shm::lock::{LockBits, LockState, PageCondition};
use dmce_shm::table::{LockTableHeader, covered_bytes, word_offset};
use dmce_sys::object::{self, ObjectError};

use super::blocks::Copy;
use super::difference::LockFault;
use super::objects::{BROKER, Objects};
use super::sessions::Sessions;
use super::{Checked, Difference};

const WORD_BYTES: usize = 8;
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);
/// Bytes that are read at a time.
const STEP_BYTES: usize = 256 * PAGE;

/// A block that is looked at.
pub struct Looked<'a> {
    pub objects: &'a Objects,
    pub sessions: &'a Sessions,
    pub block: BlockId,
    pub guid: Guid,
}

impl Looked<'_> {
    /// Looks at the lock words, and compares the bytes of all pages that are at rest.
    pub fn check(&self, good: &[Copy], checked: &mut Checked) -> Result<(), ObjectError> {
        let differences = &mut checked.differences;
        let block = self.block;
        let bytes = good.iter().map(|copy| copy.bytes).min().unwrap_or(0);
        let count = bytes.div_ceil(PAGE_BYTES);
        let words = match self.words(bytes)? {
            Ok(words) => words,
            Err(why) => {
                differences.push(Difference::Table { block, why });
                Vec::new()
            }
        };
        let mut at_rest = Vec::new();
        for page in 0..count {
            let place = usize::try_from(page).expect("a block in memory has few pages");
            let bits = LockBits::of_word(words.get(place).copied().unwrap_or(0));
            match self.condition(bits) {
                Ok(is_held) => {
                    checked.under_way += u64::from(is_held);
                    // What differs on purpose is no fault.
                    at_rest.push(!is_held && !bits.is_detached());
                }
                Err(condition) => {
                    differences.push(Difference::Lock { block, page, condition });
                    // What differs there is said already.
                    at_rest.push(false);
                }
            }
        }
        let Some((first, others)) = good.split_first() else { return Ok(()) };
        for other in others {
            for page in differing(first, other, bytes)? {
                let place = usize::try_from(page).expect("a block in memory has few pages");
                if at_rest[place] {
                    let (one, other) = (first.daemon, other.daemon);
                    differences.push(Difference::Bytes { block, page, one, other });
                }
            }
        }
        checked.compared += if others.is_empty() { 0 } else { count };
        Ok(())
    }

    /// The words of all pages, or why there are none.
    fn words(&self, bytes: u64) -> Result<Result<Vec<u64>, String>, ObjectError> {
        let kind = ObjectKind::LockTable(self.block.get());
        let Some(fd) = self.objects.open(BROKER, kind)? else {
            return Ok(Err("there is none".to_owned()));
        };
        let length = object::stat(fd.as_fd())?.bytes;
        let identity = match LockTableHeader::read(fd.as_fd()) {
            Ok(header) => header.identity().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(why) => return Ok(Err(why)),
        };
        if (identity.block, identity.guid) != (self.block, self.guid) {
            return Ok(Err("it is another block's".to_owned()));
        }
        if covered_bytes(length) < bytes {
            return Ok(Err(format!("{length} bytes have no words for {bytes} of the block")));
        }
        let pages = usize::try_from(bytes.div_ceil(PAGE_BYTES)).expect("few pages");
        let mut words = vec![0; pages * WORD_BYTES];
        object::read_at(fd.as_fd(), &mut words, word_offset(0))?;
        let (words, _) = words.as_chunks::<WORD_BYTES>();
        Ok(Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
    }

    /// Whether somebody who lives holds the page and says so; else what is wrong with it, if it is
    /// not at rest.
    fn condition(&self, bits: LockBits) -> Result<bool, LockFault> {
        match (bits.state(), bits.condition()) {
            (LockState::Free, PageCondition::Whole) => Ok(false),
            (LockState::Free, PageCondition::Torn) => Err(LockFault::Odd),
            (LockState::Repair, _) => Err(LockFault::UnderRepair),
            (LockState::Lost, _) => Err(LockFault::Lost),
            (LockState::Held(owner), _) => {
                let session = owner.session().map_or(0, SessionId::get);
                let slot = owner.slot();
                match self.sessions.has_intent(session, slot) {
                    Some(true) => Ok(true),
                    Some(false) => Err(LockFault::NoIntent { session, slot }),
                    None => Err(LockFault::Dead { session, slot }),
                }
            }
        }
    }
}

/// The pages of two copies that differ, in so many bytes.
fn differing(one: &Copy, other: &Copy, bytes: u64) -> Result<Vec<u64>, ObjectError> {
    let mut pages = Vec::new();
    let (mut here, mut there) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    for at in (0..bytes).step_by(STEP_BYTES) {
        let rest = usize::try_from(bytes - at).map_or(STEP_BYTES, |rest| rest.min(STEP_BYTES));
        object::read_at_most(one.data.as_fd(), &mut here[..rest], at)?;
        object::read_at_most(other.data.as_fd(), &mut there[..rest], at)?;
        let pairs = here[..rest].chunks(PAGE).zip(there[..rest].chunks(PAGE));
        let numbered = (at / PAGE_BYTES..).zip(pairs);
        pages.extend(numbered.filter(|(_, (here, there))| here != there).map(|(page, _)| page));
    }
    Ok(pages)
}
