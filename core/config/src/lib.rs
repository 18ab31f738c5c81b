//! The configuration of an instance: a TOML file, and what the environment says instead.
//!
//! `docs/configuration.md` explains every key. What binds is, from weak to strong: the defaults,
//! the file, the environment, the flags of the program that reads it.
//!
//! # Invariants
//!
//! 1. A [`Config`] that was loaded is within every range and consistent. Who changes it afterwards
//!    calls [`Config::validate`].
//! 2. A wrong file is one line that begins with its place, `FILE:LINE:COLUMN`. An unknown key is
//!    wrong, as is a variable of none, so that no misspelt limit is silently without effect.
//! 3. [`Config::default`] is what an empty file says.
#![forbid(unsafe_code)]

mod bytes;
mod check;
mod environment;
mod error;
mod sections;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use dmce_abi::AddrLayout;
use dmce_abi::block::DaemonId;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

pub use bytes::{Bytes, BytesError, Exact};
pub use error::{ConfigError, Place};
pub use sections::{
    BrokerSection, DaemonSection, InstanceSection, Limits, Placement, PolicySection, Quota,
    QuotaSection,
};

use check::Misfit;
use source::Source;

/// All that an administrator may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Config {
    /// What all parts of the instance must agree on.
    pub instance: InstanceSection,
    /// How the broker serves.
    pub broker: BrokerSection,
    /// How often placement by weight chooses each daemon; 1 for one that is not named.
    #[serde(deserialize_with = "sections::by_daemon")]
    pub weight: BTreeMap<DaemonId, u32>,
    /// How allocations are made, by size or by number.
    pub policy: Vec<PolicySection>,
    /// Bounds of the whole instance.
    pub limits: Limits,
    /// What one user may hold.
    pub quota: QuotaSection,
    /// How each daemon holds memory.
    pub daemon: DaemonSection,
}

impl Config {
    /// Reads the file at `path`, or no file, and what the environment says instead.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] for a file that cannot be read, [`ConfigError::Wrong`] for one that
    /// is wrong, and for a wrong variable.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = path.map_or(Ok(String::new()), |path| {
            fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
        })?;
        Self::of_text(path.unwrap_or(Path::new("")), &text, std::env::vars_os())
    }

    /// The same with the text of the file that the caller has read, `path` being for errors alone,
    /// and with all variables of an environment, of which only those of keys are looked at.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Wrong`].
    pub fn of_text(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let variables = environment::read(environment)?;
        let mut source = Source::new(path, text);
        let mut table = DeTable::parse(text).map_err(|error| wrong(&source, &error))?;
        environment::overlay(table.get_mut(), &mut source, &variables);
        let mut config = Self::deserialize(Deserializer::from(table.clone()))
            .map_err(|error| wrong(&source, &error))?;
        let written = |section: &str, key: &str| {
            table.get_ref().get(section).is_some_and(|keys| member(keys, key).is_some())
        };
        check::fit_defaults(&mut config, |section, key| written(section, key));
        check::check(&config)
            .map_err(|misfit| source.wrong(place_of(table.get_ref(), &misfit), &misfit.what))?;
        Ok(config)
    }

    /// Divides addresses as a flag says. What does not fit that layout and was meant for the one
    /// before, the most blocks and the bytes of a pool object, becomes as small as it has to be.
    pub fn set_layout(&mut self, layout: AddrLayout) {
        self.instance.layout = layout;
        check::fit_defaults(self, |_, _| false);
    }

    /// Checks a configuration that was changed after it was loaded, as by flags.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unfit`] names the first value that is beyond its range or contradicts
    /// another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check::check(self)
            .map_err(|Misfit { section, what, .. }| ConfigError::Unfit { section, what })
    }
}

fn wrong(source: &Source<'_>, error: &toml::de::Error) -> ConfigError {
    source.wrong(error.span().map_or(0, |span| span.start), error.message())
}

/// Where what is wrong stands: the value of the key, else of the key that it does not go with, else
/// the innermost table around them that was written down.
fn place_of(table: &DeTable<'_>, misfit: &Misfit) -> usize {
    let Misfit { section, within, key, against, .. } = misfit;
    let outermost = table.get(*section).expect("the defaults fit, so something was written down");
    let innermost = within.iter().try_fold(outermost, |value, step| {
        // Of a way that is not there to its end, the part that is.
        member(value, step).ok_or(value)
    });
    let table = innermost.unwrap_or_else(|part| part);
    let value = member(table, key).or_else(|| member(table, (*against)?));
    value.unwrap_or(table).span().start
}

/// What stands under a key of a table, or at a place of a list.
fn member<'t, 'i>(value: &'t Spanned<DeValue<'i>>, step: &str) -> Option<&'t Spanned<DeValue<'i>>> {
    match value.get_ref() {
        DeValue::Table(keys) => keys.get(step),
        DeValue::Array(entries) => entries.get(step.parse::<usize>().ok()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
