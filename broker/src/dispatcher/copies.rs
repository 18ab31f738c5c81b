//! The copies of a block: each is one daemon's object.
//!
//! ```text
//!  Planned --> Asked --> Held --> Doomed --> Dying --> (none)
//!     |          |        |                    ^
//!     |          |        +-> Lost ------------+   back with an old object: Stale -> Dying
//!     +-> (none) +-----------------------------+   its create is answered first
//!                |
//!                +-> Syncing --> Held, when it has all bytes of the others (`syncing`): in the
//!                       |         |   place of one that leaves, or of none
//!                       +---------+--> Leaving --> Dying, when nobody uses it any more
//! ```
//!
//! # Invariants
//!
//! 1. No two copies of a block are on one daemon: so a daemon and a block name a copy.
//! 2. The first is the primary. Those that the headers do not name any more come last.
//! 3. A copy that its daemon has, or may have, is in the table; and while it is, it is charged.

use dmce_abi::block::{DaemonId, Half};
use dmce_abi::wire::client::CopyInfo;

use super::charge::Charge;

/// Where a copy is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyState {
    /// It has a place. Nobody was asked for it.
    Planned,
    /// Its daemon was asked for it.
    Asked,
    /// Its daemon has it, and it is written as the others are, without having all of their bytes.
    Syncing,
    /// Its daemon has it, and it was given up while it was syncing, or another is in its place: it
    /// goes when nobody uses it.
    Leaving,
    /// Its daemon has it.
    Held,
    /// Its bytes are gone.
    Lost,
    /// Its daemon has it, and the headers of the block's epoch do not name it: it is never read.
    Stale,
    /// It goes when the first block of its span is gone.
    Doomed,
    /// It is on its way to nothing.
    Dying,
}

/// One copy.
#[derive(Debug)]
pub(super) struct Copy {
    /// Whose object it is.
    pub daemon: DaemonId,
    /// What it was made as.
    pub half: Half,
    /// Where it is in its life.
    pub state: CopyState,
    /// Bytes that the daemon has answered for.
    pub committed: u64,
    /// What it costs: `committed`, and while it grows, what it grows to.
    pub charge: Charge,
    /// Grows that the daemon has not answered.
    pub grows: u32,
    /// The epoch that its header was given last.
    pub epoch: u64,
    /// The first epoch in which it was written; 0 if it was made with the block.
    pub since: u64,
    /// Whether the headers of the block's epoch name it.
    pub named: bool,
}

impl Copy {
    /// A copy that nobody was asked for.
    pub(super) const fn planned((daemon, half): (DaemonId, Half), charge: Charge) -> Self {
        let state = CopyState::Planned;
        Self {
            daemon,
            half,
            state,
            committed: 0,
            charge,
            grows: 0,
            epoch: 0,
            since: 0,
            named: true,
        }
    }

    /// A copy that its daemon has, with a header of that epoch.
    pub(super) const fn held((daemon, half): (DaemonId, Half), charge: Charge, epoch: u64) -> Self {
        let (state, committed) = (CopyState::Held, charge.bytes());
        Self { daemon, half, state, committed, charge, grows: 0, epoch, since: 0, named: true }
    }

    /// A copy that its daemon has, and that nobody reads or pays for.
    pub(super) const fn stale(copy: (DaemonId, Half), charge: Charge, epoch: u64) -> Self {
        let held = Self::held(copy, charge, epoch);
        Self { state: CopyState::Stale, named: false, ..held }
    }

    /// What is told of it.
    pub(super) const fn info(&self) -> CopyInfo {
        let Self { daemon, half, since, .. } = *self;
        CopyInfo { daemon, since, half }
    }

    /// Whether its daemon has it, or may have it.
    pub(super) fn may_exist(&self) -> bool {
        self.state != CopyState::Planned
    }
}

/// All copies of a block.
#[derive(Debug, Default)]
pub(super) struct Copies(Vec<Copy>);

impl Copies {
    /// The copies, the primary first.
    pub(super) fn new(copies: Vec<Copy>) -> Self {
        Self(copies)
    }

    /// The copy that arbitrates and is read first; `None` if no daemon has any.
    pub(super) fn primary(&self) -> Option<&Copy> {
        self.0.first()
    }

    /// The copy of a daemon.
    pub(super) fn of(&self, daemon: DaemonId) -> Option<&Copy> {
        self.0.iter().find(|copy| copy.daemon == daemon)
    }

    /// The copy of a daemon, to change it.
    pub(super) fn of_mut(&mut self, daemon: DaemonId) -> Option<&mut Copy> {
        self.0.iter_mut().find(|copy| copy.daemon == daemon)
    }

