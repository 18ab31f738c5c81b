//! Slabs: runs of pages that hold objects of one size class.
//!
//! # Invariants
//!
//! 1. A slab is in its class's list of those with room exactly if it has a free object and is not
//!    frozen.
//! 2. Objects from `fresh_from` up have never been given out, and their pages neither: they are
//!    zero.

use dmce_abi::block::BlockId;

use super::class::{CLASSES, Class};
use super::pages::Run;

/// Every slab of a heap.
#[derive(Debug)]
pub(crate) struct Slabs {
    all: Vec<Option<Slab>>,
    unused_ids: Vec<u32>,
    with_room: [Vec<u32>; CLASSES],
}

/// One slab.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Its block.
    pub block: BlockId,
    /// Its pages.
    pub run: Run,
    /// What it holds.
    pub class: Class,
    free: Box<[u64]>,
    free_count: u32,
    fresh_from: u32,
    room_place: u32,
    is_frozen: bool,
}

/// An object that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its slab.
    pub slab: u32,
    /// Its place in the slab.
    pub index: u32,
    /// Whether it is zero.
    pub zeroed: bool,
}

impl Slabs {
    /// None.
    pub(crate) fn new() -> Self {
        Self { all: Vec::new(), unused_ids: Vec::new(), with_room: [const { Vec::new() }; CLASSES] }
    }

    /// Adds a slab with no object taken; returns its id.
    pub(crate) fn add(&mut self, block: BlockId, run: Run, class: Class, zeroed: bool) -> u32 {
        let objects = class.objects();
        let mut free = vec![u64::MAX; objects.div_ceil(64) as usize].into_boxed_slice();
        if let (Some(last), true) = (free.last_mut(), !objects.is_multiple_of(64)) {
            *last = (1 << (objects % 64)) - 1;
        }
        let fresh_from = if zeroed { 0 } else { objects };
        let slab = Slab {
            block,
            run,
            class,
            free,
            free_count: objects,
            fresh_from,
            room_place: 0,
            is_frozen: false,
        };
        let id = self.unused_ids.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).expect("a slab has pages, which fit 30 bits")
        });
        self.all[id as usize] = Some(slab);
        self.list(id);
        id
    }

    /// Takes a free object of a class, if any slab has one.
    pub(crate) fn take(&mut self, class: Class) -> Option<Taken> {
        let id = *self.with_room[class.index()].last()?;
        let slab = self.all[id as usize].as_mut()?;
        let (word, bits) = slab.free.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let bit = bits.trailing_zeros();
        *bits &= !(1 << bit);
        let index = u32::try_from(word).ok()? * 64 + bit;
        let zeroed = index >= slab.fresh_from;
        slab.fresh_from = slab.fresh_from.max(index + 1);
        slab.free_count -= 1;
        if slab.free_count == 0 {
            self.unlist(id);
        }
        Some(Taken { slab: id, index, zeroed })
    }

    /// The place of the object that begins at `cell`, if it is allocated.
    pub(crate) fn find(&self, id: u32, cell: u64) -> Option<u32> {
        let slab = self.get(id)?;
        let start = u64::from(slab.run.first) * dmce_abi::limits::PAGE_BYTES;
        let (offset, bytes) = (cell.checked_sub(start)?, u64::from(slab.class.object_bytes()));
        let index = u32::try_from(offset / bytes).ok()?;
        let is_object = offset.is_multiple_of(bytes) && index < slab.class.objects();
        (is_object && !slab.is_free(index)).then_some(index)
    }

    /// Gives an object back that [`Slabs::find`] found. True if the slab is empty now and another
    /// one of its class has room: then it is of no use.
    pub(crate) fn give(&mut self, id: u32, index: u32) -> bool {
        let Some(slab) = self.all[id as usize].as_mut() else { return false };
        slab.free[(index / 64) as usize] |= 1 << (index % 64);
        slab.free_count += 1;
        let (is_first, is_empty) = (slab.free_count == 1, slab.is_empty());
        let (class, is_frozen) = (slab.class.index(), slab.is_frozen);
        if is_first && !is_frozen {
            self.list(id);
        }
        is_empty && (is_frozen || self.with_room[class].len() > 1)
    }

    /// Lets no more objects of a slab be taken.
    pub(crate) fn freeze(&mut self, id: u32) {
        if self.is_listed(id) {
            self.unlist(id);
        }
        if let Some(slab) = self.all.get_mut(id as usize).and_then(Option::as_mut) {
            slab.is_frozen = true;
        }
    }

    /// Removes a slab.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Slab> {
        if self.is_listed(id) {
            self.unlist(id);
        }
        let removed = self.all.get_mut(id as usize).and_then(Option::take);
        if removed.is_some() {
            self.unused_ids.push(id);
        }
        removed
    }

    /// The slabs of a block, by id.
    pub(crate) fn of_block(&self, block: BlockId) -> Vec<u32> {
        let ids = 0_u32..;
        let mine = ids
            .zip(&self.all)
            .filter(|(_, slab)| slab.as_ref().is_some_and(|slab| slab.block == block));
        mine.map(|(id, _)| id).collect()
    }

    /// A slab.
    pub(crate) fn get(&self, id: u32) -> Option<&Slab> {
        self.all.get(id as usize)?.as_ref()
    }

    fn is_listed(&self, id: u32) -> bool {
        self.get(id).is_some_and(|slab| slab.free_count > 0 && !slab.is_frozen)
    }

    fn list(&mut self, id: u32) {
        let Some(slab) = self.all[id as usize].as_mut() else { return };
        let list = &mut self.with_room[slab.class.index()];
        slab.room_place = u32::try_from(list.len()).expect("no more than there are slabs");
        list.push(id);
    }

    fn unlist(&mut self, id: u32) {
        let Some(slab) = self.all[id as usize].as_ref() else { return };
        let (list, place) = (&mut self.with_room[slab.class.index()], slab.room_place);
        list.swap_remove(place as usize);
        if let Some(&moved) = list.get(place as usize)
            && let Some(moved) = self.all[moved as usize].as_mut()
        {
            moved.room_place = place;
        }
    }
}

impl Slab {
    /// Whether no object of it is taken.
    fn is_empty(&self) -> bool {
        self.free_count == self.class.objects()
    }

    fn is_free(&self, index: u32) -> bool {
        self.free[(index / 64) as usize] >> (index % 64) & 1 == 1
    }
}
