//! What a daemon makes of objects that are there and that it did not make: section 7 of
//! `docs/shared-memory.md`. It looks when it starts, before each report, and when the broker has
//! made a block of what it was lent.
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
use dmce_abi::block::{BlockDescription, BlockId, DaemonId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_shm::header::{self, BlockHeader, HeaderError};
use dmce_sys::crash::{Point, point};
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
    /// Copies of which the header is there alone. It says which copies are the good ones by now, to
    /// a broker that would take an older one for good.
    pub bare: Vec<BlockDescription>,
    /// What was left as it is.
    pub foreign: Vec<Foreign>,
    /// Blocks that were made once: they have a header, or something under its name, and not both
    /// objects as they should be.
    pub damaged: Vec<BlockId>,
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

/// Looks at every object of this daemon, which has none yet.
///
/// # Errors
///
/// [`ObjectError`] if one could not be looked at or removed.
pub fn adopt(folder: &Folder) -> Result<Adopted, ObjectError> {
    let mut adopted = Adopted::default();
    for name in folder.names()? {
        if let Some(kind @ ObjectKind::Pool(_)) = folder.kind_of(&name) {
            match folder.look(kind)? {
                Found::Own(_) => {
                    folder.unlink(kind)?;
                    point(Point::PoolRemoved);
                }
                found => adopted.leave(folder, kind, &found, ""),
            }
        }
    }
    adopted.take_others(folder, |_| false)?;
    Ok(adopted)
}

/// Looks at the objects of blocks that are not known: a broker that is no more may have made them
/// of what it was lent.
///
/// # Errors
///
/// As [`adopt`].
pub fn adopt_unknown(
    folder: &Folder,
    is_known: impl Fn(BlockId) -> bool,
) -> Result<Adopted, ObjectError> {
    let mut adopted = Adopted::default();
    adopted.take_others(folder, is_known)?;
    Ok(adopted)
}

/// Looks at the objects of a block that the broker says it has made.
///
/// # Errors
///
/// As [`adopt`].
pub fn adopt_one(folder: &Folder, block: BlockId) -> Result<Adopted, ObjectError> {
    let mut adopted = Adopted::default();
    adopted.take(folder, block)?;
    Ok(adopted)
}

/// What the header of a block says now; `None` if there is none.
///
/// # Errors
///
/// [`HeaderError`] of one that cannot be read, or is not this daemon's.
pub fn header_of(folder: &Folder, block: BlockId) -> Result<Option<BlockHeader>, HeaderError> {
    match folder.look(ObjectKind::Header(block.get()))? {
        Found::Own(head) => read_header(folder.daemon(), block, &head).map(Some),
        Found::Missing => Ok(None),
        found @ Found::Foreign { .. } => {
            let why = format!("{found:?} has its name");
            Err(HeaderError::Damaged { why })
        }
    }
}

/// Removes a block that is not known, whole or not. What is damaged is left.
///
/// # Errors
///
/// As [`adopt`].
pub fn remove_unknown(folder: &Folder, block: BlockId) -> Result<(), ObjectError> {
    let found = adopt_one(folder, block)?;
    if found.blocks.contains_key(&block) || !found.bare.is_empty() {
        let (data_kind, head_kind) = kinds(block);
        folder.unlink(head_kind)?;
        remove(folder, block, &folder.look(data_kind)?)?;
    }
    Ok(())
}

impl Adopted {
    /// Decides about all objects but those of the pool, and those of blocks that are known.
    fn take_others(
        &mut self,
        folder: &Folder,
        is_known: impl Fn(BlockId) -> bool,
    ) -> Result<(), ObjectError> {
        let mut blocks = BTreeSet::new();
        for name in folder.names()? {
            match folder.kind_of(&name) {
                Some(ObjectKind::Lock | ObjectKind::Pool(_)) => {}
                Some(kind @ (ObjectKind::Data(id) | ObjectKind::Header(id))) => {
                    match BlockId::try_from(id) {
                        Ok(block) => _ = blocks.insert(block),
                        Err(error) => self.report(folder.name(kind), error.to_string()),
                    }
                }
                _ => self.report(name, "no daemon makes an object of this name"),
            }
        }
        blocks.retain(|block| !is_known(*block));
        blocks.into_iter().try_for_each(|block| self.take(folder, block))
    }

    /// Decides about the objects of one block.
    fn take(&mut self, folder: &Folder, block: BlockId) -> Result<(), ObjectError> {
        let (data_kind, head_kind) = kinds(block);
        match (folder.look(data_kind)?, folder.look(head_kind)?) {
            (Found::Own(data), Found::Missing) => block::clear(folder, block, data.stat.inode),
            (data @ (Found::Own(_) | Found::Missing), Found::Own(head)) => {
                match read_header(folder.daemon(), block, &head) {
                    Ok(header) => self.take_ready(folder, header, data),
                    Err(HeaderError::Object(error)) => Err(error),
                    Err(error) if error.is_removable() => {
                        folder.unlink(head_kind)?;
                        remove(folder, block, &data)
                    }
                    Err(error) => {
                        self.damaged.push(block);
                        self.leave(folder, head_kind, &Found::Own(head), &error.to_string());
                        self.leave(folder, data_kind, &data, "its header cannot be used");
                        Ok(())
                    }
                }
            }
            (data, head) => {
                if !matches!(head, Found::Missing) {
                    self.damaged.push(block);
                }
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
            if header.description.has_locks() {
                self.bare.push(header.description);
                return Ok(());
            }
            self.damaged.push(block);
            return folder.unlink(ObjectKind::Header(block.get()));
        };
        let found = data.stat.bytes;
        let bytes = (found - found % PAGE_BYTES).min(header.description.bytes_max);
        if found > bytes {
            object::truncate(data.as_fd(), bytes)?;
            point(Point::ExcessCut);
            self.excess.push((block, found));
        }
        self.blocks.insert(block, (header, Data { inode: data.stat.inode, bytes }));
        point(Point::BlockAdopted);
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
///
/// # Errors
///
/// As [`header_of`].
pub fn read_header(
    daemon: DaemonId,
    block: BlockId,
    head: &Own,
) -> Result<BlockHeader, HeaderError> {
    let header = header::read(head.as_fd(), ANY_LAYOUT)?;
    let (its_daemon, its_block) = (header.daemon, header.description.block);
    if its_daemon != daemon || its_block != block {
        let why = format!("it is of block {its_block} of daemon {its_daemon}");
        return Err(HeaderError::Damaged { why });
    }
    Ok(header)
}
