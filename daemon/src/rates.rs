//! How many requests a user may make over links: a bucket of tokens for each, filled at the rate
//! that the broker has told with the link.
//!
//! ```text
//!  a link has its turn --- a token, and nobody held before it? ---> one message is read, and paid
//!            ^                         | no
//!            |                         v
//!            +---- a token for it --- held: not read, not polled for what it may bring
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is read without a token, and nothing is refused for the want of one. A message may
//!    cost more than there is: what it takes beyond that is made up for before the next.
//! 2. A user's links are read in the order in which they were first held, and a link that is let go
//!    keeps its [`Place`] until a message of it was read. So none keeps the others from being read.
//! 3. While links of a user are held there is a time at which some are let go, and that is when
//!    there is a token: the loop waits until [`Rates::due_ms`], and does not ask in between.
//! 4. Who has not been heard for the time that fills the bucket, and has no link held, is forgotten
//!    when the next user comes: there are no more users here than spend tokens.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::rate::{Bucket, Rate};

/// The place of a link among those of its user that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// Who pays for what comes over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The user.
    pub uid: u32,
    /// How much that user may ask for, as the link says.
    pub rate: Rate,
}

#[derive(Debug)]
struct User {
    bucket: Bucket,
    /// Of the link that was looked at last: those of a new broker may say something else.
    rate: Rate,
    /// The links, as they are polled for, by their places.
    held: BTreeMap<Place, u64>,
    /// When some are let go; there is a time as long as there are any.
    due_ms: Option<u64>,
}

/// The users whose requests are limited, and who were heard of late.
#[derive(Debug, Default)]
pub struct Rates {
    users: BTreeMap<u32, User>,
    due: BTreeSet<(u64, u32)>,
    places: u64,
}

impl Rates {
    /// Whether a message of a link may be read now. If so, it has its place no more; if not, it is
    /// held there, or behind the others of its user.
    pub fn admit(
        &mut self,
        link: u64,
        payer: Payer,
        place: &mut Option<Place>,
        now_ms: u64,
    ) -> bool {
        if !payer.rate.is_limited() {
            return true;
        }
        let user = self.user(payer, now_ms);
        let let_go = place.is_some_and(|place| !user.held.contains_key(&place));
        if user.bucket.tokens() > 0 && (let_go || user.held.is_empty()) {
            *place = None;
            return true;
        }
        let place = *place.get_or_insert_with(|| {
            self.places += 1;
            Place(self.places)
        });
        let user = self.users.get_mut(&payer.uid).expect("it was looked at just now");
        user.held.insert(place, link);
        if user.due_ms.is_none() {
            let due_ms = user.bucket.ready_at_ms(user.rate, 1);
            user.set_due(&mut self.due, payer.uid, due_ms);
        }
        false
    }

    /// A message that moves so many bytes was read of a link that was admitted.
    pub fn spend(&mut self, payer: Payer, bytes: usize) {
        if !payer.rate.is_limited() {
            return;
        }
        let user = self.users.get_mut(&payer.uid).expect("who was admitted just now is known");
        user.bucket.spend(bytes);
        let ready_ms = user.bucket.ready_at_ms(user.rate, 1);
        if user.due_ms.is_some_and(|due_ms| due_ms < ready_ms) {
            user.set_due(&mut self.due, payer.uid, ready_ms);
        }
    }

