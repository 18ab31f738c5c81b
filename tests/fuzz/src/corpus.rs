//! The inputs that are kept.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::Target;

/// The folder of a target.
#[must_use]
pub fn folder(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The inputs of a target with their paths, in the order of their names.
///
/// # Errors
///
/// The folder or a file in it cannot be read.
pub fn inputs(target: Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = fs::read_dir(folder(target))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    paths.into_iter().map(|path| fs::read(&path).map(|bytes| (path, bytes))).collect()
}
