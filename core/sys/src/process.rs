//! What identifies a process of this boot beyond its pid, from `/proc`.
//!
//! # Invariants
//!
//! 1. (boot id, pid, a moment at which it lived) names one process; a pid alone does not. Who has
//!    the pid later has started later ([`is_alive`]).
//! 2. A zombie is not alive: it has lost its memory and its descriptors.
//! 3. What a process says of itself ([`command_line`]) is a claim.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// Why something about a process could not be found out or done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum ProcessError {
    /// No process has the pid.
    #[error("process {pid} does not exist")]
    Gone { pid: u32 },
    /// The process of a descriptor has ended.
    #[error("the process has ended")]
    Ended,
    /// `/proc` said what no kernel says.
    #[error("{what} is not understood")]
    Format { what: &'static str },
    /// Anything else that the kernel answered.
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
}

/// The start time of a process in clock ticks since boot.
///
/// # Errors
///
/// [`ProcessError::Gone`], [`ProcessError::Format`], [`ProcessError::Io`] (also where `/proc` hides
/// the processes of others).
pub fn start_time(pid: u32) -> Result<u64, ProcessError> {
    Ok(read_stat(pid)?.start_time)
}

/// Whether the process still runs that had this pid at `lived_at`, in clock ticks since boot
/// ([`crate::clock::boot_ticks`]). Another that has the pid now has started after that.
///
/// # Errors
///
/// [`ProcessError::Format`], [`ProcessError::Io`].
pub fn is_alive(pid: u32, lived_at: u64) -> Result<bool, ProcessError> {
    match read_stat(pid) {
        Ok(stat) => Ok(stat.start_time <= lived_at && !stat.has_ended),
        Err(ProcessError::Gone { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether every thread of a process is stopped. A signal that stops one is sent long before that.
///
/// # Errors
///
/// [`ProcessError::Gone`], [`ProcessError::Format`], [`ProcessError::Io`].
pub fn is_stopped(pid: u32) -> Result<bool, ProcessError> {
    const ACTION: &str = "listing the threads of a process";
    let failed = |error| of_proc(pid, ACTION, error);
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match read_stat(thread) {
            Ok(stat) if !stat.is_stopped => return Ok(false),
            // It has ended meanwhile.
            Ok(_) | Err(ProcessError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The pid of this process.
#[must_use]
pub fn own_pid() -> u32 {
    std::process::id()
}

/// A random number that the kernel draws at every boot.
///
/// # Errors
///
/// [`ProcessError::Format`], [`ProcessError::Io`].
pub fn boot_id() -> Result<[u8; 16], ProcessError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|source| ProcessError::Io { action: "reading the boot id", source })?;
    parse_uuid(&text).ok_or(ProcessError::Format { what: "the boot id" })
}

/// The pids of all processes that `/proc` shows to this one. They come and go meanwhile.
///
/// # Errors
///
/// [`ProcessError::Io`].
pub fn pids() -> Result<Vec<u32>, ProcessError> {
    let failed = |source| ProcessError::Io { action: "listing the processes", source };
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// What a process was started with, the name of its program first. Empty for a zombie, and for an
/// instant of its `exec`. It is the process's own claim: it can write there what it likes.
///
/// # Errors
///
/// [`ProcessError::Gone`], [`ProcessError::Io`] (also where `/proc` hides the processes of others).
pub fn command_line(pid: u32) -> Result<Vec<Vec<u8>>, ProcessError> {
    let text = read(pid, "cmdline", "reading the command line of a process")?;
    Ok(parse_command_line(&text))
}

/// The user that a process acts as.
///
/// # Errors
///
/// [`ProcessError::Gone`], [`ProcessError::Format`], [`ProcessError::Io`].
pub fn effective_uid(pid: u32) -> Result<u32, ProcessError> {
    let text = read(pid, "status", "reading the user of a process")?;
    parse_effective_uid(&text).ok_or(ProcessError::Format { what: "the user of a process" })
}

/// Leaves the session of the process that started this one: no terminal's end or key reaches it.
///
/// # Errors
///
/// [`ProcessError::Io`] if this process leads a process group.
pub fn start_session() -> Result<(), ProcessError> {
    rustix::process::setsid().map_err(|errno| ProcessError::Io {
        action: "starting a session of processes",
        source: errno.into(),
    })?;
    Ok(())
}

/// Makes a program start with no signal blocked, whatever this thread has blocked ([`SignalFd`]):
/// a program inherits the mask, and one that does not expect it cannot be asked to end.
///
/// [`SignalFd`]: crate::poll::SignalFd
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    let unblock = || {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the pointer is to a local.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: the set was initialised above, and nothing is written back.
        match unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes two calls that are async-signal-safe, and
    // allocates nothing: an error of the system is a number.
    unsafe { command.pre_exec(unblock) }
}

/// Runs `start` with the signals of this thread blocked that come from outside: a thread that it
/// starts inherits that, so none of them is ever handled there. Those that an instruction of the
/// thread itself raises are left as they are: blocked, they would end the process.
pub fn without_signals<R>(start: impl FnOnce() -> R) -> R {
    const OWN: [libc::c_int; 5] =
        [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    for signal in OWN {
        // SAFETY: the set was initialised above.
        unsafe { libc::sigdelset(set.as_mut_ptr(), signal) };
    }
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both pointers are to locals, the first initialised above.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) };
    let _restore = Masked(before);
    start()
}

/// The mask that a thread had; dropping it, also by a panic, puts it back.
struct Masked(MaybeUninit<libc::sigset_t>);

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: filled by `pthread_sigmask`, which cannot fail for valid arguments.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, self.0.as_ptr(), ptr::null_mut()) };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    start_time: u64,
    has_ended: bool,
    is_stopped: bool,
}

fn read_stat(pid: u32) -> Result<Stat, ProcessError> {
    /// More than the fields that are parsed can take.
    const BYTES: usize = 1024;
    let mut text = [0; BYTES];
    let found = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut text));
    let bytes = found.map_err(|error| of_proc(pid, "reading the state of a process", error))?;
    parse_stat(&text[..bytes]).ok_or(ProcessError::Format { what: "the state of a process" })
}

