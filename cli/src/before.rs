//! What an `up` found, and that again when it has failed.
//!
//! # Invariants
//!
//! 1. Whoever puts things back holds the turn of the directory, and the supervisor that it has
//!    started has ended.
//! 2. What was there before stays: processes, blocks, files. The logs of what was tried stay too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::instance::{Home, HomeError, Note};
use crate::objects::{Objects, ObjectsError};
use crate::processes::{self, Process, ProcessesError};

/// Why not all is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the causes say it")]
pub enum RestoreError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Processes(#[from] ProcessesError),
}

/// Folders that are not there yet.
#[derive(Debug)]
pub struct Missing(Vec<PathBuf>);

impl Missing {
    /// Those that `up` on `dir` makes.
    pub fn of(dir: &Path) -> Self {
        // Without what says nothing at its end, such as `/.`, which no folder is removed by.
        let log: PathBuf = dir.components().collect::<PathBuf>().join("log");
        let is_missing = |folder: &&Path| {
            !folder.as_os_str().is_empty() && fs::symlink_metadata(folder).is_err()
        };
        Self(log.ancestors().take_while(is_missing).map(Path::to_owned).collect())
    }

    /// Removes them again, as far as nothing is in them.
    pub fn remove(self) {
        for folder in self.0 {
            if fs::remove_dir(folder).is_err() {
                // Something is in it, and so in all around it.
                return;
            }
        }
    }
}

/// What was there of an instance before servers were started.
#[derive(Debug)]
pub struct Before {
    note: Option<Note>,
    objects: BTreeSet<String>,
    processes: BTreeSet<u32>,
}

impl Before {
    /// Looks.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn look(home: &Home, note: Option<Note>, objects: &Objects) -> Result<Self, RestoreError> {
        let processes = Process::find(home.path())?.iter().map(|process| process.pid).collect();
        Ok(Self { note, objects: objects.names()?.into_iter().collect(), processes })
    }

    /// Makes it so again.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]: what could be put back before has been.
    pub fn restore(self, home: &Home, objects: &Objects) -> Result<(), RestoreError> {
        // One that cannot be put back hinders no other.
        let ended = self.end_new_processes(home).map_err(RestoreError::from);
        let removed = objects.remove_since(&self.objects).map_err(RestoreError::from);
        let noted = match &self.note {
            Some(note) => home.write_note(note),
            None => home.remove_note(),
        };
        let unbound = if objects.has_broker()? { Ok(()) } else { home.remove_sockets() };
        ended.and(removed).and(noted.and(unbound).map_err(RestoreError::from))
    }

    /// A supervisor ends what it has started, unless somebody killed it.
    fn end_new_processes(&self, home: &Home) -> Result<(), ProcessesError> {
        let found = Process::find(home.path())?;
        processes::end(found.iter().filter(|process| !self.processes.contains(&process.pid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of a test, removed with all that is in it.
    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn folders_that_were_made_go_as_far_as_they_are_empty() {
        let scratch = std::env::temp_dir().join(format!("dmce-test-{}-made", std::process::id()));
        fs::create_dir(&scratch).unwrap();
        let Scratch(scratch) = &Scratch(scratch);
        let dir = scratch.join("a/b/.");
        let missing = Missing::of(&dir);
        Home::create(&dir).unwrap();
        missing.remove();
        assert_eq!(fs::read_dir(scratch).unwrap().count(), 0);

        let missing = Missing::of(&dir);
        Home::create(&dir).unwrap();
        fs::write(scratch.join("a/mine"), "").unwrap();
        missing.remove();
        assert!(!scratch.join("a/b").exists() && scratch.join("a/mine").exists());
    }
}
