//! Which copies of a block there are, and which of them are good.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, Role};
use dmce_abi::name::ObjectKind;
use dmce_shm::header::{self, BlockHeader, HeaderError};
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

/// A header whose data are not there.
struct Husk {
    daemon: DaemonId,
    description: BlockDescription,
}

/// What daemons have.
#[derive(Default)]
struct Blocks {
    /// All copies of each block.
    all: BTreeMap<(BlockId, Guid), Vec<Copy>>,
    husks: Vec<Husk>,
}

/// Compares all copies of all blocks.
pub fn check(
    objects: &Objects,
    sessions: &Sessions,
    checked: &mut Checked,
) -> Result<(), ObjectError> {
    let mut blocks = Blocks::default();
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
    for husk in &blocks.husks {
        if blocks.has_outlived(husk) {
            checked.stale += 1;
        } else {
            let (daemon, kind) =
                (husk.daemon.get(), ObjectKind::Header(husk.description.block.get()));
            checked.differences.push(objects.leftover(daemon, kind, "there are no data"));
        }
    }
    for ((block, guid), copies) in blocks.all {
        let (syncing, copies): (Vec<Copy>, Vec<Copy>) =
            copies.into_iter().partition(|copy| copy.description.membership.role == Role::Syncing);
        let (good, stale) = judge(block, copies, &mut checked.differences);
        for copy in syncing {
            // What is syncing is no copy yet: nobody reads it.
            let is_it = |good: &Copy| good.description.membership.syncing == Some(copy.daemon);
            if !good.iter().any(is_it) {
                let (daemon, kind) = (copy.daemon.get(), ObjectKind::Header(block.get()));
                checked.differences.push(objects.leftover(daemon, kind, "nobody makes it good"));
            }
        }
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
            looked.check(&good, checked)?;
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
            ObjectKind::Header(id) => {
                if let Err(difference) = blocks.read(objects, daemon, id)? {
                    differences.push(difference);
                }
            }
            ObjectKind::Data(_) | ObjectKind::Pool(_) | ObjectKind::Lock => {}
            ObjectKind::Session(_)
            | ObjectKind::Record(_)
            | ObjectKind::LockTable(_)
            | ObjectKind::Drain(_) => {
                differences.push(objects.leftover(daemon, kind, "no daemon makes one"));
            }
        }
    }
    Ok(())
}

impl Blocks {
    /// Reads the header of a block, and looks at its data. It may have gone meanwhile.
    fn read(
        &mut self,
        objects: &Objects,
        daemon: u32,
        id: u32,
    ) -> Result<Result<(), Difference>, ObjectError> {
        let kind = ObjectKind::Header(id);
        let Some(head) = objects.open(daemon, kind)? else { return Ok(Ok(())) };
        let header = match header::read(head.as_fd(), ANY_LAYOUT) {
            Ok(header) => header,
            Err(HeaderError::Object(error)) => return Err(error),
            Err(error) => return Ok(Err(objects.unsound(daemon, kind, &error))),
        };
        let BlockHeader { daemon: of, description } = header;
        if (of.get(), description.block.get()) != (daemon, id) {
            return Ok(Err(objects.unsound(daemon, kind, &"it is another block's, or daemon's")));
        }
        match objects.open(daemon, ObjectKind::Data(id))? {
            None => self.husks.push(Husk { daemon: of, description }),
            Some(data) => {
                let bytes = object::stat(data.as_fd())?.bytes;
                let key = (description.block, description.guid);
                let copy = Copy { daemon: of, data, bytes, description };
                self.all.entry(key).or_default().push(copy);
            }
        }
        Ok(Ok(()))
    }

    /// Whether the copies of a block have gone on without one. Its header may stay with a daemon
    /// that serves, as long as the block does.
    fn has_outlived(&self, husk: &Husk) -> bool {
        let BlockDescription { block, guid, epoch, .. } = husk.description;
        let copies = self.all.get(&(block, guid));
        copies.is_some_and(|copies| copies.iter().any(|copy| copy.description.epoch > epoch))
    }
}

/// Whether the block is there of which a lock table says that it is its.
fn has_table(objects: &Objects, id: u32, blocks: &Blocks) -> Result<bool, ObjectError> {
    let Some(fd) = objects.open(BROKER, ObjectKind::LockTable(id))? else { return Ok(true) };
    // One that says nothing is the block's to complain of, if there is one.
    let identity = LockTableHeader::read(fd.as_fd()).ok().and_then(|header| header.identity().ok());
    Ok(blocks.all.keys().any(|(block, guid)| {
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
