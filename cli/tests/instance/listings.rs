//! What the listings say of sessions, blocks and regions that are there.

use serde_json::{Value, json};

use super::client::Client;
use super::harness::{Home, dmce, wait_until};

#[test]
fn sessions_blocks_and_regions_are_listed_with_their_owners() {
    let home = Home::new("listings");
    home.up(&[]).done();
    for listing in ["blocks", "sessions", "regions"] {
        assert_eq!(home.json(listing), json!([]));
        assert_eq!(home.ask(&[listing]).done().stdout.lines().count(), 1);
    }
    let mut client = Client::open(&home.socket(), "listed");
    let block = client.malloc(1 << 20);
    let _region = client.create_region("r", 5000);

    let sessions = home.json("sessions");
    let session = &sessions[0];
    assert_eq!((&session["name"], &session["pointer_bits"]), (&json!("listed"), &json!(64)));
    assert_eq!((&session["pid"], &session["attached"]), (&json!(std::process::id()), &json!(true)));
    assert_eq!((&session["blocks"], &session["regions"]), (&json!(1), &json!(1)));

    let blocks = home.json("blocks");
    let rows = blocks.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!((&row["state"], &row["copies"][0]["state"]), (&json!("ok"), &json!("good")));
        let ours = row["id"] == block;
        assert_eq!(row["owner"]["session"] == session["id"], ours, "{row}");
        assert_eq!(row["owner"]["region"] == "r", !ours, "{row}");
        let committed = row["committed"].as_u64().unwrap();
        assert!((4096..=row["bytes"].as_u64().unwrap()).contains(&committed), "{row}");
    }

    let regions = home.json("regions");
    let region = &regions[0];
    assert_eq!((&region["volume"], &region["name"]), (&json!("v"), &json!("r")));
    assert_eq!((&region["region_size"], &region["base_pointer"]), (&json!(5000), &json!(4096)));
    assert_eq!((&region["mode"], &region["opens"]), (&json!(0o640), &json!(1)));
    let status = home.json("status");
    assert_eq!([&status["sessions"], &status["blocks"], &status["regions"]], [1, 2, 1]);

    let table = home.ask(&["blocks"]).done().stdout;
    assert!(table.contains(&format!("process {}", std::process::id())), "{table}");
    assert!(table.contains("region v/r"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table}");
    where_is(&home, &mut client, region["first"].as_u64().unwrap());
    home.down(&[]).done();
}

/// The samples of these are an hour apart.
#[test]
fn the_usage_of_daemons_is_told_from_the_first_moment() {
    let home = Home::new("first");
    let named = std::fs::read_to_string(home.config()).unwrap();
    std::fs::write(home.config(), format!("{named}\n[broker]\nusage_ms = 3600000\n")).unwrap();
    home.up(&[]).done();
    let mut client = Client::open(&home.socket(), "busy");
    client.malloc(1 << 20);
    let usage = home.json("usage");
    let samples: Vec<_> = usage.as_array().unwrap().iter().map(|of| &of["samples"]).collect();
    assert!(samples.iter().all(|of| of.as_array().unwrap().len() == 1), "{usage}");
    let held: u64 = samples.iter().filter_map(|of| of[0]["committed"].as_u64()).sum();
    assert_eq!((held, &samples[0][0]["number"]), (1 << 20, &json!(0)));
    assert_eq!(home.ask(&["usage"]).done().stdout.lines().count(), 3);
    home.down(&[]).done();
}

