//! The bounds that are part of a format. What an administrator may choose is configuration.

/// Bytes of the longest frame, header included.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Descriptors that one frame may carry.
pub const FRAME_FDS_MAX: usize = 8;

/// Bytes of a block that one message carries: they fit a frame with all that stands around them.
pub const DATA_BYTES_MAX: usize = 60 * 1024;

/// Copies of one block.
pub const COPIES_MAX: u32 = 3;

/// Notes of the usage history in which daemons differ before blocks move by themselves.
pub const REBALANCE_NOTES: u32 = 3;

/// Daemons of other copies that a header can name: one more than [`COPIES_MAX`] allows, for a copy
/// that takes the place of another.
pub const PEERS_MAX: usize = 3;

/// Daemons of one instance: their ids are 1 to this.
pub const DAEMONS_MAX: u32 = 256;

/// Block ids that one instance uses, whatever the address layout could name.
pub const BLOCK_IDS_MAX: u32 = 1 << 20;

/// Session ids of one instance: they are 1 to this, and fit the owner field of a page lock word.
pub const SESSION_IDS_MAX: u32 = (1 << 20) - 1;

/// Slots of a session object: threads that are inside an operation at one time.
pub const SLOTS: usize = 256;

/// Pinned ranges of a session.
pub const PINS: usize = 512;

/// Regions that one session has open at one time, as its record counts them.
pub const GRANTS: usize = 440;

/// Spans in one answer to a session that asks for its own.
pub const SPANS_LISTED: usize = 2048;

/// Entries of the policy table.
pub const POLICIES_MAX: usize = 64;

/// Events of a session that wait to be asked for; of more, the oldest are forgotten.
pub const EVENTS_QUEUED: usize = 256;

/// Bytes of an instance's name.
pub const INSTANCE_BYTES_MAX: usize = 32;

/// Bytes of a volume's name.
pub const VOLUME_BYTES_MAX: usize = 63;

/// Bytes of a region's name.
pub const REGION_BYTES_MAX: usize = 127;

/// Bytes of the name that a session gives itself.
pub const SESSION_NAME_BYTES_MAX: usize = 63;

/// The smallest unit of accounting, of locks, and of what is committed.
pub const PAGE_BYTES: u64 = 4096;

/// The largest page size of a block [0074].
pub const PAGE_BYTES_MAX: u32 = 2 * 1024 * 1024;
