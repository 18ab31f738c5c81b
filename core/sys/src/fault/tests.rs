//! The handler among others. What it does for transfers is tested with those.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::map::{FileRange, Populate, Protection, Reservation};
use crate::testing::{Lent, lend};
use crate::transfer::{self, Store};

/// Reads the first byte of what is lent, by a transfer.
fn read(lent: &Lent) -> Result<u8, transfer::Gone> {
    let mut byte = 0;
    let range = lent.mapping.range(0, 1).unwrap();
    // SAFETY: the byte is ours.
    unsafe { transfer::load(range, &raw mut byte, Store::Cached) }.map(|()| byte)
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
fn an_access_outside_of_transfers_still_kills() {
    assert_eq!(run_child("unguarded").signal(), Some(libc::SIGBUS));
}

#[test]
fn the_private_side_of_a_transfer_still_kills() {
    assert_eq!(run_child("private").signal(), Some(libc::SIGBUS));
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

/// The first byte of a page, as a pointer of the application finds it.
fn load(lent: &Lent, page: usize) -> u8 {
    // SAFETY: mapped; that its page may be gone is what is tested.
    unsafe { lent.mapping.as_ptr().wrapping_add(page * page_bytes()).read_volatile() }
}

fn store(lent: &Lent, page: usize, byte: u8) {
    let at = lent.mapping.as_ptr().wrapping_add(page * page_bytes());
    // SAFETY: as in `load`; the mapping is writable.
    unsafe { at.write_volatile(byte) };
}

#[test]
fn zeros_stand_in_for_pages_that_are_gone_and_keep_what_is_stored() {
    install().unwrap();
    let lent = lend(3, 7);
    let stand_in = StandIn::zeros(lent.mapping.whole(), Protection::ReadWrite);
    assert_eq!((load(&lent, 2), stand_in.was_used()), (7, false));
    lent.keep_pages(1);
    std::thread::scope(|scope| {
        for page in 1..3 {
            scope.spawn({
                let lent = &lent;
                move || store(lent, page, 9)
            });
        }
    });
    assert_eq!([load(&lent, 0), load(&lent, 1), load(&lent, 2)], [0, 9, 9]);
    assert!(stand_in.was_used());
    // It is this process's alone.
    lent.keep_pages(3);
    assert_eq!(load(&lent, 1), 9);
}

#[test]
fn the_first_object_that_has_the_page_stands_in() {
    install().unwrap();
    let page = page_bytes() as u64;
    let [lent, short, whole] = [lend(3, 7), lend(1, 1), lend(4, 8)];
    let other = |lent: &Lent, offset| Other { fd: lent.fd.try_clone().unwrap(), offset };
    let others = vec![other(&short, 0), other(&whole, page)];
    let stand_in = StandIn::objects(lent.mapping.whole(), Protection::ReadWrite, others);
    assert_eq!(load(&lent, 2), 7);
    lent.keep_pages(0);
    assert_eq!(load(&lent, 2), 8);
    assert!(stand_in.was_used());
    store(&lent, 1, 5);
    assert_eq!([load(&lent, 0), load(&whole, 1), load(&whole, 2)], [8, 8, 5]);
    drop(stand_in);
    // Its place is another's now.
    let next = StandIn::zeros(short.mapping.whole(), Protection::ReadWrite);
    assert!(!next.was_used());
}

#[test]
fn a_range_that_is_mapped_anew_has_its_next_stand_in_at_once() {
    const ROUNDS: u32 = 2_000;
    install().unwrap();
    let lasting = lend(1, 7);
    let bytes = page_bytes() as u64;
    let range = FileRange { offset: 0, bytes };
    let place = Reservation::aligned(bytes, bytes).unwrap();
    let map = |lent: &Lent| {
        let mapped = place.map_at(0, lent.fd.as_fd(), range, Protection::ReadWrite, Populate::No);
        mapped.map(drop)
    };
    map(&lasting).unwrap();
    let others = || vec![Other { fd: lasting.fd.try_clone().unwrap(), offset: 0 }];
    let whole = place.range(0, bytes).unwrap();
    let mut stand_in = StandIn::objects(whole, Protection::ReadWrite, others());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // SAFETY: mapped as long as the threads live.
                    unsafe { place.as_ptr().write_volatile(9) };
                }
            });
        }
        for round in 0..ROUNDS {
            // Gone before it is there, or a moment later.
            let short_lived = lend(1, 8);
            if round % 2 == 0 {
                short_lived.keep_pages(0);
            }
            stand_in.renew(others(), |_| map(&short_lived)).unwrap();
            short_lived.keep_pages(0);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // SAFETY: mapped.
    assert_eq!(unsafe { place.as_ptr().read_volatile() }, 9);
    assert!(stand_in.was_used());
    assert_eq!(load(&lasting, 0), 9);
}

#[test]
fn a_range_that_cannot_be_mapped_anew_keeps_its_stand_in() {
    install().unwrap();
    let [lent, other] = [lend(1, 7), lend(1, 8)];
    let others = vec![Other { fd: other.fd.try_clone().unwrap(), offset: 0 }];
    let mut stand_in = StandIn::objects(lent.mapping.whole(), Protection::Read, others);
    assert_eq!(stand_in.renew(Vec::new(), Err), Err(false));
    lent.keep_pages(0);
    assert_eq!(load(&lent, 0), 8);
    assert_eq!(stand_in.renew(Vec::new(), Err), Err(true));
}

#[test]
fn many_ranges_have_stand_ins_at_a_time() {
    install().unwrap();
    let lent = lend(200, 7);
    let page = page_bytes() as u64;
    let range = |at: u64| lent.mapping.range(at * page, page).unwrap();
    let mut all: Vec<StandIn> =
        (0..200).map(|at| StandIn::zeros(range(at), Protection::ReadWrite)).collect();
    lent.keep_pages(0);
    all.drain(..50);
    for at in (50..200).rev() {
        assert_eq!(load(&lent, at), 0);
    }
    assert!(all.iter().all(StandIn::was_used));
}

#[test]
fn where_no_object_has_the_page_the_signal_kills() {
    assert_eq!(run_child("no object").signal(), Some(libc::SIGBUS));
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
    let (lent, other) = (lend(1, 1), lend(1, 1));
    lent.keep_pages(0);
    // The object's name is gone before the process is.
    let Lent { mapping, fd: _fd, objects } = lent;
    drop(objects);
    let Lent { mapping: other, fd: other_fd, objects } = other;
    drop(objects);
    // A loss in a transfer is dealt with, whatever is behind us.
    let lost_and_found = lend(1, 1);
    assert_eq!(read(&lost_and_found), Ok(1));
    lost_and_found.keep_pages(0);
    assert!(read(&lost_and_found).is_err());
    drop(lost_and_found);
    let _stand_in = (scene == "no object").then(|| {
        let short = vec![Other { fd: other_fd, offset: page_bytes() as u64 }];
        StandIn::objects(mapping.whole(), Protection::ReadWrite, short)
    });

    EXPECTED_ADDR.store(mapping.as_ptr().addr(), Ordering::Relaxed);
    // SAFETY: mapped; that the page is gone is what is tested.
    let touch = || unsafe { mapping.as_ptr().read_volatile() };
    match scene.as_str() {
        "sent" | "ignored" => {
            // To this thread: another one might be chosen and die of it after this has ended.
            // SAFETY: a plain system call.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        "private" => {
            // SAFETY: the target is mapped; that its page is gone is what is tested.
            let _ = unsafe { transfer::load(other.whole(), mapping.as_ptr(), Store::Cached) };
        }
        _ => {
            touch();
        }
    }
    std::process::exit(0);
}
