//! Policies, waiting for room, and events: what a session asks the broker about beyond its blocks.
//!
//! # Invariants
//!
//! 1. Who waits for room has no turn: other calls of the session go on, and may free what it waits
//!    for.
//! 2. What waits at the broker and is not waited for here any more is abandoned.
//! 3. Who waits keeps its own time, whatever that of the session is: nobody is asked for longer,
//!    and after nobody has answered for as long as other calls wait, it is asked again. Only
//!    without a broker it gives up as they do.
//! 4. The policy table is the one that the broker had when the session first allocated.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::limits::POLICIES_MAX;
use dmce_abi::wire::client::{
    Abandon, ClientReply, ClientRequest, MallocWith, Policy, SessionEvent,
};
use dmce_abi::{DmceAddr, block::is_page_size};

use super::core::Core;
use crate::alloc::Kind;
use crate::connection::{Answer, Deadline};
use crate::error::Error;
use crate::events::Event;
use crate::limit::within;
use crate::options::AllocOptions;

/// How long to wait at once where another caller of `poll` may take the ring.
const LOOK_MS: u64 = 50;

/// How long an allocation waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until then.
    Until(Deadline),
    /// For ever.
    Endless,
}

impl Patience {
    fn of_ms(wait_ms: u32) -> Self {
        match wait_ms {
            0 => Self::Endless,
            ms => Self::Until(Deadline::after_ms(ms)),
        }
    }

    /// When it ends, if it does.
    const fn limit(self) -> Option<Deadline> {
        match self {
            Self::Endless => None,
            Self::Until(deadline) => Some(deadline),
        }
    }

    /// The time that is left, in the words of the protocol; `None` if it is over.
    fn left_ms(self) -> Option<u32> {
        match self {
            Self::Endless => Some(0),
            Self::Until(deadline) => {
                let left = deadline.left()?.as_millis();
                Some(u32::try_from(left).unwrap_or(u32::MAX).max(1))
            }
        }
    }

    fn left(self) -> Option<Duration> {
        self.limit().map(|limit| limit.left().unwrap_or_default())
    }
}

/// What a policy makes of an allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub kind: Kind,
    pub align: u32,
    pub patience: Option<Patience>,
}

impl Core {
    /// How an allocation is made: as the options say, and where these leave it open, as the policy
    /// of its number or its size.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`] for a number that no policy has; as [`Core::ask`].
    pub(super) fn terms(&self, bytes: u64, options: &AllocOptions) -> Result<Terms, Error> {
        let own = options.wait.then(|| Patience::of_ms(options.timeout_ms));
        let policies = match own {
            Some(patience) => self.insist(patience, || self.policies())?,
            None => self.policies()?,
        };
        let number = match options.policy {
            0 => number_by_size(policies, bytes),
            number => number,
        };
        let policy = policy_of(policies, number).ok_or_else(|| {
            let text = format!("policy {number} is not in the table, which has {}", policies.len());
            Error::new(Status::NotFound, text)
        })?;
        let or = |asked: u32, policy: u32| if asked == 0 { policy } else { asked };
        let page_size = or(options.page_size, policy.page_size);
        let kind = Kind { page_size, copies: or(options.copies, policy.copies), policy: number };
        let patience = own.or_else(|| policy.wait_ms.map(Patience::of_ms));
        Ok(Terms { kind, align: or(options.align, policy.align), patience })
    }

    /// Bytes that a block of a kind may grow to.
    pub(super) fn block_bytes_of(&self, kind: Kind) -> u64 {
        let table = self.policies.get().map_or(&[][..], |table| table);
        let of_policy = policy_of(table, kind.policy).map_or(0, |policy| policy.block_bytes);
        let of_all = self.ready.block_bytes_max;
        if of_policy == 0 { of_all } else { of_policy.min(of_all) }
    }

