//! The guard against the real kernel. The tests of one process take turns, since a loss that one
//! test makes is rightly a `Maybe` to another.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Barrier, MutexGuard};

use super::*;
use crate::map::{FileRange, Mapping, Populate, Protection, Reservation};
use crate::object;
use crate::testing::TestObjects;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    install().unwrap();
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lent {
    fd: OwnedFd,
    mapping: Mapping,
    #[allow(dead_code, reason = "removes the object's name on drop")]
    objects: TestObjects,
}

/// An object of so many pages, each filled with `fill`, mapped.
fn lend(pages: u64, fill: u8) -> Lent {
    let objects = TestObjects::new("fault");
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    let bytes = pages * page_bytes() as u64;
    object::write_at(fd.as_fd(), &vec![fill; usize::try_from(bytes).unwrap()], 0).unwrap();
    let range = FileRange { offset: 0, bytes };
    let mapping = Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes).unwrap();
    Lent { fd, mapping, objects }
}

impl Lent {
    fn keep_pages(&self, pages: u64) {
        object::truncate(self.fd.as_fd(), pages * page_bytes() as u64).unwrap();
    }
}

fn copy_out(range: MappedRange<'_>, into: &mut [u8]) {
    assert_eq!(range.len(), into.len());
    // SAFETY: `range` is mapped, or becomes garbage under the guard; the target is ours and apart.
    unsafe { ptr::copy_nonoverlapping(range.as_ptr(), into.as_mut_ptr(), into.len()) };
}

fn read(range: MappedRange<'_>) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; range.len()];
    guarded(range, || copy_out(range, &mut bytes)).map(|()| bytes)
}

#[test]
fn a_copy_from_a_truncated_object_is_an_error_and_the_process_lives() {
    let _turn = turn();
    let lent = lend(4, 7);
    assert_eq!(read(lent.mapping.whole()).unwrap(), vec![7; lent.mapping.len()]);
    let before = fault_count();
    lent.keep_pages(2);
    let lost_from = lent.mapping.as_ptr().addr() + 2 * page_bytes();
    // SAFETY: a plain call.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: `errno` of this thread.
    unsafe { errno.write(4711) };
    let failed = read(lent.mapping.whole());
    // SAFETY: as above.
    assert_eq!(unsafe { errno.read() }, 4711);
    // A copy may begin at either end.
    let Err(Fault::Lost { addr }) = failed else { panic!("{failed:?}") };
    assert!((lost_from..lost_from + 2 * page_bytes()).contains(&addr));
    assert_eq!(fault_count().wrapping_sub(before), 2, "one for each page");

    let good = lent.mapping.range(0, 2 * page_bytes() as u64).unwrap();
    assert_eq!(read(good).unwrap(), vec![7; good.len()]);
}

#[test]
fn a_store_into_a_truncated_object_is_an_error() {
    let _turn = turn();
    let lent = lend(1, 7);
    lent.keep_pages(0);
    let whole = lent.mapping.whole();
    // SAFETY: mapped, or garbage under the guard.
    let stored = guarded(whole, || unsafe { whole.as_ptr().write_bytes(1, whole.len()) });
    assert!(matches!(stored, Err(Fault::Lost { .. })));
    assert_eq!(object::stat(lent.fd.as_fd()).unwrap().bytes, 0);
}

#[test]
fn what_was_patched_stays_lost_to_every_thread_until_it_is_mapped_anew() {
    let _turn = turn();
    let lent = lend(2, 7);
    let fresh = lend(2, 8);
    let bytes = lent.mapping.len() as u64;
    let reservation = Reservation::new(bytes).unwrap();
    let map = |from: &Lent| {
        let range = FileRange { offset: 0, bytes };
        reservation.map_at(0, from.fd.as_fd(), range, Protection::ReadWrite, Populate::No).unwrap();
    };
    map(&lent);
    lent.keep_pages(1);
    assert!(read(reservation.whole()).is_err());
    let second_page = reservation.range(page_bytes() as u64, 8).unwrap();
    let addr = second_page.as_ptr().addr();
    // The garbage page is there now, and reading it raises no signal in anybody.
    let elsewhere = std::thread::scope(|scope| {
        let range = reservation.range(page_bytes() as u64, 8).unwrap();
        let (start, len) = (range.as_ptr().expose_provenance(), range.len());
        let reader = scope.spawn(move || {
            // SAFETY: in the reservation, which outlives the scope.
            read(unsafe { MappedRange::new(ptr::with_exposed_provenance_mut(start), len) })
        });
        reader.join().unwrap()
    });
    assert_eq!(elsewhere, Err(Fault::Lost { addr }));
    assert!(read(reservation.range(0, 8).unwrap()).is_ok(), "its neighbour is not lost");

    map(&fresh);
    assert_eq!(read(reservation.whole()).unwrap(), vec![8; reservation.len()]);
}

