//! What a daemon that starts makes of the objects that are there: section 7 of
//! `docs/shared-memory.md`.
//!
//! # Invariants
//!
//! 1. Removed is only what nobody can have been told of, or what nobody can use: a pool object,
//!    data without a header, a header that was never ready, a header without data.
//! 2. What is not ours, or was whole once and is not right now, is left and reported; so is its
//!    counterpart, which may be all that is left of a block.
//! 3. An object that could not be looked at ends the adoption: to go on would be to lose blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use dmce_abi::AddrLayout;
use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_shm::header::{self, BlockHeader, HeaderError};
use dmce_sys::object::{self, ObjectError};

use super::block::{self, Data};
use super::folder::{Folder, Found, Own};

/// What was found.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The blocks.
    pub blocks: BTreeMap<BlockId, (BlockHeader, Data)>,
    /// Those of them that were larger than they may be, and the bytes that they had. They have been
    /// cut back.
    pub excess: Vec<(BlockId, u64)>,
    /// What was left as it is.
    pub foreign: Vec<Foreign>,
}

/// An object that was left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// Cells as wide as any layout has them: how far a block may reach is the broker's to know.
const ANY_LAYOUT: AddrLayout = match AddrLayout::new(8, 8, 48) {
    Ok(layout) => layout,
    Err(_) => panic!("the widths sum to 64"),
};

/// Looks at every object of this daemon.
///
/// # Errors
///
/// [`ObjectError`] if one could not be looked at or removed.
pub fn adopt(folder: &Folder) -> Result<Adopted, ObjectError> {
    let mut adopted = Adopted::default();
    let mut blocks = BTreeSet::new();
    for name in folder.names()? {
        match folder.kind_of(&name) {
            Some(ObjectKind::Lock) => {}
            Some(kind @ ObjectKind::Pool(_)) => match folder.look(kind)? {
                Found::Own(_) => folder.unlink(kind)?,
                found => adopted.leave(folder, kind, &found, ""),
            },
            Some(kind @ (ObjectKind::Data(id) | ObjectKind::Header(id))) => {
                match BlockId::try_from(id) {
                    Ok(block) => _ = blocks.insert(block),
                    Err(error) => adopted.report(folder.name(kind), error.to_string()),
                }
            }
            _ => adopted.report(name, "no daemon makes an object of this name"),
        }
    }
    for block in blocks {
        adopted.take(folder, block)?;
    }
    Ok(adopted)
}

impl Adopted {
    /// Decides about the objects of one block.
    fn take(&mut self, folder: &Folder, block: BlockId) -> Result<(), ObjectError> {
        let (data_kind, head_kind) = kinds(block);
        match (folder.look(data_kind)?, folder.look(head_kind)?) {
            (Found::Own(data), Found::Missing) => block::clear(folder, block, data.stat.inode),
            (data @ (Found::Own(_) | Found::Missing), Found::Own(head)) => {
                match read_header(folder, block, &head) {
                    Ok(header) => self.take_ready(folder, header, data),
                    Err(HeaderError::Object(error)) => Err(error),
                    Err(error) if error.is_removable() => {
                        folder.unlink(head_kind)?;
                        remove(folder, block, &data)
                    }
                    Err(error) => {
                        self.leave(folder, head_kind, &Found::Own(head), &error.to_string());
                        self.leave(folder, data_kind, &data, "its header cannot be used");
                        Ok(())
                    }
                }
            }
            (data, head) => {
                self.leave(folder, head_kind, &head, "its data is not ours");
                self.leave(folder, data_kind, &data, "its header is not ours");
                Ok(())
            }
        }
    }

    /// A block whose header is right.
    fn take_ready(
        &mut self,
        folder: &Folder,
        header: BlockHeader,
        data: Found,
    ) -> Result<(), ObjectError> {
        let block = header.description.block;
        let Found::Own(data) = data else {
            return folder.unlink(ObjectKind::Header(block.get()));
        };
        let found = data.stat.bytes;
        let bytes = (found - found % PAGE_BYTES).min(header.description.bytes_max);
        if found > bytes {
            object::truncate(data.as_fd(), bytes)?;
            self.excess.push((block, found));
        }
        self.blocks.insert(block, (header, Data { inode: data.stat.inode, bytes }));
        Ok(())
    }

    /// Leaves an object that is there: for its own fault, or else for `reason`.
    fn leave(&mut self, folder: &Folder, kind: ObjectKind, found: &Found, reason: &str) {
        match found {
            Found::Missing => {}
            Found::Own(_) => self.report(folder.name(kind), reason),
            Found::Foreign { reason } => self.report(folder.name(kind), *reason),
        }
    }

    fn report(&mut self, object: String, reason: impl Into<String>) {
        self.foreign.push(Foreign { object, reason: reason.into() });
    }
}

fn kinds(block: BlockId) -> (ObjectKind, ObjectKind) {
    (ObjectKind::Data(block.get()), ObjectKind::Header(block.get()))
}

fn remove(folder: &Folder, block: BlockId, data: &Found) -> Result<(), ObjectError> {
    match data {
        Found::Own(data) => block::clear(folder, block, data.stat.inode),
        _ => Ok(()),
    }
}

/// The header, which must be that of this daemon and this block.
fn read_header(folder: &Folder, block: BlockId, head: &Own) -> Result<BlockHeader, HeaderError> {
    let header = header::read(head.as_fd(), ANY_LAYOUT)?;
    let (its_daemon, its_block) = (header.daemon, header.description.block);
    if its_daemon != folder.daemon() || its_block != block {
        let why = format!("it is of block {its_block} of daemon {its_daemon}");
        return Err(HeaderError::Damaged { why });
    }
    Ok(header)
}
