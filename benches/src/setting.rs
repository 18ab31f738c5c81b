//! What a run has: how long it may take, its programs, and the instances that it starts.

use std::env;
use std::path::{Path, PathBuf};

use dmce_tests::{Builder, Instance};

use crate::affinity::Allowed;
use crate::calls::Calls;
use crate::janitor::Janitor;
use crate::{Error, Result};

/// How thorough a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// As the documented table is made.
    Full,
    /// Small sizes and few rounds, to see that it works.
    Quick,
}

impl Effort {
    /// One of two values.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// A run.
#[derive(Debug)]
pub struct Setting {
    /// How thorough it is.
    pub effort: Effort,
    /// The processors that it may use.
    pub allowed: Allowed,
    /// `dmce-bench-worker` of this width.
    pub worker: PathBuf,
    /// The same for 32 bits; without it the rows of 32-bit processes are left out.
    pub i386_worker: Option<PathBuf>,
    /// `libdmce.so`; without it the rows of the shared library are left out.
    pub library: Option<PathBuf>,
    /// The peer program of Boost.Interprocess; without it its rows are left out.
    pub interprocess: Option<PathBuf>,
    /// The same of jemalloc.
    pub jemalloc: Option<PathBuf>,
    /// The same of libpmemobj.
    pub pmemobj: Option<PathBuf>,
    /// The program of `dmce::vector` beside `std::vector`.
    pub vector: Option<PathBuf>,
    janitor: Janitor,
}

impl Setting {
    /// Finds the programs beside this one. `i386_worker` may say where that one is.
    ///
    /// # Errors
    ///
    /// [`Error::NotBuilt`], [`Error::System`].
    pub fn new(effort: Effort, i386_worker: Option<PathBuf>) -> Result<Self> {
        let program = env::current_exe().map_err(Error::system("finding this program"))?;
        let beside = program.parent().unwrap_or(Path::new("."));
        let worker = beside.join("dmce-bench-worker");
        if !worker.is_file() {
            return Err(Error::NotBuilt { path: worker.display().to_string() });
        }
        let i386_worker = match i386_worker {
            Some(path) if !path.is_file() => {
                return Err(Error::NotBuilt { path: path.display().to_string() });
            }
            Some(path) => Some(path),
            None => existing(beside.join(I386_WORKER)),
        };
        Ok(Self {
            effort,
            allowed: Allowed::at_first()?,
            janitor: Janitor::start(&worker)?,
            worker,
            i386_worker,
            library: existing(beside.join("libdmce.so")),
            interprocess: existing(beside.join("dmce-bench-interprocess")),
            jemalloc: existing(beside.join("dmce-bench-jemalloc")),
            pmemobj: existing(beside.join("dmce-bench-pmemobj")),
            vector: existing(beside.join("dmce-bench-vector")),
        })
    }

    /// The functions of DMCE as programs get them, with what the table calls them: of a shared
    /// library they cost more, which shows where a call does little.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn libraries(&self) -> Result<Vec<(Calls, &'static str)>> {
        let shared = self.library.as_deref().map(Calls::of_library).transpose()?;
        let shared = shared.map(|calls| (calls, "libdmce.so"));
        Ok(shared.into_iter().chain([(Calls::linked(), "static")]).collect())
    }

    /// Starts an instance. It ends with the value, or at the latest with the run.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(&mut self, builder: Builder) -> Result<Instance> {
        let instance = builder.start();
        self.janitor.watch(&instance, &servers(&instance))?;
        Ok(instance)
    }
}

/// Where `make i386` builds, seen from where `make build` does.
const I386_WORKER: &str = "../i686/i686-unknown-linux-gnu/release/dmce-bench-worker";

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

/// The processes of an instance.
#[must_use]
pub fn servers(instance: &Instance) -> Vec<u32> {
    // Ids are given from 1 on without a gap.
    let daemons = (1..).map_while(|daemon| instance.daemon_pid(daemon));
    instance.broker_pid().into_iter().chain(daemons).collect()
}
