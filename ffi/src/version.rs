//! Status codes, their texts, and the version of the library.

use std::ffi::c_char;

use dmce_abi::{Status, version};

use crate::failure;

/// The outcome of a call: `DMCE_OK`, or one of `DMCE_E_..`. Codes are never reused.
pub type dmce_status_t = i32;

/// Done.
pub const DMCE_OK: dmce_status_t = 0;
/// An argument that no state of the system would make right.
pub const DMCE_E_INVALID: dmce_status_t = 1;
/// Not a legal address: not allocated, freed, or across the end of an allocation.
pub const DMCE_E_ADDRESS: dmce_status_t = 2;
/// The daemons have no room, or a text does not fit where it should go.
pub const DMCE_E_NOSPACE: dmce_status_t = 3;
/// The user's limit is reached.
pub const DMCE_E_QUOTA: dmce_status_t = 4;
/// The caller lacks the right.
pub const DMCE_E_DENIED: dmce_status_t = 5;
/// There is no such thing.
pub const DMCE_E_NOTFOUND: dmce_status_t = 6;
/// There is one already.
pub const DMCE_E_EXISTS: dmce_status_t = 7;
/// Locked and not waiting, open elsewhere, or pinned.
pub const DMCE_E_BUSY: dmce_status_t = 8;
/// Not within the time that the caller allowed.
pub const DMCE_E_TIMEOUT: dmce_status_t = 9;
/// No copy of the memory is left, until it is restored; or of one page nothing but a write that
/// never ended, until all of that page is written.
pub const DMCE_E_LOST: dmce_status_t = 10;
/// The half that was asked for is away.
pub const DMCE_E_NOCOPY: dmce_status_t = 11;
/// The owner of a pointer died, and its range could not be rolled back.
pub const DMCE_E_OWNER_DIED: dmce_status_t = 12;
/// No broker answers, and the call needs one.
pub const DMCE_E_UNAVAILABLE: dmce_status_t = 13;
/// Two parts of different versions met; the text names both.
pub const DMCE_E_VERSION: dmce_status_t = 14;
/// What was read is damaged.
pub const DMCE_E_CORRUPT: dmce_status_t = 15;
/// The handle is the parent process's: a forked child opens its own.
pub const DMCE_E_FORKED: dmce_status_t = 16;
/// The handle, or the session that it belongs to, is closed.
pub const DMCE_E_CLOSED: dmce_status_t = 17;
/// This process has no memory or no address space left.
pub const DMCE_E_NOMEM: dmce_status_t = 18;
/// Input or output failed. From a write: the content of the range is undefined.
pub const DMCE_E_IO: dmce_status_t = 19;
/// This release cannot do it.
pub const DMCE_E_UNSUPPORTED: dmce_status_t = 20;
/// A defect of DMCE. The session is closed.
pub const DMCE_E_INTERNAL: dmce_status_t = 21;

/// The version of this header: what `dmce_version` answers if the library is of the same release.
pub const DMCE_VERSION: u32 = 0x0000_0100;

/// The version of the binary interface.
pub const DMCE_ABI_VERSION: u32 = 1;

const _: () = assert!(DMCE_VERSION == version::RELEASE);
const _: () = assert!(DMCE_ABI_VERSION == version::ABI_VERSION);

/// Room for the longest text and its NUL.
const TEXT_BYTES: usize = 64;

/// The texts by code, made when this is compiled: reading one needs no memory and no lock.
static TEXTS: [[u8; TEXT_BYTES]; Status::ALL.len()] = {
    let mut texts = [[0; TEXT_BYTES]; Status::ALL.len()];
    let mut code = 0;
    while code < texts.len() {
        let text = Status::ALL[code].text().as_bytes();
        assert!(text.len() < TEXT_BYTES, "a text must leave room for its NUL");
        let mut at = 0;
        while at < text.len() {
            texts[code][at] = text[at];
            at += 1;
        }
        code += 1;
    }
    texts
};

/// What a status means, in a few words. Static text; never NULL, whatever the number.
#[unsafe(no_mangle)]
pub extern "C" fn dmce_strerror(status: dmce_status_t) -> *const c_char {
    let text = usize::try_from(status).ok().and_then(|code| TEXTS.get(code));
    text.map_or(c"unknown status".as_ptr(), |text| text.as_ptr().cast())
}

/// This thread's last failure, with its numbers; "" if there was none.
///
/// It begins with what `dmce_strerror` says of the status; then, where there is more to say, follow
/// a colon and the reason: "invalid argument: 0 bytes".
///
/// A call that succeeds leaves it as it is. The text is valid until a call of this thread fails
/// again or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn dmce_last_error() -> *const c_char {
    failure::last_text()
}

/// The version of the library that runs: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn dmce_version() -> u32 {
    DMCE_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn text(status: dmce_status_t) -> &'static str {
        // SAFETY: `dmce_strerror` answers with a static C string.
        unsafe { CStr::from_ptr(dmce_strerror(status)) }.to_str().unwrap()
    }

    #[test]
    fn every_code_has_its_text_and_no_other_number_has_one() {
        for status in Status::ALL {
            assert_eq!(text(status.code()), status.text());
        }
        let last = i32::try_from(Status::ALL.len()).unwrap();
        for code in [-1, last, i32::MIN, i32::MAX] {
            assert_eq!(text(code), "unknown status");
        }
    }

    /// The header gets literal numbers; they are those of the messages and the logs.
    #[test]
    fn the_constants_are_the_codes_of_the_other_parts() {
        let constants = [
            (DMCE_OK, "DMCE_OK"),
            (DMCE_E_INVALID, "DMCE_E_INVALID"),
            (DMCE_E_ADDRESS, "DMCE_E_ADDRESS"),
            (DMCE_E_NOSPACE, "DMCE_E_NOSPACE"),
            (DMCE_E_QUOTA, "DMCE_E_QUOTA"),
            (DMCE_E_DENIED, "DMCE_E_DENIED"),
            (DMCE_E_NOTFOUND, "DMCE_E_NOTFOUND"),
            (DMCE_E_EXISTS, "DMCE_E_EXISTS"),
            (DMCE_E_BUSY, "DMCE_E_BUSY"),
            (DMCE_E_TIMEOUT, "DMCE_E_TIMEOUT"),
            (DMCE_E_LOST, "DMCE_E_LOST"),
            (DMCE_E_NOCOPY, "DMCE_E_NOCOPY"),
            (DMCE_E_OWNER_DIED, "DMCE_E_OWNER_DIED"),
            (DMCE_E_UNAVAILABLE, "DMCE_E_UNAVAILABLE"),
            (DMCE_E_VERSION, "DMCE_E_VERSION"),
            (DMCE_E_CORRUPT, "DMCE_E_CORRUPT"),
            (DMCE_E_FORKED, "DMCE_E_FORKED"),
            (DMCE_E_CLOSED, "DMCE_E_CLOSED"),
            (DMCE_E_NOMEM, "DMCE_E_NOMEM"),
            (DMCE_E_IO, "DMCE_E_IO"),
            (DMCE_E_UNSUPPORTED, "DMCE_E_UNSUPPORTED"),
            (DMCE_E_INTERNAL, "DMCE_E_INTERNAL"),
        ];
        assert_eq!(constants.len(), Status::ALL.len());
        for ((code, name), status) in constants.iter().zip(Status::ALL) {
            assert_eq!((*code, *name), (status.code(), status.c_name()));
        }
    }
}
