//! Clients that map nothing, and memory with two copies: a daemon goes, with its memory or without,
//! or the broker, and nobody sees it.

use std::fs::{self, File};
use std::thread;

use dmce_abi::wire::admin::Health;
use dmce_sys::crash::{POINT_VARIABLE, Point};
use dmce_tests::checker::wait_sound;
use dmce_tests::churn::pattern;
use dmce_tests::client::{ROUTES, Signal, own_client, send, stop};
use dmce_tests::{Client, Instance, wait_for};
use libdmce::{Mirror, Options, Prot, Region, RegionOptions, Session};

const REGION_BYTES: u64 = 4 << 20;

/// A write by message, and how many pages it has.
const EARLIER_BYTES: u64 = 20 * 4096;
const EARLIER_PAGES: u64 = 20;
/// Another one to the same bytes.
const LATER_AT: u64 = 17;
const LATER_BYTES: u64 = 10 * 4096;
const LATER_PAGES: u64 = 11;

/// A daemon goes, and all that it holds.
fn lose(instance: &mut Instance, daemon: u32) {
    // It makes no header again over which it could be killed.
    stop(instance.daemon_pid(daemon).expect("it runs"));
    lose_memory(instance, daemon);
    instance.kill_daemon(daemon);
}

/// All that a daemon holds goes.
fn lose_memory(instance: &Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().into_iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(&name);
        // What is being written at the moment ends here.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).expect("it is our own");
        fs::remove_file(path).expect("it is our own");
    }
}

/// Over links and through the broker.
#[test]
fn who_maps_nothing_misses_no_daemon_and_no_broker() {
    for (copies, lost) in [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)] {
        let mut instance = Instance::start(copies);
        let options = RegionOptions { copies, ..RegionOptions::default() };
        instance.open().region_create("vol", "two", REGION_BYTES, &options).unwrap();
        let mut clients = ROUTES.map(|route| Client::open_with(&own_client(), &instance, &route));
        for client in &mut clients {
            client.ask("ropen vol two rw").unwrap();
        }
        let mut seed = 0;
        let mut all_go_on = |what: &str| {
            for writer in 0..clients.len() {
                seed += 1;
                for at in [0, 70_000 + 17] {
                    clients[writer].ask(format!("rfill {at} {seed} 70000")).expect(what);
                    for reader in &mut clients {
                        reader.ask(format!("rcheck {at} {seed} 70000")).expect(what);
                    }
                }
            }
        };
        all_go_on("all are there");
        // The daemon of the primary is away, or that of the other: its copy is there.
        instance.kill_daemon(lost);
        all_go_on("a daemon is away");
        instance.start_daemon(lost);
        all_go_on("it is back");
        instance.kill_broker();
        instance.start_broker();
        all_go_on("another broker serves");
        assert_eq!(wait_sound(&instance).compared, REGION_BYTES / 4096);
        lose(&mut instance, lost);
        all_go_on("a daemon is gone with its memory");
        assert_eq!(instance.status().state, Health::Degraded);
        instance.kill_broker();
        instance.start_broker();
        all_go_on("another broker serves what is left");
        assert_eq!(wait_sound(&instance).good, copies as usize - 1);
    }
}

/// A region of two copies, whose primary's daemon is to die at a point, at the time of it that is
/// given.
struct Doomed {
    daemon: u32,
    region: Region,
    // These end after it.
    _session: Session,
    instance: Instance,
}

impl Doomed {
    fn start(point: Point, time: u64) -> Self {
        let mut instance = Instance::start(2);
        let session = instance.open();
        let two = RegionOptions { copies: 2, ..RegionOptions::default() };
        session.region_create("vol", "two", REGION_BYTES, &two).expect("there is room");
        let region = session.region_open("vol", "two", Prot::READ_WRITE).expect("it is there");
        let daemon = region.info().expect("it is open").primary_daemon;
        instance.kill_daemon(daemon);
        let armed = format!("{}:{time}", point.name());
        instance.start_daemon_with(daemon, &[(POINT_VARIABLE, armed)]);
        instance.wait_serving();
        Self { daemon, region, _session: session, instance }
    }

