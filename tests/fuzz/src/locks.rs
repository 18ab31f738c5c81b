//! Lock words: any bits that a scribbler left, and any steps, against a plain model of the word.

use std::cell::Cell;

use arbitrary::{Result, Unstructured};
use dmce_abi::block::SessionId;
use dmce_shm::atomic::AtomicU32;
use dmce_shm::lock::{Left, LockBits, LockError, LockOwner, LockState, PageCondition, PageLock};
use dmce_shm::parking::{Deadline, Parked, Parking, Wake};
use dmce_sys::futex::FutexError;

const WAITERS: u32 = 1 << 31;
const REPAIR: u32 = 1 << 30;
const LOST: u32 = 1 << 29;
const DETACHED: u32 = 1 << 28;
const OWNER_MASK: u32 = (1 << 28) - 1;
/// Sleeps of one call that end for no reason, before the deadline has passed.
const SPURIOUS_MAX: u32 = 3;

pub fn run(data: &[u8]) {
    // Bytes that end too soon are fewer steps.
    let _ = steps(&mut Unstructured::new(data));
}

fn steps(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut model = Model { half: bytes.arbitrary()?, sequence: bytes.arbitrary()? };
    let word = PageLock::of_words(model.half, model.sequence);
    let sleeper = Sleeper::default();
    while !bytes.is_empty() {
        let owner = owner(bytes)?;
        match bytes.int_in_range(0..=11)? {
            0 => model.try_lock(&word, owner),
            1 => model.lock(&word, owner, &sleeper),
            10 => model.lock_to_rewrite(&word, owner, &sleeper),
            11 => model.release(&word, Left::Lost, &sleeper),
            2 | 3 => model.unlock(&word, owner, &sleeper),
            4 => model.begin_write(&word),
            5 => model.end_write(&word),
            6 => model.take_over(&word, owner),
            7 => model.take_over_holder(&word),
            8 => model.release(&word, Left::Whole, &sleeper),
            _ => model.unlock_holder(&word, &sleeper),
        }
        model.check(&word);
    }
    Ok(())
}

/// One of a few, so that they meet, or any.
fn owner(bytes: &mut Unstructured<'_>) -> Result<LockOwner> {
    let session = match bytes.arbitrary::<u8>()? {
        few @ 0..=199 => 1 + u32::from(few % 3),
        _ => 1 + bytes.arbitrary::<u32>()? % SessionId::MAX,
    };
    let session = SessionId::try_from(session).expect("1 to the largest");
    Ok(LockOwner::new(session, bytes.arbitrary::<u8>()? % 3))
}

/// Sleeps that end at once, and whom it was asked to wake.
#[derive(Default)]
struct Sleeper {
    sleeps: Cell<u32>,
    woken: Cell<Option<Wake>>,
}

impl Parking for Sleeper {
    fn park(&self, _: &AtomicU32, expected: u32, _: Deadline) -> Result<Parked, FutexError> {
        assert!(expected & WAITERS != 0, "a sleeper that nobody would wake");
        self.sleeps.set(self.sleeps.get() + 1);
        let over = self.sleeps.get() > SPURIOUS_MAX;
        Ok(if over { Parked::TimedOut } else { Parked::Awake })
    }

    fn wake(&self, _: &AtomicU32, whom: Wake) -> Result<(), FutexError> {
        self.woken.set(Some(whom));
        Ok(())
    }

    fn spin(&self, round: u32) -> bool {
        round < 2
    }
}

/// The word as two numbers.
struct Model {
    half: u32,
    sequence: u32,
}

impl Model {
    fn state(&self) -> LockState {
        match self.half & !(WAITERS | DETACHED) {
            0 => LockState::Free,
            half if half & REPAIR != 0 => LockState::Repair,
            LOST => LockState::Lost,
            _ => LockState::Held(self.holder()),
        }
    }

    /// Whose the owner's bits are.
    fn holder(&self) -> LockOwner {
        match PageLock::of_words(self.half & OWNER_MASK, 0).state() {
            LockState::Held(owner) => owner,
            other => panic!("{other:?}"),
        }
    }

    fn is_held_by(&self, owner: LockOwner) -> bool {
        self.state() == LockState::Held(owner)
    }

    fn check(&self, word: &PageLock) {
        assert_eq!(word.state(), self.state(), "{:#x}", self.half);
        let whole = self.sequence.is_multiple_of(2);
        assert_eq!(word.condition() == PageCondition::Whole, whole);
        assert_eq!(word.begin_read().is_some(), whole);
        assert_eq!(word.is_lost(), self.half & (LOST | REPAIR) == LOST);
    }

    fn try_lock(&mut self, word: &PageLock, owner: LockOwner) {
        let taken = word.try_lock(owner);
        assert_eq!(taken.is_ok(), self.half == 0);
        if self.half == 0 {
            self.half = bits(owner);
        }
    }

