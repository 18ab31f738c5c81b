//! Links between the documents lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

/// Every document of the project; what is built and what is hidden is not.
fn documents(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("the folder can be listed").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The lines of a document that are no code, without the code in them, and their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let without_code = || line.split('`').step_by(2).collect();
        (!is_code && !is_fence).then(|| (number, without_code()))
    })
}

/// The targets of the links in a line, inline ones and definitions.
fn targets(line: &str) -> Vec<&str> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
    let all = inline.map(|(target, _)| target).chain(definition.map(|(_, target)| target));
    // Behind a space stands a title.
    all.filter_map(|target| target.split_whitespace().next()).collect()
}

/// The anchors of a document: its headings, as they are shown on the web.
fn anchors(text: &str) -> Vec<String> {
    let mut is_code = false;
    let headings = text.lines().filter(|line| {
        is_code ^= line.trim_start().starts_with("```");
        !is_code && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Whether a link in `document` leads somewhere. The web is not asked.
fn leads_somewhere(document: &Path, target: &str) -> bool {
    if target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = document.parent().expect("a document lies in a folder");
    let path = if path.is_empty() { document.to_owned() } else { folder.join(path) };
    if anchor.is_empty() {
        return path.exists();
    }
    fs::read_to_string(path).is_ok_and(|text| anchors(&text).iter().any(|known| known == anchor))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project");
    let (mut links, mut broken) = (0, Vec::new());
    for document in documents(root) {
        let text = fs::read_to_string(&document).expect("a document is text");
        for (number, line) in prose(&text) {
            for target in targets(&line) {
                links += 1;
                if !leads_somewhere(&document, target) {
                    broken.push(format!("{}:{number}: {target}", document.display()));
                }
            }
        }
    }
    assert!(links > 10, "the documents are not where they are looked for");
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn links_are_told_from_code_and_broken_ones_from_others() {
    let text =
        "# A `b`, c-d\n[x](one.md) `[y](two.md)`\n```\n[z](three.md)\n# no\n```\n[w]: four.md";
    let found: Vec<_> = prose(text).collect();
    let found: Vec<_> = found.iter().flat_map(|(_, line)| targets(line)).collect();
    assert_eq!(found, ["one.md", "four.md"]);
    assert_eq!(targets("[a](b \"title\"), [c](d#e)"), ["b", "d#e"]);
    assert_eq!(anchors(text), ["a-b-c-d"]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tidy/links.rs");
    assert!(leads_somewhere(&here, "main.rs") && leads_somewhere(&here, "https://dmce.invalid"));
    assert!(!leads_somewhere(&here, "missing.rs") && !leads_somewhere(&here, "main.rs#nothing"));
}