    /// Begins what the daemon is to do, and waits until it is dead and its memory gone.
    fn die_over(&mut self, what: &str, begin: impl FnOnce()) {
        // Nobody repairs before the memory is gone as well.
        let broker = self.instance.broker_pid().expect("it runs");
        stop(broker);
        begin();
        let (dead, _) = wait_for(what, || self.instance.reap_one());
        assert_eq!(dead, self.daemon, "{what}");
        lose_memory(&self.instance, dead);
        send(broker, Signal::CONT);
        self.instance.start_all();
    }

    /// What is there from the beginning on, on the copy that is left.
    fn read(&self, what: &str, bytes: u64) -> Vec<u8> {
        let mut found = vec![0; usize::try_from(bytes).expect("a region is small")];
        self.region.read(0, &mut found, Mirror::Any).expect(what);
        assert_eq!(wait_sound(&self.instance).good, 1, "{what}");
        found
    }
}

/// Pages are as they were or as they were to be, and none is lost, although the copy that was
/// written first went with its writer.
#[test]
fn who_dies_with_its_memory_while_it_writes_for_others_takes_nothing_along() {
    for point in [Point::PhaseFirst, Point::FirstStored, Point::PhaseOthers, Point::OthersStored] {
        // In the first page of the second write, which is overwritten in part, in its second, and
        // in its last.
        for page in [1, 2, LATER_PAGES] {
            let what = format!("{} of page {page}", point.name());
            let mut doomed = Doomed::start(point, EARLIER_PAGES + page);
            let mut client = Client::open_with(&own_client(), &doomed.instance, &ROUTES[0]);
            client.ask("ropen vol two rw").unwrap();
            client.ask(format!("rfill 0 1 {EARLIER_BYTES}")).unwrap();
            let write = || client.tell(format!("rfill {LATER_AT} 2 {LATER_BYTES}"));
            doomed.die_over(&what, write);
            client.answer().expect(&what);
            let mut expected = pattern(1, EARLIER_BYTES);
            let (at, bytes) = (usize::try_from(LATER_AT).unwrap(), pattern(2, LATER_BYTES));
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            assert!(doomed.read(&what, EARLIER_BYTES) == expected, "{what}");
        }
    }
}

/// What was detached on the copy that is left is there, or what was to be brought to it.
#[test]
fn who_dies_with_its_memory_while_it_levels_halves_takes_nothing_along() {
    for point in [Point::PhaseOthers, Point::OthersStored, Point::PhaseSettled] {
        for page in [1, 7] {
            let what = format!("{} of page {page}", point.name());
            let mut doomed = Doomed::start(point, page);
            let [primary, mirror] = [3, 4].map(|seed| pattern(seed, EARLIER_BYTES));
            doomed.region.write(0, &primary, Mirror::Primary).unwrap();
            doomed.region.write(0, &mirror, Mirror::Mirror).unwrap();
            let options = Options { message_path: true, ..doomed.instance.options() };
            let session = Session::open(&options).unwrap();
            let levelled = session.region_open("vol", "two", Prot::READ_WRITE).unwrap();
            // It knows its daemon from now on.
            levelled.read(0, &mut [0], Mirror::Any).unwrap();
            thread::scope(|scope| {
                // There is nothing to bring any more when the first half is gone.
                doomed.die_over(&what, || drop(scope.spawn(|| levelled.resync(Mirror::Primary))));
            });
            let found = doomed.read(&what, EARLIER_BYTES);
            for at in (0..found.len()).step_by(4096) {
                let of = |bytes: &[u8]| found[at..at + 4096] == bytes[at..at + 4096];
                assert!(of(&primary) || of(&mirror), "{what}: {at} is neither");
            }
        }
    }
}
