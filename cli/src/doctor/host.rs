//! The kernel, and the limits of whoever runs the command: its servers would inherit them.

use std::fs;
use std::path::Path;

use dmce_config::Bytes;
use dmce_sys::dirty::{self, Access, Unavailable};
use dmce_sys::limits::{address_space_limit, raise_open_files};
use dmce_sys::membarrier;
use dmce_sys::socket::Socket;

use super::Finding;
use crate::error::line_of;

/// The oldest kernel with all that is used without a substitute.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Descriptors that a broker of a thousand clients and its daemons are at ease with.
const OPEN_FILES_MIN: u64 = 4096;

pub(super) fn checks() -> Vec<Finding> {
    vec![
        kernel(),
        barriers(),
        peer_descriptors(),
        stores(dirty::probe()),
        open_files(),
        address_space(),
        programs_32_bit(),
    ]
}

fn kernel() -> Finding {
    let name = "kernel";
    let release = match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => release.trim().to_owned(),
        Err(error) => return Finding::unknown(name, &error),
    };
    let (major, minor) = KERNEL_MIN;
    match version_of(&release) {
        Some(version) if version >= KERNEL_MIN => Finding::ok(name, format!("Linux {release}")),
        _ => Finding::fail(
            name,
            format!("Linux {release} is older than {major}.{minor}"),
            format!("install Linux {major}.{minor} or later"),
        ),
    }
}

/// Major and minor version: `6.1.0-18-amd64` is (6, 1).
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn barriers() -> Finding {
    let found = membarrier::probe();
    if found.global && found.private {
        return Finding::ok("membarrier", "expedited barriers, global and private");
    }
    Finding::warn(
        "membarrier",
        "no expedited barriers: every operation of a client pays for a fence of its own",
        "use a kernel with CONFIG_MEMBARRIER",
    )
}

fn peer_descriptors() -> Finding {
    let name = "peer pidfd";
    match Socket::pair().and_then(|(ours, _theirs)| ours.peer_pidfd()) {
        Ok(Some(_)) => Finding::ok(name, "SO_PEERPIDFD names clients without doubt"),
        // Nothing is lost: pid and start time name a process as well.
        Ok(None) => Finding::ok(name, "no SO_PEERPIDFD (Linux 6.5): pid and start time are used"),
        Err(error) => Finding::unknown(name, &error),
    }
}

/// Whether clients of this user learn which pages they have stored to by plain pointers.
fn stores(probed: Result<Access, Unavailable>) -> Finding {
    let name = "dirty tracking";
    let reason = match probed {
        Ok(access) => {
            let way = match access {
                Access::UserMode => "userfaultfd for everybody",
                Access::Device => "/dev/userfaultfd",
                Access::Full => "userfaultfd by a privilege",
            };
            let cost = "the first store to a page after each sync is a fault of 1 us";
            return Finding::ok(
                name,
                format!("stores by plain pointers are noted ({way}): {cost}"),
            );
        }
        Err(reason) => reason,
    };
    let fix = match reason {
        Unavailable::NoUserfaultfd => "use a kernel with CONFIG_USERFAULTFD",
        Unavailable::Refused => {
            "allow userfaultfd in the filter of system calls (the container's seccomp profile), or \
             let /dev/userfaultfd in"
        }
        Unavailable::Features { .. } | Unavailable::NoScan => "use Linux 6.7 or later",
        Unavailable::PageMap(_) => {
            "mount /proc; a process that has changed its user calls prctl(PR_SET_DUMPABLE, 1)"
        }
        _ => "look into it; until then all works, and a sync reads more",
    };
    let text = format!(
        "none: a sync of what plain pointers stored compares all of it with another copy ({})",
        line_of(&reason)
    );
    Finding::warn(name, text, fix)
}

fn open_files() -> Finding {
    let name = "open files";
    match raise_open_files() {
        Ok(limit) if limit >= OPEN_FILES_MIN => {
            Finding::ok(name, format!("up to {limit} a process"))
        }
        Ok(limit) => Finding::warn(
            name,
            format!("up to {limit} a process: a broker of many clients needs more"),
            format!("raise the hard limit: ulimit -Hn {OPEN_FILES_MIN}, LimitNOFILE= of the unit"),
        ),
        Err(error) => Finding::unknown(name, &error),
    }
}

fn address_space() -> Finding {
    let name = "address space";
    match address_space_limit() {
        None => Finding::ok(name, "not limited"),
        Some(bytes) => Finding::warn(
            name,
            format!("limited to {} (RLIMIT_AS): clients map in windows", Bytes(bytes)),
            "ulimit -v unlimited, unless that is what DMCE is used for",
        ),
    }
}

fn programs_32_bit() -> Finding {
    let name = "32-bit programs";
    if !cfg!(target_arch = "x86_64") {
        return Finding::ok(name, "not a matter of this architecture");
    }
    let kernel = Path::new("/proc/sys/abi/vsyscall32").exists();
    let loader = Path::new("/lib/ld-linux.so.2").exists();
    Finding::ok(
        name,
        match (kernel, loader) {
            (true, true) => "can run",
            (true, false) => "cannot run yet: no /lib/ld-linux.so.2 (package libc6-i386)",
            (false, _) => "cannot run: the kernel has no IA32 emulation",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_that_nobody_notes_are_a_warning_with_the_reason_and_its_fix() {
        use super::super::State;
        let found = stores(Ok(Access::UserMode));
        assert_eq!((found.state, found.fix), (State::Ok, None));
        let found = stores(Err(Unavailable::Refused));
        assert_eq!(found.state, State::Warn);
        assert!(found.text.contains("compares all") && found.text.contains("security module"));
        assert!(found.fix.unwrap().contains("seccomp"));
        let found = stores(Err(Unavailable::NoScan));
        assert!(found.text.contains("PAGEMAP_SCAN") && found.fix.unwrap().contains("6.7"));
    }

    #[test]
    fn versions_of_distributions_are_read() {
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(version_of("6.18"), Some((6, 18)));
        assert!(version_of("6.10.2") > version_of("6.9"));
        assert_eq!(version_of("linux"), None);
    }
}
