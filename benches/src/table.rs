//! Rows, and the table that they make.

use std::fmt::Write;

use crate::measure::{Pair, Spread};

/// What a row is to reach, from the design.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At least so many times as fast.
    AtLeast(f64),
    /// More than so many times as fast.
    MoreThan(f64),
    /// At most so many seconds longer.
    Added(f64),
    /// At most so many round trips.
    RoundTrips(f64),
    /// At most so many seconds, whatever the other side takes.
    Within(f64),
    /// Shown beside the others, without a goal of its own.
    None,
}

/// How the time of an operation is shown.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// As it is.
    Time,
    /// As bytes a second, for operations of so many bytes.
    Rate(u64),
    /// As bytes: no time is measured.
    Bytes,
}

/// What a row compares.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What DMCE does.
    pub quantity: String,
    /// In which order, on how much memory.
    pub state: String,
    /// What it is compared with.
    pub against: &'static str,
    /// How figures are shown.
    pub unit: Unit,
    /// What it is to reach.
    pub goal: Goal,
}

/// What becomes of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    /// Not reached by less than a run can tell apart.
    Level,
    Missed,
}

/// Two runs of a row differ by about this much, on a machine that does nothing else.
const RESOLUTION: f64 = 0.02;

/// A row of the table, as text.
#[derive(Clone, Debug)]
pub struct Row {
    cells: [String; COLUMNS.len()],
    missed: bool,
}

const COLUMNS: [&str; 8] =
    ["what", "state and sizes", "DMCE", "against", "", "ratio", "spread", "goal"];

impl Row {
    /// The row of a measurement.
    #[must_use]
    pub fn new(subject: Subject, pair: &Pair) -> Self {
        let goal = subject.goal;
        let (ratio, spread) = match goal {
            Goal::AtLeast(_) | Goal::MoreThan(_) | Goal::Within(_) | Goal::None => {
                let speed = pair.speed();
                (times(speed.median), range(speed, times))
            }
            Goal::Added(_) => {
                let added = pair.added();
                let ratio = times(pair.speed().median);
                (format!("{} ({ratio})", signed(added.median)), range(added, signed))
            }
            Goal::RoundTrips(_) => {
                let trips = pair.duration();
                (format!("{:.1} trips", trips.median), range(trips, |value| format!("{value:.1}")))
            }
        };
        let verdict = goal.verdict(pair);
        let outcome = match verdict {
            None => String::new(),
            Some(Verdict::Met) => format!("{}: met", goal.text()),
            Some(Verdict::Level) => format!("{}: within 2 %", goal.text()),
            Some(Verdict::Missed) => format!("{}: **missed**", goal.text()),
        };
        let (ours, theirs) = (subject.unit.text(pair.ours()), subject.unit.text(pair.theirs()));
        let against = subject.against.to_owned();
        let cells =
            [subject.quantity, subject.state, ours, against, theirs, ratio, spread, outcome];
        Self { cells, missed: verdict == Some(Verdict::Missed) }
    }

    /// Whether there is a goal that it does not reach.
    #[must_use]
    pub const fn missed(&self) -> bool {
        self.missed
    }

    /// The row on one line, to be shown when it is measured.
    #[must_use]
    pub fn line(&self) -> String {
        self.cells.iter().filter(|cell| !cell.is_empty()).cloned().collect::<Vec<_>>().join("  ")
    }
}

/// All rows as a Markdown table, which is aligned to be read as text too.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let header = COLUMNS.map(str::to_owned);
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| {
            let cells = rows.iter().map(|row| &row.cells).chain([&header]);
            cells.map(|cells| cells[column].chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    add_line(&mut text, &header, &widths);
    let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    add_line(&mut text, &rules, &widths);
    for row in rows {
        add_line(&mut text, &row.cells, &widths);
    }
    text
}

fn add_line(text: &mut String, cells: &[String], widths: &[usize]) {
    for (cell, &width) in cells.iter().zip(widths) {
        // Writing to a string cannot fail.
        let _ = write!(text, "| {cell:width$} ");
    }
    text.push_str("|\n");
}

impl Goal {
    fn verdict(self, pair: &Pair) -> Option<Verdict> {
        // How much of the goal is reached: 1 is just enough.
        let (reached, is_met) = match self {
            Self::AtLeast(least) => (pair.speed().median / least, pair.speed().median >= least),
            Self::MoreThan(least) => (pair.speed().median / least, pair.speed().median > least),
            Self::Added(most) => (most / pair.added().median, pair.added().median <= most),
            Self::RoundTrips(most) => {
                (most / pair.duration().median, pair.duration().median <= most)
            }
            Self::Within(most) => (most / pair.ours(), pair.ours() <= most),
            Self::None => return None,
        };
        Some(match is_met {
            true => Verdict::Met,
            false if reached >= 1.0 - RESOLUTION => Verdict::Level,
            false => Verdict::Missed,
        })
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {}", times(least)),
            Self::MoreThan(least) => format!("> {}", times(least)),
            Self::Added(most) => format!("+ <= {}", duration(most)),
            Self::RoundTrips(most) => format!("<= {most:.0} trips"),
            Self::Within(most) => format!("<= {}", duration(most)),
            Self::None => String::new(),
        }
    }
}

impl Unit {
    #[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    fn text(self, seconds: f64) -> String {
        match self {
            Self::Time => duration(seconds),
            Self::Bytes => format!("{} MiB", digits(seconds / f64::from(1 << 20))),
            Self::Rate(bytes) => format!("{} GB/s", digits(bytes as f64 / seconds / 1e9)),
        }
    }
}

/// A size in binary units.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

fn range(spread: Spread, text: impl Fn(f64) -> String) -> String {
    format!("{} .. {}", text(spread.least), text(spread.most))
}

fn times(ratio: f64) -> String {
    if ratio < 9.995 { format!("{ratio:.2}x") } else { format!("{ratio:.1}x") }
}

fn signed(seconds: f64) -> String {
    let sign = if seconds < 0.0 { '-' } else { '+' };
    format!("{sign}{}", duration(seconds.abs()))
}

/// A time in the unit that suits it.
#[must_use]
pub fn duration(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1.0, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")];
    let unit = UNITS.into_iter().find(|(factor, _)| seconds * factor >= 1.0);
    let (factor, name) = unit.unwrap_or((1e9, "ns"));
    format!("{} {name}", digits(seconds * factor))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_the_unit_that_fits() {
        let shown = [12.34e-9, 3.456e-6, 0.7891, 2.0, 0.4e-9].map(duration);
        assert_eq!(shown, ["12.3 ns", "3.46 us", "789 ms", "2.00 s", "0.40 ns"]);
        assert_eq!(signed(-2e-9), "-2.00 ns");
        assert_eq!(Unit::Rate(1 << 30).text(0.1), "10.7 GB/s");
        assert_eq!([64, 4096, 1 << 20, 8 << 30].map(size), ["64 B", "4 KiB", "1 MiB", "8 GiB"]);
    }
}
