//! What a session and a region say about themselves.

use dmce_abi::DmceAddr;

/// What a session holds and how it reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Width of the server field of an address.
    pub server_bits: u32,
    /// Width of the block field.
    pub block_bits: u32,
    /// Width of the cell field.
    pub cell_bits: u32,
    /// Bytes that were reserved at setup.
    pub reserved_bytes: u64,
    /// Bytes of live allocations, as [`crate::Session::usable_size`] counts them.
    pub allocated_bytes: u64,
    /// Bytes that the session's blocks have.
    pub committed_bytes: u64,
    /// Bytes that the user may hold in all; `u64::MAX` without a limit.
    pub quota_bytes: u64,
    /// The session's blocks.
    pub blocks: u64,
    /// Windows that are mapped now; 0 where blocks are mapped whole.
    pub windows: u64,
    /// Bytes of address space that windows may take; 0 where blocks are mapped whole.
    pub window_bytes: u64,
    /// The generation of the session: how often something that it knew has changed.
    pub epoch: u64,
}

/// What [`crate::Session::region_open`] learned (004 [84]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Copies there are.
    pub copies: u32,
    /// Bytes.
    pub region_size: u64,
    /// What a pointer to the first byte reads.
    pub base_pointer: u64,
    /// The address of the first byte.
    pub first: DmceAddr,
    /// The daemon of the first half.
    pub primary_daemon: u32,
    /// The daemon of the second half; 0 for none.
    pub mirror_daemon: u32,
}
