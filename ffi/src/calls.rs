//! Which calls are under way, so that a handle's object is freed only when nobody is inside it.
//!
//! Each thread has a [`Record`] with one word: the handle of the call that it is in, or 0. A call
//! costs its thread two plain stores and two loads; whoever closes a handle pays for the barrier.
//! What [`libdmce::quick`] does with a handle is not a call here: it has marks of its own, for
//! which the end of the session waits.
//!
//! ```text
//!   a call                               the closer
//!   1. record.inside = handle            1. slot.live = 0
//!   2. light barrier                     2. heavy barrier (membarrier)
//!   3. slot.live == handle?              3. record.inside == handle, anywhere?
//!        no: answer CLOSED                    no: free the object
//!   4. use the object                         yes: wait on DEPARTURES, look again
//!   5. record.inside = 0
//!   6. closers waiting? tell them
//! ```
//!
//! # Invariants
//!
//! 1. Of 1 and 3 on either side, one sees the other: a call that the closer missed sees the slot
//!    closed. The two barriers pair; where the kernel has no `membarrier`, both are full fences.
//! 2. A record is never freed, only given back, so the list can be walked without a lock.
//! 3. A thread that is inside one call and begins another (a signal handler did) takes a second
//!    record: the first goes on protecting the interrupted call.
//! 4. In a forked child the records of threads that were not copied hold handles of the parent for
//!    ever. No handle of the parent is closed in the child, so nobody waits for them.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, compiler_fence, fence,
};

use dmce_sys::{futex, membarrier};
use libdmce::thread::binding_word;

/// What [`Record::inside`] holds during a call that has no handle yet, as `dmce_open`.
///
/// No handle has this value: its kind would be 3.
const WITHOUT_HANDLE: usize = usize::MAX;

/// Where one thread says what it is inside of. On a cache line of its own.
#[repr(align(64))]
struct Record {
    /// The handle of the call under way, or 0. Written by the thread that has the record.
    inside: AtomicUsize,
    /// Whether a thread has it.
    taken: AtomicBool,
    /// The record that was made before it. Never changes once the record is in the list.
    next: AtomicPtr<Record>,
}

/// The record that was made last.
static NEWEST: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());

/// How many closers are waiting, or about to look.
static CLOSERS: AtomicU32 = AtomicU32::new(0);

/// Moves when a call ends while a closer waits: the futex that closers sleep on.
static DEPARTURES: AtomicU32 = AtomicU32::new(0);

/// Whether the heavy barrier is `membarrier`, so that the light one costs nothing.
static ASYMMETRIC: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Gives the record back when the thread ends.
    static LEASE: Lease = const { Lease };
}

/// Proof that this thread's record says which call it is in.
///
/// One word, the record's address: moving it about costs nothing, where a structure with a `bool`
/// would be written as bytes and read as words, which processors do slowly.
pub(crate) struct Call(usize);

/// In the word of a [`Call`]: the record is not the thread's own, and goes back with the call.
const BORROWED: usize = 1;

const _: () = assert!(align_of::<Record>() > BORROWED);

impl Call {
    /// Announces a call on `handle`. The handle is checked after this, never before.
    #[inline]
    pub(crate) fn begin(handle: usize) -> Self {
        let own = own_record().filter(|record| record.inside.load(Ordering::Relaxed) == 0);
        let call = match own {
            Some(record) => Self(ptr::from_ref(record).expose_provenance()),
            None => find_record(),
        };
        // Relaxed: the barrier after it orders it before the look at the slot.
        call.record().inside.store(handle, Ordering::Relaxed);
        light_barrier();
        call
    }

    #[inline]
    fn record(&self) -> &'static Record {
        let record = ptr::with_exposed_provenance::<Record>(self.0 & !BORROWED);
        // SAFETY: the word was made from a record's address, and records are never freed.
        unsafe { &*record }
    }

    /// Announces a call that has no handle.
    pub(crate) fn begin_without_handle() -> Self {
        Self::begin(WITHOUT_HANDLE)
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        // Pairs with the Acquire load in `is_inside`: what the call did happens before the free.
        self.record().inside.store(0, Ordering::Release);
        if self.0 & BORROWED != 0 {
            self.record().taken.store(false, Ordering::Release);
        }
        light_barrier();
        if CLOSERS.load(Ordering::Relaxed) != 0 {
            announce_departure();
        }
    }
}

/// Whether this thread is in a call of this library.
pub(crate) fn is_inside_any() -> bool {
    // During the end of the thread its record may be gone already; then nothing is known.
    own_record().is_some_and(|record| record.inside.load(Ordering::Relaxed) != 0)
}

