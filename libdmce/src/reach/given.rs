//! What comes with the broker's description of a block: the descriptors of its copies and of its
//! lock table.
//!
//! # Invariants
//!
//! 1. As many came as the description says, or nothing is made of them.

use std::os::fd::OwnedFd;

use dmce_abi::Status;
use dmce_abi::wire::client::BlockInfo;

use crate::error::Error;

/// The descriptors of one block: the data of each copy that is written, the primary's first, then
/// the lock table, if there is one. None of a lost block.
#[derive(Debug)]
pub(crate) struct Given(Vec<OwnedFd>);

impl Given {
    /// What came with a description that was checked.
    ///
    /// # Errors
    ///
    /// [`Status::Internal`] if the description says otherwise.
    pub(crate) fn of(info: &BlockInfo, fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let (came, said) = (fds.len(), info.descriptors());
        if came == said {
            return Ok(Self(fds));
        }
        let text = format!("block {} came with {came} descriptors, {said} are said", info.block);
        Err(Error::new(Status::Internal, text))
    }

    /// The data of the good copies, to be looked at or stored to without page locks: the primary's
    /// first.
    ///
    /// # Errors
    ///
    /// [`Status::Internal`] of a lost block.
    pub(crate) fn into_copies(self, info: &BlockInfo) -> Result<Vec<OwnedFd>, Error> {
        let (mut copies, _) = self.into_parts(info);
        copies.truncate(info.good().count());
        if copies.is_empty() {
            return Err(Error::new(Status::Internal, "nothing comes of a lost block"));
        }
        Ok(copies)
    }

    /// The data of the copies that are written, as the description names them, and the lock table.
    pub(crate) fn into_parts(mut self, info: &BlockInfo) -> (Vec<OwnedFd>, Option<OwnedFd>) {
        let locks = self.0.split_off(self.0.len().min(info.written().count())).pop();
        (self.0, locks)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use dmce_abi::block::{BlockId, DaemonId, Guid, Half};
    use dmce_abi::wire::client::CopyInfo;

    use super::*;

    fn info(copies: u32, has_locks: bool) -> BlockInfo {
        let block = BlockId::try_from(5).unwrap();
        BlockInfo {
            block,
            guid: Guid([3; 16]),
            epoch: 1,
            committed: 4096,
            bytes_max: 4096,
            span_first: block,
            span_count: 1,
            page_size: 4096,
            writable: true,
            lost: copies == 0,
            copies: [1, 2, 3].map(|id| {
                let daemon = DaemonId::try_from(id).ok().filter(|_| id <= copies)?;
                Some(CopyInfo { daemon, since: 0, half: Half::of(id as usize - 1)? })
            }),
            syncing: None,
            has_locks,
            is_moving: false,
        }
    }

    fn given(info: &BlockInfo, came: usize) -> Result<Given, Error> {
        let fds = (0..came).map(|_| File::open("/dev/null").unwrap().into());
        Given::of(info, fds.collect())
    }

    #[test]
    fn what_came_is_what_was_said() {
        for (copies, has_locks, came) in [(1, false, 1), (2, true, 3), (1, true, 2), (0, false, 0)]
        {
            let info = info(copies, has_locks);
            let (data, locks) = given(&info, came).unwrap().into_parts(&info);
            assert_eq!((data.len(), locks.is_some()), (copies as usize, has_locks), "{came}");
            let data = given(&info, came).unwrap().into_copies(&info);
            assert_eq!(data.is_ok(), copies > 0);
        }
        for (copies, has_locks, came) in [(1, false, 0), (1, false, 2), (2, true, 2), (0, false, 1)]
        {
            let refused = given(&info(copies, has_locks), came).unwrap_err();
            assert_eq!(refused.status(), Status::Internal, "{copies} {has_locks} {came}");
        }
    }
}
