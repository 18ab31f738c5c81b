//! Status codes: one set for messages, C, and logs.
//!
//! # Invariants
//!
//! 1. A code is never reused and never changes its meaning.
//! 2. An unknown code from a newer peer reads as [`Status::Internal`], never as success.

use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $c_name:literal, $text:literal;)+) => {
        /// The outcome of a call or a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[$doc])* $name = $code,)+
        }

        impl Status {
            /// Every status, by rising code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The status of `code`; [`Status::Internal`] for a code that this release lacks.
            #[must_use]
            pub const fn from_code(code: i32) -> Self {
                match code {
                    $($code => Self::$name,)+
                    _ => Self::Internal,
                }
            }

            /// The constant's name in `libdmce.h`.
            #[must_use]
            pub const fn c_name(self) -> &'static str {
                match self {
                    $(Self::$name => $c_name,)+
                }
            }

            /// What the status means, in a few words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0, "DMCE_OK", "success";
    /// An argument that no state of the system would make right.
    Invalid = 1, "DMCE_E_INVALID", "invalid argument";
    /// Not allocated, freed, or across the end of an allocation.
    Address = 2, "DMCE_E_ADDRESS", "illegal address";
    /// No room: in the daemons, or for one more of what there is a number of.
    NoSpace = 3, "DMCE_E_NOSPACE", "no space left";
    /// The user's limit is reached.
    Quota = 4, "DMCE_E_QUOTA", "quota reached";
    /// The caller lacks the right.
    Denied = 5, "DMCE_E_DENIED", "permission denied";
    /// No such thing.
    NotFound = 6, "DMCE_E_NOTFOUND", "not found";
    /// There is one already.
    Exists = 7, "DMCE_E_EXISTS", "already exists";
    /// Locked, open elsewhere, or pinned.
    Busy = 8, "DMCE_E_BUSY", "busy";
    /// Not within the time that the caller allowed.
    Timeout = 9, "DMCE_E_TIMEOUT", "timed out";
    /// No copy is left.
    Lost = 10, "DMCE_E_LOST", "the memory is lost";
    /// The half that was asked for is away.
    NoCopy = 11, "DMCE_E_NOCOPY", "the requested copy is away";
    /// The owner of a pointer died and its range could not be rolled back.
    OwnerDied = 12, "DMCE_E_OWNER_DIED", "the owner died";
    /// No broker answers.
    Unavailable = 13, "DMCE_E_UNAVAILABLE", "no broker";
    /// Two parts of different versions met.
    Version = 14, "DMCE_E_VERSION", "version mismatch";
    /// What was read is damaged.
    Corrupt = 15, "DMCE_E_CORRUPT", "corrupt data";
    /// A handle of the parent, used in a forked child.
    Forked = 16, "DMCE_E_FORKED", "handle of the parent process";
    /// The handle or its session is closed.
    Closed = 17, "DMCE_E_CLOSED", "closed";
    /// This process has no memory or no address space left.
    NoMem = 18, "DMCE_E_NOMEM", "out of memory or address space of this process";
    /// Input or output failed.
    Io = 19, "DMCE_E_IO", "input or output error";
    /// This release cannot do it.
    Unsupported = 20, "DMCE_E_UNSUPPORTED", "not supported";
    /// A defect of DMCE.
    Internal = 21, "DMCE_E_INTERNAL", "internal error";
}

impl Status {
    /// The number that messages and C carry.
    #[must_use]
    pub const fn code(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(self.code())
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i32::deserialize(deserializer).map(Self::from_code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_read_back() {
        for (index, status) in Status::ALL.iter().enumerate() {
            assert_eq!(usize::try_from(status.code()), Ok(index));
            assert_eq!(Status::from_code(status.code()), *status);
        }
    }

    #[test]
    fn an_unknown_code_is_never_success() {
        for code in [-1, 22, i32::MAX, i32::MIN] {
            assert_eq!(Status::from_code(code), Status::Internal);
        }
    }
}
