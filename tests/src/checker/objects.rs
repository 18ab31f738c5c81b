//! The objects of an instance, by name.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use dmce_abi::name::{self, ObjectKind, ObjectName};
use dmce_sys::object::{ObjectDir, ObjectError};

use super::Difference;

/// The broker, among the daemons' ids.
pub const BROKER: u32 = 0;

/// The objects of an instance.
pub struct Objects {
    dir: ObjectDir,
    instance: name::Instance,
    all: BTreeSet<(u32, ObjectKind)>,
}

impl Objects {
    /// Those that are there now. What no server makes is a difference.
    pub fn list(
        folder: &Path,
        instance: &str,
        differences: &mut Vec<Difference>,
    ) -> Result<Self, ObjectError> {
        let dir = ObjectDir::open(folder)?;
        let instance = name::Instance::new(instance).expect("an instance that runs has a name");
        let mut all = BTreeSet::new();
        for object in dir.names(&instance.prefix())? {
            match ObjectName::parse(&object) {
                Ok(name) => _ = all.insert((name.daemon, name.kind)),
                Err(error) => {
                    differences.push(Difference::Unsound { object, why: error.to_string() });
                }
            }
        }
        Ok(Self { dir, instance, all })
    }

    /// The kinds of all objects of a daemon, or of the broker.
    pub fn of(&self, daemon: u32) -> impl Iterator<Item = ObjectKind> + '_ {
        self.all.iter().filter(move |(owner, _)| *owner == daemon).map(|(_, kind)| *kind)
    }

    /// All daemons that have objects.
    pub fn daemons(&self) -> BTreeSet<u32> {
        self.all.iter().map(|(daemon, _)| *daemon).filter(|daemon| *daemon != BROKER).collect()
    }

    /// Whether there is an object.
    pub fn has(&self, daemon: u32, kind: ObjectKind) -> bool {
        self.all.contains(&(daemon, kind))
    }

    /// The name of an object.
    pub fn name(&self, daemon: u32, kind: ObjectKind) -> String {
        ObjectName { instance: self.instance.clone(), daemon, kind }.to_string()
    }

    /// Opens an object for reading; `None` if it has gone since.
    pub fn open(&self, daemon: u32, kind: ObjectKind) -> Result<Option<OwnedFd>, ObjectError> {
        match self.dir.open_read_only(&self.name(daemon, kind)) {
            Ok(fd) => Ok(Some(fd)),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says that an object belongs to nobody.
    pub fn leftover(&self, daemon: u32, kind: ObjectKind, why: &'static str) -> Difference {
        Difference::Leftover { object: self.name(daemon, kind), why }
    }

    /// Says that an object cannot be read as what it is.
    pub fn unsound(&self, daemon: u32, kind: ObjectKind, why: &impl ToString) -> Difference {
        Difference::Unsound { object: self.name(daemon, kind), why: why.to_string() }
    }
}
