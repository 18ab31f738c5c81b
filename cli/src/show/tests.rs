//! The shapes that scripts rely on, and the tables that people read.

use dmce_abi::block::{Guid, Half};
use dmce_abi::wire::admin::{
    self, BlockRow, BlockState, CopyRow, CopyState, DaemonRow, DaemonState, Health, HeldBy, Holder,
    MappedRow, MappingKey, OwnerRow, RegionRow, Repair, Scrub, SessionRow, StatusReport,
};
use dmce_abi::wire::client::RegionName;
use dmce_abi::wire::scrub::ScrubFound;
use serde_json::{Value, json};

use crate::address::Address;

use super::*;

fn block_row() -> BlockRow {
    BlockRow {
        block: 7,
        guid: Guid([0xab; 16]),
        bytes: 1 << 30,
        committed: 3 << 29,
        page_size: 4096,
        epoch: 2,
        owner: OwnerRow::Session { session: 3, pid: 4711, uid: 1000 },
        state: BlockState::Degraded,
        copies: vec![
            CopyRow { daemon: 1, state: CopyState::Good, half: Half::PRIMARY },
            CopyRow { daemon: 2, state: CopyState::Syncing, half: Half::MIRROR },
        ],
        span_first: 6,
        span_count: 3,
        left: 3 << 20,
        held_by: vec![Holder { session: 9, pid: 4712, by: HeldBy::Pointer }],
    }
}

fn of_region() -> OwnerRow {
    OwnerRow::Region { region: RegionName { volume: "v".into(), name: "r".into() }, uid: 0 }
}

fn json_of(value: &impl Show) -> Value {
    serde_json::from_str(&to_json(value).unwrap()).unwrap()
}

#[test]
fn the_status_is_an_object() {
    let report = StatusReport {
        instance: "main".into(),
        layout: "in-server".into(),
        version: "0.1.0".into(),
        pid: 12,
        daemons: 3,
        daemons_up: 2,
        sessions: 4,
        blocks: 5,
        regions: 1,
        capacity: 9 << 30,
        committed: 3 << 29,
        reserved: 0,
        state: Health::Degraded,
        repair: Repair { lacking: 3, syncing: 2, left: 3 << 30, rate: 1 << 30 },
        scrub: Scrub {
            passes: 1,
            done: 1 << 20,
            all: 3 << 20,
            rate: 1 << 19,
            last_at: 1000,
            last: ScrubFound { checked: 7, repaired: 2, quarantined: 1, ..ScrubFound::default() },
        },
    };
    let status = Status::from(report.clone());
    assert!(!status.is_ok());
    assert!(Status::from(StatusReport { state: Health::Ok, ..report }).is_ok());
    assert_eq!(
        json_of(&status),
        json!({
            "instance": "main", "layout": "in-server", "state": "degraded", "version": "0.1.0",
            "pid": 12, "daemons": 3, "daemons_up": 2, "sessions": 4, "blocks": 5, "regions": 1,
            "capacity": 9_663_676_416_u64, "committed": 1_610_612_736, "reserved": 0,
            "repair": {
                "lacking": 3, "syncing": 2, "left": 3_221_225_472_u64, "rate": 1_073_741_824,
                "seconds": 3,
            },
            "scrub": {
                "passes": 1, "done": 1_048_576, "all": 3_145_728, "rate": 524_288,
                "last": {
                    "at": 1000, "checked": 7, "unchecked": 0, "busy": 0, "pinned": 0,
                    "detached": 0, "repaired": 2, "quarantined": 1, "lost": 0,
                },
            },
        })
    );
    let text = status.text();
    assert!(
        text.contains("3 blocks lack copies, 3 GiB in all; 2 are made, 1 GiB/s, about 3 s left")
    );
    let scrub = "1 MiB of 3 MiB are compared, 512 KiB/s; before: 7 pages were equal, 2 repaired, \
                 1 found lost";
    assert!(text.contains(scrub), "{text}");
    assert!(text.contains("daemons    2 of 3 up\n"), "{text}");
    assert!(text.contains("committed  1.5 GiB\n"), "{text}");
}

#[test]
fn daemons_are_an_array() {
    let row = DaemonRow {
        daemon: 2,
        state: DaemonState::Away,
        pid: 0,
        capacity: 3 << 30,
        committed: 1,
        reserved: 2,
        pool: 3,
        blocks: 4,
        is_draining: true,
    };
    assert_eq!(
        json_of(&vec![Daemon::from(row)]),
        json!([{
            "id": 2, "state": "away", "pid": null, "capacity": 3_221_225_472_u64, "committed": 1,
            "reserved": 2, "pool": 3, "blocks": 4, "draining": true,
        }])
    );
}

#[test]
fn blocks_name_their_copies_and_their_owner_of_either_kind() {
    let of_session = Block::from(block_row());
    let of_region =
        Block::from(BlockRow { owner: of_region(), state: BlockState::Lost, ..block_row() });
    let expected = json!({
        "id": 7, "guid": "abababababababababababababababab", "state": "degraded",
        "bytes": 1_073_741_824, "committed": 1_610_612_736, "page_size": 4096, "epoch": 2,
        "span_first": 6, "span_count": 3,
        "owner": { "session": 3, "pid": 4711, "uid": 1000 },
        "copies": [
            { "daemon": 1, "state": "good", "half": "primary" },
            { "daemon": 2, "state": "syncing", "half": "mirror" },
        ],
        "left": 3_145_728,
        "held_by": [{ "session": 9, "pid": 4712, "by": "pointer" }],
    });
    let listed = json_of(&vec![of_session, of_region]);
    assert_eq!(listed[0], expected);
    assert_eq!(listed[1]["owner"], json!({ "region": "r", "volume": "v", "uid": 0 }));
    assert_eq!(listed[1]["state"], "lost");
}

