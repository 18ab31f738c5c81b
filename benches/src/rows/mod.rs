//! The rows, in groups: each has an instance of its own, so that its memory is free again after it.

pub mod copied;
pub mod mapped;
pub mod narrow;
pub mod requests;

use clap::ValueEnum;

use crate::Result;
use crate::setting::Setting;
use crate::table::Row;

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Loads and stores through a pointer.
    Mapped,
    /// `dmce_read` and `dmce_write`.
    Copied,
    /// Setup, grants and regions.
    Requests,
    /// A 32-bit process.
    I386,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mapped, Self::Copied, Self::Requests, Self::I386];

    /// Measures the rows of the group.
    ///
    /// # Errors
    ///
    /// The first error of any.
    pub fn measure(self, setting: &mut Setting) -> Result<Vec<Row>> {
        match self {
            Self::Mapped => mapped::measure(setting),
            Self::Copied => copied::measure(setting),
            Self::Requests => requests::measure(setting),
            Self::I386 => narrow::measure(setting),
        }
    }
}

/// A row that has just been measured, told to who waits for the table.
fn told(row: Row) -> Row {
    eprintln!("{}", row.line());
    row
}
