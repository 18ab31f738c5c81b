//! A process dies at each point that has a name (`dmce_sys::crash`): everything that was
//! acknowledged is there, calls go on, and nothing is left behind.

mod keeper;
mod relays;
mod table;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::admin::Health;
use dmce_sys::crash::{POINT_VARIABLE, Point};
use dmce_tests::checker::wait_sound;
use dmce_tests::churn::pattern;
use dmce_tests::client::own_client;
use dmce_tests::{Client, Instance, wait_for, wait_until};

use libdmce::{AllocOptions, Options, Prot, RegionOptions, Session};

use super::steps::{persist, work};
use keeper::{Keeper, OTHERS_BYTES, PLACE_BYTES, PLACES, SHARED, VOLUME};
use table::{BROKER, CLIENT, DAEMON, LENDER, Row, UNTRIED, Work};

const SIGKILL: i32 = 9;

/// What is stored by a pointer.
const POINTED: u8 = 0x5a;

/// Works of sessions, and commands of a client, that pass no point: more are not tried.
const WORKS_MAX: u32 = 30;
const COMMANDS_MAX: u64 = 2_000;

/// So many bytes are saved before they are overwritten, also where there are other copies.
const SMALL_BYTES: u64 = 200;

/// What a client writes to one half at a time: no more than is saved.
const HALF_BYTES: u64 = 3_000;

/// Two of these are more than a block begins with.
const GROWTH_BYTES: u64 = 3 << 20;

/// Blocks that get a copy at one time, where any do.
const SYNC_BLOCKS: u32 = 2;

/// How often each of two sessions adds to a word that both have.
const ADDS: u32 = 3;

const CONFIG: &str = "broker.reattach_ms = 500\nbroker.sense_ms = 100\nbroker.suspect_ms = 400\n";

fn armed(row: &Row) -> [(&'static str, String); 1] {
    [(POINT_VARIABLE, format!("{}:{}", row.point.name(), row.time))]
}

fn start(pool_objects: u32, row: &Row) -> Instance {
    let copies = row.copies;
    let config =
        format!("{CONFIG}daemon.pool_objects = {pool_objects}\ninstance.copies = {copies}\n");
    // With one away there are daemons enough for all copies.
    let builder = Instance::builder().daemons(copies + 1).region_copies(copies).config(&config);
    builder.sync_blocks(if row.work == Work::Syncing { SYNC_BLOCKS } else { 0 }).start()
}

/// Everything is as if nobody had died.
fn check_all(instance: &Instance, row: &Row, keeper: Keeper) {
    keeper.check();
    let state = match row.work {
        Work::LostCopies | Work::LostPrimary | Work::LastCopy | Work::Deletions => Health::Degraded,
        _ => Health::Ok,
    };
    wait_until("all is as it can be", || instance.status().state == state);
    assert!(wait_sound(instance).good > 0);
    keeper.end();
    instance.wait_empty();
    assert_eq!(wait_sound(instance).blocks, 0);
}

/// Says to stop when it goes, also after a failure.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client works until it dies. What it has written is there, but for the last.
fn client_dies(row: &Row) {
    let instance = start(1, row);
    let keeper = Keeper::start(&instance);
    if row.work == Work::LastCopy {
        lose(&instance, keeper.mirror());
        wait_until("others go on alone", || instance.status().state == Health::Degraded);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| keeper.rival(&stop));
        let _stop = Stop(&stop);
        let written = run_to_death(&instance, row);
        written.check(&keeper, row);
        if row.work == Work::OneHalf {
            let untouched = |place| keeper.mirrored(place).iter().all(|byte| *byte == 0);
            assert!((0..PLACES).all(untouched), "{row:?}: the other half was written");
        }
        // What the dead was at is free again.
        for place in 0..PLACES {
            keeper.write_over(place);
        }
    });
    check_all(&instance, row, keeper);
}

