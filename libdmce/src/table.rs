//! The block table: from a block's id to what is known of it, without a lock.
//!
//! ```text
//!   id below 1024 -----------> first[id] -----> Block
//!   others -> root[id / 1024] -> leaf[id % 1024]  owned by `known`, under its lock
//!               |                  |
//!               made once          swapped
//! ```
//!
//! Few instances have more blocks than the first leaf holds, which is part of the table: so the
//! shortest calls find a block by one load.
//!
//! # Invariants
//!
//! 1. A leaf, once made, stays as long as the table.
//! 2. A pointer in a leaf is to a [`Block`] that `known` owns, or that is [`Retired`] and not yet
//!    released.
//! 3. A retired block is released only when no operation that might have found it is in flight; so
//!    a reference that an operation got lives as long as the operation.

use std::collections::BTreeMap;
use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmce_abi::block::BlockId;
use dmce_shm::slot::Operation;

use crate::block::Block;

const LEAF: usize = 1024;

type Leaf = [AtomicPtr<Block>; LEAF];

#[expect(clippy::declare_interior_mutable_const, reason = "each use is a leaf of its own")]
const EMPTY: Leaf = [const { AtomicPtr::new(ptr::null_mut()) }; LEAF];

/// The blocks of a session.
#[derive(Debug)]
pub(crate) struct Table {
    first: Leaf,
    /// Without a place for the first leaf.
    root: Box<[AtomicPtr<Leaf>]>,
    ids: u32,
    known: Mutex<BTreeMap<BlockId, Arc<Block>>>,
    /// Blocks without bytes that nobody is in a hurry to drop.
    kept: Mutex<Retired>,
}

/// So many are kept before they are worth a wait.
const KEPT_MAX: usize = 64;

/// Blocks that operations in flight may still use.
#[derive(Debug, Default)]
#[must_use = "what is retired has to be released, or it stays for ever"]
pub(crate) struct Retired(Vec<ManuallyDrop<Arc<Block>>>);

impl Retired {
    /// A block that was in the table. Operations that have found it there can see that it is not.
    fn of(block: Option<Arc<Block>>) -> Self {
        if let Some(block) = &block {
            block.note_retired();
        }
        Self(block.map(ManuallyDrop::new).into_iter().collect())
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds others.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Drops the blocks.
    ///
    /// # Safety
    ///
    /// Every operation that was in flight when they were retired is over.
    pub(crate) unsafe fn release(self) {
        self.0.into_iter().map(ManuallyDrop::into_inner).for_each(drop);
    }
}

impl Table {
    /// For ids below `ids`.
    pub(crate) fn new(ids: u32) -> Box<Self> {
        let leaves = (ids as usize).div_ceil(LEAF).saturating_sub(1);
        Box::new(Self {
            first: EMPTY,
            root: (0..leaves).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            ids,
            known: Mutex::new(BTreeMap::new()),
            kept: Mutex::default(),
        })
    }

    /// The block of an id, as long as the operation.
    #[inline]
    pub(crate) fn get<'a>(&'a self, id: u64, inside: &'a Operation<'_>) -> Option<&'a Block> {
        self.get_first(id, inside).or_else(|| {
            let id = usize::try_from(id).ok()?;
            found(&self.leaf(id / LEAF)?[id % LEAF], inside)
        })
    }

    /// [`Table::get`] for what is in the first leaf: most blocks are.
    #[inline]
    pub(crate) fn get_first<'a>(&'a self, id: u64, inside: &'a Operation<'_>) -> Option<&'a Block> {
        found(self.first.get(usize::try_from(id).ok()?)?, inside)
    }

    /// The block of an id, to keep.
    pub(crate) fn find(&self, id: BlockId) -> Option<Arc<Block>> {
        self.lock().get(&id).cloned()
    }

    /// Every block, as it is now.
    pub(crate) fn all(&self) -> Vec<Arc<Block>> {
        self.lock().values().cloned().collect()
    }

    /// Publishes a block in place of whatever has its id.
    pub(crate) fn insert(&self, block: Block) -> Retired {
        let mut known = self.lock();
        self.put(&mut known, Arc::new(block))
    }

    /// Publishes a block in place of `old`. `None`, and nothing changes, if that is not in the
    /// table any more.
    pub(crate) fn replace(&self, old: &Arc<Block>, block: Block) -> Option<Retired> {
        let mut known = self.lock();
        let is_there = known.get(&old.id).is_some_and(|there| Arc::ptr_eq(there, old));
        (is_there && block.id == old.id).then(|| self.put(&mut known, Arc::new(block)))
    }

    /// Takes a block out.
    pub(crate) fn remove(&self, id: BlockId) -> Retired {
        let mut known = self.lock();
        self.swap(id, ptr::null_mut());
        Retired::of(known.remove(&id))
    }

    /// Takes out what was found, unless another has its place by now.
    pub(crate) fn remove_same(&self, old: &Arc<Block>) -> Retired {
        let mut known = self.lock();
        if known.get(&old.id).is_none_or(|there| !Arc::ptr_eq(there, old)) {
            return Retired::default();
        }
        self.swap(old.id, ptr::null_mut());
        Retired::of(known.remove(&old.id))
    }

    /// Keeps retired blocks that hold nothing, until there are many: those are returned.
    pub(crate) fn keep(&self, retired: Retired) -> Retired {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(retired);
        if kept.0.len() < KEPT_MAX { Retired::default() } else { mem::take(&mut *kept) }
    }

    fn put(&self, known: &mut BTreeMap<BlockId, Arc<Block>>, block: Arc<Block>) -> Retired {
        let id = block.id;
        if id.get() >= self.ids {
            debug_assert!(false, "ids are checked against the instance before");
            return Retired::default();
        }
        self.swap(id, Arc::as_ptr(&block).cast_mut());
        Retired::of(known.insert(id, block))
    }

    /// Under the lock of `known`.
    fn swap(&self, id: BlockId, block: *mut Block) {
        if let Some(entry) = self.first.get(id.index()) {
            return entry.store(block, Ordering::Release);
        }
        let Some(root) = self.root.get(id.index() / LEAF - 1) else { return };
        let mut leaf = root.load(Ordering::Relaxed);
        if leaf.is_null() {
            leaf = Box::into_raw(Box::new(EMPTY));
            // Release pairs with the acquire in `leaf`.
            root.store(leaf, Ordering::Release);
        }
        // SAFETY: made by this function, and never freed before the table.
        let leaf = unsafe { &*leaf };
        leaf[id.index() % LEAF].store(block, Ordering::Release);
    }

    /// One behind the first.
    fn leaf(&self, index: usize) -> Option<&Leaf> {
        let leaf = self.root.get(index.checked_sub(1)?)?.load(Ordering::Acquire);
        // SAFETY: null, or a leaf that lives as long as the table (invariant 1).
        unsafe { leaf.as_ref() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BlockId, Arc<Block>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[inline]
fn found<'a>(entry: &'a AtomicPtr<Block>, _inside: &'a Operation<'_>) -> Option<&'a Block> {
    // Acquire pairs with the release in `swap`.
    let block = entry.load(Ordering::Acquire);
    // SAFETY: null, or to a block that lives at least until every operation that is in flight is
    // over (invariants 2 and 3 of the module), and `_inside` is one.
    unsafe { block.as_ref() }
}

