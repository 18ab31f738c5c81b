//! Which processors a process runs on.

use std::fs;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

/// The processors of some processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// All on the same one.
    One,
    /// Any but that one.
    Others,
    /// Any that this process could run on at first.
    Any,
}

/// What this process was allowed at first.
#[derive(Clone, Copy, Debug)]
pub struct Allowed(CpuSet);

impl Allowed {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn at_first() -> Result<Self> {
        sched_getaffinity(None).map(Self).map_err(failed)
    }

    /// How many processors that is.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count()
    }

    /// Puts every thread of a process on these processors.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the process is gone.
    pub fn put(self, pid: u32, cpus: Cpus) -> Result<()> {
        let set = match cpus {
            Cpus::Any => self.0,
            Cpus::One => self.first(),
            Cpus::Others => self.others(),
        };
        let folder = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&folder).map_err(Error::system(folder))?;
        for task in tasks.flatten() {
            let number = task.file_name().to_str().and_then(|name| name.parse().ok());
            let thread = number.and_then(Pid::from_raw);
            match sched_setaffinity(thread, &set) {
                // A thread may have ended since it was listed.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }

    fn others(self) -> CpuSet {
        let (mut others, first) = (self.0, self.first());
        for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| first.is_set(cpu)) {
            others.unset(cpu);
        }
        others
    }

    fn first(self) -> CpuSet {
        let mut one = CpuSet::new();
        if let Some(cpu) = (0..CpuSet::MAX_CPU).find(|&cpu| self.0.is_set(cpu)) {
            one.set(cpu);
        }
        one
    }
}

fn failed(errno: rustix::io::Errno) -> Error {
    Error::system("choosing processors")(errno.into())
}