    /// All.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Copy> {
        self.0.iter()
    }

    /// All, to change them.
    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Copy> {
        self.0.iter_mut()
    }

    /// Takes the copy of a daemon out; with the place that it had.
    pub(super) fn take(&mut self, daemon: DaemonId) -> Option<(usize, Copy)> {
        let place = self.0.iter().position(|copy| copy.daemon == daemon)?;
        Some((place, self.0.remove(place)))
    }

    /// Puts a copy where one was taken out.
    pub(super) fn put(&mut self, place: usize, copy: Copy) {
        assert!(self.of(copy.daemon).is_none(), "daemon {} has two copies", copy.daemon);
        self.0.insert(place.min(self.0.len()), copy);
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that the headers name.
    pub(super) fn named(&self) -> impl Iterator<Item = &Copy> {
        self.0.iter().filter(|copy| copy.named)
    }

    /// Those whose bytes are there.
    pub(super) fn held(&self) -> impl Iterator<Item = &Copy> {
        self.0.iter().filter(|copy| copy.state == CopyState::Held)
    }

    /// The one that is written, and does not have all bytes of the others yet.
    pub(super) fn syncing(&self) -> Option<&Copy> {
        self.0.iter().find(|copy| copy.state == CopyState::Syncing)
    }

    /// The daemons of those whose headers say which copies there are.
    pub(super) fn written(&self) -> Vec<DaemonId> {
        self.syncing().into_iter().chain(self.named()).map(|copy| copy.daemon).collect()
    }

    /// The daemons of those that the headers name, the primary's first.
    pub(super) fn daemons(&self) -> Vec<DaemonId> {
        self.named().map(|copy| copy.daemon).collect()
    }

    /// Whether all that the headers name are made.
    pub(super) fn all_held(&self) -> bool {
        self.named().all(|copy| copy.state == CopyState::Held)
    }

    /// Whether the header of each that is named, or syncing, says this epoch.
    pub(super) fn all_say(&self, epoch: u64) -> bool {
        self.named().chain(self.syncing()).all(|copy| copy.epoch == epoch)
    }

    /// Bytes that all copies have that are written.
    pub(super) fn committed(&self) -> u64 {
        self.held().chain(self.syncing()).map(|copy| copy.committed).min().unwrap_or(0)
    }

    /// Puts the copies of these daemons first, in that order.
    pub(super) fn sort_as(&mut self, daemons: &[DaemonId]) {
        let place = |copy: &Copy| daemons.iter().position(|daemon| *daemon == copy.daemon);
        self.0.sort_by_key(|copy| place(copy).unwrap_or(usize::MAX));
    }

    /// The copy of a daemon, which was syncing, is one of those that the headers name.
    pub(super) fn name(&mut self, daemon: DaemonId) {
        let place = self.named().count();
        if let Some((_, mut copy)) = self.take(daemon) {
            (copy.state, copy.named) = (CopyState::Held, true);
            self.put(place, copy);
        }
    }

    /// The copy of a daemon, which was syncing, has the place of another, which leaves. Returns the
    /// other and that one.
    pub(super) fn replace(&mut self, old: DaemonId, new: DaemonId) -> Option<[&mut Copy; 2]> {
        self.exchange((old, CopyState::Leaving), new)
    }

    /// The copy that leaves has its place again, and what has it is lost. Returns that and the one
    /// that is back.
    pub(super) fn take_back(&mut self, old: DaemonId, new: DaemonId) -> Option<[&mut Copy; 2]> {
        self.exchange((new, CopyState::Lost), old)
    }

    /// The copy of a daemon leaves, and nothing comes in its place.
    pub(super) fn leave(&mut self, daemon: DaemonId) {
        self.unname(daemon);
        if let Some(copy) = self.of_mut(daemon) {
            copy.state = CopyState::Leaving;
        }
    }

    /// Those that the headers name are the first halves, as far as they have none of these. `true`
    /// if that is new.
    pub(super) fn renumber(&mut self) -> bool {
        let count = self.named().count();
        let is_first = |half: &Half| usize::from(half.place()) < count;
        let taken: Vec<Half> = self.named().map(|copy| copy.half).filter(is_first).collect();
        let all = (0..count).filter_map(Half::of);
        let mut free = all.filter(|half| !taken.contains(half)).collect::<Vec<_>>().into_iter();
        let others = self.0.iter_mut().filter(|copy| copy.named && !is_first(&copy.half));
        let mut is_new = false;
        for (copy, half) in others.zip(&mut free) {
            (copy.half, is_new) = (half, true);
        }
        is_new
    }

    /// One copy is named no more, and another that was not has its place.
    fn exchange(
        &mut self,
        (leaves, state): (DaemonId, CopyState),
        comes: DaemonId,
    ) -> Option<[&mut Copy; 2]> {
        self.of(leaves)?;
        let (_, mut copy) = self.take(comes)?;
        let (place, mut gone) = self.take(leaves)?;
        (copy.state, copy.named) = (CopyState::Held, true);
        (gone.state, gone.named) = (state, false);
        self.0.insert(place, copy);
        self.0.push(gone);
        let end = self.0.len() - 1;
        self.0.get_disjoint_mut([end, place]).ok()
    }

    /// The copy of a daemon is not one of those any more that the headers name.
    pub(super) fn unname(&mut self, daemon: DaemonId) {
        if let Some((_, mut copy)) = self.take(daemon) {
            copy.named = false;
            self.0.push(copy);
        }
    }
}