/// Has a client work until it dies where a row says; what it was told that it had written.
fn run_to_death(instance: &Instance, row: &Row) -> Written {
    let [(name, value)] = armed(row);
    let mut client = Client::open_with(&own_client(), instance, &[(name, &value)]);
    client.ask(format!("ropen {VOLUME} {SHARED} rw")).expect("it is there");
    let written = match row.work {
        Work::Pointers => take_pointers(&mut client),
        Work::SmallWrites => write_records(&mut client, ("rfill", SMALL_BYTES)),
        Work::OneHalf => write_records(&mut client, ("rfill-primary", HALF_BYTES)),
        _ => write_records(&mut client, ("rfill", OTHERS_BYTES)),
    };
    // Nobody else kills it.
    assert_eq!(client.end().signal(), Some(SIGKILL), "{row:?}");
    written
}

/// What a client has written, by place: from which seeds.
#[derive(Default)]
struct Written {
    /// How much each time.
    bytes: u64,
    acknowledged: BTreeMap<u64, u64>,
    /// Where it was when it died, and what it was writing.
    last: Option<(u64, u64)>,
}

impl Written {
    fn check(&self, keeper: &Keeper, row: &Row) {
        let last = self.last.map(|(place, _)| place);
        for (&place, &seed) in self.acknowledged.iter().filter(|(place, _)| Some(**place) != last) {
            let there = keeper.others(place).starts_with(&pattern(seed, self.bytes));
            assert!(there, "{row:?}: place {place}");
        }
        let Some((place, seed)) = self.last.filter(|_| row.copies > 1) else { return };
        // With copies each page is as it was, or as it was to be.
        let new = pattern(seed, self.bytes);
        let old = self.acknowledged.get(&place);
        let old = old.map_or_else(|| vec![0; new.len()], |seed| pattern(*seed, self.bytes));
        let mut found = keeper.others(place);
        found.truncate(new.len());
        let mut at = 0;
        while at < found.len() {
            let page_end = ((place * PLACE_BYTES + at as u64) / PAGE_BYTES + 1) * PAGE_BYTES;
            let end = usize::try_from(page_end - place * PLACE_BYTES).expect("a place is small");
            let part = at..end.min(found.len());
            let here = &found[part.clone()];
            let is_whole = here == &old[part.clone()] || here == &new[part.clone()];
            assert!(is_whole, "{row:?}: place {place}, bytes {part:?} are half written");
            at = end;
        }
    }
}

/// Has a client write until it is dead.
fn write_records(client: &mut Client, (command, bytes): (&str, u64)) -> Written {
    let mut written = Written { bytes, ..Written::default() };
    for seed in 1..COMMANDS_MAX {
        let place = seed % PLACES;
        let at = place * PLACE_BYTES;
        let Some(answer) = client.try_ask(format!("{command} {at} {seed} {bytes}")) else {
            written.last = Some((place, seed));
            return written;
        };
        answer.expect("the region is there");
        written.acknowledged.insert(place, seed);
    }
    panic!("the client never came to its point");
}

/// Has a client take pointers and give them back until it is dead.
fn take_pointers(client: &mut Client) -> Written {
    let mut next = || {
        let addr = client.try_ask("raddr 0")?.expect("a region is open");
        let pointer = client.try_ask(format!("map {addr} {OTHERS_BYTES} rw"))?.expect("it is open");
        client.try_ask(format!("unmap {pointer}"))?.expect("it was mapped");
        Some(())
    };
    let passed = (0..COMMANDS_MAX).take_while(|_| next().is_some()).count();
    assert!((passed as u64) < COMMANDS_MAX, "the client never came to its point");
    Written::default()
}

/// Has a client store by a pointer, in its parts of the shared region, and die.
fn store_by_pointer(instance: &Instance) {
    let mut client = Client::open(instance);
    client.ask(format!("ropen {VOLUME} {SHARED} rw")).expect("it is there");
    let addr = client.ask("raddr 0").expect("it is open");
    let all = PLACES * PLACE_BYTES;
    let pointer = client.number(format!("map {addr} {all} rw")).expect("it is open");
    let bytes = vec![POINTED; usize::try_from(OTHERS_BYTES).expect("a place is small")];
    for place in 0..PLACES {
        client.store(pointer + place * PLACE_BYTES, &bytes);
    }
    client.kill();
}

/// Which server dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Broker,
    /// The first of two daemons.
    Daemon,
}

impl Server {
    fn kill(self, instance: &mut Instance) {
        match self {
            Self::Broker => instance.kill_broker(),
            Self::Daemon => instance.kill_daemon(1),
        }
    }

