//! `docs/benchmarks.md`: the table, the machine, and how it was measured.

use std::fmt::Write;

use crate::machine;
use crate::table::{Row, markdown};

/// The text that stands around the table.
const METHOD: &str = include_str!("method.md");

/// The whole document.
#[must_use]
pub fn document(rows: &[Row]) -> String {
    let mut facts = String::new();
    for (name, value) in machine::facts() {
        // Writing to a string cannot fail.
        let _ = writeln!(facts, "- {name}: {value}");
    }
    METHOD.replace("{{table}}\n", &markdown(rows)).replace("{{machine}}\n", &facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_a_place_for_everything() {
        let text = document(&[]);
        assert!(text.contains("| what ") && text.contains("- kernel: Linux"));
        assert!(!text.contains("{{"));
    }
}