/// [0068]
#[test]
fn the_usage_of_daemons_is_kept_for_a_while() {
    let home = Home::new("usage");
    let named = std::fs::read_to_string(home.config()).unwrap();
    let text = format!("{named}\n[broker]\nusage_ms = 100\nusage_samples = 30\n");
    std::fs::write(home.config(), text).unwrap();
    home.up(&[]).done();
    let mut client = Client::open(&home.socket(), "busy");
    client.malloc(1 << 20);
    client.create_region("r", 8192);
    let number = |value: &Value| value.as_u64().unwrap();
    let sum = |usage: &Value, key: &str| -> u64 {
        let samples = usage.as_array().unwrap().iter().filter_map(|of| of["samples"].as_array());
        samples.flatten().map(|sample| number(&sample[key])).sum()
    };
    wait_until("the samples tell of it", || sum(&home.json("usage"), "creates") == 3);
    wait_until("the oldest samples are gone", || {
        let usage = home.json("usage");
        let first = &usage[0]["samples"][0];
        first["number"].as_u64().is_some_and(|first| first > 1)
    });
    let usage = home.json("usage");
    assert_eq!((&usage[0]["daemon"], &usage[1]["daemon"]), (&json!(1), &json!(2)));
    for of in usage.as_array().unwrap() {
        let samples = of["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 30);
        let numbers: Vec<u64> = samples.iter().map(|sample| number(&sample["number"])).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }
    let last = |of: &Value, key: &str| number(&of["samples"][29][key]);
    let held = usage.as_array().unwrap().iter().map(|of| last(of, "committed")).sum::<u64>();
    // A region has two copies.
    assert_eq!(held, (1 << 20) + 2 * 8192);
    assert_eq!(home.ask(&["usage"]).done().stdout.lines().count(), 3);
    home.down(&[]).done();
}

fn where_is(home: &Home, client: &mut Client, first: u64) {
    client.map(first, 4096, 0x7f12_3456_7000);
    let address = first + 17;
    let asked = |text: String| home.ask(&["map", &text, "--json"]).done().json();
    let found: Value = asked(format!("{address:#x}"));
    assert_eq!(found, asked(address.to_string()));
    assert_eq!((&found["server"], &found["cell"]), (&json!(0), &json!(17)));
    assert_eq!(found["block"], first >> 30);
    assert_eq!(
        found["owner"],
        json!({ "region": "r", "volume": "v", "uid": found["owner"]["uid"] })
    );
    let mapping = &found["mappings"][0];
    assert_eq!(mapping["pid"], std::process::id());
    assert_eq!(mapping["os_address"], 0x7f12_3456_7011_u64);
    let range = json!({ "address": first, "os_address": 0x7f12_3456_7000_u64, "bytes": 4096 });
    assert_eq!(mapping["range"], range);
    let text = home.ask(&["map", &address.to_string()]).done().stdout;
    assert!(text.contains("0x7f1234567011"), "{text}");
    let session = mapping["session"].as_u64().unwrap();
    let of = |session: u64| {
        home.ask(&["map", "--session", &session.to_string(), "--json"]).done().json()
    };
    let [all] =
        home.ask(&["map", "--json"]).done().json().as_array().unwrap().clone().try_into().unwrap();
    assert_eq!(all["address"], first);
    assert_eq!((&all["os_address"], &all["bytes"]), (&range["os_address"], &range["bytes"]));
    assert_eq!((&all["pid"], &all["name"]), (&mapping["pid"], &mapping["name"]));
    assert_eq!(of(session), json!([all]));
    assert_eq!(of(session + 1), json!([]));
    let text = home.ask(&["map"]).done().stdout;
    assert!(text.contains("0x7f1234567000  4 KiB"), "{text}");
}

#[test]
fn the_doctor_finds_the_instance_and_what_was_left() {
    let home = Home::new("doctor");
    home.up(&[]).done();
    let dir = home.dir.to_str().unwrap();
    let look = || dmce(&["doctor", "--dir", dir, "--json"]);
    let broker_of = |findings: &Value| {
        let all = findings.as_array().unwrap();
        all.iter().find(|finding| finding["check"] == "broker").unwrap().clone()
    };
    let healthy = look().json();
    assert_eq!(broker_of(&healthy)["state"], "ok");
    for finding in healthy.as_array().unwrap() {
        assert_eq!(finding["fix"].is_null(), finding["state"] == "ok", "{finding}");
    }
    // The variable does not stand in the way of a directory that is named.
    let table = home.ask(&["doctor", "--dir", dir]);
    assert!(table.stdout.lines().any(|line| line.starts_with("ok     broker")), "{table:?}");

    home.down(&["--keep"]).done();
    let dead = look();
    assert_eq!(dead.code, Some(4), "a broker was expected");
    assert_eq!(broker_of(&dead.json())["state"], "fail");
    let left = format!("dmce down --dir {dir}");
    assert!(dead.stdout.contains(&left), "{dead:?}");
    home.down(&[]).done();
    assert!(!look().stdout.contains(&left));
}
