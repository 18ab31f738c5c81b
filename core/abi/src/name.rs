//! Names of shared memory objects and of instances.
//!
//! ```text
//! dmce.INSTANCE.DAEMON.lock              one process at a time serves DAEMON (0 = the broker)
//! dmce.INSTANCE.DAEMON.pool-0000002a     committed bytes that nobody has seen
//! dmce.INSTANCE.DAEMON.data-0000002a     the bytes of block 0x2a
//! dmce.INSTANCE.DAEMON.head-0000002a     the header of block 0x2a
//! dmce.INSTANCE.0.session-00000007       the session object of session 7
//! dmce.INSTANCE.0.record-00000007        the session record of session 7
//! dmce.INSTANCE.0.locks-0000002a         the lock table of block 0x2a
//! dmce.INSTANCE.0.drain-00000002         daemon 2 is drained: it has no bytes
//! ```
//!
//! # Invariants
//!
//! 1. A name parses to exactly one [`ObjectName`], and formats back to the same bytes.
//! 2. An instance's name has no dot, so no instance's names are a prefix of another's.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use crate::limits::INSTANCE_BYTES_MAX;

/// What an object is, and of which block, session or pool place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Held locked while a process serves this id.
    Lock,
    /// A pool object: committed, never granted.
    Pool(u32),
    /// The bytes of a block.
    Data(u32),
    /// The header of a block.
    Header(u32),
    /// A session object.
    Session(u32),
    /// A session record.
    Record(u32),
    /// The lock table of a block.
    LockTable(u32),
    /// That a daemon is drained.
    Drain(u32),
}

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The instance that it belongs to.
    pub instance: Instance,
    /// The daemon that made it; 0 is the broker.
    pub daemon: u32,
    /// What it is.
    pub kind: ObjectKind,
}

impl ObjectName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// [`NameError::NotOurs`] for anything that [`fmt::Display`] would not have written.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let mut fields = text.split('.');
        let (Some("dmce"), Some(instance), Some(daemon), Some(kind), None) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(NameError::NotOurs);
        };
        let name = Self {
            instance: Instance::new(instance)?,
            daemon: daemon.parse().map_err(|_| NameError::NotOurs)?,
            kind: parse_kind(kind).ok_or(NameError::NotOurs)?,
        };
        // "007", "+7" and upper case digits parse, but no DMCE wrote them.
        if alloc::format!("{name}") == text { Ok(name) } else { Err(NameError::NotOurs) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dmce.{}.{}.", self.instance, self.daemon)?;
        match self.kind {
            ObjectKind::Lock => f.write_str("lock"),
            ObjectKind::Pool(id) => write!(f, "pool-{id:08x}"),
            ObjectKind::Data(id) => write!(f, "data-{id:08x}"),
            ObjectKind::Header(id) => write!(f, "head-{id:08x}"),
            ObjectKind::Session(id) => write!(f, "session-{id:08x}"),
            ObjectKind::Record(id) => write!(f, "record-{id:08x}"),
            ObjectKind::LockTable(id) => write!(f, "locks-{id:08x}"),
            ObjectKind::Drain(id) => write!(f, "drain-{id:08x}"),
        }
    }
}

fn parse_kind(text: &str) -> Option<ObjectKind> {
    if text == "lock" {
        return Some(ObjectKind::Lock);
    }
    let (kind, id) = text.split_once('-')?;
    let id = u32::from_str_radix(id, 16).ok()?;
    Some(match kind {
        "pool" => ObjectKind::Pool(id),
        "data" => ObjectKind::Data(id),
        "head" => ObjectKind::Header(id),
        "session" => ObjectKind::Session(id),
        "record" => ObjectKind::Record(id),
        "locks" => ObjectKind::LockTable(id),
        "drain" => ObjectKind::Drain(id),
        _ => return None,
    })
}

/// The name of an instance: 1 to 32 of `a-z 0-9 _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(String);

impl Instance {
    /// Accepts a name.
    ///
    /// # Errors
    ///
    /// [`NameError::Instance`] for an empty or long name, or another character.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let fits = (1..=INSTANCE_BYTES_MAX).contains(&text.len());
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if fits && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Instance)
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the names of all objects of `daemon` begin with.
    #[must_use]
    pub fn daemon_prefix(&self, daemon: u32) -> String {
        alloc::format!("dmce.{self}.{daemon}.")
    }

    /// What the names of all objects of this instance begin with.
    #[must_use]
    pub fn prefix(&self) -> String {
        alloc::format!("dmce.{self}.")
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No object of DMCE has such a name.
    #[error("no object of DMCE has such a name")]
    NotOurs,
    /// No instance has such a name.
    #[error("an instance's name is 1 to 32 of a-z, 0-9, _ and -")]
    Instance,
    /// A volume, region or session was given a name that it may not have.
    #[error("a {kind}'s name is 1 to {bytes_max} bytes of text without control characters or '/'")]
    Name {
        /// What was to be named.
        kind: &'static str,
        /// Its limit.
        bytes_max: usize,
    },
}

/// Checks the name of a volume, region or session: text without control characters or `/`.
///
/// # Errors
///
/// [`NameError::Name`] with the limit that was missed.
pub fn check(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), NameError> {
    let plain = !text.chars().any(|c| c.is_control() || c == '/');
    if (1..=bytes_max).contains(&text.len()) && plain {
        Ok(())
    } else {
        Err(NameError::Name { kind, bytes_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_kind_formats_and_parses_back() {
        let instance = Instance::new("main-1_x").unwrap();
        for kind in [
            ObjectKind::Lock,
            ObjectKind::Pool(0),
            ObjectKind::Data(42),
            ObjectKind::Header(u32::MAX),
            ObjectKind::Session(7),
            ObjectKind::Record(7),
            ObjectKind::LockTable(42),
            ObjectKind::Drain(2),
        ] {
            let name = ObjectName { instance: instance.clone(), daemon: 3, kind };
            assert_eq!(ObjectName::parse(&name.to_string()), Ok(name));
        }
    }

    #[test]
    fn refuses_what_no_dmce_would_have_written() {
        for text in [
            "dmce.main.1.data-2a",
            "dmce.main.01.data-0000002a",
            "dmce.main.+1.data-0000002a",
            "dmce.main.1.data-0000002A",
            "dmce.main.1.data-0000002a.",
            "dmce.Main.1.lock",
            "dmce..1.lock",
            "dmce.main.1.head",
            "dmce.main.1.data-+000002a",
            "sem.main.1.lock",
        ] {
            assert!(ObjectName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_people_are_bounded_and_plain() {
        assert!(check("region", "orders 2026 \u{e9}", 127).is_ok());
        for text in ["", "a/b", "a\nb", "0123456789"] {
            assert!(check("region", text, 9).is_err(), "{text:?}");
        }
    }
}
