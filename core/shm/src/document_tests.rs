//! `docs/shared-memory.md` and the types of this crate say the same.

use crate::layout::{Field, fingerprint};

const DOCUMENT: &str = include_str!("../../../docs/shared-memory.md");

/// The text from the heading that begins with `heading` to the next heading.
fn section(heading: &str) -> &'static str {
    let start = DOCUMENT.find(&format!("\n{heading}")).expect("the heading is in the document");
    let section = &DOCUMENT[start + 1..];
    let end = section[1..].find("\n#").map_or(section.len(), |end| end + 1);
    &section[..end]
}

/// The tables of a section whose first two columns are an offset and a size.
fn tables(heading: &str) -> Vec<Vec<Field>> {
    let mut tables = Vec::new();
    for line in section(heading).lines() {
        if line.starts_with("| offset | bytes |") {
            tables.push(Vec::new());
        }
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (Some(offset), Some(bytes)) = (cells.next(), cells.next()) else { continue };
        if let (Ok(offset), Some(bytes), Some(table)) =
            (offset.parse(), product(bytes), tables.last_mut())
        {
            table.push(Field { offset, bytes });
        }
    }
    tables
}

/// `4` or `440 x 8`.
fn product(text: &str) -> Option<usize> {
    text.split(" x ").map(|factor| factor.parse::<usize>().ok()).product()
}

#[test]
fn the_header_is_as_documented() {
    assert_eq!(tables("## 3."), [crate::header::FIELDS]);
}

#[test]
fn the_session_object_is_as_documented() {
    let [page, slot, pin] = crate::session::TABLES;
    let documented = &tables("## 4. ")[0];
    // Behind the first page the table names the slots and the pins, each with a table of its own,
    // and the undo buffers.
    let (first_page, arrays) = documented.split_at(documented.len() - 3);
    assert_eq!(first_page, page);
    let array = |offset, bytes| Field { offset, bytes };
    assert_eq!(arrays, [array(4096, 256 * 64), array(20480, 512 * 32), array(36864, 256 * 4096)]);
    assert_eq!(tables("### 4.1"), [slot]);
    assert_eq!(tables("### 4.2"), [pin]);
}

#[test]
fn the_record_is_as_documented() {
    assert_eq!(tables("## 5."), [crate::record::FIELDS]);
}

#[test]
fn the_lock_table_is_as_documented() {
    assert_eq!(tables("## 6."), crate::table::TABLES);
}

#[test]
fn the_records_of_pointers_are_as_documented() {
    assert_eq!(tables("### 6.2"), crate::pointers::TABLES);
}

/// The numbers themselves are pinned by the document: a change there is a new segment version.
#[test]
fn the_fingerprints_are_as_documented() {
    let documented: Vec<u32> = section("## 8.")
        .lines()
        .filter_map(|line| line.split("`0x").nth(1)?.split('`').next())
        .map(|hex| u32::from_str_radix(hex, 16).unwrap())
        .collect();
    let computed = [
        fingerprint(&[crate::header::FIELDS]),
        fingerprint(&crate::session::TABLES),
        fingerprint(&[crate::record::FIELDS]),
        fingerprint(&crate::table::TABLES),
    ];
    assert_eq!(documented, computed);
}
