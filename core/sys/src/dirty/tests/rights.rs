//! Other processes and other rights: children, users without any, filters of system calls.

use super::*;

/// What a child answers by the code that it ends with.
fn in_child(act: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child has this thread alone; it takes no lock that another thread may have, but
    // the allocator's, which the C library sets right.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = act();
        // SAFETY: ends the child at once, without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
    libc::WEXITSTATUS(status)
}

const USER_MODE: i32 = 1;
const DEVICE: i32 = 2;
const FULL: i32 = 3;
const REFUSED: i32 = 10;
const NO_PAGE_MAP: i32 = 11;
const OTHER: i32 = 12;

/// By which access this process tracks, or why it does not.
fn found() -> i32 {
    match probe() {
        Ok(Access::UserMode) => USER_MODE,
        Ok(Access::Device) => DEVICE,
        Ok(Access::Full) => FULL,
        Err(Unavailable::Refused) => REFUSED,
        Err(Unavailable::PageMap(_)) => NO_PAGE_MAP,
        Err(_) => OTHER,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Becomes a user without rights, for ever.
fn drop_rights() {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: a child with one thread gives up its rights.
    let failed = unsafe { libc::setuid(NOBODY) };
    assert_eq!(failed, 0);
}

fn make_dumpable() {
    // SAFETY: only numbers are passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0);
}

/// Has the system call fail with `EPERM`, as the filters of containers do.
fn filter_userfaultfd() {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code, jt, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf: 0, k };
    let number = u32::try_from(libc::SYS_userfaultfd).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut steps = [
        step(LOAD, 0, 0),
        step(IS_EQUAL, 1, number),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, refuse),
    ];
    let filter = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: only numbers are passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is a local, of as many steps as it says, which the kernel copies.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) }, 0);
}

#[test]
fn everybody_may_track_and_need_not_be_privileged() {
    if tracker().is_none() {
        return;
    }
    assert_eq!(in_child(found), USER_MODE);
    if !is_root() {
        return;
    }
    let unprivileged = || {
        drop_rights();
        make_dumpable();
        found()
    };
    assert_eq!(in_child(unprivileged), USER_MODE);
}

#[test]
fn who_changed_the_user_and_may_not_look_at_itself_compares() {
    if tracker().is_none() || !is_root() {
        return;
    }
    let changed = || {
        drop_rights();
        found()
    };
    assert_eq!(in_child(changed), NO_PAGE_MAP);
}

#[test]
fn behind_a_filter_the_device_is_used_or_pages_are_compared() {
    if tracker().is_none() {
        return;
    }
    let filtered = || {
        filter_userfaultfd();
        found()
    };
    let may_open = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    assert_eq!(in_child(filtered), if may_open { DEVICE } else { REFUSED });
    if !is_root() {
        return;
    }
    let filtered_and_unprivileged = || {
        drop_rights();
        make_dumpable();
        filter_userfaultfd();
        let tracker = Tracker::open(Grain::Small);
        let is_comparing = tracker.kind() == Kind::Compare;
        if is_comparing { found() } else { OTHER }
    };
    assert_eq!(in_child(filtered_and_unprivileged), REFUSED);
}

#[test]
fn every_access_that_is_granted_tracks() {
    if tracker().is_none() {
        return;
    }
    for access in Access::ALL {
        match Kernel::open_by(&[access], Grain::Huge) {
            Ok(kernel) => assert_eq!(kernel.faults.access(), access),
            Err(Unavailable::Refused | Unavailable::Io { .. }) if access != Access::UserMode => {
                eprintln!("left out: {access:?} is not granted here");
            }
            Err(error) => panic!("{access:?}: {error}"),
        }
    }
    let none = Kernel::open_by(&[], Grain::Small);
    assert!(matches!(none, Err(Unavailable::NoUserfaultfd)));
}

#[test]
fn a_child_is_not_tracked_and_disturbs_nobody() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(16, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    placed.store(3);
    let code = in_child(|| {
        let is_forked = |result: Result<(), DirtyError>| matches!(result, Err(DirtyError::Forked));
        let whole = placed.place.whole();
        placed.store(5);
        // Its page tables are other ones, which it may track by a tracker of its own.
        let own = Tracker::open(Grain::Small);
        let is_own = own.track(whole).is_ok() && dirty(&own, whole).is_empty();
        placed.store(6);
        let wrong = [
            !is_forked(tracker.track(whole)),
            !is_forked(tracker.untrack(whole)),
            !is_forked(tracker.scan(whole).map(drop)),
            !is_own || dirty(&own, whole) != [(6, 1)],
        ];
        // Its end closes the descriptors, as dropping the tracker would.
        i32::from(wrong.contains(&true))
    });
    assert_eq!(code, 0);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(3, 1)]);
    placed.store(7);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(7, 1)]);
}