    fn lock(&mut self, word: &PageLock, owner: LockOwner, sleeper: &Sleeper) {
        sleeper.sleeps.set(0);
        match word.lock(owner, Deadline::PASSED, sleeper) {
            Ok(()) => {
                assert_eq!((self.state(), sleeper.sleeps.get()), (LockState::Free, 0));
                // What is not taken at once is taken as if others slept.
                let marks = if self.half == 0 { 0 } else { self.half & DETACHED | WAITERS };
                self.half = bits(owner) | marks;
            }
            Err(LockError::Lost) => assert_eq!(self.state(), LockState::Lost),
            Err(LockError::Timeout) => {
                assert!(self.state() != LockState::Lost);
                assert_eq!(sleeper.sleeps.get(), SPURIOUS_MAX + 1);
                self.half |= WAITERS;
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn lock_to_rewrite(&mut self, word: &PageLock, owner: LockOwner, sleeper: &Sleeper) {
        if self.state() != LockState::Lost {
            return self.lock(word, owner, sleeper);
        }
        let taken = word.lock_to_rewrite(owner, Deadline::PASSED, sleeper);
        assert!(taken.is_ok());
        // Others may be about to sleep.
        self.half = bits(owner) | LOST | WAITERS | self.half & DETACHED;
    }

    fn unlock(&mut self, word: &PageLock, owner: LockOwner, sleeper: &Sleeper) {
        let awaited = self.half & WAITERS != 0;
        sleeper.woken.set(None);
        match word.unlock(owner, sleeper) {
            Ok(()) => {
                assert!(self.is_held_by(owner));
                let is_lost = self.half & LOST != 0 && self.sequence % 2 == 1;
                let one = awaited.then_some(Wake::One);
                assert_eq!(sleeper.woken.get(), if is_lost { Some(Wake::All) } else { one });
                self.half = if is_lost { LOST } else { 0 } | self.half & DETACHED;
            }
            Err(error) => {
                assert!(matches!(error, LockError::NotHeld) && !self.is_held_by(owner));
            }
        }
    }

    fn unlock_holder(&mut self, word: &PageLock, sleeper: &Sleeper) {
        if let LockState::Held(owner) = word.state() {
            self.unlock(word, owner, sleeper);
        }
    }

    /// Any reader that looked before knows that it read too early, whatever the sequence was.
    fn begin_write(&mut self, word: &PageLock) {
        let before = word.begin_read();
        word.begin_write();
        self.sequence = self.sequence.wrapping_add(1) | 1;
        assert!(before.is_none_or(|before| !word.is_unchanged(before)));
    }

    fn end_write(&mut self, word: &PageLock) {
        word.end_write();
        self.sequence = self.sequence.wrapping_add(1) & !1;
        let after = word.begin_read().expect("the page is whole");
        assert!(word.is_unchanged(after));
    }

    fn take_over(&mut self, word: &PageLock, dead: LockOwner) {
        // Also what an earlier repair took from it.
        let of_dead = self.half & OWNER_MASK == bits(dead);
        let held = match self.state() {
            LockState::Held(_) | LockState::Repair => of_dead,
            _ => false,
        };
        let at_once = self.bits().taken_over(dead);
        match word.take_over(dead) {
            Ok(condition) => {
                assert!(held);
                assert_eq!(condition == PageCondition::Torn, self.sequence % 2 == 1);
                self.half = self.half & !WAITERS | REPAIR;
                assert_eq!(at_once, Some(self.bits()));
            }
            Err(error) => {
                assert!(matches!(error, LockError::NotHeld) && !held && at_once.is_none());
            }
        }
    }

    fn take_over_holder(&mut self, word: &PageLock) {
        if let LockState::Held(owner) = word.state() {
            self.take_over(word, owner);
        }
    }

    fn release(&mut self, word: &PageLock, left: Left, sleeper: &Sleeper) {
        let repaired = self.state() == LockState::Repair;
        sleeper.woken.set(None);
        let at_once = self.bits().released(left);
        match word.release_repaired(left, sleeper) {
            Ok(()) => {
                assert!(repaired && sleeper.woken.get() == Some(Wake::All));
                let torn = self.sequence % 2;
                let is_lost = left == Left::Lost && torn == 1;
                self.half = if is_lost { LOST } else { 0 } | self.half & DETACHED;
                // Odd becomes even where the page is whole.
                self.sequence = self.sequence.wrapping_add(if is_lost { 0 } else { torn });
                assert_eq!(at_once, Some(self.bits()));
            }
            Err(error) => {
                assert!(matches!(error, LockError::NotHeld) && !repaired && at_once.is_none());
            }
        }
    }

    /// The word as a server sees it.
    fn bits(&self) -> LockBits {
        LockBits::of_word(u64::from(self.sequence) << 32 | u64::from(self.half))
    }
}

/// The bits that stand for an owner.
fn bits(owner: LockOwner) -> u32 {
    let session = owner.session().map_or(0, SessionId::get);
    session << 8 | u32::from(owner.slot())
}
