//! The administrator's command of DMCE.
//!
//! `docs/command.md` says what each subcommand does, prints and returns.
//!
//! # Invariants
//!
//! 1. An error is one line on the standard error and an exit code that scripts can tell apart
//!    ([`error::Error::exit_code`]); nothing panics on what a file, a process or the broker says.
//! 2. What is printed on the standard output is the answer and nothing else.
#![forbid(unsafe_code)]

mod address;
mod args;
mod before;
mod broker;
mod doctor;
mod down;
mod error;
mod instance;
mod moves;
mod objects;
mod processes;
mod progress;
mod region;
mod scrub;
mod show;
mod supervise;
mod up;

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use args::{Adopt, Args, Command, Map, RegionCommand, RegionSet, Unparsed};
use broker::Broker;
use error::{Error, Outcome};

fn main() -> ExitCode {
    let done = match Args::read(std::env::args_os()) {
        Ok(args) => run(args),
        Err(Unparsed::Help(text)) => {
            show::write_out(text.as_bytes()).map_err(Error::from).map(done)
        }
        Err(Unparsed::Wrong(text)) => Err(Error::Usage(text)),
    };
    match done {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            // Nobody is left to be told that the standard error is closed.
            let _ = writeln!(io::stderr(), "dmce: {}", error.line());
            error.exit_code()
        }
    }
}

fn run(args: Args) -> Result<Outcome, Error> {
    let socket = args.named_socket(std::env::var_os("DMCE_SOCKET"));
    let broker = || Broker::find(socket.as_deref());
    match args.command {
        Command::Up(up) => {
            let socket = up::run(&up)?;
            let line = [b"DMCE_SOCKET=", socket.as_os_str().as_bytes(), b"\n"].concat();
            Ok(show::write_out(&line).map(done)?)
        }
        Command::Down(down) => Ok(down::run(&down).map(done)?),
        Command::Status(listing) => {
            let status = show::Status::from(broker()?.status()?);
            show::print(&status, listing.json)?;
            Ok(if status.is_ok() { Outcome::Done } else { Outcome::Unwell })
        }
        Command::Daemons(listing) => list::<_, show::Daemon>(broker()?.daemons()?, listing.json),
        Command::Blocks(listing) => list::<_, show::Block>(broker()?.blocks()?, listing.json),
        Command::Sessions(listing) => list::<_, show::Session>(broker()?.sessions()?, listing.json),
        Command::Regions(listing) => list::<_, show::Region>(broker()?.regions()?, listing.json),
        Command::Usage(listing) => {
            let usage = show::Usage::of(broker()?.usage()?);
            Ok(show::print(&usage, listing.json).map(done)?)
        }
        Command::Map(Map { address: None, session, listing }) => {
            list::<_, show::Mapped>(broker()?.mappings(None, session)?, listing.json)
        }
        Command::Map(Map { address: Some(address), session, listing }) => {
            let mut broker = broker()?;
            let found = address::locate(&mut broker, address)?;
            let mapped = broker.mappings(Some(address.0), session)?;
            let location = show::Location::new(address, found, mapped);
            Ok(show::print(&location, listing.json).map(done)?)
        }
        Command::Region(RegionCommand::Set(RegionSet::Copies(wanted))) => {
            Ok(moves::set_copies(broker()?, &wanted)?)
        }
        Command::Region(RegionCommand::Resync(wanted)) => {
            Ok(region::resync(&broker()?, &wanted).map(done)?)
        }
        Command::Adopt(Adopt { stale, from }) => {
            Ok(broker()?.adopt_stale(stale, from.unwrap_or(0)).map(done)?)
        }
        Command::Migrate(wanted) => Ok(moves::migrate(broker()?, wanted)?),
        Command::Swap(wanted) => Ok(moves::swap(broker()?, wanted)?),
        Command::Drain(wanted) => Ok(moves::drain(broker()?, wanted.daemon)?),
        Command::Undrain(wanted) => Ok(moves::undrain(broker()?, wanted.daemon)?),
        Command::Scrub(wanted) => Ok(scrub::scrub(broker()?, wanted)?),
        Command::Doctor(args) => {
            let diagnosis = doctor::run(&args, socket.as_deref())?;
            show::print(&diagnosis.checks, args.listing.json)?;
            Ok(if diagnosis.is_well() { Outcome::Done } else { Outcome::Unwell })
        }
        Command::Supervise(args) => Ok(supervise::run(args).map(done)?),
    }
}

fn list<Row, Shown>(rows: Vec<Row>, json: bool) -> Result<Outcome, Error>
where
    Shown: From<Row> + show::Row,
{
    let shown: Vec<Shown> = rows.into_iter().map(Shown::from).collect();
    Ok(show::print(&shown, json).map(done)?)
}

fn done((): ()) -> Outcome {
    Outcome::Done
}