    /// A link that has a place ends.
    pub fn forget(&mut self, uid: u32, place: Place) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.held.remove(&place);
        if user.held.is_empty()
            && let Some(due_ms) = user.due_ms.take()
        {
            self.due.remove(&(due_ms, uid));
        }
    }

    /// When links are to be let go, if any are held.
    pub fn due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Lets go as many links of each user as there are tokens for. They keep their places.
    pub fn let_go(&mut self, now_ms: u64) -> Vec<u64> {
        let mut links = Vec::new();
        while let Some((due_ms, uid)) = self.due.first().copied()
            && due_ms <= now_ms
        {
            self.due.pop_first();
            let user = self.users.get_mut(&uid).expect("who has links held is known");
            user.due_ms = None;
            user.bucket.fill(user.rate, now_ms);
            let tokens = user.bucket.tokens();
            for _ in 0..tokens {
                let Some((_, link)) = user.held.pop_first() else { break };
                links.push(link);
            }
            if !user.held.is_empty() {
                // With the burst there is nothing more to wait for.
                let next = (tokens + 1).min(user.rate.burst.max(1).into());
                let due_ms = user.bucket.ready_at_ms(user.rate, next);
                user.set_due(&mut self.due, uid, due_ms);
            }
        }
        links
    }

    /// A user as they are now.
    fn user(&mut self, payer: Payer, now_ms: u64) -> &mut User {
        let Payer { uid, rate } = payer;
        if !self.users.contains_key(&uid) {
            self.users.retain(|_, user| {
                user.bucket.fill(user.rate, now_ms);
                !user.bucket.is_full(user.rate) || !user.held.is_empty()
            });
        }
        let new = || User {
            bucket: Bucket::full(rate, now_ms),
            rate,
            held: BTreeMap::new(),
            due_ms: None,
        };
        let user = self.users.entry(uid).or_insert_with(new);
        user.rate = rate;
        user.bucket.fill(rate, now_ms);
        user
    }
}

