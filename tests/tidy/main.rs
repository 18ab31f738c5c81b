//! What reviewers would otherwise have to say again and again, said by a test.
#![forbid(unsafe_code)]

mod environment;
mod links;

use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 1_000;

/// The folders that are ours; `target` and what lies about are not.
const FOLDERS: [&str; 9] =
    ["core", "broker", "daemon", "libdmce", "ffi", "cli", "tests", "examples", "benches"];

/// Crates in which `unsafe` may stand; everywhere else the crate forbids it.
const MAY_BE_UNSAFE: [&str; 6] = ["core/sys", "core/shm", "libdmce", "ffi", "benches", "examples"];

struct Source {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project")
}

fn sources() -> Vec<Source> {
    let found = files(root(), &FOLDERS, &["rs"]);
    assert!(found.len() > 50, "the sources are not where they are looked for");
    found
}

/// The files in some folders whose names end so.
fn files(root: &Path, folders: &[&str], extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let is_wanted = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
    };
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if is_wanted(&path) {
                let text = fs::read_to_string(&path).expect("source is text");
                let path = path.strip_prefix(root).expect("it lies below").to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found
}

/// Fails with every place at which `wrong` finds something.
fn none(what: &str, wrong: impl Fn(&Source) -> Vec<usize>) {
    let places: Vec<String> = sources()
        .iter()
        .flat_map(|source| {
            let name = source.path.display().to_string();
            wrong(source).into_iter().map(move |line| format!("{name}:{line}"))
        })
        .collect();
    assert!(places.is_empty(), "{what}:\n{}", places.join("\n"));
}

fn lines_where(source: &Source, wrong: impl Fn(&str) -> bool) -> Vec<usize> {
    let lines = source.text.lines().enumerate();
    lines.filter(|(_, line)| wrong(line)).map(|(index, _)| index + 1).collect()
}

#[test]
fn lines_fit_and_files_are_of_a_size_to_read() {
    none("lines longer than 100 columns", |source| {
        lines_where(source, |line| line.chars().count() > COLUMNS_MAX)
    });
    none("files of more than 1,000 lines", |source| {
        let lines = source.text.lines().count();
        if lines > LINES_MAX { vec![lines] } else { Vec::new() }
    });
}

#[test]
fn nothing_is_left_to_be_done_later() {
    let marks = ["TODO", "FIXME", "XXX", "HACK"].map(str::to_owned);
    let calls = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let ignored = format!("#[{}", "ignore");
    none("left for later", |source| {
        if source.path.ends_with("tests/tidy/main.rs") {
            return Vec::new();
        }
        lines_where(source, |line| {
            line.contains(&ignored) || marks.iter().chain(&calls).any(|mark| line.contains(mark))
        })
    });
}

#[test]
fn every_file_says_what_it_is() {
    none("files that do not begin with //!", |source| {
        // The tests of a module are told by the module, and by their names.
        let tests = source.path.components().any(|part| part.as_os_str() == "tests")
            && !source.path.starts_with("tests")
            || source.path.ends_with("tests.rs");
        if tests || source.text.starts_with("//!") { Vec::new() } else { vec![1] }
    });
}

#[test]
fn unsafe_stands_only_where_it_may() {
    none("unsafe in a crate that does without", |source| {
        if MAY_BE_UNSAFE.iter().any(|folder| source.path.starts_with(folder)) {
            return Vec::new();
        }
        lines_where(source, |line| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
        })
        .into_iter()
        .filter(|_| !source.path.starts_with("tests/tidy"))
        .collect()
    });
}
