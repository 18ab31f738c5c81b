//! What the listings look like: a table for people, JSON for programs.
//!
//! # Invariants
//!
//! 1. The JSON of a listing is one document of the shape that `docs/command.md` gives. Fields are
//!    added, never renamed; the types here are that shape, apart from the messages, which may
//!    change with the wire version.
//! 2. In JSON a size is a number of bytes and an address a number; in tables they are for people.
//! 3. Tables have no colours, lines or escapes, on a terminal or in a pipe.

mod blocks;
mod daemons;
mod location;
mod mapped;
mod regions;
pub mod scrub;
mod sessions;
mod status;
mod table;
mod usage;

use std::io::{self, Write};

use serde::Serialize;

pub use blocks::{Block, holder_text};
pub use daemons::Daemon;
pub use location::Location;
pub use mapped::Mapped;
pub use regions::Region;
pub use sessions::Session;
pub use status::Status;
pub use table::{Align, Table};
pub use usage::Usage;

/// Something that can be shown both ways.
pub trait Show: Serialize {
    /// The form for people, with its last line feed.
    fn text(&self) -> String;
}

/// A listing of rows: an array in JSON, a table for people.
pub trait Row: Serialize {
    /// The heading and the alignment of each column.
    const COLUMNS: &'static [(&'static str, Align)];

    /// The cells, as many as there are columns.
    fn cells(&self) -> Vec<String>;
}

impl<R: Row> Show for Vec<R> {
    fn text(&self) -> String {
        let mut table = Table::new(R::COLUMNS);
        for row in self {
            table.add(row.cells());
        }
        table.to_string()
    }
}

/// Writes `value` to the standard output.
///
/// # Errors
///
/// What the kernel says of the write. A reader who has seen enough (`| head`) is no error.
pub fn print(value: &impl Show, json: bool) -> io::Result<()> {
    let text = if json { to_json(value)? } else { value.text() };
    write_out(text.as_bytes())
}

/// Writes to the standard output, as [`print`] does.
///
/// # Errors
///
/// As [`print`].
pub fn write_out(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn to_json(value: &impl Serialize) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
