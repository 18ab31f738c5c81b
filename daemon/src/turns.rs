//! The order of requests: for one block one after the other, for different blocks side by side.
//!
//! # Invariants
//!
//! 1. A block is busy exactly while a job of it is under way; what comes meanwhile waits behind it.
//! 2. What waits, and the connection that it came by, is forgotten with that connection; what is
//!    under way is to end early.
//! 3. No more than [`WAITING_MAX`] requests wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_abi::block::BlockId;
use dmce_abi::wire::daemon::DaemonRequest;

/// Requests that wait for another of the same block. A broker asks for one thing of a block at a
/// time, and perhaps for its end: this is far more than it can need.
pub const WAITING_MAX: usize = 65_536;

/// Who asked: a request of one of the connections that there have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The number of the connection.
    pub connection: u64,
    /// The number of the request on it.
    pub request: u64,
}

/// A request and who asked.
pub type Asked = (Asker, DaemonRequest);

/// The broker has asked for more than can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {WAITING_MAX} requests wait for their block")]
pub struct TooManyWaiting;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns {
    busy: HashMap<BlockId, Turn>,
    waiting: usize,
}

#[derive(Debug)]
struct Turn {
    asker: Asker,
    cancelled: Arc<AtomicBool>,
    behind: VecDeque<Asked>,
}

impl Turns {
    /// A request of `block` has come: it is given back if it may begin, and else waits.
    ///
    /// # Errors
    ///
    /// [`TooManyWaiting`].
    pub fn arrive(
        &mut self,
        block: BlockId,
        asker: Asker,
        request: DaemonRequest,
    ) -> Result<Option<DaemonRequest>, TooManyWaiting> {
        let Some(turn) = self.busy.get_mut(&block) else { return Ok(Some(request)) };
        if self.waiting >= WAITING_MAX {
            return Err(TooManyWaiting);
        }
        // What is to be destroyed need not be finished first.
        if matches!(request, DaemonRequest::Destroy { .. }) {
            turn.cancelled.store(true, Ordering::Relaxed);
        }
        turn.behind.push_back((asker, request));
        self.waiting += 1;
        Ok(None)
    }

    /// A job of `block` begins, and `behind` it wait those. The flag is set if its end is not
    /// wanted any more.
    pub fn begin(
        &mut self,
        block: BlockId,
        asker: Asker,
        behind: VecDeque<Asked>,
    ) -> Arc<AtomicBool> {
        let destroyed = behind.iter().any(|(_, r)| matches!(r, DaemonRequest::Destroy { .. }));
        let cancelled = Arc::new(AtomicBool::new(destroyed));
        self.waiting += behind.len();
        let turn = Turn { asker, cancelled: Arc::clone(&cancelled), behind };
        let other = self.busy.insert(block, turn);
        assert!(other.is_none(), "two jobs of block {block} at one time");
        cancelled
    }

    /// The job of `block` is done: who asked for it, and what waited behind it.
    pub fn end(&mut self, block: BlockId) -> (Asker, VecDeque<Asked>) {
        let turn = self.busy.remove(&block).expect("a job that ends was begun");
        self.waiting -= turn.behind.len();
        (turn.asker, turn.behind)
    }

    /// A connection has ended: what waits came by it, and nobody waits for what is under way.
    pub fn forget_waiting(&mut self) {
        for turn in self.busy.values_mut() {
            turn.cancelled.store(true, Ordering::Relaxed);
            turn.behind.clear();
        }
        self.waiting = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(request: u64) -> Asker {
        Asker { connection: 1, request }
    }

    fn grow(block: BlockId, committed: u64) -> DaemonRequest {
        DaemonRequest::Grow { block, committed }
    }

    fn block(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    #[test]
    fn requests_of_a_busy_block_wait_in_order_and_others_do_not() {
        let mut turns = Turns::default();
        let first = grow(block(1), 1);
        assert_eq!(turns.arrive(block(1), asker(1), first.clone()), Ok(Some(first)));
        turns.begin(block(1), asker(1), VecDeque::new());
        assert_eq!(turns.arrive(block(1), asker(2), grow(block(1), 2)), Ok(None));
        assert_eq!(turns.arrive(block(1), asker(3), grow(block(1), 3)), Ok(None));
        let other = grow(block(2), 1);
        assert_eq!(turns.arrive(block(2), asker(4), other.clone()), Ok(Some(other)));
        let (done, behind) = turns.end(block(1));
        assert_eq!(done, asker(1));
        let order: Vec<_> = behind.iter().map(|(asker, _)| asker.request).collect();
        assert_eq!(order, [2, 3]);
    }

    #[test]
    fn the_end_of_a_block_cancels_what_it_waits_for() {
        let mut turns = Turns::default();
        let destroy = DaemonRequest::Destroy { block: block(1) };
        let cancelled = turns.begin(block(1), asker(1), VecDeque::new());
        turns.arrive(block(1), asker(2), grow(block(1), 2)).unwrap();
        assert!(!cancelled.load(Ordering::Relaxed));
        turns.arrive(block(1), asker(3), destroy).unwrap();
        assert!(cancelled.load(Ordering::Relaxed));
        let (_, mut behind) = turns.end(block(1));
        behind.pop_front();
        assert!(turns.begin(block(1), asker(2), behind).load(Ordering::Relaxed));
    }

    #[test]
    fn no_more_than_the_limit_waits_and_nothing_after_its_connection() {
        let mut turns = Turns::default();
        let cancelled = turns.begin(block(1), asker(0), VecDeque::new());
        for request in 0..WAITING_MAX as u64 {
            turns.arrive(block(1), asker(request), grow(block(1), 1)).unwrap();
        }
        assert_eq!(turns.arrive(block(1), asker(0), grow(block(1), 1)), Err(TooManyWaiting));
        assert!(!cancelled.load(Ordering::Relaxed));
        turns.forget_waiting();
        assert!(cancelled.load(Ordering::Relaxed));
        assert_eq!(turns.arrive(block(1), asker(0), grow(block(1), 1)), Ok(None));
        assert_eq!(turns.end(block(1)).1.len(), 1);
    }
}
