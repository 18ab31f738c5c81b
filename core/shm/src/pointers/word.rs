//! The word of a record: its state, whose wake-ups it owes, and how often it was tried.
//!
//! ```text
//!  31        30        29     28        5   4        3           2    0
//! | waiters | watched | bell |   tries   | queued | exclusive | state |
//!  `------- owed: set by others -------'   `---- set by the owner ----'
//! ```

/// Nobody's, or nothing is wanted with it.
pub(super) const FREE: u32 = 0;
/// The owner looks whether others are in its way.
pub(super) const TRYING: u32 = 1;
/// It has found one, and has a ticket.
pub(super) const WAITING: u32 = 2;
/// The range is the owner's.
pub(super) const HELD: u32 = 3;
/// What was stored by the pointer goes to the other copies: forward alone from here.
pub(super) const RELEASING: u32 = 4;
/// The owner died while it wrote, and nothing says what was there before.
pub(super) const DIRTY: u32 = 5;
const STATE: u32 = 0b111;

pub(super) const EXCLUSIVE: u32 = 1 << 3;
pub(super) const QUEUED: u32 = 1 << 4;

const TRY: u32 = 1 << 5;
const TRIES: u32 = (OWED - 1) & !(TRY - 1);

/// Somebody is to be told that a queued pointer may have its turn.
pub(super) const BELL: u32 = 1 << 29;
/// Who was [`TRYING`] as well sleeps until it is known what comes of this one.
pub(super) const WATCHED: u32 = 1 << 30;
/// Others sleep until this one is gone.
pub(super) const WAITERS: u32 = 1 << 31;

const OWED: u32 = BELL;
const ALL_OWED: u32 = BELL | WATCHED | WAITERS;

/// A word, as one look found it. Any bits are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub u32);

impl Word {
    pub(super) const fn state(self) -> u32 {
        self.0 & STATE
    }

    pub(super) const fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }

    pub(super) const fn is_queued(self) -> bool {
        self.0 & QUEUED != 0
    }

    /// What its owner has put there.
    pub(super) const fn own(self) -> u32 {
        self.0 & !ALL_OWED
    }

    pub(super) const fn owes(self, what: u32) -> bool {
        self.0 & what != 0
    }

    /// Another try, of a word that is free or waits.
    pub(super) const fn next_try(self, exclusive: bool) -> Self {
        let tries = (self.0 & TRIES).wrapping_add(TRY) & TRIES;
        Self(tries | TRYING | if exclusive { EXCLUSIVE } else { 0 })
    }

    /// The same try in another state, with nothing owed.
    pub(super) const fn in_state(self, state: u32) -> Self {
        let kept = match state {
            FREE | DIRTY => TRIES,
            WAITING => TRIES | EXCLUSIVE | QUEUED,
            _ => TRIES | EXCLUSIVE,
        };
        Self(self.0 & kept | state)
    }

    pub(super) const fn queued(self) -> Self {
        Self(self.0 | QUEUED)
    }
}

const _: () = assert!(TRIES & (STATE | EXCLUSIVE | QUEUED | ALL_OWED) == 0);
const _: () = assert!(TRIES | STATE | EXCLUSIVE | QUEUED | ALL_OWED == u32::MAX);