/// Chooses the barriers. Comes before the first handle is given out; later calls do nothing.
pub(crate) fn prepare() {
    if !ASYMMETRIC.load(Ordering::Relaxed) && membarrier::register_private().is_ok() {
        ASYMMETRIC.store(true, Ordering::Release);
    }
}

/// Waits until no call on `handle` is under way. Its slot is closed already, so none begins.
///
/// Returns whether that is certain; if not, the object must never be freed.
pub(crate) fn wait_until_nobody_is_inside(handle: usize) -> bool {
    CLOSERS.fetch_add(1, Ordering::SeqCst);
    let certain = heavy_barrier();
    if certain {
        sleep_until_nobody_is_inside(handle);
    }
    CLOSERS.fetch_sub(1, Ordering::Release);
    certain
}

fn sleep_until_nobody_is_inside(handle: usize) {
    loop {
        // Before the look: a call that ends after the look has moved this, so nobody sleeps.
        let departures = DEPARTURES.load(Ordering::Acquire);
        if !is_inside(handle) {
            return;
        }
        // An error would be a defect of the kernel; then this loop looks without sleeping.
        let _ = futex::wait(&DEPARTURES, departures, None);
    }
}

fn is_inside(handle: usize) -> bool {
    records().any(|record| record.inside.load(Ordering::Acquire) == handle)
}

#[cold]
fn announce_departure() {
    DEPARTURES.fetch_add(1, Ordering::Release);
    // A wake can fail only if the word's page were gone, and it is in the library's own data.
    let _ = futex::wake(&DEPARTURES, u32::MAX);
}

/// This thread's record; none before its first call and after its [`Lease`] ended.
#[inline]
fn own_record() -> Option<&'static Record> {
    let own = ptr::with_exposed_provenance::<Record>(binding_word(Cell::get));
    // SAFETY: 0, or the address of a record as `find_record` stored it; records are never freed.
    unsafe { own.as_ref() }
}

/// A call of a thread that has no record, or whose own one is in use.
#[cold]
fn find_record() -> Call {
    let record = take_free().unwrap_or_else(make_record);
    // A thread whose locals are being destroyed has no lease any more to give the record back.
    let keep = own_record().is_none() && LEASE.try_with(|_| ()).is_ok();
    let address = ptr::from_ref(record).expose_provenance();
    if keep {
        binding_word(|own| own.set(address));
        return Call(address);
    }
    Call(address | BORROWED)
}

fn take_free() -> Option<&'static Record> {
    records().find(|record| {
        // Acquire pairs with the release of whoever gave it back.
        let take = |from, to| {
            record.taken.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
        };
        take(false, true).is_ok()
    })
}

fn make_record() -> &'static Record {
    let record = Box::leak(Box::new(Record {
        inside: AtomicUsize::new(0),
        taken: AtomicBool::new(true),
        next: AtomicPtr::new(ptr::null_mut()),
    }));
    let mut newest = NEWEST.load(Ordering::Relaxed);
    loop {
        record.next.store(newest, Ordering::Relaxed);
        // Release pairs with the Acquire in `records`: who finds the record sees it made.
        let pushed = NEWEST.compare_exchange_weak(
            newest,
            ptr::from_mut(record),
            Ordering::Release,
            Ordering::Relaxed,
        );
        match pushed {
            Ok(_) => return record,
            Err(found) => newest = found,
        }
    }
}

fn records() -> impl Iterator<Item = &'static Record> {
    let newest = record_at(NEWEST.load(Ordering::Acquire));
    std::iter::successors(newest, |record| record_at(record.next.load(Ordering::Relaxed)))
}

fn record_at(pointer: *mut Record) -> Option<&'static Record> {
    // SAFETY: null, or a record that `make_record` leaked, so it lives for ever; all that is
    // changed in it is atomic. The exclusive borrow it was made with ended when it was pushed.
    unsafe { pointer.as_ref() }
}

/// Ends with its thread.
struct Lease;

impl Drop for Lease {
    fn drop(&mut self) {
        // A call that is under way keeps its record (a handler may interrupt this very code): the
        // record is then lost to others, which costs 64 bytes.
        let own = own_record();
        binding_word(|own| own.set(0));
        let idle = own.filter(|record| record.inside.load(Ordering::Relaxed) == 0);
        if let Some(record) = idle {
            record.taken.store(false, Ordering::Release);
        }
    }
}

#[inline]
fn light_barrier() {
    if ASYMMETRIC.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// A full barrier on every thread, or on this one where the others fence for themselves.
#[must_use]
fn heavy_barrier() -> bool {
    fence(Ordering::SeqCst);
    if !ASYMMETRIC.load(Ordering::Acquire) || membarrier::private().is_ok() {
        return true;
    }
    // A process may lose its registration, as by exec; asking again is all that can be done.
    membarrier::register_private().is_ok() && membarrier::private().is_ok()
}
