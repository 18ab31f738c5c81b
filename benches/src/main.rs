//! `dmce-bench`: measures, prints the table, and writes it where it is told to.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use dmce_benches::report;
use dmce_benches::rows::Group;
use dmce_benches::setting::{Effort, Setting};
use dmce_benches::table::{Row, markdown};
use dmce_benches::worker::describe;
use dmce_benches::{Error, Result};

/// Measures DMCE against what everybody knows, as ratios.
#[derive(Debug, Parser)]
#[command(name = "dmce-bench")]
struct Args {
    /// Small sizes and few rounds, to see that it works.
    #[arg(long)]
    quick: bool,
    /// Where a full run writes the table with its explanation.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// `dmce-bench-worker` for 32 bits, if not where `make bench` builds it.
    #[arg(long, value_name = "FILE", env = "DMCE_BENCH_I386_WORKER")]
    i386_worker: Option<PathBuf>,
    /// Which groups of rows; all if none is named.
    groups: Vec<Group>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmce-bench: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let mut setting = Setting::new(effort, args.i386_worker)?;
    let is_whole = args.groups.is_empty() && effort == Effort::Full;
    let groups = if args.groups.is_empty() { Group::ALL.to_vec() } else { args.groups };
    let mut rows: Vec<Row> = Vec::new();
    for group in groups {
        rows.extend(group.measure(&mut setting)?);
    }
    println!("{}", markdown(&rows));
    let missed = rows.iter().filter(|row| row.missed()).count();
    println!("{} rows, {missed} without their goal", rows.len());
    match args.write {
        Some(path) if is_whole => {
            let document = report::document(&rows);
            fs::write(&path, document).map_err(Error::system(path.display().to_string()))
        }
        Some(path) => {
            println!("{} is left as it was: only a whole run is written", path.display());
            Ok(())
        }
        None => Ok(()),
    }
}
