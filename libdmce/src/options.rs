//! What callers may choose: of a session, an allocation, a region, a mapping.
//!
//! Every field's zero, `false` or empty value is its default, so that `..Default::default()` and a
//! zeroed structure of C mean the same.

use std::ops::{BitOr, BitOrAssign};
use std::path::PathBuf;

/// How to open a session.
///
/// ```
/// use libdmce::Options;
///
/// let options = Options { reserve_bytes: 64 << 20, spawn: true, ..Options::default() };
/// assert_eq!(options.timeout_ms(), 10_000);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one flag of the C interface")]
pub struct Options {
    /// Bytes to reserve at setup [0083]; 0 for none.
    pub reserve_bytes: u64,
    /// Bytes of address space for windows, of which no more than 32 GiB are used. 0: the
    /// environment's `DMCE_WINDOW_BUDGET`; without that, blocks are mapped whole in a 64-bit
    /// process, and a 32-bit process takes [`Options::DEFAULT_WINDOW_BUDGET`].
    pub window_budget: u64,
    /// Bytes of the cache for memory that is not mapped. Only the message path has one.
    pub cache_bytes: u64,
    /// Copies of what is allocated; 0 for the instance's default.
    pub copies: u32,
    /// How long a call waits for a broker that is away; 0 for [`Options::DEFAULT_TIMEOUT_MS`].
    pub timeout_ms: u32,
    /// A smaller reservation than asked for is fine.
    pub accept_partial: bool,
    /// Start a private instance if no broker is found.
    pub spawn: bool,
    /// Read and write by message instead of mapping (FIG. 2, 3): over links to the daemons, or,
    /// with `DMCE_MESSAGE_ROUTE=broker` in the environment, through the broker. Pointers are
    /// [`crate::Status::Unsupported`] then; a write that ends with [`crate::Status::Timeout`] may
    /// be done yet, and a word for which a call ended with [`crate::Status::Io`] may have been
    /// changed.
    pub message_path: bool,
    /// Compare what was written with what was to be written [0088].
    pub verify: bool,
    /// No service thread: the caller runs [`crate::Session::poll`].
    pub no_thread: bool,
    /// The broker's socket; else it is searched as the crate's page says. One at which nobody
    /// listens is waited for, one that is not there is not.
    pub socket: Option<PathBuf>,
    /// What the session calls itself in listings.
    pub name: String,
}

impl Options {
    /// What [`Options::timeout_ms`] of 0 means.
    pub const DEFAULT_TIMEOUT_MS: u32 = 10_000;

    /// What [`Options::window_budget`] of 0 means where blocks cannot be mapped whole.
    pub const DEFAULT_WINDOW_BUDGET: u64 = 256 << 20;

    /// How long a call waits for a broker that is away.
    #[must_use]
    pub const fn timeout_ms(&self) -> u32 {
        if self.timeout_ms == 0 { Self::DEFAULT_TIMEOUT_MS } else { self.timeout_ms }
    }
}

/// How to allocate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocOptions {
    /// Copies; 0 for the session's default.
    pub copies: u32,
    /// Page size of the block, a power of two from 4 KiB to 2 MiB; 0 for the default [0074].
    pub page_size: u32,
    /// A power of two up to [`AllocOptions::ALIGN_MAX`]; 0 for 16, or a page from 4 KiB up.
    pub align: u32,
    /// With `wait`: for how long; 0 for ever.
    pub timeout_ms: u32,
    /// Wait until there is space (002 FIG. 5). Other calls of the session go on meanwhile.
    pub wait: bool,
    /// A number of the configured policy table; 0 by size. What else is said here comes first.
    pub policy: u32,
    /// A node to prefer. Others than 0 are not in this release.
    pub numa_node: u32,
    /// A name for logs.
    pub label: String,
}

impl AllocOptions {
    /// The largest alignment that can be asked for.
    pub const ALIGN_MAX: u32 = 2 << 20;
}

/// How to create a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionOptions {
    /// Nine permission bits; 0 for 0600.
    pub mode: u32,
    /// What a pointer to the first byte reads; 0 for offsets as in a file.
    pub base_pointer: u64,
    /// Copies; 0 for the instance's default.
    pub copies: u32,
    /// Page size of the region's blocks; 0 for the default.
    pub page_size: u32,
}

/// Rights to memory: [`Prot::READ`], [`Prot::WRITE`], or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prot(u32);

impl Prot {
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(Self::READ.0 | Self::WRITE.0);

    /// The rights that C passes; `None` if there is a bit that means nothing, or none at all.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits == 0 || bits > 3 { None } else { Some(Self(bits)) }
    }

    /// As C passes them.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `rights` are among these.
    #[must_use]
    pub const fn contains(self, rights: Self) -> bool {
        self.0 & rights.0 == rights.0
    }
}

impl BitOr for Prot {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Prot {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What to do about others that have a range, or want it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointerOptions {
    /// How a turn is waited for.
    pub wait: PointerWait,
    /// Takes a range whose owner died while writing it, as it is.
    pub take_dirty: bool,
}

/// How the turn of a pointer is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PointerWait {
    /// In the call, as long as the session's timeout says; for ever if its options say 0.
    #[default]
    InCall,
    /// Not at all.
    Never,
    /// Outside of the call, which keeps a place in the queue: an event announces the turn, and the
    /// next call for the same range takes it.
    Queued,
}

/// Which half of a region a call means (004). The halves are named as they were created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mirror {
    /// Reads: whichever is there.
    #[default]
    Any,
    /// The first half alone.
    Primary,
    /// The second half alone.
    Mirror,
    /// Writes: every half that exists.
    Both,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_the_bits_of_c() {
        assert_eq!(Prot::from_bits(3), Some(Prot::READ | Prot::WRITE));
        assert_eq!(Prot::from_bits(0), None);
        assert_eq!(Prot::from_bits(4), None);
        assert!((Prot::READ | Prot::WRITE).contains(Prot::WRITE));
        assert!(!Prot::READ.contains(Prot::WRITE));
    }
}