    fn start(self, instance: &mut Instance, row: &Row) {
        match self {
            Self::Broker => instance.start_broker_with(&armed(row)),
            Self::Daemon => instance.start_daemon_with(1, &armed(row)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Daemon => "daemon-1",
        }
    }
}

/// A server dies, and another one comes; nobody else notices.
fn server_dies(server: Server, pool_objects: u32, row: &Row) {
    let mut instance = start(pool_objects, row);
    let keeper = Keeper::start(&instance);
    let loses_copies = matches!(row.work, Work::LostCopies | Work::LostPrimary);
    if loses_copies {
        assert_eq!(keeper.add(1), 0);
    }
    let idle = of_daemon(&instance, 1, "data", || keeper.make_idle_regions());
    wait_until("what is lent is there", || pool_objects == 0 || has_pool(&instance));
    server.kill(&mut instance);
    if row.work == Work::StartWithExcess {
        for name in &idle {
            lengthen(&instance, name);
        }
    }
    server.start(&mut instance, row);
    if row.work == Work::Relays {
        instance.wait_serving();
    }
    take_away(&mut instance, &keeper, row);
    let dies_at = match row.work {
        Work::RollBack => Some(Point::FirstStored),
        Work::RollForward => Some(Point::PhaseOthers),
        _ => None,
    };
    let written = dies_at.map(|point| {
        instance.wait_serving();
        run_to_death(&instance, &Row { point, time: 30, work: Work::Writes, ..*row })
    });
    if row.work == Work::Carry {
        instance.wait_serving();
        store_by_pointer(&instance);
    }
    let (options, is_dead) = (instance.options(), AtomicBool::new(false));
    let death = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if row.work == Work::Deletions {
                keeper.delete_idle_regions();
            }
            if row.work == Work::Relays {
                relays::write(&options, &is_dead);
            }
            for _ in 0..WORKS_MAX {
                if is_dead.load(Ordering::Relaxed) {
                    return;
                }
                if row.work == Work::Sessions {
                    work(&options, 3);
                    work_more(&options);
                }
            }
        });
        let seen = wait_for(row.point.name(), || {
            let death = instance.reap_one();
            let works = matches!(row.work, Work::Sessions | Work::Deletions | Work::Relays);
            let gives_up = works && worker.is_finished();
            (death.is_some() || gives_up).then_some(death)
        });
        is_dead.store(true, Ordering::Relaxed);
        instance.start_all();
        worker.join().unwrap_or_else(|_| panic!("{row:?}: the work failed"));
        seen
    });
    let (_, status) = death.unwrap_or_else(|| panic!("{row:?}: nobody died of {WORKS_MAX} works"));
    assert_eq!(status.signal(), Some(SIGKILL), "{row:?}: {status}");
    let says = format!("dies at the point {}\n", row.point.name());
    assert!(instance.log(server.name()).contains(&says), "{row:?}: it died elsewhere");
    if let Some(written) = written {
        written.check(&keeper, row);
    }
    if loses_copies {
        add_by_turns(&instance, &keeper, 1);
    }
    if row.work == Work::Carry {
        let others = usize::try_from(OTHERS_BYTES).expect("a place is small");
        for place in 0..PLACES {
            assert!(keeper.others(place) == vec![POINTED; others], "{row:?}: place {place}");
        }
    }
    check_all(&instance, row, keeper);
}

/// What goes before a server dies over it.
fn take_away(instance: &mut Instance, keeper: &Keeper, row: &Row) {
    if row.work == Work::LostHeader {
        instance.wait_serving();
        // With two, one would be gone when the daemon dies.
        let all = of_daemon(instance, 1, "head", || {});
        fs::remove_file(instance.object(&all[0])).expect("it is there");
    }
    if row.work == Work::LostCopies {
        lose(instance, 2);
    }
    if row.work == Work::Deletions {
        instance.wait_serving();
        lose(instance, 2);
        wait_until("others go on alone", || instance.status().state == Health::Degraded);
        instance.kill_daemon(2);
    }
    if row.work == Work::Syncing {
        instance.wait_serving();
        lose(instance, 2);
    }
    if row.work == Work::LostPrimary {
        instance.wait_serving();
        let (daemon, block) = keeper.primary();
        let name = format!("dmce.{}.{daemon}.data-{block:08x}", instance.name());
        fs::remove_file(instance.object(&name)).expect("it is there");
    }
}

