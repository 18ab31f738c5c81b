//! Both halves of a lock word as one value: how a server sees it.
//!
//! A server maps no lock table for long, since clients can truncate it: it loads both halves at
//! once, and changes them by one compare-and-swap of 64 bits, which ends with an error where there
//! is no page. Each change is one that [`PageLock`](super::PageLock) makes in steps.

use super::{
    DETACHED, FREE, LOST, Left, LockOwner, LockState, PageCondition, REPAIR, WRITING, condition_of,
    state_of, taken_over,
};

/// A copy of a lock word: a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockBits {
    half: u32,
    sequence: u32,
}

impl LockBits {
    /// Of a page that is lost, and that nobody holds.
    pub const LOST: Self = Self { half: LOST, sequence: 1 };

    /// Out of the word of a table.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    pub const fn of_word(word: u64) -> Self {
        Self { half: word as u32, sequence: (word >> 32) as u32 }
    }

    /// As it lies in the table.
    #[must_use]
    pub const fn word(self) -> u64 {
        (self.sequence as u64) << 32 | self.half as u64
    }

    /// Who holds it.
    #[must_use]
    pub fn state(self) -> LockState {
        state_of(self.half)
    }

    /// Whether the page may be half written.
    #[must_use]
    pub const fn condition(self) -> PageCondition {
        condition_of(self.sequence)
    }

    /// Whether it was lost before its holder took it.
    #[must_use]
    pub const fn was_lost(self) -> bool {
        self.half & LOST != 0
    }

    /// Whether its copies differ, as somebody wants it.
    #[must_use]
    pub const fn is_detached(self) -> bool {
        self.half & DETACHED != 0
    }

    /// With the lock taken by `owner`, and the sequence odd; `None` if it is not free.
    #[must_use]
    pub fn taken_to_write(self, owner: LockOwner) -> Option<Self> {
        let half = self.half | owner.0;
        let sequence = self.sequence.wrapping_add(1) | WRITING;
        (self.state() == LockState::Free).then_some(Self { half, sequence })
    }

    /// With that undone: given back by `owner`, who has written nothing; `None` if it is not the
    /// holder.
    #[must_use]
    pub fn given_back(self, owner: LockOwner) -> Option<Self> {
        let half = FREE | self.half & DETACHED;
        let sequence = self.sequence.wrapping_add(1) & !WRITING;
        (self.state() == LockState::Held(owner)).then_some(Self { half, sequence })
    }

    /// With the lock taken over from `dead`, as
    /// [`PageLock::take_over`](super::PageLock::take_over); `None` if that does not hold it.
    #[must_use]
    pub fn taken_over(self, dead: LockOwner) -> Option<Self> {
        taken_over(self.half, dead).map(|half| Self { half, ..self })
    }

    /// Given back after repair, as
    /// [`PageLock::release_repaired`](super::PageLock::release_repaired); `None` if repair does not
    /// hold it.
    #[must_use]
    pub fn released(self, left: Left) -> Option<Self> {
        let marks = left.half(self.condition());
        let half = marks | self.half & DETACHED;
        let sequence = match self.condition() {
            PageCondition::Torn if marks == FREE => self.sequence.wrapping_add(1),
            _ => self.sequence,
        };
        (self.half & REPAIR != 0).then_some(Self { half, sequence })
    }
}

#[cfg(all(test, not(loom)))]
impl LockBits {
    /// Of a page that is held and whole.
    pub(crate) const fn held(owner: LockOwner) -> Self {
        Self { half: owner.0, sequence: 0 }
    }
}

#[cfg(all(test, not(loom)))]
impl super::PageLock {
    /// The word as a server loads it, at once.
    pub(crate) fn word(&self) -> u64 {
        use crate::atomic::Ordering::Relaxed;
        let (half, sequence) = ((*self.half).load(Relaxed), (*self.sequence).load(Relaxed));
        LockBits { half, sequence }.word()
    }

    /// Stores it as a server does, at once.
    pub(crate) fn set_word(&self, word: u64) {
        use crate::atomic::Ordering::SeqCst;
        let LockBits { half, sequence } = LockBits::of_word(word);
        (*self.sequence).store(sequence, SeqCst);
        (*self.half).store(half, SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use dmce_abi::block::SessionId;

    use super::super::{PageLock, WAITERS};
    use super::*;

    fn bits_of(lock: &PageLock) -> LockBits {
        LockBits::of_word(lock.word())
    }

    #[test]
    fn a_page_that_is_lost_from_the_beginning_is_so_to_clients() {
        let lock = PageLock::default();
        lock.set_word(LockBits::LOST.word());
        assert_eq!((lock.is_lost(), lock.state()), (true, LockState::Lost));
        assert!(lock.begin_read().is_none());
    }

    /// What is done at once and what is done in steps end alike, whatever the word was.
    #[test]
    fn every_change_is_the_one_that_is_made_in_steps() {
        let dead = LockOwner::new(SessionId::try_from(1).unwrap(), 3);
        let other = LockOwner::new(SessionId::try_from(2).unwrap(), 3);
        let owners = [0, dead.0, other.0];
        let flags = [0, LOST, REPAIR, LOST | REPAIR, WAITERS, WAITERS | LOST, WAITERS | REPAIR];
        let flags = flags.into_iter().flat_map(|flags| [flags, flags | DETACHED]);
        for half in
            owners.into_iter().flat_map(|owner| flags.clone().map(move |flags| owner | flags))
        {
            for sequence in [0, 1, 7, u32::MAX] {
                let bits = LockBits { half, sequence };
                assert_eq!(LockBits::of_word(bits.word()), bits);
                let lock = PageLock::of_words(half, sequence);
                if let Some(taken) = bits.taken_to_write(dead) {
                    assert!(lock.state() == LockState::Free, "{bits:?}");
                    assert_eq!(taken.state(), LockState::Held(dead));
                    assert_eq!(taken.condition(), PageCondition::Torn);
                    let given = taken.given_back(dead).unwrap();
                    assert_eq!(
                        (given.state(), given.condition()),
                        (LockState::Free, PageCondition::Whole)
                    );
                    assert_eq!(
                        (taken.given_back(LockOwner(dead.0 + 1)), given.is_detached()),
                        (None, bits.is_detached())
                    );
                }
                let is_taken = lock.take_over(dead).is_ok();
                assert_eq!(bits.taken_over(dead), is_taken.then(|| bits_of(&lock)), "{bits:?}");
                for left in [Left::Whole, Left::Lost] {
                    let lock = PageLock::of_words(half, sequence);
                    let released = lock.release_repaired(left, &crate::parking::Kernel).is_ok();
                    assert_eq!(bits.released(left), released.then(|| bits_of(&lock)), "{bits:?}");
                }
            }
        }
    }
}
