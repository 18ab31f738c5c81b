//! What happened to a session's memory, for programs that want to know; and who waits for news.
//!
//! ```text
//!   broker -- doorbell --> service thread, or poll -- Events --> queue -- next_event --> program
//!                                  |                               |
//!                                  +--> mallocs that wait          +-- eventfd, while it has any
//! ```
//!
//! # Invariants
//!
//! 1. The descriptor is readable exactly while an event waits: both change under the queue's lock.
//! 2. The queue is bounded; of what speaks of the whole it holds the last alone.
//! 3. News are counted before those who wait are woken, so that who looks at the count first and
//!    at the broker then misses none.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dmce_abi::DmceAddr;
use dmce_abi::limits::EVENTS_QUEUED;
use dmce_sys::poll::EventFd;

use crate::error::Error;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A queued pointer has its turn: the next call for its range takes it.
    Granted {
        /// Its first byte.
        addr: DmceAddr,
        /// Bytes.
        bytes: u64,
    },
    /// A daemon, or the whole instance, is nearly full.
    Pressure {
        /// Bytes that all daemons together have left.
        left: u64,
    },
    /// There is room again for what this session was refused.
    Available {
        /// Bytes that it could have in one piece.
        bytes: u64,
    },
    /// The last copy of some memory of this session, or of a region that it has open, is lost.
    Lost {
        /// Its first byte.
        addr: DmceAddr,
        /// Bytes.
        bytes: u64,
    },
    /// A copy of such memory is lost, and another is not: nothing is missing.
    CopyLost {
        /// Its first byte.
        addr: DmceAddr,
        /// Bytes.
        bytes: u64,
    },
    /// Such memory has all its copies again.
    CopiesRestored {
        /// Its first byte.
        addr: DmceAddr,
        /// Bytes.
        bytes: u64,
    },
}

/// The events of a session.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: Mutex<VecDeque<Event>>,
    fd: OnceLock<EventFd>,
    /// Whether the program wants to know.
    watched: AtomicBool,
    /// Whether the doorbell has rung since the broker was asked.
    rung: AtomicBool,
    /// Whether the program was refused memory, and was not told of any since.
    refused: AtomicBool,
    news: Mutex<u64>,
    told: Condvar,
    /// How often the session was attached anew.
    renewals: AtomicU64,
    /// The requests that wait for room, by ticket; of each, the renewal in which it was asked last.
    waiting: Mutex<BTreeMap<u64, u64>>,
}

/// A request waits for room, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    events: &'a Events,
    ticket: u64,
}

impl Waiting<'_> {
    /// The broker of that renewal has answered it.
    pub(crate) fn asked_in(&self, renewal: u64) {
        self.events.waiting().insert(self.ticket, renewal);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.events.waiting().remove(&self.ticket);
    }
}

impl Events {
    /// The descriptor that is readable while an event waits.
    ///
    /// # Errors
    ///
    /// An error of the kernel, for want of descriptors.
    pub(crate) fn fd(&self) -> std::io::Result<BorrowedFd<'_>> {
        let queue = self.queue();
        if self.fd.get().is_none() {
            let fd = EventFd::new()?;
            if !queue.is_empty() {
                fd.signal()?;
            }
            // Nobody else sets it: the queue is locked.
            let _ = self.fd.set(fd);
        }
        self.fd.get().map(AsFd::as_fd).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Takes the oldest.
    ///
    /// # Errors
    ///
    /// An error of the kernel.
    pub(crate) fn next(&self) -> Result<Option<Event>, Error> {
        let mut queue = self.queue();
        let event = queue.pop_front();
        if event.is_some()
            && queue.is_empty()
            && let Some(fd) = self.fd.get()
        {
            fd.drain().map_err(|error| Error::new(dmce_abi::Status::Io, error.to_string()))?;
        }
        Ok(event)
    }

    /// Adds one; the oldest goes for it if there are too many.
    pub(crate) fn push(&self, event: Event) {
        if matches!(event, Event::Available { .. }) && !self.refused.swap(false, Ordering::SeqCst) {
            return;
        }
        let mut queue = self.queue();
        if matches!(event, Event::Pressure { .. } | Event::Available { .. }) {
            queue.retain(|other| mem::discriminant(other) != mem::discriminant(&event));
        }
        if queue.len() == EVENTS_QUEUED {
            queue.pop_front();
        }
        queue.push_back(event);
        if let Some(fd) = self.fd.get() {
            // A counter that cannot be raised is raised already.
            let _ = fd.signal();
        }
    }

    /// The program wants to know. Whether it did before.
    pub(crate) fn watch(&self) -> bool {
        self.watched.swap(true, Ordering::SeqCst)
    }

    /// It could not be told to the broker.
    pub(crate) fn unwatch(&self) {
        self.watched.store(false, Ordering::SeqCst);
    }