#[test]
fn a_new_mapping_at_the_address_of_a_dropped_one_is_not_lost() {
    let _turn = turn();
    let lent = lend(1, 7);
    lent.keep_pages(0);
    assert!(read(lent.mapping.whole()).is_err());
    let addr = lent.mapping.as_ptr().addr();
    assert!(patches::first_in(addr, 1).is_some());
    drop(lent);
    assert_eq!(patches::first_in(addr, 1), None);
}

#[test]
fn both_ranges_of_a_copy_are_guarded() {
    let _turn = turn();
    for lost in [0, 1] {
        let pair = [lend(2, 1), lend(2, 2)];
        pair[lost].keep_pages(1);
        let (from, to) = (pair[0].mapping.whole(), pair[1].mapping.whole());
        let copied = guarded2(from, to, || {
            // SAFETY: both are mapped, or garbage under the guard, and apart.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), to.len()) }
        });
        let addr = pair[lost].mapping.as_ptr().addr() + page_bytes();
        let Err(Fault::Lost { addr: found }) = copied else { panic!("{copied:?}") };
        assert!((addr..addr + page_bytes()).contains(&found));
    }
}

#[test]
fn an_inner_guard_leaves_the_outer_one_in_force() {
    let _turn = turn();
    let (outer, inner) = (lend(1, 1), lend(1, 2));
    inner.keep_pages(0);
    let (outer_range, inner_range) = (outer.mapping.whole(), inner.mapping.whole());
    let mut bytes = vec![0; outer_range.len()];
    let result = guarded(outer_range, || {
        assert!(matches!(read(inner_range), Err(Fault::Lost { .. })));
        outer.keep_pages(0);
        copy_out(outer_range, &mut bytes);
    });
    assert!(matches!(result, Err(Fault::Lost { .. })));
}

#[test]
fn a_panic_in_the_closure_ends_the_guard() {
    let _turn = turn();
    let lent = lend(1, 1);
    let range = lent.mapping.whole();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = guarded(range, || std::panic::resume_unwind(Box::new(())));
    }));
    assert!(caught.is_err());
    assert!(CURRENT.with(|current| current.load(Ordering::Relaxed)).is_null());
}

#[test]
fn a_loss_elsewhere_meanwhile_is_a_maybe() {
    let _turn = turn();
    let (mine, theirs) = (lend(1, 1), lend(1, 2));
    theirs.keep_pages(0);
    let mut bytes = vec![0; mine.mapping.len()];
    let result = guarded(mine.mapping.whole(), || {
        copy_out(mine.mapping.whole(), &mut bytes);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(read(theirs.mapping.whole()).is_err()));
        });
    });
    assert_eq!(result, Err(Fault::Maybe));
    assert!(read(mine.mapping.whole()).is_ok(), "the next try knows");
}