    fn policies(&self) -> Result<&[Policy], Error> {
        if !self.ready.has_policies {
            return Ok(&[]);
        }
        if let Some(table) = self.policies.get() {
            return Ok(table);
        }
        let table = match self.ask(&ClientRequest::Policies) {
            Ok((ClientReply::Policies(table), _)) => table,
            Ok(_) => return Err(Error::unexpected_reply("Policies")),
            Err(error) if error.status() == Status::Unsupported => Vec::new(),
            Err(error) => return Err(error),
        };
        if table.len() > POLICIES_MAX || !table.iter().all(is_possible) {
            return Err(Error::unexpected_reply("Policies"));
        }
        let by_size = table.iter().any(|policy| policy.up_to > 0);
        if by_size {
            self.sizes_matter.store(true, Ordering::Relaxed);
            self.allocator().shut_gates();
        }
        Ok(self.policies.get_or_init(|| table))
    }

    /// Asks for something that is waited for: `None` if nobody has answered for as long as a call
    /// of the session waits.
    ///
    /// # Errors
    ///
    /// [`Status::Timeout`] if its own time is over by then; [`Status::Unavailable`] if there is no
    /// connection to a broker; what `call` fails with otherwise.
    fn hear<T>(
        &self,
        patience: Patience,
        call: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        // All that is asked in the call has this time together: it is over exactly if the last of
        // it was waited for in vain.
        let until = within(patience.limit(), || self.deadline());
        match within(Some(until), call) {
            Err(error) if error.status() == Status::Unavailable && until.left().is_none() => {
                if patience.left_ms().is_none() {
                    return Err(Error::new(Status::Timeout, error.text()));
                }
                if self.link.is_attached() { Ok(None) } else { Err(error) }
            }
            called => called.map(Some),
        }
    }

