//! Every environment variable of DMCE stands in the table of `docs/configuration.md`, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The sections of the configuration: a variable that begins so is read by its rules.
const SECTIONS: [&str; 7] = ["INSTANCE", "BROKER", "WEIGHT", "POLICY", "LIMITS", "QUOTA", "DAEMON"];

/// The documented ones, by the first column of the table.
fn documented(root: &Path) -> BTreeSet<String> {
    let page = fs::read_to_string(root.join("docs/configuration.md")).expect("the page is there");
    let (_, section) = page.split_once("\n## Environment variables\n").expect("the section");
    let section = section.split("\n## ").next().expect("a split has a first part");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `DMCE_"));
    rows.filter_map(|row| Some(format!("DMCE_{}", row.split_once('`')?.0))).collect()
}

/// The names that stand behind `mark`.
fn names(text: &str, mark: &str) -> impl Iterator<Item = String> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("DMCE_").filter_map(move |(at, _)| {
        let name: &str = text[at..].split(|c| !is_name(c)).next()?;
        let is_marked = text[..at].ends_with(mark);
        // A format, `DMCE_{section}`, ends in the middle of a name.
        let is_whole = !text[at + name.len()..].starts_with('{') && name.len() > "DMCE_".len();
        (is_marked && is_whole).then(|| name.to_owned())
    })
}

/// What the header defines: no variables, though their names are texts in Rust.
fn constants(root: &Path) -> BTreeSet<String> {
    let header = fs::read_to_string(root.join("include/libdmce.h")).expect("the header is there");
    names(&header, "#define ").collect()
}

fn is_of_section(name: &str) -> bool {
    let rest = name.strip_prefix("DMCE_").unwrap_or(name);
    SECTIONS
        .iter()
        .any(|section| rest.strip_prefix(section).is_some_and(|key| key.starts_with('_')))
}

/// The variables that code and scripts read or set.
fn used(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in super::files(root, &super::FOLDERS, &["rs", "c", "h"]) {
        // In code a name that is read stands in a text of its own; those of this file are made up.
        if !file.path.ends_with("core/config/src/tests.rs") {
            found.extend(names(&file.text, "\""));
        }
    }
    for file in super::files(root, &["scripts"], &["sh"]) {
        found.extend(names(&file.text, ""));
    }
    let makefile = fs::read_to_string(root.join("Makefile")).expect("the Makefile is there");
    found.extend(names(&makefile, ""));
    let constants = constants(root);
    found.retain(|name| !constants.contains(name) && !is_of_section(name));
    found
}

#[test]
fn every_environment_variable_is_documented_and_no_other() {
    let root = super::root();
    let (documented, used) = (documented(root), used(root));
    let generic = "DMCE_SECTION_KEY".to_owned();
    assert!(documented.contains(&generic), "{documented:?}");
    let silent: Vec<_> = used.difference(&documented).collect();
    assert!(silent.is_empty(), "not in docs/configuration.md: {silent:?}");
    let idle: Vec<_> = documented.difference(&used).filter(|name| **name != generic).collect();
    assert!(idle.is_empty(), "in docs/configuration.md, and nobody reads it: {idle:?}");
}