/// Readers copy while the range changes between a good object and one that is lost: what a guard
/// calls good is never garbage.
#[test]
fn no_reader_takes_garbage_for_data_while_mappings_are_lost_and_replaced() {
    const ROUNDS: u64 = 400;
    const READERS: usize = 3;
    let _turn = turn();
    let (good, lost) = (lend(4, 7), lend(4, 7));
    lost.keep_pages(1);
    let bytes = good.mapping.len() as u64;
    let reservation = Reservation::new(bytes).unwrap();
    let map = |from: &Lent| {
        let range = FileRange { offset: 0, bytes };
        let mapped =
            reservation.map_at(0, from.fd.as_fd(), range, Protection::ReadWrite, Populate::No);
        mapped.unwrap();
    };
    map(&good);
    let done = std::sync::atomic::AtomicBool::new(false);
    let start = Barrier::new(READERS + 1);
    std::thread::scope(|scope| {
        let reader = || {
            let (mut good_reads, mut failures) = (0_u64, 0_u64);
            start.wait();
            while !done.load(Ordering::Relaxed) {
                match read(reservation.whole()) {
                    Ok(bytes) => {
                        assert!(bytes.iter().all(|&byte| byte == 7), "garbage was called good");
                        good_reads += 1;
                    }
                    Err(_) => failures += 1,
                }
            }
            (good_reads, failures)
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        start.wait();
        for _ in 0..ROUNDS {
            map(&lost);
            std::thread::yield_now();
            map(&good);
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!(read(reservation.whole()).unwrap(), vec![7; reservation.len()]);
}

/// Runs [`plays_the_child`] as a process of its own and returns how it ended.
fn run_child(scene: &str) -> ExitStatus {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fault::tests::plays_the_child", "--nocapture"])
        .env("DMCE_TEST_SCENE", scene)
        .output()
        .unwrap();
    output.status
}

#[test]
fn an_unguarded_access_still_kills() {
    assert_eq!(run_child("unguarded").signal(), Some(libc::SIGBUS));
}

#[test]
fn an_access_beside_the_guarded_range_still_kills() {
    assert_eq!(run_child("beside").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_sent_signal_still_kills() {
    assert_eq!(run_child("sent").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_sent_signal_that_was_ignored_stays_ignored() {
    assert_eq!(run_child("ignored").code(), Some(0));
}

#[test]
fn an_ignored_signal_of_an_access_still_kills() {
    assert_eq!(run_child("ignored access").signal(), Some(libc::SIGBUS));
}

#[test]
fn an_earlier_handler_gets_the_address_and_its_own_mask() {
    assert_eq!(run_child("handler").code(), Some(HANDLER_EXIT));
}

#[test]
fn an_earlier_handler_without_siginfo_runs_too() {
    assert_eq!(run_child("short handler").code(), Some(HANDLER_EXIT));
}

#[test]
fn an_earlier_handler_that_is_for_once_runs_once() {
    assert_eq!(run_child("once").signal(), Some(libc::SIGBUS));
}

const HANDLER_EXIT: c_int = 42;
static EXPECTED_ADDR: AtomicUsize = AtomicUsize::new(0);

extern "C" fn earlier(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: reads the mask of this thread into a local.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
    // SAFETY: filled above (and in each of the next).
    let blocked = |number| unsafe { libc::sigismember(mask.as_ptr(), number) } == 1;
    let mask_is_right = blocked(libc::SIGBUS) && blocked(libc::SIGUSR1) && !blocked(libc::SIGUSR2);
    // SAFETY: the kernel's siginfo, passed on.
    let info = unsafe { &*info };
    // SAFETY: a SIGBUS of an access has an address.
    let addr = unsafe { info.si_addr() }.addr();
    let is_right = signal == libc::SIGBUS && addr == EXPECTED_ADDR.load(Ordering::Relaxed);
    let code = if is_right && mask_is_right { HANDLER_EXIT } else { 1 };
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code) };
}

extern "C" fn earlier_short(signal: c_int) {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(if signal == libc::SIGBUS { HANDLER_EXIT } else { 1 }) };
}

extern "C" fn earlier_returns(_signal: c_int) {}

fn set_action(handler: usize, flags: c_int) {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a valid action with an empty mask.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1) };
    // SAFETY: the handlers of this module fit their flags.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, action, ptr::null_mut()) }, 0);
}

/// Not a test by itself: the other side of [`run_child`].
#[test]
fn plays_the_child() {
    let Ok(scene) = std::env::var("DMCE_TEST_SCENE") else { return };
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
    match scene.as_str() {
        "handler" => set_action(earlier as *const () as usize, libc::SA_SIGINFO),
        "short handler" => set_action(earlier_short as *const () as usize, 0),
        "once" => set_action(earlier_returns as *const () as usize, libc::SA_RESETHAND),
        "ignored" | "ignored access" => set_action(libc::SIG_IGN, 0),
        // The runtime of Rust has a handler of its own, for stack overflows.
        _ => set_action(libc::SIG_DFL, 0),
    }
    install().unwrap();
    install().unwrap();
    assert!(is_installed());
    let (lent, other) = (lend(1, 1), lend(1, 1));
    lent.keep_pages(0);
    // The object's name is gone before the process is.
    let Lent { mapping, fd: _fd, objects } = lent;
    drop(objects);
    let Lent { mapping: other, fd: _other_fd, objects } = other;
    drop(objects);
    // A guarded loss is dealt with, whatever is behind us.
    let lost_and_found = lend(1, 1);
    lost_and_found.keep_pages(0);
    assert!(read(lost_and_found.mapping.whole()).is_err());
    drop(lost_and_found);

    EXPECTED_ADDR.store(mapping.as_ptr().addr(), Ordering::Relaxed);
    // SAFETY: mapped; that the page is gone is what is tested.
    let touch = || unsafe { mapping.as_ptr().read_volatile() };
    match scene.as_str() {
        "sent" | "ignored" => {
            // To this thread: another one might be chosen and die of it after this has ended.
            // SAFETY: a plain system call.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        "beside" => {
            let _ = guarded(other.whole(), touch);
        }
        _ => {
            touch();
        }
    }
    std::process::exit(0);
}