/// A file of a process; bytes, because a process may call itself anything.
fn read(pid: u32, file: &str, action: &'static str) -> Result<Vec<u8>, ProcessError> {
    std::fs::read(format!("/proc/{pid}/{file}")).map_err(|error| of_proc(pid, action, error))
}

fn of_proc(pid: u32, action: &'static str, source: io::Error) -> ProcessError {
    let is_gone =
        source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH);
    if is_gone { ProcessError::Gone { pid } } else { ProcessError::Io { action, source } }
}

/// Arguments, each with a zero byte after it.
fn parse_command_line(text: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments: Vec<_> = text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    arguments.pop_if(|last| last.is_empty());
    arguments
}

/// The second number of the line `Uid:` is the effective one. Before that line comes the process's
/// name, whose line feeds the kernel escapes.
fn parse_effective_uid(text: &[u8]) -> Option<u32> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let numbers = lines.find_map(|line| line.strip_prefix(b"Uid:"))?;
    str::from_utf8(numbers).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Fields 3 (state) and 22 (start time). The name, field 2, may hold spaces and parentheses.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let name_end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(text.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    let (has_ended, is_stopped) = (matches!(state, "Z" | "X" | "x"), matches!(state, "T" | "t"));
    Some(Stat { start_time, has_ended, is_stopped })
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.trim().bytes().filter(|&byte| byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::pidfd::{self, Signal};
    use crate::poll::wait_readable;

    /// A process that runs until it is killed, and is killed whatever happens.
    struct Child(std::process::Child);

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The blocked signals of this thread, as the kernel shows them.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_that_is_started_without_signals_handles_none_from_outside() {
        let bit = |signal: libc::c_int| 1_u64 << (signal - 1);
        let before = blocked();
        let thread = without_signals(|| std::thread::spawn(blocked));
        let inside = thread.join().unwrap();
        assert_ne!(inside & bit(libc::SIGTERM), 0);
        assert_ne!(inside & bit(libc::SIGUSR1), 0);
        assert_eq!(inside & bit(libc::SIGBUS), 0);
        assert_eq!(blocked(), before);
    }

    fn sleeper() -> Child {
        Child(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_hides_no_field() {
        let stat = b"7 (a) R (\xff b)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(
            parse_stat(stat),
            Some(Stat { start_time: 4711, has_ended: false, is_stopped: false })
        );
        let zombie = b"7 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711";
        assert_eq!(
            parse_stat(zombie),
            Some(Stat { start_time: 4711, has_ended: true, is_stopped: false })
        );
        for broken in [&b""[..], b"7 (a", b"7 (a)", b"7 (a) S 1 2", b"7 (a) S \xff"] {
            assert_eq!(parse_stat(broken), None);
        }
    }

    #[test]
    fn a_stopped_process_is_told_from_one_that_runs() {
        let child = sleeper();
        let pid = child.0.id();
        assert!(!is_stopped(pid).unwrap());
        let fd = pidfd::open(pid).unwrap();
        pidfd::signal(fd.as_fd(), Signal::STOP).unwrap();
        while !is_stopped(pid).unwrap() {
            std::thread::yield_now();
        }
        drop(child);
        assert!(matches!(is_stopped(pid), Err(ProcessError::Gone { .. })));
    }

    #[test]
    fn a_boot_id_is_sixteen_bytes() {
        let text = "00112233-4455-6677-8899-aabbccddeeff\n";
        let id = parse_uuid(text).unwrap();
        assert_eq!(u128::from_be_bytes(id), 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        for broken in
            ["", "0011", "0011223344556677889 aabbccddeeff", "é0112233445566778899aabbccddeef"]
        {
            assert_eq!(parse_uuid(broken), None, "{broken}");
        }
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }

    #[test]
    fn a_process_is_found_with_its_arguments_and_its_user() {
        let pid = own_pid();
        assert!(pids().unwrap().contains(&pid));
        let arguments = std::env::args_os().map(std::ffi::OsString::into_encoded_bytes);
        assert_eq!(command_line(pid).unwrap(), arguments.collect::<Vec<_>>());
        assert_eq!(effective_uid(pid).unwrap(), crate::identity::effective_uid());
        assert!(matches!(command_line(0), Err(ProcessError::Gone { pid: 0 })));
    }

    #[test]
    fn a_program_that_is_started_while_signals_are_blocked_can_be_asked_to_end() {
        // The mask is the thread's own, and this thread ends with the test.
        let signals = crate::poll::SignalFd::new().unwrap();
        let blocked = |command: &mut Command| {
            let output = command.args(["SigBlk", "/proc/self/status"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap() != "SigBlk:\t0000000000000000\n"
        };
        assert!(blocked(&mut Command::new("grep")), "or the next line says nothing");
        assert!(!blocked(unblock_signals(&mut Command::new("grep"))));
        drop(signals);
    }

    #[test]
    fn empty_arguments_are_arguments_and_no_line_hides_the_user() {
        assert_eq!(parse_command_line(b"a\0\0"), [&b"a"[..], b""]);
        assert_eq!(parse_command_line(b"a\0b"), [b"a", b"b"], "a process wrote over the end");
        assert!(parse_command_line(b"").is_empty());
        let status = b"Name:\t\xff Uid: 1 2\nUmask:\t0022\nUid:\t5\t6\t7\t8\nGid:\t9\n";
        assert_eq!(parse_effective_uid(status), Some(6));
        for broken in [&b""[..], b"Uid:\t5\n", b"Uid:\t5\tx\n"] {
            assert_eq!(parse_effective_uid(broken), None);
        }
    }

    #[test]
    fn a_killed_process_is_dead_before_and_after_it_is_reaped() {
        let mut child = sleeper();
        let pid = child.0.id();
        let started = start_time(pid).unwrap();
        assert!(is_alive(pid, started).unwrap());
        assert!(is_alive(pid, crate::clock::boot_ticks()).unwrap());
        assert!(!is_alive(pid, started - 1).unwrap(), "another process had the pid");
        let fd = pidfd::open(pid).unwrap();
        assert!(!wait_readable(fd.as_fd(), Some(Duration::ZERO)).unwrap());

        pidfd::signal(fd.as_fd(), Signal::KILL).unwrap();
        assert!(wait_readable(fd.as_fd(), Some(Duration::from_secs(60))).unwrap());
        assert!(!is_alive(pid, started).unwrap(), "a zombie is not alive");
        child.0.wait().unwrap();
        assert!(!is_alive(pid, u64::MAX).unwrap());
        assert!(matches!(pidfd::signal(fd.as_fd(), Signal::TERM), Err(ProcessError::Ended)));
        assert!(matches!(start_time(pid), Err(ProcessError::Gone { .. })));
        assert!(matches!(pidfd::open(0), Err(ProcessError::Gone { pid: 0 })));
    }
}
