//! What a session is made of, and the ground rule of every operation.
//!
//! ```text
//!   forked? -> mark the slot -> generation as known? -> find the block -> access -> unmark
//!                                   | no
//!                                   unmark, take in what changed, begin again
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is asked of the broker inside an operation, and no operation begins inside another.
//! 2. `changing` is held by who changes what the table knows of blocks that the broker owns; a turn
//!    of the link may be taken while it is held, never the other way round.
//! 3. What is taken out of the table is dropped after the operations that might use it are over.
//! 4. Nothing is asked of the broker while `pins` is held: giving a pointer back waits for nobody.
//! 5. Once the session is closed no operation begins: the known generation is one that never is.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{
    Abandon, Changed, Changes, ClientReply, ClientRequest, Policy, Ready,
};
use dmce_abi::{AddrLayout, DmceAddr, Status};
use dmce_shm::session::map::SessionMap;
use dmce_shm::slot::Operation;
use dmce_sys::map::WipeOnForkPage;

use super::bell::Bell;
use super::holders::Holders;
use super::link::{Link, LinkError};
use super::mapping::{Pinned, Told};
use super::openings::OpenRegions;
use super::pointers::LockedRanges;
use super::service::{Chores, Service};
use super::tracking::Tracking;
use crate::alloc::{Allocator, Key};
use crate::block::{Backing, Block, Obstacle};
use crate::connection::{Answer, Deadline};
use crate::doors::Doors;
use crate::error::Error;
use crate::events::Events;
use crate::limit;
use crate::operations::Operations;
use crate::options::Options;
use crate::places::Places;
use crate::reach::Trouble;
use crate::reach::ways::Ways;
use crate::slots::{SHARED_SLOT, Slots};
use crate::table::{Retired, Table};
use crate::thread;
use crate::turn::Turn;

const CHECK_VARIABLE: &str = "DMCE_CHECK";

/// A generation that a closed session takes for known. A broker counts up from 0.
const NEVER: u64 = u64::MAX;

/// How long until a pointer is asked for again into a block that moves.
const PAUSE: Duration = Duration::from_millis(1);

/// How often an operation may find that something changed again before it gives up.
const TRIES_MAX: u32 = 1_000;

/// A session.
#[derive(Debug)]
pub(crate) struct Core {
    /// The doors that threads have here. First, so that they are shut and left before anything that
    /// they lead to goes.
    pub(super) doors: Doors,
    /// How addresses are divided.
    pub layout: AddrLayout,
    /// Width of a cell, for the fast path.
    pub cell_bits: u8,
    /// What the broker said at setup.
    pub ready: Ready,
    /// How long a call waits for the broker.
    pub timeout_ms: u32,
    /// Whether writes are read back.
    pub verify: bool,
    /// Whether accesses are checked against allocations.
    pub check: bool,
    /// The known blocks.
    pub table: Box<Table>,
    /// How their bytes are reached.
    pub ways: Ways,
    /// The session object.
    pub map: Arc<SessionMap>,
    /// Its operations that are in flight.
    pub operations: Operations,
    /// What is allocated. Its lock is taken after `pins`, and held over no message.
    pub allocator: Allocator,
    /// The policy table, once it was asked for.
    pub policies: OnceLock<Vec<Policy>>,
    /// Whether a size may have a policy: then no small allocation is made the quick way. Gates are
    /// shut after it was stored.
    pub sizes_matter: AtomicBool,
    /// What happened, and who waits for news.
    pub events: Events,
    /// Whether there is a service thread, which takes news in.
    pub is_threaded: bool,
    /// The right to ask for more memory.
    pub growing: Turn<()>,
    /// The right to change what is known of blocks.
    pub changing: Turn<()>,
    /// The pointers that the application has.
    pub pins: Mutex<BTreeMap<usize, Vec<Pinned>>>,
    /// How many of those may be into allocations of any kind, for who frees. Counted up under the
    /// lock of `pins` before a pointer is given; then gates are shut, so that every free has seen
    /// it or is waited for.
    pub pinned: AtomicUsize,
    /// How many pointers there are besides to what is mapped as a whole: nothing else is in it, so
    /// who frees need not care.
    pub spread: AtomicUsize,
    /// Where that is.
    pub places: Places,
    /// How stores by plain pointers are noted.
    pub tracking: Tracking,
    /// The ranges that pointers lock.
    pub locked: LockedRanges,
    /// What the broker was told of them. Taken before `pins`, and held over notices, which wait for
    /// nothing.
    pub told: Mutex<Told>,
    /// The blocks that hold a descriptor.
    pub holders: Mutex<Holders<Block>>,
    /// The regions that are open.
    pub regions: Mutex<OpenRegions>,
    /// What the service thread has to do.
    pub chores: Mutex<Chores>,
    /// The service thread.
    pub service: Service,
    /// The connection.
    pub link: Arc<Link>,
    /// Wakes those of this process who wait for words.
    pub bell: Bell,
    /// Numbers the requests that must not be done twice.
    pub tickets: AtomicU64,
    pub(super) fork: WipeOnForkPage,
    pub(super) slots: Slots,
    /// What gates know the session by.
    pub(super) key: AtomicUsize,
    /// Set by close, and when the broker has ended the session.
    pub(super) closed: AtomicBool,
    /// Set when the session ended over a write: the broker is to be told.
    pub(super) given_up: AtomicBool,
    /// Set by close alone.
    pub(super) torn_down: AtomicBool,
}