#[test]
fn sessions_are_an_array() {
    let row = SessionRow {
        session: 3,
        pid: 4711,
        uid: 1000,
        name: "hold".into(),
        pointer_bits: 32,
        attached: true,
        reserved: 1,
        committed: 2,
        blocks: 3,
        regions: 4,
    };
    assert_eq!(
        json_of(&vec![Session::from(row)]),
        json!([{
            "id": 3, "name": "hold", "pid": 4711, "uid": 1000, "pointer_bits": 32,
            "attached": true, "reserved": 1, "committed": 2, "blocks": 3, "regions": 4,
        }])
    );
}

#[test]
fn regions_carry_the_names_of_their_attributes() {
    let row = RegionRow {
        region: RegionName { volume: "v".into(), name: "r".into() },
        region_size: 5000,
        base_pointer: u64::MAX - 5000,
        uid: 1,
        gid: 2,
        mode: 0o640,
        copies: 1,
        page_size: 4096,
        created_at: 1_700_000_000,
        opens: 2,
        first: 1 << 30,
        state: BlockState::Ok,
    };
    let region = Region::from(row);
    assert_eq!(region.cells()[10], "0640");
    assert_eq!(
        json_of(&vec![region]),
        json!([{
            "volume": "v", "name": "r", "state": "ok", "region_size": 5000,
            "base_pointer": u64::MAX - 5000, "first": 1_073_741_824, "copies": 1,
            "page_size": 4096, "owner": 1, "group": 2, "mode": 416,
            "created_at": 1_700_000_000, "opens": 2,
        }])
    );
}

fn mapped_row() -> MappedRow {
    MappedRow {
        key: MappingKey { session: 3, os_address: 0x7f00_0000_0000 },
        pid: 4711,
        uid: 1000,
        name: "editor".into(),
        addr: 0x1_c000_0000,
        bytes: 2 << 30,
        writable: true,
    }
}

#[test]
fn what_is_mapped_is_an_array_of_ranges() {
    let mapped = vec![Mapped::from(mapped_row())];
    assert_eq!(
        json_of(&mapped),
        json!([{
            "session": 3, "name": "editor", "pid": 4711, "uid": 1000,
            "address": 7_516_192_768_u64, "os_address": 139_637_976_727_552_u64,
            "bytes": 2_147_483_648_u64, "writable": true,
        }])
    );
    let row = "      3  4711  1000  0x1c0000000  0x7f0000000000  2 GiB  yes       editor\n";
    assert!(mapped.text().ends_with(row), "{}", mapped.text());
}

#[test]
fn a_location_is_an_object_with_its_mappings() {
    let found = admin::Location { server: 0, cell: 16, block: block_row(), mappings: vec![] };
    let location = Location::new(Address(0x1_c000_0010), found.clone(), vec![mapped_row()]);
    assert_eq!(
        json_of(&location),
        json!({
            "address": 7_516_192_784_u64, "server": 0, "block": 7, "cell": 16,
            "state": "degraded", "bytes": 1_073_741_824, "committed": 1_610_612_736,
            "page_size": 4096, "epoch": 2, "span_first": 6, "span_count": 3,
            "owner": { "session": 3, "pid": 4711, "uid": 1000 },
            "copies": [
            { "daemon": 1, "state": "good", "half": "primary" },
            { "daemon": 2, "state": "syncing", "half": "mirror" },
        ],
            "mappings": [{
                "session": 3, "pid": 4711, "os_address": 139_637_976_727_568_u64, "writable": true,
                "name": "editor",
                "range": {
                    "address": 7_516_192_768_u64, "os_address": 139_637_976_727_552_u64,
                    "bytes": 2_147_483_648_u64,
                },
            }],
        })
    );
    let text = location.text();
    assert!(text.contains("cell       0x10\n"), "{text}");
    assert!(text.contains("0x7f0000000010  yes "), "{text}");
    assert!(text.contains("2 GiB  0x7f0000000000  editor\n"), "{text}");
    let unmapped = Location::new(Address(1), found, Vec::new());
    assert!(unmapped.text().ends_with("\nno process says that it has it mapped\n"));
}

#[test]
fn a_table_lines_up_and_has_nothing_but_text() {
    let row = block_row();
    let alone = BlockRow {
        block: 12,
        owner: of_region(),
        state: BlockState::Ok,
        copies: vec![CopyRow { daemon: 3, state: CopyState::Good, half: Half::PRIMARY }],
        span_first: 12,
        span_count: 1,
        left: 0,
        held_by: vec![],
        ..row.clone()
    };
    let held = Block::from(row.clone()).copies_text();
    assert!(held.ends_with(", 3 MiB left, held back by process 4712: pointer"), "{held}");
    let row = BlockRow { left: 0, held_by: vec![], ..row };
    let expected = [
        [
            "ID  STATE      SIZE  COMMITTED   PAGE  EPOCH  SPAN    ",
            "COPIES                           OWNER",
        ],
        [
            " 7  degraded  1 GiB    1.5 GiB  4 KiB      2  2/3 of 6",
            "daemon 1 good, daemon 2 syncing  session 3, process 4711, user 1000",
        ],
        [
            "12  ok        1 GiB    1.5 GiB  4 KiB      2  -       ",
            "daemon 3 good                    region v/r, user 0",
        ],
    ];
    let expected = expected.map(|halves| halves.join("  ") + "\n").concat();
    assert_eq!(vec![Block::from(row), Block::from(alone)].text(), expected);
    assert_eq!(Vec::<Daemon>::new().text().lines().count(), 1, "an empty table is its heading");
    assert_eq!(json_of(&Vec::<Daemon>::new()), json!([]));
}
