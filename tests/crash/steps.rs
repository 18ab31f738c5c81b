//! A server dies after any of its steps: a change of an object or a name, or a frame that was sent.

use std::thread;

use dmce_sys::crash;
use dmce_tests::{Instance, wait_until};
use libdmce::{
    AllocOptions, DmceAddr, Error, Mirror, Options, Prot, RegionOptions, Session, Status,
};

/// More steps than any server takes here.
const STEPS_MAX: u64 = 2_000;

/// Works in a row that end without a death, after which there are no more steps.
const IN_PEACE: u32 = 3;

const LARGE_BYTES: u64 = 3 << 20;

/// A session that comes soon back from a setup that nobody heard of.
const CONFIG: &str = "broker.reattach_ms = 500\nbroker.sense_ms = 100\nbroker.suspect_ms = 400\n\
                      daemon.pool_objects = 1\n";

/// Does something until it is done: a broker that dies over it may have been asked in vain.
pub(super) fn persist<T>(what: &str, mut call: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) if error.status() == Status::Unavailable => thread::yield_now(),
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}

fn check(session: &Session, addr: DmceAddr, byte: u8, bytes: usize) {
    let same = session.compare(addr, &vec![byte; bytes]).expect("it is there");
    assert_eq!(same, std::cmp::Ordering::Equal);
}

/// All that a session asks of servers. No call fails but the opening, which nobody repeats.
/// It has `blocks` blocks beside its first, each for pages of another size.
pub(super) fn work(options: &Options, blocks: u32) {
    let session = persist("open", || Session::open(options));
    let small = session.malloc(100_000).expect("there is room");
    session.fill(small, 1, 100_000).expect("it is its own");
    let pages = |power: u32| AllocOptions { page_size: 4096 << power, ..AllocOptions::default() };
    let large = |power| session.malloc_with(LARGE_BYTES, &pages(power)).expect("there is room");
    let larges: Vec<_> = (1..=blocks).map(large).collect();
    for large in &larges {
        session.fill(*large, 2, LARGE_BYTES).expect("it is its own");
    }
    session.region_create("vol", "r", 100_000, &RegionOptions::default()).expect("there is room");
    let region = session.region_open("vol", "r", Prot::READ_WRITE).expect("it is there");
    region.write(0, &[3; 100], Mirror::Both).expect("it is open");
    check(&session, small, 1, 100_000);
    for large in larges {
        check(&session, large, 2, 100_000);
        session.free(large).expect("it is its own");
    }
    let mut read = [0; 100];
    region.read(0, &mut read, Mirror::Any).expect("it is open");
    assert_eq!(read, [3; 100]);
    region.close().expect("it is open");
    session.region_delete("vol", "r").expect("it is nobody else's");
    check(&session, small, 1, 100_000);
    session.close().expect("it is open");
}

/// Who dies.
#[derive(Clone, Copy)]
enum Victim {
    Broker,
    /// The first of two daemons.
    Daemon,
}

impl Victim {
    /// Has it killed and started, to die after step `last`. Whether it is dead already; if not, it
    /// serves.
    fn arm(self, instance: &mut Instance, last: u64) -> bool {
        let environment = [(crash::VARIABLE, last.to_string())];
        match self {
            Self::Broker => {
                instance.kill_broker();
                instance.start_broker_with(&environment);
                // To ask whether it serves would take steps.
                false
            }
            Self::Daemon => {
                instance.kill_daemon(1);
                instance.start_daemon_with(1, &environment);
                dies_before(instance, "it serves", Instance::is_serving)
            }
        }
    }

    /// Has it do what it does when nobody waits any more, and then killed: from now on steps are
    /// free. Whether it died of itself.
    fn settle(self, instance: &mut Instance) -> bool {
        let is_dead = match self {
            Self::Broker => instance.reap(),
            Self::Daemon => dies_before(instance, "nothing is left", Instance::is_empty),
        };
        match self {
            _ if is_dead => {}
            Self::Broker => instance.kill_broker(),
            Self::Daemon => instance.kill_daemon(1),
        }
        is_dead
    }
}

/// Waits for something, or until a server has died. Whether one has.
fn dies_before(instance: &mut Instance, what: &str, is_so: impl Fn(&Instance) -> bool) -> bool {
    let mut is_dead = false;
    wait_until(what, || {
        is_dead = instance.reap();
        is_dead || is_so(instance)
    });
    is_dead
}

/// Works while a server dies after step 1, 2, .., until it dies of none.
fn die_after_every_step(instance: &mut Instance, victim: Victim, blocks: u32) {
    let (mut deaths, mut in_peace) = (0, 0);
    for last in 1..STEPS_MAX {
        let mut is_dead = victim.arm(instance, last);
        let mut has_died = is_dead;
        let options = instance.options();
        thread::scope(|scope| {
            let worker = scope.spawn(|| work(&options, blocks));
            while !worker.is_finished() {
                if is_dead || instance.reap() {
                    (is_dead, has_died) = (false, true);
                    instance.start_all();
                }
                thread::yield_now();
            }
            worker.join().unwrap_or_else(|_| panic!("the work failed with a death after {last}"));
        });
        has_died = has_died || victim.settle(instance);
        instance.start_all();
        instance.wait_empty();
        assert_eq!(instance.regions(), [], "after step {last}");
        // What is done when there is time may come too late for one work.
        (deaths, in_peace) = if has_died { (deaths + 1, 0) } else { (deaths, in_peace + 1) };
        if in_peace == IN_PEACE {
            assert!(deaths > 12, "{deaths} steps are too few to be all");
            return;
        }
    }
    panic!("there is no end of steps");
}

#[test]
fn a_broker_that_dies_after_any_step_loses_nothing_and_leaves_nothing() {
    let mut instance = Instance::builder().daemons(2).config(CONFIG).start();
    die_after_every_step(&mut instance, Victim::Broker, 1);
}

#[test]
fn a_daemon_that_dies_after_any_step_loses_nothing_and_leaves_nothing() {
    // It makes every block itself, and has some of each session.
    let config = CONFIG.replace("pool_objects = 1", "pool_objects = 0");
    let mut instance = Instance::builder().daemons(2).config(&config).start();
    die_after_every_step(&mut instance, Victim::Daemon, 5);
}