/// An operation in flight.
pub(crate) struct Entered<'a> {
    /// First, so that the mark is gone before another thread may use the shared slot.
    operation: Operation<'a>,
    _shared: Option<MutexGuard<'a, ()>>,
}

impl<'a> Entered<'a> {
    /// What lookups in the table need.
    #[inline]
    pub(crate) const fn operation(&self) -> &Operation<'a> {
        &self.operation
    }
}

impl Core {
    /// Begins an operation, if nothing is in the way: no fork, no change, and this thread was here
    /// of late.
    #[inline]
    pub(crate) fn enter_quickly(&self) -> Option<Operation<'_>> {
        if self.fork.is_forked() {
            return None;
        }
        self.map.begin(self.slots.recent()?).ok()
    }

    /// Begins an operation.
    ///
    /// # Errors
    ///
    /// [`Status::Forked`], [`Status::Closed`]; [`Status::Unavailable`] if something changed and the
    /// broker does not say what.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, Error> {
        self.enter_with(|| ()).map(|((), inside)| inside)
    }

    /// Begins an operation while a lock is held. The lock is not held while the broker is asked.
    ///
    /// # Errors
    ///
    /// As [`Core::enter`].
    pub(crate) fn enter_with<T>(&self, lock: impl Fn() -> T) -> Result<(T, Entered<'_>), Error> {
        if self.fork.is_forked() {
            return Err(Error::forked());
        }
        for _ in 0..TRIES_MAX {
            let locked = lock();
            let (slot, shared) = match self.slots.own() {
                Some(slot) => (slot, None),
                None => (SHARED_SLOT, Some(self.slots.shared())),
            };
            if let Ok(operation) = self.map.begin(slot) {
                return Ok((locked, Entered { operation, _shared: shared }));
            }
            drop(shared);
            drop(locked);
            self.catch_up()?;
        }
        Err(Error::new(Status::Internal, "the session's generation moves without end"))
    }

    /// Checks that calls may be made at all.
    ///
    /// # Errors
    ///
    /// [`Status::Forked`], [`Status::Closed`].
    pub(crate) fn usable(&self) -> Result<(), Error> {
        if self.fork.is_forked() {
            return Err(Error::forked());
        }
        if self.is_closed() {
            // Who is told so is not let in any more, also before `shut` has come to its gate.
            thread::shut(self.key());
            if !self.is_threaded {
                self.leave();
            }
            return Err(Error::closed());
        }
        Ok(())
    }

    /// Whether the session is closed, or the broker has ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets no operation begin any more. False if that was so before.
    pub(crate) fn shut(&self) -> bool {
        let was_closed = self.closed.swap(true, Ordering::SeqCst);
        self.map.settle(NEVER);
        self.allocator.shut_gates();
        self.bell.ring();
        !was_closed
    }

    /// The moment at which a call that begins now gives up.
    pub(crate) fn deadline(&self) -> Deadline {
        limit::at_most(Deadline::after_ms(self.timeout_ms))
    }

    /// Asks the broker.
    ///
    /// # Errors
    ///
    /// The broker's refusal; [`Status::Unavailable`] if it is away too long; [`Status::Closed`].
    pub(crate) fn ask(&self, request: &ClientRequest) -> Result<Answer, Error> {
        self.ask_until(request, self.deadline())
    }

    /// [`Core::ask`] with a deadline.
    ///
    /// # Errors
    ///
    /// As [`Core::ask`].
    pub(super) fn ask_until(
        &self,
        request: &ClientRequest,
        deadline: Deadline,
    ) -> Result<Answer, Error> {
        self.usable()?;
        let asked = self.link.ask(request, deadline);
        self.end_handles();
        asked.map_err(|error| {
            if error.may_be_done() {
                self.undo_later(request);
            }
            self.of_link(error)
        })
    }

    /// A request failed that may have been done all the same: what it may have brought is given
    /// back.
    fn undo_later(&self, request: &ClientRequest) {
        match request {
            ClientRequest::Malloc(malloc) => {
                self.chores().abandons.push(Abandon { ticket: malloc.ticket });
            }
            ClientRequest::MallocWith(with) => {
                self.chores().abandons.push(Abandon { ticket: with.malloc.ticket });
            }
            ClientRequest::RegionCreate(create) => {
                self.chores().abandons.push(Abandon { ticket: create.ticket });
            }
            ClientRequest::RegionOpen(open) => self.chores().region_closes.push(open.opening),
            _ => return,
        }
        self.link.wake();
    }

    /// What a caller gets; a session that the broker does not know any more is shut.
    pub(super) fn of_link(&self, error: LinkError) -> Error {
        match error {
            LinkError::Refused(error) | LinkError::Failed(error) | LinkError::GivenUp(error) => {
                error
            }
            LinkError::Unsure => Error::new(Status::Io, "the broker died over a request"),
            LinkError::Over(reason) => {
                if self.shut() {
                    tracing::warn!(reason = %reason, "the broker has ended the session");
                }
                let text = format!("the broker has ended the session: {}", reason.text());
                Error::new(Status::Closed, text)
            }
        }
    }

    /// Takes in what the broker says has changed.
    ///
    /// # Errors
    ///
    /// As [`Core::ask`].
    pub(crate) fn catch_up(&self) -> Result<(), Error> {
        if let Some(changed) = self.take_changes()? {
            self.redirect_pins(|id| changed.all || changed.blocks.contains(&id));
        }
        Ok(())
    }

    /// [`Core::catch_up`], but for pointers; returns what has changed.
    fn take_changes(&self) -> Result<Option<Changed>, Error> {
        let _turn = self.changing.take(self.deadline()).ok_or_else(busy)?;
        self.usable()?;
        if !self.map.has_moved() {
            return Ok(None);
        }
        let since = Changes { since: self.map.known() };
        let (reply, _) = self.ask(&ClientRequest::Changes(since))?;
        let ClientReply::Changed(changed) = reply else {
            return Err(Error::unexpected_reply("Changes"));
        };
        self.keep_bases(|id| changed.all || changed.blocks.contains(&id));
        let mut retired = Retired::default();
        for block in self.table.all() {
            let is_absent = matches!(block.backing, Backing::Absent);
            if (changed.all || changed.blocks.contains(&block.id)) && !is_absent {
                let absent = block.without_bytes(Backing::Absent);
                retired.extend(self.table.replace(&block, absent).unwrap_or_default());
            }
        }
        self.map.settle(changed.upto);
        // Pairs with `shut`: whichever is later leaves the number that never is.
        if self.is_closed() {
            self.map.settle(NEVER);
        }
        self.retire(retired);
        Ok(Some(changed))
    }

    /// Drops blocks that were taken out of the table when nobody can be using them. Not from inside
    /// an operation.
    pub(crate) fn retire(&self, retired: Retired) {
        if retired.is_empty() {
            return;
        }
        self.operations.wait();
        // SAFETY: every operation that was in flight when they were taken out is over, as was just
        // waited for; the caller is in none.
        unsafe { retired.release() };
        // Who waits for a word of them looks for it elsewhere, or learns that it is gone.
        self.bell.ring();
    }

    /// Deals with what an operation met in place of a block's bytes. `Ok`: try again.
    ///
    /// # Errors
    ///
    /// What the caller of the operation gets.
    #[cold]
    pub(crate) fn overcome(&self, id: BlockId, obstacle: Obstacle) -> Result<(), Error> {
        match obstacle {
            Obstacle::Absent => self.fetch(id),
            Obstacle::Lost => Err(lost(id)),
            Obstacle::Replaced | Obstacle::Trouble(Trouble::Moved) => Ok(()),
            Obstacle::Moving => self.link.pause(PAUSE).map_err(|error| self.of_link(error)),
            Obstacle::Trouble(Trouble::Lost) => {
                self.take_damaged(id);
                Err(lost(id))
            }
            Obstacle::Trouble(Trouble::Unlinked) => {
                self.drop_way(id);
                Ok(())
            }
            Obstacle::Trouble(Trouble::Unlocked) => self.drop_harmed(id),
            Obstacle::Trouble(Trouble::Refused(Status::Closed)) => Err(Error::closed()),
            Obstacle::Trouble(Trouble::Abandoned) => {
                self.leave();
                Err(Error::new(Status::Closed, format!("block {id}: {}", Trouble::Abandoned)))
            }
            Obstacle::Trouble(trouble) => {
                Err(Error::new(trouble.status(), format!("block {id}: {trouble}")))
            }
        }
    }

    /// What is allocated.
    pub(crate) const fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// What the service thread has to do.
    pub(crate) fn chores(&self) -> MutexGuard<'_, Chores> {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block number and the cell of an address. A number that no block has is another server's.
    #[inline]
    pub(crate) const fn split(&self, addr: DmceAddr) -> (u64, u64) {
        self.split_raw(addr.to_raw())
    }

    /// [`Core::split`] of a plain number.
    #[inline]
    pub(crate) const fn split_raw(&self, raw: u64) -> (u64, u64) {
        (raw >> self.cell_bits, raw & ((1 << self.cell_bits) - 1))
    }

    /// The address of a cell.
    ///
    /// # Errors
    ///
    /// [`Status::Internal`]: ids and cells are checked before.
    pub(crate) fn join(&self, block: BlockId, cell: u64) -> Result<DmceAddr, Error> {
        let raw = u64::from(block.get()) << self.layout.cell_bits() | cell;
        DmceAddr::from_raw(self.layout, raw)
            .map_err(|error| Error::new(Status::Internal, error.to_string()))
    }

    /// What gates know the session by.
    pub(crate) fn key(&self) -> Key {
        Key::new(self.key.load(Ordering::Relaxed)).expect("none is 0")
    }

    /// Whether this process is a child of the one that opened the session.
    pub(crate) fn is_forked(&self) -> bool {
        self.fork.is_forked()
    }

    /// The next ticket.
    pub(crate) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }
}

impl Options {
    /// Whether accesses are checked against allocations: as the environment says by 1 or 0, else in
    /// debug builds.
    ///
    /// # Errors
    ///
    /// [`Status::Invalid`] for what is neither.
    pub(crate) fn checks() -> Result<bool, Error> {
        let said = std::env::var_os(CHECK_VARIABLE).unwrap_or_default();
        match said.as_bytes() {
            b"1" => Ok(true),
            b"0" => Ok(false),
            b"" => Ok(cfg!(debug_assertions)),
            _ => {
                let said = said.to_string_lossy();
                Err(Error::invalid(format!("{CHECK_VARIABLE} is {said:?}, neither 0 nor 1")))
            }
        }
    }
}

#[cold]
fn lost(id: BlockId) -> Error {
    Error::new(Status::Lost, format!("block {id} is lost"))
}

#[cold]
pub(super) fn unknown(id: BlockId) -> Error {
    Error::address(format!("block {id} is not this session's"))
}

#[cold]
pub(super) fn busy() -> Error {
    Error::new(Status::Unavailable, "another call of this session waits for the broker")
}
