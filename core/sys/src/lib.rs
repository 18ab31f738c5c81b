//! Every system call that DMCE makes, with its types, and nothing else.
//!
//! # Invariants
//!
//! 1. No other crate of the workspace calls the kernel for memory, sockets, locks or processes.
//! 2. Offsets and sizes are `u64`, on 32-bit targets too; `off_t` appears nowhere.
//! 3. Descriptors are `OwnedFd` or `BorrowedFd`, close-on-exec, and closed on every error path.
//! 4. No reference (`&T`, `&[u8]`) is ever made over bytes that another process can write.
//! 5. Conditions that a caller must tell apart (no space, would block, peer gone, memory lost) are
//!    variants of an error enum; nothing panics on what the kernel or a peer answers.
//!
//! What the processor tells without a call is here as well ([`thread`]).
//!
//! There is no policy here: what to do about a lost page, a full file system or a dead peer is
//! decided by the crates above.

pub mod clock;
pub mod closing;
pub mod crash;
pub mod dirty;
pub mod fault;
pub mod futex;
pub mod headroom;
pub mod identity;
pub mod limits;
pub mod lock;
pub mod map;
pub mod membarrier;
pub mod object;
pub mod pidfd;
pub mod poll;
pub mod prefetch;
pub mod priority;
pub mod process;
pub mod random;
pub mod sched;
pub mod socket;
pub mod thread;
pub mod transfer;
pub mod watch;

#[cfg(test)]
mod testing;
