//! What a session has to be told: the blocks that changed, each under the generation that said so.
//!
//! # Invariants
//!
//! 1. Each change raises the generation by one.
//! 2. At most [`CHANGES_MAX`] changes are remembered. Who asks for more is told to drop everything.

use std::collections::{BTreeSet, VecDeque};

use dmce_abi::block::BlockId;
use dmce_abi::wire::client::Changed;

/// Changes that are remembered (docs/protocol.md, section 3).
const CHANGES_MAX: usize = 1024;

/// The changes of one session.
#[derive(Debug)]
pub(super) struct Changes {
    generation: u64,
    /// The block of generation `generation - recent.len() + 1`, and so on.
    recent: VecDeque<BlockId>,
}

impl Changes {
    /// No change since `generation`.
    pub(super) const fn since(generation: u64) -> Self {
        Self { generation, recent: VecDeque::new() }
    }

    /// The last generation.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// A block has changed.
    pub(super) fn push(&mut self, block: BlockId) -> u64 {
        // The first generation came from memory that the session can write: it may be any number.
        self.generation = self.generation.wrapping_add(1);
        self.recent.push_back(block);
        if self.recent.len() > CHANGES_MAX {
            self.recent.pop_front();
        }
        self.generation
    }

    /// Everything may have changed.
    pub(super) fn push_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.recent.clear();
    }

    /// What a session must be told that knows everything up to `since`.
    pub(super) fn tell(&self, since: u64) -> Changed {
        let missed = usize::try_from(self.generation.wrapping_sub(since)).unwrap_or(usize::MAX);
        let (blocks, all) = match self.recent.len().checked_sub(missed) {
            Some(known) => {
                let missed = self.recent.iter().skip(known).copied();
                (missed.collect::<BTreeSet<_>>().into_iter().collect(), false)
            }
            None => (Vec::new(), true),
        };
        Changed { upto: self.generation, blocks, all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    #[test]
    fn tells_what_was_missed_and_nothing_else() {
        let mut changes = Changes::since(100);
        for block in [7, 9, 7] {
            changes.push(id(block));
        }
        let told = |since| {
            let news = changes.tell(since);
            (news.upto, news.blocks, news.all)
        };
        assert_eq!(told(100), (103, vec![id(7), id(9)], false));
        assert_eq!(told(102), (103, vec![id(7)], false));
        assert_eq!(told(103), (103, vec![], false));
        assert_eq!(told(99), (103, vec![], true));
        assert_eq!(told(104), (103, vec![], true));
    }

    #[test]
    fn after_everything_has_changed_only_what_changes_later_is_told() {
        let mut changes = Changes::since(100);
        changes.push(id(7));
        changes.push_all();
        for since in [100, 101] {
            assert!(changes.tell(since).all);
        }
        changes.push(id(9));
        let news = changes.tell(102);
        assert_eq!((news.upto, news.blocks, news.all), (103, vec![id(9)], false));
        assert!(changes.tell(101).all);
    }

    #[test]
    fn before_the_last_1024_everything_has_changed() {
        let mut changes = Changes::since(u64::MAX - 3);
        for block in 1..=1025 {
            changes.push(id(block));
        }
        let since = |ago| changes.tell(changes.generation().wrapping_sub(ago));
        assert_eq!(since(1024).blocks.len(), 1024);
        assert!(!since(1024).all && since(1025).all);
    }
}