/// Adds to a word with a session that knows nothing from before, and with one that has the region
/// mapped since: neither misses what the other has added.
fn add_by_turns(instance: &Instance, keeper: &Keeper, mut sum: u64) {
    let session = persist("open", || Session::open(&instance.options()));
    let open = || session.region_open(VOLUME, SHARED, Prot::READ_WRITE);
    let region = persist("open a region", open);
    let addr = region.addr(0).expect("it is open");
    for _ in 0..ADDS {
        assert_eq!(session.add64(addr, 5).expect("a copy is there"), sum);
        assert_eq!(keeper.add(7), sum + 5);
        sum += 12;
    }
    region.close().expect("it is open");
    session.close().expect("it is open");
}

/// What [`work`] leaves out: blocks that grow, and a region that is deleted while it is open.
fn work_more(options: &Options) {
    let session = persist("open", || Session::open(options));
    for power in 0..4 {
        let pages = AllocOptions { page_size: 4096 << power, ..AllocOptions::default() };
        for byte in [1, 2] {
            let addr = session.malloc_with(GROWTH_BYTES, &pages).expect("there is room");
            session.fill(addr, byte, GROWTH_BYTES).expect("it is its own");
        }
    }
    session.region_create(VOLUME, "r", 4096, &RegionOptions::default()).expect("there is room");
    let region = session.region_open(VOLUME, "r", Prot::READ_WRITE).expect("it is there");
    session.region_delete(VOLUME, "r").expect("it is nobody else's");
    drop(region);
    session.close().expect("it is open");
}

/// The data objects, or headers, of a daemon; those of them that are new after `do_more`, if any.
fn of_daemon(instance: &Instance, daemon: u32, kind: &str, do_more: impl FnOnce()) -> Vec<String> {
    let prefix = format!("dmce.{}.{daemon}.{kind}-", instance.name());
    let is_one = |name: &String| name.starts_with(&prefix);
    let before: Vec<_> = instance.objects().into_iter().filter(is_one).collect();
    do_more();
    let is_new = |name: &String| is_one(name) && !before.contains(name);
    let made: Vec<_> = instance.objects().into_iter().filter(is_new).collect();
    let found = if made.is_empty() { before } else { made };
    assert!(!found.is_empty(), "everybody's blocks are on all daemons");
    found
}

/// Removes all data of a daemon.
fn lose(instance: &Instance, daemon: u32) {
    for name in of_daemon(instance, daemon, "data", || {}) {
        fs::remove_file(instance.object(&name)).expect("it is there");
    }
}

fn has_pool(instance: &Instance) -> bool {
    let prefix = format!("dmce.{}.1.pool-", instance.name());
    instance.objects().iter().any(|name| name.starts_with(&prefix))
}

/// Makes an object longer than it may be, as a client can.
fn lengthen(instance: &Instance, name: &str) {
    let object = File::options().write(true).open(instance.object(name)).expect("it is there");
    let bytes = object.metadata().expect("it is open").len();
    object.set_len(bytes + 100).expect("it is open");
}

#[test]
fn a_client_that_dies_at_any_point_has_what_was_acknowledged_and_blocks_nobody() {
    for row in CLIENT {
        client_dies(row);
    }
}

#[test]
fn a_daemon_that_dies_at_any_point_loses_nothing_and_leaves_nothing() {
    for row in DAEMON {
        server_dies(Server::Daemon, 0, row);
    }
    for row in LENDER {
        server_dies(Server::Daemon, 1, row);
    }
}

#[test]
fn a_broker_that_dies_at_any_point_loses_nothing_and_leaves_nothing() {
    for row in BROKER {
        server_dies(Server::Broker, 1, row);
    }
}

#[test]
fn every_point_has_a_row_or_a_reason_for_having_none() {
    let rows = [CLIENT, DAEMON, LENDER, BROKER].into_iter().flatten().map(|row| row.point);
    let mut all: Vec<Point> = rows.collect();
    all.sort_unstable();
    all.dedup();
    all.extend(UNTRIED.iter().map(|(point, _)| point));
    all.sort_unstable();
    assert_eq!(all, Point::ALL, "each point stands in one place");
}
