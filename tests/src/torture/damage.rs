//! What the executioner does to a daemon's objects.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Instance, Seeded};

/// In less than this a broker has told everybody of a loss, and has made what was lost again.
const TELLING_US: u64 = 60_000;

/// What is done to objects.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Their names go; who has them mapped has them still.
    Remove,
    /// They are cut to nothing, also under who has them mapped.
    Truncate,
}

/// Who dies with them.
#[derive(Clone, Copy, Debug)]
enum Company {
    Nobody,
    /// Their daemon, before.
    DaemonBefore,
    /// Their daemon, after.
    DaemonAfter,
    /// The broker, before: nobody is told.
    BrokerBefore,
    /// The broker, after, in the midst of telling.
    BrokerAfter,
}

/// Damage to what one daemon holds.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    way: Way,
    company: Company,
    is_all: bool,
}

impl Damage {
    /// Any.
    pub fn draw(random: &mut Seeded) -> Self {
        let way = if random.below(2) == 0 { Way::Remove } else { Way::Truncate };
        let company = match random.below(7) {
            0 | 1 => Company::DaemonBefore,
            2 => Company::DaemonAfter,
            3 => Company::BrokerBefore,
            4 => Company::BrokerAfter,
            _ => Company::Nobody,
        };
        Self { way, company, is_all: random.below(2) == 0 }
    }

    /// Does it, and has everybody run again.
    ///
    /// # Panics
    ///
    /// If an object that is there cannot be changed.
    pub fn inflict(self, instance: &mut Instance, daemon: u32, random: &mut Seeded) {
        match self.company {
            Company::DaemonBefore => instance.kill_daemon(daemon),
            Company::BrokerBefore => instance.kill_broker(),
            Company::Nobody | Company::DaemonAfter | Company::BrokerAfter => {}
        }
        let mut objects = data_of(instance, daemon);
        if !self.is_all && !objects.is_empty() {
            let place = random.below(objects.len() as u64);
            objects = vec![objects.swap_remove(usize::try_from(place).expect("few"))];
        }
        for object in objects {
            match self.way {
                Way::Remove => tolerate(fs::remove_file(object)),
                Way::Truncate => truncate(&object),
            }
        }
        match self.company {
            Company::DaemonAfter => instance.kill_daemon(daemon),
            Company::BrokerAfter => {
                // From before it has noticed until after all copies are there again.
                let pause = Duration::from_micros(random.below(TELLING_US));
                std::thread::sleep(pause);
                instance.kill_broker();
            }
            Company::Nobody | Company::DaemonBefore | Company::BrokerBefore => {}
        }
        instance.start_all();
    }

    /// As the report names it.
    pub const fn kind(self) -> &'static str {
        match (self.way, self.is_all) {
            (Way::Remove, true) => "removals of all that a daemon holds",
            (Way::Remove, false) => "removals of an object",
            (Way::Truncate, true) => "truncations of all that a daemon holds",
            (Way::Truncate, false) => "truncations of an object",
        }
    }

    /// Who was killed over it, as the report names it.
    pub const fn victims(self) -> Option<&'static str> {
        match self.company {
            Company::Nobody => None,
            Company::DaemonBefore | Company::DaemonAfter => Some("killed daemons"),
            Company::BrokerBefore | Company::BrokerAfter => Some("killed brokers"),
        }
    }
}

/// The data objects of a daemon. A header alone is no loss: its daemon writes it again.
fn data_of(instance: &Instance, daemon: u32) -> Vec<PathBuf> {
    let prefix = format!("dmce.{}.{daemon}.data-", instance.name());
    let names = instance.objects().into_iter().filter(|name| name.starts_with(&prefix));
    names.map(|name| instance.object(&name)).collect()
}

/// Cuts an object.
fn truncate(object: &Path) {
    let cut = |file: File| file.set_len(0);
    tolerate(File::options().write(true).open(object).and_then(cut));
}

/// Of an object nothing is left to be damaged when its block has moved away since it was found.
fn tolerate(done: io::Result<()>) {
    if let Err(error) = done {
        assert_eq!(error.kind(), ErrorKind::NotFound, "it is our own: {error}");
    }
}
