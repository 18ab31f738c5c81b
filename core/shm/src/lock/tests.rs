//! Over every interleaving and every value that the memory model allows; then with real futexes.

use super::*;

fn owner(session: u32, slot: u8) -> LockOwner {
    LockOwner::new(SessionId::try_from(session).unwrap(), slot)
}

#[cfg(not(loom))]
mod plain;

#[cfg(loom)]
mod model;