    /// Asks for something that is waited for, until there is an answer.
    ///
    /// # Errors
    ///
    /// [`Status::Timeout`] if there was none in its own time; [`Status::Unavailable`] if there is
    /// no connection to a broker; what `call` fails with otherwise.
    pub(super) fn insist<T>(
        &self,
        patience: Patience,
        call: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some(heard) = self.hear(patience, &call)? {
                return Ok(heard);
            }
        }
    }

    /// Asks for blocks, and waits for them if there is no room.
    ///
    /// # Errors
    ///
    /// [`Status::Timeout`] if there was none in time; as [`Core::ask`].
    pub(super) fn ask_patiently(
        &self,
        mut with: MallocWith,
        patience: Patience,
    ) -> Result<Answer, Error> {
        loop {
            if let Some(answer) = self.ask_with_ticket(with, patience)? {
                return Ok(answer);
            }
            // The request was given up. What still may come of it goes back, and is not this.
            with.malloc.ticket = self.ticket();
        }
    }

    /// [`Core::ask_patiently`] until nobody answers; the ticket is abandoned then.
    fn ask_with_ticket(
        &self,
        with: MallocWith,
        patience: Patience,
    ) -> Result<Option<Answer>, Error> {
        let mut is_queued = false;
        let waiting = self.events.begin_waiting(with.malloc.ticket);
        let asked = loop {
            let (seen, renewal) = (self.events.count(), self.events.renewal());
            let Some(wait_ms) = patience.left_ms() else {
                break Err(Error::new(Status::Timeout, "there was no room"));
            };
            let with = MallocWith { wait_ms: Some(wait_ms), ..with };
            match self.hear(patience, || self.ask(&ClientRequest::MallocWith(with))) {
                Ok(Some((ClientReply::Queued, _))) => {
                    is_queued = true;
                    waiting.asked_in(renewal);
                }
                asked => break asked,
            }
            self.wait_for_news(seen, patience.left());
        };
        if is_queued && !matches!(asked, Ok(Some(_))) {
            self.chores().abandons.push(Abandon { ticket: with.malloc.ticket });
            self.link.wake();
        }
        asked
    }

    /// Waits until the broker has rung, or the session has another reason to look.
    fn wait_for_news(&self, seen: u64, limit: Option<Duration>) {
        if self.is_threaded {
            return self.events.wait(seen, limit);
        }
        let once = Duration::from_millis(LOOK_MS);
        let limit = limit.map_or(once, |limit| limit.min(once));
        if let Err(error) = self.link.poller().wait(Some(limit), &mut Vec::new()) {
            tracing::debug!(error = %error, "waited for no news");
        }
        self.tend();
    }

    /// Takes the broker's news in: called when the doorbell has rung, or the broker is another.
    /// False if that has to be done again.
    pub(super) fn take_news(&self) -> bool {
        if !self.events.take_rung() || !self.events.is_watched() {
            return true;
        }
        match self.fetch_events() {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(error = %error, "events could not be had");
                self.events.note_rung();
                false
            }
        }
    }

    fn fetch_events(&self) -> Result<(), Error> {
        let ClientReply::Events(events) = self.ask(&ClientRequest::Events)?.0 else {
            return Err(Error::unexpected_reply("Events"));
        };
        for event in events {
            match event {
                SessionEvent::Pressure { left } => self.events.push(Event::Pressure { left }),
                SessionEvent::Available { bytes } => self.events.push(Event::Available { bytes }),
                SessionEvent::Lost { addr, bytes } => {
                    let addr = DmceAddr::from_raw(self.layout, addr)?;
                    self.events.push(Event::Lost { addr, bytes });
                }
                SessionEvent::CopyLost { addr, bytes } => {
                    let addr = DmceAddr::from_raw(self.layout, addr)?;
                    self.events.push(Event::CopyLost { addr, bytes });
                }
                SessionEvent::CopiesRestored { addr, bytes } => {
                    let addr = DmceAddr::from_raw(self.layout, addr)?;
                    self.events.push(Event::CopiesRestored { addr, bytes });
                }
                other => tracing::debug!(?other, "an event of a later release"),
            }
        }
        Ok(())
    }

    /// The descriptor that is readable while an event waits.
    pub(crate) fn event_fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.watch()?;
        let fd = self.events.fd();
        fd.map_err(|error| Error::new(Status::NoMem, format!("no descriptor: {error}")))
    }

    /// The oldest event.
    pub(crate) fn next_event(&self) -> Result<Option<Event>, Error> {
        self.watch()?;
        self.events.next()
    }

    /// Has the broker tell of events from now on.
    fn watch(&self) -> Result<(), Error> {
        self.usable()?;
        if self.events.watch() {
            return Ok(());
        }
        self.fetch_events().inspect_err(|_| self.events.unwatch())
    }
}

/// The number of the policy for a size; 0 for none.
fn number_by_size(policies: &[Policy], bytes: u64) -> u32 {
    let fits = |(_, policy): &(u32, &Policy)| bytes <= policy.up_to;
    let smallest = (1..).zip(policies).filter(fits).min_by_key(|(_, policy)| policy.up_to);
    smallest.map_or(0, |(number, _)| number)
}

/// The policy of a number; that of 0 leaves everything open.
fn policy_of(policies: &[Policy], number: u32) -> Option<Policy> {
    let Some(index) = number.checked_sub(1) else { return Some(Policy::default()) };
    policies.get(usize::try_from(index).ok()?).copied()
}

fn is_possible(policy: &Policy) -> bool {
    let page_size = policy.page_size == 0 || is_page_size(policy.page_size);
    let align = policy.align == 0 || policy.align.is_power_of_two();
    page_size && align && policy.align <= AllocOptions::ALIGN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_size_that_fits_names_the_policy() {
        let up_to = |up_to| Policy { up_to, ..Policy::default() };
        let table = [up_to(4096), up_to(0), up_to(64)];
        let numbers = [1, 64, 65, 4096, 4097].map(|bytes| number_by_size(&table, bytes));
        assert_eq!(numbers, [3, 3, 1, 1, 0]);
        assert_eq!(policy_of(&table, 0), Some(Policy::default()));
        assert_eq!(policy_of(&table, 3), Some(up_to(64)));
        assert_eq!(policy_of(&table, 4), None);
    }
}
