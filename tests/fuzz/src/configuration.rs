//! Configuration files and the environment.
//!
//! The text as far as a line `%%` is the file; each line behind it is a variable, `NAME=VALUE`.

use std::collections::BTreeMap;
use std::path::Path;

use dmce_abi::AddrLayout;
use dmce_config::{Bytes, Config, ConfigError, Place};

const FILE: &str = "dmce.toml";

pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (file, variables) = text.split_once("\n%%\n").unwrap_or((text, ""));
    let variables: BTreeMap<&str, &str> =
        variables.lines().filter_map(|line| line.split_once('=')).collect();
    size(text);
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
    match Config::of_text(Path::new(FILE), file, environment) {
        Ok(config) => accepted(config),
        Err(error) => refused(&error, file, &variables),
    }
}

/// Who changes a sound configuration to another layout finds it sound, or is told what is not.
fn accepted(mut config: Config) {
    assert!(config.validate().is_ok(), "what was loaded is within every range");
    let capacity = config.daemon.capacity;
    assert_eq!(capacity.exact().to_string().parse(), Ok(capacity));
    for layout in [AddrLayout::OS64, AddrLayout::OS32, AddrLayout::IN_SERVER] {
        config.set_layout(layout);
        assert!(u64::from(config.limits.blocks) < layout.block_ids());
        if let Err(error) = config.validate() {
            assert!(matches!(error, ConfigError::Unfit { .. }) && is_a_line(&error));
        }
    }
}

/// A wrong file is one line that begins with a place that is there.
fn refused(error: &ConfigError, file: &str, variables: &BTreeMap<&str, &str>) {
    assert!(is_a_line(error), "{error:?}");
    match error {
        ConfigError::Wrong { place: Place::File { path, line, column }, .. } => {
            assert!(error.to_string().starts_with(&format!("{FILE}:{line}:{column}: ")));
            assert_eq!(path, Path::new(FILE));
            let lines: Vec<&str> = file.split('\n').collect();
            assert!((1..=lines.len()).contains(line), "line {line} of {}", lines.len());
            let characters = lines[line - 1].chars().count();
            assert!((1..=characters + 1).contains(column), "column {column} of {characters}");
        }
        ConfigError::Wrong { place: Place::Variable { name }, .. } => {
            assert!(variables.contains_key(name.as_str()), "{name} was not set");
        }
        other => panic!("{other:?} is not about a file"),
    }
}

fn is_a_line(error: &ConfigError) -> bool {
    !error.to_string().contains('\n')
}

fn size(text: &str) {
    if let Ok(bytes) = text.parse::<Bytes>() {
        assert_eq!(bytes.exact().to_string().parse(), Ok(bytes));
        assert!(!bytes.to_string().is_empty());
    }
}
