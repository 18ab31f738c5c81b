//! The command line of `dmce-daemon`.

use std::path::PathBuf;

use clap::Parser;
use dmce_abi::AddrLayout;
use dmce_abi::block::{DaemonId, IdError};
use dmce_abi::name::Instance;
use dmce_config::{Bytes, Config, ConfigError};

use crate::store::Settings;

/// A memory server of a DMCE instance: holds blocks of shared memory for its broker.
#[derive(Debug, Parser)]
#[command(name = "dmce-daemon", version)]
pub struct Args {
    /// Which daemon of the instance this is.
    #[arg(long, value_name = "N", value_parser = daemon_id)]
    id: DaemonId,
    /// Folder of the sockets.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Name that the instance's shared memory objects carry.
    #[arg(long, value_name = "NAME", value_parser = Instance::new)]
    instance: Option<Instance>,
    /// Folder of the shared memory objects.
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// How an address is divided, as the broker is told: in-server, os32, os64, or three widths.
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<AddrLayout>,
    /// Bytes of blocks that it may hold, such as 3GiB.
    #[arg(long, value_name = "BYTES")]
    capacity: Option<Bytes>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A daemon that cannot know what to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// The file, the environment or a flag is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Neither flag nor file says where.
    #[error("neither --{flag} nor the configuration names the instance's {flag}")]
    Missing {
        /// What is missing.
        flag: &'static str,
    },
}

impl Args {
    /// What to serve, and the folder of the sockets: the configuration with the flags laid over it.
    ///
    /// # Errors
    ///
    /// [`ArgsError`] is one line for the administrator.
    pub fn resolve(self) -> Result<(Settings, PathBuf), ArgsError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(objects) = self.objects {
            config.instance.objects = objects;
        }
        if let Some(layout) = self.layout {
            config.set_layout(layout);
        }
        if let Some(capacity) = self.capacity {
            config.daemon.capacity = capacity;
        }
        config.validate()?;
        let dir = self.dir.or(config.instance.dir).ok_or(ArgsError::Missing { flag: "dir" })?;
        let instance = self.instance.or(config.instance.name);
        let settings = Settings {
            instance: instance.ok_or(ArgsError::Missing { flag: "instance" })?,
            daemon: self.id,
            objects: config.instance.objects,
            section: config.daemon,
        };
        Ok((settings, dir))
    }
}

fn daemon_id(text: &str) -> Result<DaemonId, String> {
    let number: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    DaemonId::try_from(number).map_err(|error: IdError| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_outweigh_the_configuration_and_are_checked_like_it() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).unwrap().resolve();
        let line = "dmce-daemon --id 2 --dir /run/x --instance main --capacity 64MiB";
        let (settings, dir) = parse(line).unwrap();
        assert_eq!(dir, PathBuf::from("/run/x"));
        assert_eq!(settings.daemon.get(), 2);
        assert_eq!(settings.section.capacity, Bytes::mib(64));
        assert_eq!(settings.objects, PathBuf::from("/dev/shm"));
        let (small, _) = parse(&format!("{line} --layout 24/24/16")).unwrap();
        assert_eq!(small.section.pool_object_bytes, Bytes(64 << 10));
        let odd = parse("dmce-daemon --id 2 --dir /x --instance main --capacity 4097");
        assert_eq!(odd.unwrap_err().to_string(), "daemon.capacity: 4097 is no multiple of 4KiB");
        assert_eq!(
            parse("dmce-daemon --id 2 --instance main").unwrap_err().to_string(),
            "neither --dir nor the configuration names the instance's dir"
        );
    }

    #[test]
    fn an_id_that_no_instance_has_is_refused() {
        for line in ["--id 0", "--id 257", "--id x", "--id 1 --instance Main"] {
            let words = std::iter::once("dmce-daemon").chain(line.split(' '));
            assert!(Args::try_parse_from(words).is_err(), "{line}");
        }
    }
}
