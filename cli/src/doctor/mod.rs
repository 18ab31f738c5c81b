//! `dmce doctor`: what on this host would make DMCE fail or slow, each with its fix.
//!
//! # Invariants
//!
//! 1. It changes nothing that lasts: what it tries out, it tries on an object of its own without a
//!    name, or on itself.
//! 2. A check fails only if DMCE cannot work, or something is damaged; what makes it slow, or lets
//!    a request be refused early, is a warning. What this release does not use is not looked at.
//! 3. Every finding that is not in order says what to do.

mod host;
mod instances;
mod memory;

use std::path::{Path, PathBuf};

use dmce_abi::wire::admin::StatusReport;
use dmce_config::{Config, ConfigError};
use serde::Serialize;

use crate::args::{DAEMONS, Doctor};
use crate::broker::{Broker, BrokerError};
use crate::error::line_of;
use crate::instance::{Home, HomeError, Note, Options};
use crate::show::{Align, Row};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// One finding for each check.
    pub checks: Vec<Finding>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In order, or merely worth knowing.
    Ok,
    /// Slow, or soon refused.
    Warn,
    /// Does not work.
    Fail,
}

/// Why nothing was looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the causes say it")]
pub enum DoctorError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What the host is looked at for.
struct Patient {
    /// The directory that was named, and what its `up` decided.
    home: Option<(Home, Option<Note>)>,
    /// The folder of the objects.
    objects: PathBuf,
    /// The instance, or why there is none.
    status: Result<StatusReport, BrokerError>,
    /// Whether the caller expects a broker to be there.
    expects_broker: bool,
    /// Bytes that the daemons may still commit, or would.
    wanted: u64,
}

/// Looks at this host, for the instance of a directory or socket, or for one to come.
///
/// # Errors
///
/// [`DoctorError`] if the directory or its configuration cannot be read.
pub fn run(args: &Doctor, socket: Option<&Path>) -> Result<Diagnosis, DoctorError> {
    let patient = Patient::admit(args.dir.as_deref(), socket)?;
    let mut checks = host::checks();
    checks.extend(memory::checks(&patient));
    checks.extend(instances::checks(&patient));
    Ok(Diagnosis { checks })
}

impl Patient {
    fn admit(dir: Option<&Path>, socket: Option<&Path>) -> Result<Self, DoctorError> {
        let home = match dir {
            Some(dir) => {
                let home = Home::find(dir)?;
                let note = home.note()?;
                Some((home, note))
            }
            None => None,
        };
        let note = home.as_ref().and_then(|(_, note)| note.as_ref());
        let config = Config::load(note.and_then(|note| note.config.as_deref()))?;
        let last = note.map_or(Options::default(), |note| note.options);
        let objects = note.map_or(config.instance.objects, |note| note.objects.clone());
        let own = home.as_ref().map(|(home, _)| home.socket());
        let named = own.as_deref().or(socket);
        let status = Broker::find(named).and_then(|mut broker| broker.status());
        let capacity = last.capacity.unwrap_or(config.daemon.capacity);
        let usual = capacity.get().saturating_mul(last.daemons.unwrap_or(DAEMONS).into());
        let wanted = match &status {
            Ok(report) => report.capacity.saturating_sub(report.committed),
            Err(_) => usual,
        };
        Ok(Self { expects_broker: named.is_some(), home, objects, status, wanted })
    }
}

impl Diagnosis {
    /// Whether no check failed.
    pub fn is_well(&self) -> bool {
        self.checks.iter().all(|check| check.state != State::Fail)
    }
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Ok, text: text.into(), fix: None }
    }

    fn warn(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Warn, text: text.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Fail, text: text.into(), fix: Some(fix.into()) }
    }

    /// A check that could not be made.
    fn unknown(check: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::warn(check, line_of(error), "look into it: without this nothing can be said")
    }
}

impl Row for Finding {
    const COLUMNS: &'static [(&'static str, Align)] =
        &[("STATE", Align::Left), ("CHECK", Align::Left), ("FINDING", Align::Left)];

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        };
        let fix = self.fix.as_ref().map_or(String::new(), |fix| format!("; fix: {fix}"));
        vec![state.to_owned(), self.check.to_owned(), format!("{}{fix}", self.text)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_check_makes_the_host_unfit() {
        let warned =
            Diagnosis { checks: vec![Finding::ok("a", "b"), Finding::warn("c", "d", "e")] };
        assert!(warned.is_well());
        assert_eq!(warned.checks[1].cells(), ["warn", "c", "d; fix: e"]);
        let failed = Diagnosis { checks: vec![Finding::fail("c", "d", "e")] };
        assert!(!failed.is_well());
        assert_eq!(
            serde_json::to_value(&failed.checks).unwrap(),
            serde_json::json!([{ "check": "c", "state": "fail", "text": "d", "fix": "e" }])
        );
    }
}
