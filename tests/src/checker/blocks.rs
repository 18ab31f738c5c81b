//! Which copies of a block there are, and which of them are good.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, Membership, Owner};
use dmce_abi::name::ObjectKind;
use dmce_shm::header::{self, HeaderError};
use dmce_shm::table::LockTableHeader;
use dmce_sys::object::{self, ObjectError};

use super::objects::{BROKER, Objects};
use super::sessions::Sessions;
use super::{Checked, Difference, pages};

/// As wide as any layout has them: how far a block may reach is not looked at here.
const ANY_LAYOUT: AddrLayout = match AddrLayout::new(8, 8, 48) {
    Ok(layout) => layout,
    Err(_) => panic!("the widths sum to 64"),
};

/// A copy of a block.
pub struct Copy {
    pub daemon: DaemonId,
    pub data: OwnedFd,
    pub bytes: u64,
    description: BlockDescription,
}

/// All copies of each block.
type Blocks = BTreeMap<(BlockId, Guid), Vec<Copy>>;

/// Compares all copies of all blocks.
pub fn check(
    objects: &Objects,
    sessions: &Sessions,
    checked: &mut Checked,
) -> Result<(), ObjectError> {
    let mut blocks = Blocks::new();
    for daemon in objects.daemons() {
        read_daemon(objects, daemon, &mut blocks, &mut checked.differences)?;
    }
    for kind in objects.of(BROKER) {
        if let ObjectKind::LockTable(id) = kind
            && !has_table(objects, id, &blocks)?
        {
            checked.differences.push(objects.leftover(BROKER, kind, "there is no block of it"));
        }
    }
    for ((block, guid), copies) in blocks {
        let (good, stale) = judge(block, copies, &mut checked.differences);
        checked.blocks += 1;
        checked.good += good.len();
        checked.stale += stale;
        let Some(first) = good.first() else { continue };
        let owner = &first.description.owner;
        if let Owner::Session { session, ticket, .. } = owner
            && !sessions.has(*session, ticket.session)
        {
            let (daemon, kind) = (first.daemon.get(), ObjectKind::Header(block.get()));
            checked.differences.push(objects.leftover(daemon, kind, "its session does not live"));
        }
        if owner.copies() > 1 {
            let looked = pages::Looked { objects, sessions, block, guid };
            checked.compared += looked.check(&good, &mut checked.differences)?;
        }
    }
    Ok(())
}

/// Reads the headers of a daemon.
fn read_daemon(
    objects: &Objects,
    daemon: u32,
    blocks: &mut Blocks,
    differences: &mut Vec<Difference>,
) -> Result<(), ObjectError> {
    for kind in objects.of(daemon) {
        match kind {
            ObjectKind::Data(id) if !objects.has(daemon, ObjectKind::Header(id)) => {
                differences.push(objects.leftover(daemon, kind, "there is no header"));
            }
            ObjectKind::Header(id) if !objects.has(daemon, ObjectKind::Data(id)) => {
                differences.push(objects.leftover(daemon, kind, "there are no data"));
            }
            ObjectKind::Header(id) => match read_copy(objects, daemon, id)? {
                Ok(Some(copy)) => {
                    let description = &copy.description;
                    let key = (description.block, description.guid);
                    blocks.entry(key).or_default().push(copy);
                }
                Ok(None) => {}
                Err(difference) => differences.push(difference),
            },
            ObjectKind::Data(_) | ObjectKind::Pool(_) | ObjectKind::Lock => {}
            ObjectKind::Session(_) | ObjectKind::Record(_) | ObjectKind::LockTable(_) => {
                differences.push(objects.leftover(daemon, kind, "no daemon makes one"));
            }
        }
    }
    Ok(())
}

/// A copy, or none if it has gone meanwhile.
fn read_copy(
    objects: &Objects,
    daemon: u32,
    id: u32,
) -> Result<Result<Option<Copy>, Difference>, ObjectError> {
    let kind = ObjectKind::Header(id);
    let Some(head) = objects.open(daemon, kind)? else { return Ok(Ok(None)) };
    let header = match header::read(head.as_fd(), ANY_LAYOUT) {
        Ok(header) => header,
        Err(HeaderError::Object(error)) => return Err(error),
        Err(error) => return Ok(Err(objects.unsound(daemon, kind, &error))),
    };
    let description = header.description;
    if (header.daemon.get(), description.block.get()) != (daemon, id) {
        return Ok(Err(objects.unsound(daemon, kind, &"it is another block's, or daemon's")));
    }
    let Some(data) = objects.open(daemon, ObjectKind::Data(id))? else { return Ok(Ok(None)) };
    let bytes = object::stat(data.as_fd())?.bytes;
    Ok(Ok(Some(Copy { daemon: header.daemon, data, bytes, description })))
}

/// Whether the block is there of which a lock table says that it is its.
fn has_table(objects: &Objects, id: u32, blocks: &Blocks) -> Result<bool, ObjectError> {
    let Some(fd) = objects.open(BROKER, ObjectKind::LockTable(id))? else { return Ok(true) };
    // One that says nothing is the block's to complain of, if there is one.
    let identity = LockTableHeader::read(fd.as_fd()).ok().and_then(|header| header.identity().ok());
    Ok(blocks.keys().any(|(block, guid)| {
        block.get() == id && identity.is_none_or(|identity| identity.guid == *guid)
    }))
}

/// The good copies, the primary first, and how many are stale.
fn judge(
    block: BlockId,
    mut copies: Vec<Copy>,
    differences: &mut Vec<Difference>,
) -> (Vec<Copy>, usize) {
    let epoch = copies.iter().map(|copy| copy.description.epoch).max().unwrap_or(0);
    let highest = copies.iter().filter(|copy| copy.description.epoch == epoch);
    let mut named: Option<(DaemonId, Vec<DaemonId>)> = None;
    for copy in highest {
        let says = copy.description.membership.daemons(copy.daemon);
        match &named {
            None => named = Some((copy.daemon, says)),
            Some((_, named)) if *named == says => {}
            Some((one, _)) => {
                let (one, other) = (*one, copy.daemon);
                differences.push(Difference::Contradiction { block, one, other });
            }
        }
    }
    let named = named.map_or_else(Vec::new, |(_, named)| named);
    let mut good: Vec<Copy> = Vec::new();
    for daemon in named {
        match copies.iter().position(|copy| copy.daemon == daemon) {
            Some(place) => good.push(copies.swap_remove(place)),
            None => differences.push(Difference::Missing { block, epoch, daemon }),
        }
    }
    if let Some((first, others)) = good.split_first() {
        let essence = |copy: &Copy| {
            // These change, or are each copy's own.
            let membership = Membership::alone();
            BlockDescription { epoch, membership, ..copy.description.clone() }
        };
        for other in others.iter().filter(|other| essence(other) != essence(first)) {
            let (one, other) = (first.daemon, other.daemon);
            differences.push(Difference::Contradiction { block, one, other });
        }
        // Another block may be longer than it says to anybody: it grew for nobody.
        let is_region = matches!(first.description.owner, Owner::Region(_));
        for other in others.iter().filter(|other| is_region && other.bytes != first.bytes) {
            let (one, other) = ((first.daemon, first.bytes), (other.daemon, other.bytes));
            differences.push(Difference::Length { block, one, other });
        }
    }
    (good, copies.len())
}
