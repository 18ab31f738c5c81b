//! Limits of this process that its work depends on.
//!
//! # Invariants
//!
//! 1. Only a soft limit is changed, and only up to its hard limit: no privilege is needed or used.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of descriptors that this process may open to its hard limit; returns it.
///
/// # Errors
///
/// An error of the kernel; the limit is then as before.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// How many descriptors this process may open now, if that is limited.
#[must_use]
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The bytes of address space that this process may have in all (`RLIMIT_AS`), if that is limited.
#[must_use]
pub fn address_space_limit() -> Option<u64> {
    getrlimit(Resource::As).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_open_files().unwrap(), hard);
        assert_eq!(open_files().unwrap_or(u64::MAX), hard);
    }
}
