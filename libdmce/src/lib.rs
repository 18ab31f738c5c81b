//! The client library of DMCE: memory of other processes of the host, read and written in place.
//!
//! A [`Session`] allocates, reads, writes and maps; a [`Region`] is a named piece of memory that
//! outlives sessions. The C interface (`libdmce.h`) is the same thing without the types.
//!
//! # Where the broker is found
//!
//! 1. [`Options::socket`], else the environment's `DMCE_SOCKET`: that socket and no other. If it is
//!    there and nobody listens, its broker is being started again, and is waited for as long as
//!    [`Options::timeout_ms`] says. If it is not there, opening fails at once.
//! 2. `/run/dmce/broker.sock`, the service of the host.
//! 3. `$XDG_RUNTIME_DIR/dmce/broker.sock`, the user's own; without that variable the folder is
//!    `/tmp/dmce-UID`, if it is the user's and closed to others.
//! 4. With [`Options::spawn`], a private instance is started there by the command `dmce`, which is
//!    found by `DMCE_COMMAND`, beside the running program, or in `PATH`.
//!
//! Under `--cfg loom` there is the allocator alone, whose gates and slabs are then explored.

#[cfg_attr(loom, expect(dead_code, unused_imports, reason = "the model uses a part of it"))]
mod alloc;
#[cfg(not(loom))]
mod block;
#[cfg(not(loom))]
pub mod connection;
#[cfg_attr(loom, expect(dead_code, reason = "the model uses a part of it"))]
mod door;
#[cfg(not(loom))]
mod doors;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod events;
#[cfg(not(loom))]
mod limit;
#[cfg(not(loom))]
mod locate;
#[cfg(not(loom))]
mod operations;
#[cfg(not(loom))]
mod options;
#[cfg(not(loom))]
mod places;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod quick;
#[cfg(not(loom))]
mod reach;
#[cfg(not(loom))]
mod session;
#[cfg(not(loom))]
mod size;
#[cfg(not(loom))]
mod slots;
#[cfg(not(loom))]
mod stat;
#[cfg(not(loom))]
mod table;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod thread;
#[cfg(not(loom))]
mod turn;

#[cfg(not(loom))]
pub use dmce_abi::{AddrLayout, DmceAddr, Status};
#[cfg(not(loom))]
pub use error::Error;
#[cfg(not(loom))]
pub use events::Event;
#[cfg(not(loom))]
pub use options::{
    AllocOptions, Mirror, Options, PointerOptions, PointerWait, Prot, RegionOptions,
};
#[cfg(not(loom))]
pub use session::{ReadGuard, Region, Session, VirtualMemory, WriteGuard};
#[cfg(not(loom))]
pub use stat::{RegionInfo, Stat};
