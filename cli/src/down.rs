//! `dmce down`: the end of a private instance.
//!
//! # Invariants
//!
//! 1. It succeeds whatever state the instance is in: running, half dead, dead, or never started.
//! 2. The supervisor ends first, so that nothing is started again behind its back.
//! 3. Memory is removed only when nobody serves it, and only that of this instance.

use std::path::Path;

use dmce_abi::name::{Instance, NameError};
use dmce_config::Config;
use dmce_sys::object::ObjectError;

use crate::args::Down;
use crate::instance::{Home, HomeError, Note};
use crate::objects::{Objects, ObjectsError};
use crate::processes::{self, Process, ProcessesError, Role};

/// Why an instance was not ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the causes say it")]
pub enum DownError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Processes(#[from] ProcessesError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
}

/// Ends the instance of a directory.
///
/// # Errors
///
/// [`DownError`]; what could be ended before has been.
pub fn run(args: &Down) -> Result<(), DownError> {
    let home = Home::find(&args.dir)?;
    if !home.exists() {
        // Servers may outlive their directory, and memory outlives both.
        stop(home.path())?;
        return remove_objects(&home, None);
    }
    let turn = home.wait_turn()?;
    stop(home.path())?;
    if !args.keep {
        remove_objects(&home, home.note()?.as_ref())?;
        home.remove_note()?;
    }
    home.remove_traces()?;
    turn.end()?;
    Ok(())
}

/// Ends every process of a directory, supervisors first.
fn stop(dir: &Path) -> Result<(), ProcessesError> {
    let is_supervisor = |process: &Process| process.role == Role::Supervisor;
    for first in [true, false] {
        // Again until there is none: one that was just being started is found in the next look.
        loop {
            let found = Process::find(dir)?;
            let round: Vec<_> =
                found.iter().filter(|process| is_supervisor(process) || !first).collect();
            if round.is_empty() {
                break;
            }
            processes::end(round)?;
        }
    }
    Ok(())
}

fn remove_objects(home: &Home, note: Option<&Note>) -> Result<(), DownError> {
    let (folder, instance) = match note {
        Some(note) => (note.objects.clone(), Instance::new(&note.instance)?),
        // No `up` has got far here, or its note is lost. A name from the environment might be that
        // of another instance, so it is not asked for one.
        None => (Config::load(None).unwrap_or_default().instance.objects, home.derived_name()),
    };
    match Objects::open(&folder, instance) {
        Ok(objects) => Ok(objects.remove()?),
        // A tmpfs that is not mounted any more holds nothing.
        Err(ObjectsError::Object(ObjectError::NotFound { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
