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

mod alloc;
mod block;
pub mod connection;
mod error;
mod locate;
mod operations;
mod options;
mod reach;
mod session;
mod size;
mod slots;
mod stat;
mod table;
#[doc(hidden)]
pub mod thread;
mod turn;

pub use dmce_abi::{AddrLayout, DmceAddr, Status};
pub use error::Error;
pub use options::{AllocOptions, Mirror, Options, Prot, RegionOptions};
pub use session::{Region, Session};
pub use stat::{RegionInfo, Stat};
