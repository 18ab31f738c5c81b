//! What a message says of a block, before a [`Block`](super::Block) is made of it.

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{BlockInfo, CopyInfo};
use dmce_abi::{AddrLayout, Status};

use crate::error::Error;

/// Checks what a message says of a block: that it holds together, and fits the instance.
///
/// # Errors
///
/// [`Status::Internal`] names the field: a broker that says such a thing is defective.
pub(crate) fn check_info(
    info: &BlockInfo,
    layout: AddrLayout,
    block_ids: u32,
) -> Result<(), Error> {
    let field = |field: &str, fits: bool| {
        if fits {
            return Ok(());
        }
        let text =
            format!("the broker's description of block {}: its {field} cannot be", info.block);
        Err(Error::new(Status::Internal, text))
    };
    let last = info.span_first.get().checked_add(info.span_count);
    let whole_pages = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES);
    field("id", info.block.get() < block_ids)?;
    field("span", info.span_count > 0 && last.is_some_and(|last| last <= block_ids))?;
    field(
        "span",
        info.block
            .get()
            .checked_sub(info.span_first.get())
            .is_some_and(|place| place < info.span_count),
    )?;
    field("size", (1..=layout.block_bytes()).contains(&info.bytes_max))?;
    field("size", whole_pages(info.bytes_max))?;
    field("committed size", info.committed <= info.bytes_max && whole_pages(info.committed))?;
    let good: Vec<CopyInfo> = info.good().collect();
    let written: Vec<CopyInfo> = info.written().collect();
    // What is syncing may be made in the place of a good one.
    let is_other = |a: &CopyInfo, b: &CopyInfo| {
        a.daemon != b.daemon && (a.half != b.half || info.syncing == Some(*a))
    };
    let is_once =
        |(place, copy): (usize, &CopyInfo)| written[..place].iter().all(|b| is_other(copy, b));
    let are_first = info.copies.iter().take(good.len()).all(Option::is_some);
    field("list of copies", are_first && written.iter().enumerate().all(is_once))?;
    field("list of copies", good.is_empty() == info.lost)?;
    field("copy that is syncing", info.syncing.is_none() || info.has_locks)?;
    // One that has lost its other copies still has it.
    field("lock table", if info.has_locks { !info.lost } else { good.len() <= 1 })
}

#[cfg(test)]
pub(super) mod tests {
    use dmce_abi::block::{BlockId, DaemonId, Guid, Half};

    use super::*;

    fn on(daemons: &[u32]) -> [Option<CopyInfo>; 3] {
        std::array::from_fn(|place| {
            let daemon = DaemonId::try_from(*daemons.get(place)?).ok()?;
            Some(CopyInfo { daemon, since: 0, half: Half::of(place)? })
        })
    }

    pub(in crate::block) fn info() -> BlockInfo {
        let block = BlockId::try_from(5).unwrap();
        BlockInfo {
            block,
            guid: Guid([3; 16]),
            epoch: 1,
            committed: 2 << 20,
            bytes_max: 1 << 30,
            span_first: block,
            span_count: 1,
            page_size: 4096,
            writable: true,
            lost: false,
            copies: on(&[1]),
            syncing: None,
            has_locks: false,
            is_moving: false,
        }
    }

    #[test]
    fn a_description_that_cannot_be_is_refused() {
        let layout = AddrLayout::IN_SERVER;
        check_info(&info(), layout, 100).unwrap();
        let refused = |change: fn(&mut BlockInfo)| {
            let mut info = info();
            change(&mut info);
            check_info(&info, layout, 100).unwrap_err().status() == Status::Internal
        };
        assert!(refused(|info| info.committed = (1 << 30) + 4096));
        assert!(refused(|info| info.committed = 5));
        assert!(refused(|info| info.bytes_max = 2 << 30));
        assert!(refused(|info| info.span_count = 0));
        assert!(refused(|info| info.span_count = 96));
        assert!(refused(|info| info.span_first = BlockId::try_from(6).unwrap()));
        assert!(refused(|info| info.block = BlockId::try_from(100).unwrap()));
        assert!(refused(|info| info.copies = on(&[])));
        assert!(refused(|info| info.copies = on(&[1, 2])), "copies without a lock table");
        assert!(refused(|info| (info.copies, info.has_locks) = (on(&[1, 1]), true)));
        assert!(refused(|info| (info.copies, info.has_locks) = (on(&[1, 0, 2]), true)));
        assert!(refused(|info| {
            (info.copies, info.has_locks) = (on(&[1, 2]), true);
            info.copies[1].as_mut().unwrap().half = Half::PRIMARY;
        }));
        assert!(refused(|info| info.lost = true), "a copy of a lost block");
        assert!(refused(|info| {
            (info.lost, info.copies, info.has_locks) = (true, on(&[]), true);
        }));
        let degraded = BlockInfo { has_locks: true, ..info() };
        check_info(&degraded, layout, 100).unwrap();
        let syncing = on(&[3, 2])[1];
        check_info(&BlockInfo { syncing, ..degraded }, layout, 100).unwrap();
        assert!(refused(|info| info.syncing = on(&[3, 2])[1]), "without a lock table");
        assert!(refused(|info| (info.syncing, info.has_locks) = (on(&[3, 1])[1], true)));
        let in_its_place = on(&[2])[0];
        check_info(&BlockInfo { syncing: in_its_place, ..degraded }, layout, 100).unwrap();
        check_info(&BlockInfo { lost: true, copies: on(&[]), ..info() }, layout, 100).unwrap();
    }
}