impl User {
    fn set_due(&mut self, due: &mut BTreeSet<(u64, u32)>, uid: u32, due_ms: u64) {
        if let Some(before_ms) = self.due_ms.replace(due_ms) {
            due.remove(&(before_ms, uid));
        }
        due.insert((due_ms, uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_s: 10, burst: 3 };
    const ONE: Payer = Payer { uid: 1000, rate: RATE };
    const OTHER: Payer = Payer { uid: 1001, rate: RATE };

    /// Links of one user, and their places, as the daemon keeps them.
    struct Rig {
        rates: Rates,
        places: BTreeMap<u64, Option<Place>>,
        now_ms: u64,
    }

    impl Rig {
        fn new() -> Self {
            Self { rates: Rates::default(), places: BTreeMap::new(), now_ms: 1_000 }
        }

        /// Whether a link is read, if it is ready now.
        fn read(&mut self, payer: Payer, link: u64, bytes: usize) -> bool {
            let place = self.places.entry(link).or_default();
            let admitted = self.rates.admit(link, payer, place, self.now_ms);
            if admitted {
                self.rates.spend(payer, bytes);
            }
            assert_eq!(place.is_none(), admitted);
            admitted
        }

        fn end(&mut self, payer: Payer, link: u64) {
            if let Some(Some(place)) = self.places.remove(&link) {
                self.rates.forget(payer.uid, place);
            }
        }

        /// Waits until something is due; what is let go then.
        fn wait(&mut self) -> Vec<u64> {
            self.now_ms = self.rates.due_ms().unwrap();
            self.rates.let_go(self.now_ms)
        }

        fn users(&self) -> Vec<u32> {
            self.rates.users.keys().copied().collect()
        }
    }

    #[test]
    fn a_burst_is_read_at_once_and_then_one_with_each_token() {
        let mut rig = Rig::new();
        for _ in 0..3 {
            assert!(rig.read(ONE, 7, 0));
        }
        assert_eq!(rig.rates.due_ms(), None);
        assert!(!rig.read(ONE, 7, 0));
        for token in 1..=5 {
            assert_eq!(rig.wait(), [7]);
            assert_eq!(rig.now_ms, 1_000 + token * 100);
            assert!(rig.read(ONE, 7, 0));
            assert!(!rig.read(ONE, 7, 0));
        }
        assert!(rig.rates.let_go(rig.now_ms + 99).is_empty());
    }

    #[test]
    fn what_moves_much_is_read_with_one_token_and_made_up_for() {
        let mut rig = Rig::new();
        assert!(rig.read(ONE, 7, 60 << 10));
        assert!(!rig.read(ONE, 7, 0));
        // Twelve that were not there, and one.
        assert_eq!(rig.wait(), [7]);
        assert_eq!(rig.now_ms, 1_000 + 1_300);
    }

    #[test]
    fn links_are_read_in_the_order_in_which_they_were_held() {
        let mut rig = Rig::new();
        for link in 1..=3 {
            assert!(rig.read(ONE, link, 0));
        }
        for link in 1..=3 {
            assert!(!rig.read(ONE, link, 0));
        }
        assert_eq!(rig.wait(), [1]);
        // One that has not waited takes the token of none that has, and no place twice.
        assert!(!rig.read(ONE, 9, 0) && !rig.read(ONE, 9, 0));
        assert!(rig.read(ONE, 1, 0) && !rig.read(ONE, 1, 0));
        for link in [2, 3, 9, 1, 2] {
            assert_eq!(rig.wait(), [link]);
            assert!(rig.read(ONE, link, 0) && !rig.read(ONE, link, 0));
        }
    }

    /// Let go for a token that another link has taken, by moving more than was known.
    #[test]
    fn a_link_that_finds_no_token_any_more_is_the_next() {
        let mut rig = Rig::new();
        for _ in 0..3 {
            assert!(rig.read(ONE, 1, 0));
        }
        for link in 1..=4 {
            assert!(!rig.read(ONE, link, 0));
        }
        rig.now_ms += 300;
        assert_eq!(rig.rates.let_go(rig.now_ms), [1, 2, 3]);
        assert!(rig.read(ONE, 1, 60 << 10));
        assert!(!rig.read(ONE, 2, 0) && !rig.read(ONE, 3, 0) && !rig.read(ONE, 1, 0));
        for link in [2, 3, 4, 1] {
            assert_eq!(rig.wait(), [link]);
            assert!(rig.read(ONE, link, 0));
        }
        assert_eq!(rig.rates.due_ms(), None);
        assert_eq!(rig.now_ms, 1_000 + 300 + 1_300 + 300);
    }

    #[test]
    fn nobody_waits_for_the_tokens_of_another_or_of_a_link_that_has_ended() {
        let mut rig = Rig::new();
        while rig.read(ONE, 1, 0) {}
        assert!(rig.read(OTHER, 50, 0));
        let unlimited = Payer { uid: 1002, rate: Rate::UNLIMITED };
        for _ in 0..100 {
            assert!(rig.read(unlimited, 60, 60 << 10));
        }
        assert!(!rig.read(ONE, 2, 0));
        rig.end(ONE, 1);
        assert_eq!(rig.wait(), [2]);
        assert!(rig.read(ONE, 2, 0) && !rig.read(ONE, 2, 0));
        rig.end(ONE, 2);
        assert_eq!(rig.rates.due_ms(), None);
        assert_eq!(rig.users(), [ONE.uid, OTHER.uid]);
    }

    #[test]
    fn who_was_not_heard_for_the_time_that_fills_the_bucket_is_forgotten() {
        let mut rig = Rig::new();
        let payer = |uid| Payer { uid, rate: RATE };
        for uid in 0..1_000 {
            assert!(rig.read(payer(uid), uid.into(), 0));
            rig.now_ms += 50;
        }
        // A token takes two of them.
        assert_eq!(rig.users(), [998, 999]);
        // Whose link is held is not, and has no more tokens than the burst in the end.
        while rig.read(payer(999), 999, 0) {}
        rig.now_ms += 1_000_000;
        assert!(rig.read(payer(0), 0, 0));
        assert_eq!(rig.users(), [0, 999]);
        assert_eq!(rig.rates.let_go(rig.now_ms), [999]);
        for _ in 0..3 {
            assert!(rig.read(payer(999), 999, 0));
        }
        assert!(!rig.read(payer(999), 999, 0));
    }

    #[test]
    fn a_new_link_may_bring_a_new_rate() {
        let mut rig = Rig::new();
        while rig.read(ONE, 1, 0) {}
        rig.end(ONE, 1);
        let faster = Payer { rate: Rate { per_s: 1_000, burst: 9 }, ..ONE };
        assert!(!rig.read(faster, 2, 0));
        assert_eq!(rig.wait(), [2]);
        assert_eq!(rig.now_ms, 1_001);
    }
}
