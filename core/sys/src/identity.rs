//! Users and groups of this process and by name.
//!
//! # Invariants
//!
//! 1. Rights are decided by numbers; names are for people and for configuration.
//! 2. Names come from the system's databases (also those on the network), so a look-up may be slow:
//!    never on a path where a client waits.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// The user that this process acts as.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The group that this process acts as.
#[must_use]
pub fn effective_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// The name of a user, if it has one.
///
/// # Errors
///
/// The user database could not be read.
pub fn user_name(uid: u32) -> io::Result<Option<String>> {
    look_up::<libc::passwd, _>(
        // SAFETY: the pointers are live and the length is that of the buffer, by `look_up`.
        |entry, buf, len, found| unsafe { libc::getpwuid_r(uid, entry, buf, len, found) },
        |entry| owned_name(entry.pw_name),
    )
}

/// The name of a group, if it has one.
///
/// # Errors
///
/// The group database could not be read.
pub fn group_name(gid: u32) -> io::Result<Option<String>> {
    look_up::<libc::group, _>(
        // SAFETY: the pointers are live and the length is that of the buffer, by `look_up`.
        |entry, buf, len, found| unsafe { libc::getgrgid_r(gid, entry, buf, len, found) },
        |entry| owned_name(entry.gr_name),
    )
}

/// The number of the user of that name, if there is one.
///
/// # Errors
///
/// The user database could not be read, or the name holds a zero byte.
pub fn uid_of(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up::<libc::passwd, _>(
        // SAFETY: the pointers are live and the length is that of the buffer, by `look_up`; the
        // name is a C string that outlives the call.
        |entry, buf, len, found| unsafe { libc::getpwnam_r(name.as_ptr(), entry, buf, len, found) },
        |entry| entry.pw_uid,
    )
}

/// The number of the group of that name, if there is one.
///
/// # Errors
///
/// The group database could not be read, or the name holds a zero byte.
pub fn gid_of(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up::<libc::group, _>(
        // SAFETY: the pointers are live and the length is that of the buffer, by `look_up`; the
        // name is a C string that outlives the call.
        |entry, buf, len, found| unsafe { libc::getgrnam_r(name.as_ptr(), entry, buf, len, found) },
        |entry| entry.gr_gid,
    )
}

/// Calls one of the `get*_r` functions with a buffer that grows until the entry fits.
fn look_up<Entry, T>(
    call: impl Fn(*mut Entry, *mut c_char, usize, *mut *mut Entry) -> c_int,
    take: impl Fn(&Entry) -> T,
) -> io::Result<Option<T>> {
    const BUF_BYTES_MAX: usize = 1 << 20;
    let mut buf: Vec<c_char> = vec![0; 1024];
    loop {
        let mut entry = MaybeUninit::<Entry>::zeroed();
        let mut found = ptr::null_mut();
        match call(entry.as_mut_ptr(), buf.as_mut_ptr(), buf.len(), &raw mut found) {
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: the call succeeded, so it points to `entry`, which was filled; its pointers
            // are into `buf`, which is as live.
            0 => return Ok(Some(take(unsafe { &*found }))),
            libc::EINTR => {}
            libc::ERANGE if buf.len() < BUF_BYTES_MAX => buf.resize(buf.len() * 4, 0),
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn owned_name(name: *const c_char) -> String {
    // SAFETY: a C string in the buffer of `look_up`.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_number_zero_both_ways() {
        assert_eq!(user_name(0).unwrap().as_deref(), Some("root"));
        assert_eq!(group_name(0).unwrap().as_deref(), Some("root"));
        assert_eq!(uid_of("root").unwrap(), Some(0));
        assert_eq!(gid_of("root").unwrap(), Some(0));
    }

    #[test]
    fn an_unknown_name_or_number_is_none() {
        assert_eq!(user_name(u32::MAX - 7).unwrap(), None);
        assert_eq!(group_name(u32::MAX - 7).unwrap(), None);
        assert_eq!(uid_of("dmce-no-such-user").unwrap(), None);
        assert_eq!(gid_of("dmce-no-such-group").unwrap(), None);
        assert!(uid_of("a\0b").is_err());
    }

    #[test]
    fn own_numbers_are_those_of_the_kernel() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let effective = |key: &str| -> u32 {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_ascii_whitespace().nth(2).unwrap().parse().unwrap()
        };
        assert_eq!(effective_uid(), effective("Uid:"));
        assert_eq!(effective_gid(), effective("Gid:"));
    }
}
