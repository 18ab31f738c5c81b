//! Keys that the environment may set: `DMCE_SECTION_KEY`, for example `DMCE_DAEMON_CAPACITY=6GiB`.
//!
//! There are none for what there may be many of: quotas of single users, weights, policies.
//!
//! A variable stands for a line of the file and is read by the same code. An empty one is as one
//! that is not set: service managers and shells set such for what they have no value for. One that
//! begins with the name of a section and stands for no key of it is misspelt, and refused as an
//! unknown key is, empty or not.
//! Other variables that begin with `DMCE_` have other readers and are left alone.

use std::borrow::Cow;
use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::source::Source;
use crate::{ConfigError, Place};

/// How the text of a variable becomes a value of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it is.
    Text,
    /// As the file would have it: a number, `true` or `false`.
    Plain,
}

/// Every key with one value.
pub(crate) const KEYS: [(&str, &str, Kind); 44] = [
    ("instance", "name", Kind::Text),
    ("instance", "dir", Kind::Text),
    ("instance", "objects", Kind::Text),
    ("instance", "layout", Kind::Text),
    ("instance", "copies", Kind::Plain),
    ("instance", "region_copies", Kind::Plain),
    ("broker", "socket_mode", Kind::Text),
    ("broker", "socket_group", Kind::Text),
    ("broker", "placement", Kind::Text),
    ("broker", "pressure_percent", Kind::Plain),
    ("broker", "relief_percent", Kind::Plain),
    ("broker", "usage_ms", Kind::Plain),
    ("broker", "usage_samples", Kind::Plain),
    ("broker", "static_reservation", Kind::Plain),
    ("broker", "reattach_ms", Kind::Plain),
    ("broker", "sense_ms", Kind::Plain),
    ("broker", "suspect_ms", Kind::Plain),
    ("broker", "idle_s", Kind::Plain),
    ("broker", "sync_blocks", Kind::Plain),
    ("broker", "sync_rate", Kind::Text),
    ("broker", "slow_start_s", Kind::Plain),
    ("broker", "rebalance_percent", Kind::Plain),
    ("broker", "scrub_rate", Kind::Text),
    ("broker", "scrub_every_s", Kind::Plain),
    ("broker", "hold_s", Kind::Plain),
    ("limits", "sessions", Kind::Plain),
    ("limits", "blocks", Kind::Plain),
    ("limits", "regions", Kind::Plain),
    ("limits", "daemons", Kind::Plain),
    ("limits", "requests_outstanding", Kind::Plain),
    ("limits", "mappings_per_session", Kind::Plain),
    ("quota", "connections", Kind::Plain),
    ("quota", "requests_per_s", Kind::Plain),
    ("quota", "requests_burst", Kind::Plain),
    ("quota", "bytes", Kind::Text),
    ("quota", "sessions", Kind::Plain),
    ("quota", "blocks", Kind::Plain),
    ("quota", "regions", Kind::Plain),
    ("daemon", "capacity", Kind::Text),
    ("daemon", "pool_objects", Kind::Plain),
    ("daemon", "pool_object_bytes", Kind::Text),
    ("daemon", "huge_pages", Kind::Plain),
    ("daemon", "margin", Kind::Text),
    ("daemon", "check_ms", Kind::Plain),
];

/// Sections of keys that no variable sets.
const FOR_THE_FILE: [&str; 2] = ["weight", "policy"];

/// A variable that is set, and not to nothing.
pub(crate) struct Variable {
    section: &'static str,
    key: &'static str,
    kind: Kind,
    name: String,
    text: String,
}

/// The variables of `environment` that set keys, by their names.
///
/// # Errors
///
/// [`ConfigError::Wrong`] for one that is no text, and for one of a section that sets no key.
pub(crate) fn read(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Variable>, ConfigError> {
    let mut found = Vec::new();
    for (name, text) in environment {
        // A name that is no text is none of ours.
        let Ok(name) = name.into_string() else { continue };
        let Some((section, rest)) = split(&name) else { continue };
        let of_key =
            |(of, key, _): &&(&str, &str, Kind)| *of == section && key.to_ascii_uppercase() == rest;
        let wrong = |name: &str, what: String| {
            Err(ConfigError::Wrong { place: Place::Variable { name: name.to_owned() }, what })
        };
        let Some((section, key, kind)) = KEYS.iter().find(of_key) else {
            return wrong(&name, no_key(section, rest));
        };
        if text.is_empty() {
            continue;
        }
        let Ok(text) = text.into_string() else {
            return wrong(&name, "the value is no UTF-8 text".to_owned());
        };
        found.push(Variable { section, key, kind: *kind, name, text });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The section that a variable begins with the name of, and what follows.
fn split(name: &str) -> Option<(&'static str, &str)> {
    let (section, key) = name.strip_prefix("DMCE_")?.split_once('_')?;
    let sections = KEYS.iter().map(|(section, ..)| *section).chain(FOR_THE_FILE);
    let found = sections.into_iter().find(|known| known.to_ascii_uppercase() == section);
    Some((found?, key))
}

/// Why a variable of a section is none.
fn no_key(section: &str, key: &str) -> String {
    let for_the_file = "is for the file alone";
    match section {
        "policy" => format!("[[policy]] {for_the_file}"),
        "weight" => format!("[weight] {for_the_file}"),
        "quota" if key.starts_with("UID_") => format!("[quota.uid.N] {for_the_file}"),
        _ => {
            let keys = KEYS.iter().filter(|(of, ..)| *of == section).map(|(_, key, _)| *key);
            let keys: Vec<_> = keys.collect();
            format!("[{section}] has no key {}, only {}", key.to_lowercase(), keys.join(", "))
        }
    }
}

/// Puts what `variables` say over what the file says.
pub(crate) fn overlay<'i>(
    table: &mut DeTable<'i>,
    source: &mut Source<'i>,
    variables: &'i [Variable],
) {
    for Variable { section, key, kind, name, text } in variables {
        let span = source.add_variable(name);
        let section = table
            .entry(Spanned::new(span.clone(), Cow::Borrowed(*section)))
            .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        // Something else than a table under a section's name: the reader of the file says so.
        if let DeValue::Table(keys) = section.get_mut() {
            // Removed first: a map keeps the old key, and with it the old place.
            keys.remove(*key);
            let key = Spanned::new(span.clone(), Cow::Borrowed(*key));
            keys.insert(key, Spanned::new(span, value(text, *kind)));
        }
    }
}

/// What is no number stays text, and the reader says what it expected instead.
fn value(text: &str, kind: Kind) -> DeValue<'_> {
    match kind {
        Kind::Plain => {
            DeValue::parse(text).map_or(DeValue::String(Cow::Borrowed(text)), Spanned::into_inner)
        }
        Kind::Text => DeValue::String(Cow::Borrowed(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that a new key of the file cannot be forgotten here.
    #[test]
    fn every_key_of_the_documented_file_has_its_variable() {
        let documented = crate::tests::documented_keys();
        let has_variables = |section: &str| {
            let counted = documented.iter().filter(|(of, _)| of == section).count();
            // Of each user, daemon and policy there may be many.
            match section {
                "quota.uid.1000" | "policy" => assert_eq!(counted, 7, "{section}"),
                "weight" => assert_eq!(counted, 2),
                _ => return true,
            }
            false
        };
        let mut documented: Vec<_> =
            documented.iter().filter(|(section, _)| has_variables(section)).cloned().collect();
        documented.sort();
        let mut ours: Vec<_> =
            KEYS.iter().map(|(section, key, _)| ((*section).into(), (*key).into())).collect();
        ours.sort();
        assert_eq!(ours, documented);
    }
}
