//! Clients that map nothing write to regions whose primary is on the daemon that dies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_tests::churn::pattern;
use libdmce::{Mirror, Options, Prot, Region, RegionOptions, Session};

use super::keeper::{OTHERS_BYTES, PLACE_BYTES, PLACES, VOLUME};
use crate::steps::persist;

/// Regions that are made at most until one has its primary there.
const REGIONS_MAX: u32 = 16;

/// Writes after the death.
const AFTER: u64 = 2 * PLACES;

/// Writes by message, while another session writes to the same pages, until the first daemon has
/// died and is there again. No write fails, and none is missing.
pub fn write(options: &Options, is_dead: &AtomicBool) {
    let asking = Options { message_path: true, ..options.clone() };
    let [session, mapped] = [&asking, options].map(|of| persist("open", || Session::open(of)));
    let region = region_on_first(&session);
    let (volume, name) = region;
    let open = |session: &Session| session.region_open(volume, &name, Prot::READ_WRITE);
    let [own, others] = [&session, &mapped].map(|session| open(session).expect("it is there"));
    let mut written = BTreeMap::new();
    let mut after = 0;
    for seed in 1.. {
        let place = seed % PLACES;
        let at = place * PLACE_BYTES;
        own.write(at, &bytes(seed), Mirror::Both).expect("a copy is there");
        written.insert(place, seed);
        let rest = [seed.to_le_bytes()[0]; 100];
        others.write(at + OTHERS_BYTES, &rest, Mirror::Both).expect("a copy is there");
        check(&own, (seed + 1) % PLACES, &written);
        after += u64::from(is_dead.load(Ordering::Relaxed));
        if after == AFTER {
            break;
        }
    }
    for place in 0..PLACES {
        check(&own, place, &written);
        check(&others, place, &written);
    }
    drop((own, others));
    for made in session.region_list(volume).expect("the broker serves") {
        if made.starts_with("relay-") {
            persist("delete", || session.region_delete(volume, &made));
        }
    }
    session.close().expect("it is open");
}

/// A region whose primary is on the first daemon.
fn region_on_first(session: &Session) -> (&'static str, String) {
    for number in 0..REGIONS_MAX {
        let name = format!("relay-{number}");
        let create = || {
            let options = RegionOptions { copies: 2, ..RegionOptions::default() };
            session.region_create(VOLUME, &name, PLACES * PLACE_BYTES, &options)
        };
        persist("create", create);
        let region = session.region_open(VOLUME, &name, Prot::READ).expect("it is there");
        if region.info().expect("it is open").primary_daemon == 1 {
            return (VOLUME, name);
        }
    }
    panic!("the first daemon is never chosen");
}

fn bytes(seed: u64) -> Vec<u8> {
    pattern(seed, OTHERS_BYTES)
}

fn check(region: &Region, place: u64, written: &BTreeMap<u64, u64>) {
    let Some(seed) = written.get(&place) else { return };
    let expected = bytes(*seed);
    let mut found = vec![0; expected.len()];
    region.read(place * PLACE_BYTES, &mut found, Mirror::Any).expect("a copy is there");
    assert!(found == expected, "place {place} is not what was written");
}
