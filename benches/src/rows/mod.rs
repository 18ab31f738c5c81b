//! The rows, in groups: each has an instance of its own, so that its memory is free again after it.

pub mod alloc;
pub mod balance;
pub mod copied;
pub mod copies;
pub mod deaths;
pub mod load;
pub mod mapped;
pub mod mirrored;
pub mod moving;
pub mod narrow;
pub mod redirect;
pub mod requests;
pub mod scrub;
pub mod store;
pub mod syncing;
pub mod tracking;
pub mod transparent;
pub mod vector;

use clap::ValueEnum;

use crate::Result;
use crate::setting::Setting;
use crate::table::Row;

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Loads and stores through a pointer.
    Mapped,
    /// Plain pointers to transparent memory.
    Transparent,
    /// `dmce::vector` in C++.
    Vector,
    /// `dmce_read` and `dmce_write`.
    Copied,
    /// The same with two copies, and words.
    Copies,
    /// A value with two copies, against who keeps two.
    Mirrored,
    /// A daemon that goes with its memory while clients write.
    Redirect,
    /// A lost copy that is made again.
    Syncing,
    /// Blocks that move.
    Moving,
    /// Which blocks move by themselves.
    Balance,
    /// Copies that are compared.
    Scrub,
    /// Stores by plain pointers that the kernel notes.
    Tracking,
    /// Clients and brokers that die.
    Deaths,
    /// `dmce_malloc` and `dmce_free`.
    Alloc,
    /// Setup, grants and regions.
    Requests,
    /// A crowd of clients.
    Load,
    /// Small values, against servers that keep such.
    Store,
    /// A 32-bit process.
    I386,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Mapped,
        Self::Transparent,
        Self::Vector,
        Self::Copied,
        Self::Copies,
        Self::Mirrored,
        Self::Redirect,
        Self::Syncing,
        Self::Moving,
        Self::Balance,
        Self::Scrub,
        Self::Tracking,
        Self::Deaths,
        Self::Alloc,
        Self::Requests,
        Self::Load,
        Self::Store,
        Self::I386,
    ];

    /// Measures the rows of the group.
    ///
    /// # Errors
    ///
    /// The first error of any.
    pub fn measure(self, setting: &mut Setting) -> Result<Vec<Row>> {
        match self {
            Self::Mapped => mapped::measure(setting),
            Self::Transparent => transparent::measure(setting),
            Self::Vector => vector::measure(setting),
            Self::Copied => copied::measure(setting),
            Self::Copies => copies::measure(setting),
            Self::Mirrored => mirrored::measure(setting),
            Self::Redirect => redirect::measure(setting),
            Self::Syncing => syncing::measure(setting),
            Self::Moving => moving::measure(setting),
            Self::Balance => balance::measure(setting),
            Self::Scrub => scrub::measure(setting),
            Self::Tracking => tracking::measure(setting),
            Self::Deaths => deaths::measure(setting),
            Self::Alloc => alloc::measure(setting),
            Self::Requests => requests::measure(setting),
            Self::Load => load::measure(setting),
            Self::Store => store::measure(setting),
            Self::I386 => narrow::measure(setting),
        }
    }
}

/// A row that has just been measured, told to who waits for the table.
fn told(row: Row) -> Row {
    eprintln!("{}", row.line());
    row
}