impl Drop for Table {
    fn drop(&mut self) {
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever is in an operation and found a block has borrowed the table.
        unsafe { mem::take(kept).release() };
        for leaf in self.root.iter_mut().map(AtomicPtr::get_mut).filter(|leaf| !leaf.is_null()) {
            // SAFETY: made by `Box::into_raw` in `swap`, and freed here alone.
            drop(unsafe { Box::from_raw(*leaf) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::SpanIds;
    use dmce_shm::Fence;
    use dmce_shm::slot::{Look, Slot};
    use std::sync::atomic::AtomicU64;

    fn id(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    fn block(number: u32, bytes: u64) -> Block {
        Block::absent(id(number), SpanIds { first: id(number), count: 1 }, bytes, true)
    }

    /// Runs `inside` in an operation.
    fn operate(inside: impl FnOnce(&Operation<'_>)) {
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        // SAFETY: zero is a slot that was never used.
        let slot: Slot = unsafe { std::mem::zeroed() };
        let look = Look { generation: &words[0], known: &words[1], fence: Fence::Full };
        inside(&slot.begin(look).unwrap());
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        let table = Table::new(5000);
        for number in [1, 1023, 1024, 4999] {
            assert!(table.insert(block(number, u64::from(number) * 4096)).is_empty());
        }
        operate(|inside| {
            for number in [1_u32, 1023, 1024, 4999] {
                let found = table.get(number.into(), inside).unwrap();
                assert_eq!(found.committed(), u64::from(number) * 4096);
            }
            for number in [0, 2, 2048, 5000, u64::MAX, 1 << 32] {
                assert!(table.get(number, inside).is_none());
            }
        });
        assert_eq!(table.all().len(), 4);
    }

    #[test]
    fn what_is_replaced_lives_until_it_is_released() {
        let table = Table::new(100);
        assert!(table.insert(block(7, 4096)).is_empty());
        let old = table.find(id(7)).unwrap();
        let retired = table.replace(&old, block(7, 8192)).unwrap();
        assert!(!retired.is_empty());
        assert!(table.replace(&old, block(7, 0)).is_none());
        operate(|inside| assert_eq!(table.get(7, inside).unwrap().committed(), 8192));
        assert_eq!(Arc::strong_count(&old), 2);
        // SAFETY: no operation is in flight.
        unsafe { retired.release() };
        assert_eq!(Arc::strong_count(&old), 1);
        // SAFETY: as before.
        unsafe { table.remove(id(7)).release() };
        assert!(table.find(id(7)).is_none());
    }

    #[test]
    fn what_is_kept_goes_when_there_is_much_or_with_the_table() {
        let table = Table::new(100);
        assert!(table.insert(block(7, 4096)).is_empty());
        let first = table.find(id(7)).unwrap();
        for _ in 1..KEPT_MAX {
            let there = table.find(id(7)).unwrap();
            assert!(table.keep(table.replace(&there, block(7, 4096)).unwrap()).is_empty());
        }
        assert_eq!(Arc::strong_count(&first), 2);
        let last = table.find(id(7)).unwrap();
        let all = table.keep(table.replace(&last, block(7, 4096)).unwrap());
        // SAFETY: no operation is in flight.
        unsafe { all.release() };
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&last)), (1, 1));
        let there = table.find(id(7)).unwrap();
        assert!(table.keep(table.replace(&there, block(7, 0)).unwrap()).is_empty());
        drop(table);
        assert_eq!(Arc::strong_count(&there), 1);
    }
}
