//! Where each value came from: places in the file, and variables behind its end.

use std::ops::Range;
use std::path::Path;

use crate::{ConfigError, Place};

/// The text of a file and the variables that were laid over it.
///
/// A position in the text is a place in the file; positions after its end number the variables, so
/// that the parser's spans name both.
pub(crate) struct Source<'i> {
    path: &'i Path,
    text: &'i str,
    variables: Vec<&'i str>,
}

impl<'i> Source<'i> {
    pub(crate) const fn new(path: &'i Path, text: &'i str) -> Self {
        Self { path, text, variables: Vec::new() }
    }

    /// The span that stands for the variable `name`.
    pub(crate) fn add_variable(&mut self, name: &'i str) -> Range<usize> {
        self.variables.push(name);
        let place = self.text.len() + self.variables.len();
        place..place
    }

    /// What is wrong at `position`.
    pub(crate) fn wrong(&self, position: usize, what: &str) -> ConfigError {
        // The parser puts what it expected on lines of its own.
        let lines: Vec<_> = what.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        ConfigError::Wrong { place: self.place(position), what: lines.join(", ") }
    }

    fn place(&self, position: usize) -> Place {
        let behind = position.checked_sub(self.text.len() + 1);
        if let Some(name) = behind.and_then(|index| self.variables.get(index)) {
            return Place::Variable { name: (*name).to_owned() };
        }
        let before = self.text.get(..position).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_in_characters_from_one() {
        let mut source = Source::new(Path::new("f"), "a\n\u{e4}\u{f6}x\n");
        let variable = source.add_variable("V");
        assert_eq!(source.wrong(0, "no").to_string(), "f:1:1: no");
        assert_eq!(source.wrong(6, "no").to_string(), "f:2:3: no");
        assert_eq!(source.wrong(8, "no").to_string(), "f:3:1: no");
        assert_eq!(
            source.wrong(variable.start, "no\n really").to_string(),
            "environment variable V: no, really"
        );
    }
}