    /// Whether the program wants to know.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// The program was refused memory.
    pub(crate) fn note_refused(&self) {
        self.refused.store(true, Ordering::SeqCst);
    }

    /// The broker has something to tell, or somebody looks for other reasons.
    pub(crate) fn note_rung(&self) {
        self.rung.store(true, Ordering::SeqCst);
        *self.news() += 1;
        self.told.notify_all();
    }

    /// Whether the broker is to be asked.
    pub(crate) fn take_rung(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// A request begins to wait.
    pub(crate) fn begin_waiting(&self, ticket: u64) -> Waiting<'_> {
        self.waiting().insert(ticket, self.renewal());
        Waiting { events: self, ticket }
    }

    /// How often the session was attached anew.
    pub(crate) fn renewal(&self) -> u64 {
        self.renewals.load(Ordering::SeqCst)
    }

    /// The session was attached anew: who waits has to ask again.
    pub(crate) fn note_renewed(&self) {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.note_rung();
    }

    /// Whether all that wait have asked the present broker: what that has of the session and nobody
    /// here knows of is none of theirs.
    pub(crate) fn have_all_asked(&self) -> bool {
        let renewal = self.renewal();
        self.waiting().values().all(|asked| *asked >= renewal)
    }

    /// How many news there were.
    pub(crate) fn count(&self) -> u64 {
        *self.news()
    }

    /// Waits for more news than there were.
    pub(crate) fn wait(&self, seen: u64, limit: Option<Duration>) {
        let is_old = |news: &mut u64| *news == seen;
        let news = self.news();
        match limit {
            Some(limit) => {
                drop(self.told.wait_timeout_while(news, limit, is_old));
            }
            None => drop(self.told.wait_while(news, is_old)),
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, u64> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use dmce_abi::AddrLayout;
    use dmce_sys::poll::wait_readable;

    use super::*;

    fn lost(cell: u64) -> Event {
        let raw = (1 << AddrLayout::IN_SERVER.cell_bits()) + cell;
        let addr = DmceAddr::from_raw(AddrLayout::IN_SERVER, raw).unwrap();
        Event::Lost { addr, bytes: 4096 }
    }

    fn is_readable(events: &Events) -> bool {
        wait_readable(events.fd().unwrap(), Some(Duration::ZERO)).unwrap()
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_an_event_waits() {
        let events = Events::default();
        events.push(lost(0));
        assert!(is_readable(&events), "it was made after the event came");
        events.push(lost(1));
        assert_eq!(events.next().unwrap(), Some(lost(0)));
        assert!(is_readable(&events));
        assert_eq!(events.next().unwrap(), Some(lost(1)));
        assert!(!is_readable(&events));
        assert_eq!(events.next().unwrap(), None);
        events.push(Event::Pressure { left: 1 });
        events.push(Event::Pressure { left: 2 });
        assert!(is_readable(&events));
        assert_eq!(events.next().unwrap(), Some(Event::Pressure { left: 2 }));
        assert!(!is_readable(&events));
    }

    #[test]
    fn of_too_many_events_the_oldest_go() {
        let events = Events::default();
        for cell in 0..=EVENTS_QUEUED as u64 {
            events.push(lost(cell));
        }
        assert_eq!(events.next().unwrap(), Some(lost(1)));
        let left = std::iter::from_fn(|| events.next().unwrap()).count();
        assert_eq!(left, EVENTS_QUEUED - 1);
        assert!(!is_readable(&events));
    }

    #[test]
    fn room_is_told_to_a_program_that_was_refused_and_once() {
        let events = Events::default();
        let room = Event::Available { bytes: 1 };
        events.push(room);
        assert_eq!(events.next().unwrap(), None);
        events.note_refused();
        events.push(room);
        events.push(room);
        assert_eq!(events.next().unwrap(), Some(room));
        assert_eq!(events.next().unwrap(), None);
    }

    #[test]
    fn who_waits_is_known_to_have_asked_only_after_the_last_renewal() {
        let events = Events::default();
        assert!(events.have_all_asked());
        let first = events.begin_waiting(1);
        assert!(events.have_all_asked(), "nobody can have made anything for it");
        let seen = events.renewal();
        events.note_renewed();
        assert!(!events.have_all_asked());
        first.asked_in(seen);
        assert!(!events.have_all_asked(), "that was asked of the broker before");
        first.asked_in(events.renewal());
        assert!(events.have_all_asked());
        events.note_renewed();
        drop(first);
        assert!(events.have_all_asked());
    }

    #[test]
    fn news_that_came_before_the_wait_end_it_at_once() {
        let events = Events::default();
        let seen = events.count();
        events.note_rung();
        events.wait(seen, None);
        assert!(events.take_rung() && !events.take_rung());
        events.wait(events.count(), Some(Duration::from_millis(1)));
    }
}
