//! Plain tables: headings, columns that line up, and two spaces between them.

use std::fmt;

use comfy_table::{CellAlignment, presets};

/// Which side the cells of a column line up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Align {
    Left,
    Right,
}

/// A table under construction. It prints itself with a line feed after each row.
#[derive(Debug)]
pub struct Table {
    inner: comfy_table::Table,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING);
        inner.set_header(columns.iter().map(|(heading, _)| *heading));
        for (column, (_, align)) in inner.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        Self { inner }
    }

    /// A table of two columns without headings: what something is called, and what it is.
    #[must_use]
    pub fn of_fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING);
        for (name, value) in fields {
            inner.add_row([name.to_owned(), value]);
        }
        for column in inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { inner }
    }

    /// Adds a row.
    pub fn add(&mut self, cells: Vec<String>) {
        self.inner.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.lines().try_for_each(|line| writeln!(f, "{}", line.trim_end()))
    }
}
