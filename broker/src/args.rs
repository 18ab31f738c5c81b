//! The command line of `dmce-broker`.

use std::path::PathBuf;

use clap::Parser;
use dmce_abi::AddrLayout;
use dmce_abi::name::Instance;
use dmce_config::{Config, ConfigError};

/// The broker of a DMCE instance: decides where memory lives and who may use it.
#[derive(Debug, Parser)]
#[command(name = "dmce-broker", version)]
pub struct Args {
    /// Folder of the sockets.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Name that the instance's shared memory objects carry.
    #[arg(long, value_name = "NAME", value_parser = Instance::new)]
    instance: Option<Instance>,
    /// Folder of the shared memory objects.
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// How an address is divided: in-server, os32, os64, or three widths.
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<AddrLayout>,
    /// Copies of a block, where a request does not say.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3))]
    copies: Option<u32>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where an instance lives. Flags or the file must say.
#[derive(Clone, Debug)]
pub struct Place {
    /// Folder of the sockets.
    pub dir: PathBuf,
    /// Its name.
    pub instance: Instance,
}

/// A broker that cannot know what to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// The file or the environment is wrong.
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
    /// The configuration with the flags laid over it.
    ///
    /// # Errors
    ///
    /// [`ArgsError`] is one line for the administrator.
    pub fn resolve(self) -> Result<(Place, Config), ArgsError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(objects) = self.objects {
            config.instance.objects = objects;
        }
        if let Some(layout) = self.layout {
            config.set_layout(layout);
        }
        if let Some(copies) = self.copies {
            config.instance.copies = copies;
        }
        config.validate()?;
        let dir = self.dir.or_else(|| config.instance.dir.clone());
        let instance = self.instance.or_else(|| config.instance.name.clone());
        let place = Place {
            dir: dir.ok_or(ArgsError::Missing { flag: "dir" })?,
            instance: instance.ok_or(ArgsError::Missing { flag: "instance" })?,
        };
        Ok((place, config))
    }
}
