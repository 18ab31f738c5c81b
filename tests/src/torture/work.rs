//! What a writer does, in its own process, until it is killed.
//!
//! | line | meaning |
//! |---|---|
//! | `t PLACE SEQUENCE BYTES` | it is about to write the record |
//! | `a MICROSECONDS` | the write was acknowledged, after so long |
//! | `f TEXT` | the write failed; the record may be there or not |

use std::io::{self, Write};
use std::time::Instant;

use libdmce::{Error, Mirror, Region, Session};

use super::record::{self, BYTES_MAX, BYTES_MIN, PLACES};
use crate::Seeded;

/// Every so many records one is read back.
const READ_EVERY: u64 = 8;

/// Writes records to a region for ever: those of `writer`, from sequence `next` on. Returns when
/// one that was written reads otherwise.
///
/// # Errors
///
/// What a read fails with.
///
/// # Panics
///
/// If nobody reads what it says.
pub fn work(
    session: &Session,
    region: &Region,
    (writer, next): (u32, u64),
    seed: u64,
) -> Result<String, Error> {
    let mut random = Seeded::quiet(seed);
    let mut lines = io::stdout().lock();
    for sequence in next.. {
        let place = random.below(PLACES);
        let at = record::offset(writer, place);
        let record = record::make(writer, place, sequence, bytes_of(&mut random));
        say(&mut lines, format_args!("t {place} {sequence} {}", record.len()));
        let begin = Instant::now();
        let written = if random.below(2) == 0 {
            region.write(at, &record, Mirror::Both)
        } else {
            region.addr(at).and_then(|addr| session.write(addr, &record))
        };
        match written {
            Ok(()) => say(&mut lines, format_args!("a {}", begin.elapsed().as_micros())),
            Err(error) => {
                say(&mut lines, format_args!("f {error}"));
                continue;
            }
        }
        if random.below(READ_EVERY) == 0 {
            let mut found = vec![0; record.len()];
            region.read(at, &mut found, Mirror::Any)?;
            if found != record {
                return Ok(format!("record {sequence} at place {place} reads otherwise"));
            }
        }
    }
    Ok("no sequence is left".into())
}

/// Mostly small records, and some of several pages.
fn bytes_of(random: &mut Seeded) -> u64 {
    let max = if random.below(4) == 0 { BYTES_MAX } else { 512 };
    BYTES_MIN + random.below(max - BYTES_MIN + 1)
}

fn say(lines: &mut impl Write, line: std::fmt::Arguments<'_>) {
    // In one piece, so that a death cuts no line.
    let line = format!("{line}\n");
    lines.write_all(line.as_bytes()).and_then(|()| lines.flush()).expect("the campaign reads");
}
