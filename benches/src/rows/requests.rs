//! Setup of a session, the grant of a block, and the opening of a region, against a round trip of
//! 64 bytes over a bare Unix socket; and setup against a bare connection that is made and closed.
//!
//! With all processes on one processor a round trip is two switches; on several it is two wake-ups
//! of another processor, which cost much more in a virtual machine. Both are measured.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use dmce_tests::Instance;

use crate::affinity::Cpus;
use crate::calls::Calls;
use crate::echo::{Echo, Switchboard};
use crate::measure::{Pair, alternate, time};
use crate::session::{RegionName, Session, Wanted};
use crate::setting::{Setting, servers};
use crate::table::{Goal, Row, Subject, Unit};
use crate::{Error, Result};

const DAEMONS: u32 = 3;
/// Enough for all grants of a round.
const POOL_OBJECTS: u32 = 8;
const POOL_OBJECT_BYTES: u64 = 2 << 20;
/// Each page size has blocks of its own, so the first allocation of each needs a grant.
const PAGE_SIZES: [u32; 10] = [
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
];
const REGION_BYTES: u64 = 2 << 20;
/// Sessions that a round opens: less than the broker has prepared.
const SETUPS: u32 = 10;
const PREPARED: usize = 16;

/// What is asked of the broker.
#[derive(Clone, Copy)]
enum Request {
    Grant,
    Open,
    OpenAndClose,
    OpenAndCloseWithoutThread,
    RegionOpen,
}

/// What it is compared with.
#[derive(Clone, Copy)]
enum Against {
    /// A round trip on a connection that stands.
    RoundTrip,
    /// A connection that is made, has one round trip, and is closed.
    Connection,
}

const REQUESTS: [Request; 5] = [
    Request::Grant,
    Request::Open,
    Request::OpenAndClose,
    Request::OpenAndCloseWithoutThread,
    Request::RegionOpen,
];

/// The processes of the group.
struct Place {
    instance: Instance,
    echo: Echo,
    switchboard: Switchboard,
    region: RegionName,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the session and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let config = format!("[daemon]\npool_objects = {POOL_OBJECTS}\n");
    let builder = Instance::builder().daemons(DAEMONS).capacity("1GiB").config(&config);
    let instance = setting.start(builder)?;
    let region = RegionName::new("opened")?;
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    session.region_create(&region, REGION_BYTES)?;
    session.close()?;
    let (echo, switchboard) = (Echo::start(&setting.worker)?, Switchboard::start(&setting.worker)?);
    let place = Place { instance, echo, switchboard, region };
    let mut rows = Vec::new();
    let count = setting.allowed.count();
    let mut layouts = vec![
        (Cpus::One, Cpus::One, "hot, all on one processor".to_owned()),
        (Cpus::Any, Cpus::Any, format!("hot, on any of {count} processors")),
    ];
    if count > 1 {
        let state = "hot, the client on one processor, the others elsewhere".to_owned();
        layouts.push((Cpus::One, Cpus::Others, state));
    }
    for (client, servers, state) in layouts {
        put(setting, &place, client, servers)?;
        for request in REQUESTS {
            rows.push(row(setting, &place, (request, Against::RoundTrip), &state)?);
        }
        let bare = (Request::OpenAndCloseWithoutThread, Against::Connection);
        rows.push(row(setting, &place, bare, &state)?);
    }
    setting.allowed.put(std::process::id(), Cpus::Any)?;
    Ok(rows)
}

/// Puts this process, the servers and the echo on their processors.
fn put(setting: &Setting, place: &Place, client: Cpus, servers: Cpus) -> Result<()> {
    setting.allowed.put(std::process::id(), client)?;
    let mut serving = self::servers(&place.instance);
    serving.extend([place.echo.pid(), place.switchboard.pid()]);
    serving.into_iter().try_for_each(|pid| setting.allowed.put(pid, servers))
}

fn row(
    setting: &Setting,
    place: &Place,
    (request, against): (Request, Against),
    state: &str,
) -> Result<Row> {
    let pair = pair(setting, place, request, against)?;
    let quantity = match request {
        Request::Grant => "block grant: first dmce_malloc of its kind",
        Request::Open => "setup: dmce_open",
        Request::OpenAndClose => "setup and end: dmce_open, dmce_close",
        Request::OpenAndCloseWithoutThread => "setup and end, DMCE_NO_THREAD",
        Request::RegionOpen => "region open: dmce_region_open",
    };
    let subject = Subject {
        quantity: quantity.to_owned(),
        state: state.to_owned(),
        against: match against {
            Against::RoundTrip => "Unix socket round trip",
            Against::Connection => "connect, a round trip, close",
        },
        unit: Unit::Time,
        goal: match against {
            Against::RoundTrip => Goal::RoundTrips(3.0),
            Against::Connection => Goal::None,
        },
    };
    Ok(super::told(Row::new(subject, &pair)))
}

fn pair(setting: &Setting, place: &Place, request: Request, against: Against) -> Result<Pair> {
    let trips = setting.effort.pick(500, 100);
    alternate(
        setting.effort.pick(15, 3),
        |_| {
            wait_for_supplies(&place.instance)?;
            match request {
                Request::Grant => grants(place),
                Request::Open => setups(place, 0, false),
                Request::OpenAndClose => setups(place, 0, true),
                Request::OpenAndCloseWithoutThread => {
                    setups(place, dmce::options::DMCE_NO_THREAD, true)
                }
                Request::RegionOpen => region_opens(place),
            }
        },
        |_| {
            wait_for_supplies(&place.instance)?;
            time(trips, || match against {
                Against::RoundTrip => place.echo.round_trips(trips),
                Against::Connection => place.switchboard.visits(trips),
            })
        },
    )
}

/// Adds up what is measured, without what lies between.
#[derive(Default)]
struct Stopwatch {
    total: Duration,
    laps: u32,
}

impl Stopwatch {
    fn lap<T>(&mut self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let value = body()?;
        self.total += begin.elapsed();
        self.laps += 1;
        Ok(value)
    }

    fn seconds(&self) -> f64 {
        self.total.as_secs_f64() / f64::from(self.laps.max(1))
    }
}

fn grants(place: &Place) -> Result<f64> {
    let session = open(place, 0)?;
    let mut watch = Stopwatch::default();
    for page_size in PAGE_SIZES {
        watch.lap(|| session.malloc_as(64, Wanted { page_size, copies: 0 }))?;
    }
    session.close()?;
    Ok(watch.seconds())
}

fn setups(place: &Place, flags: u32, with_end: bool) -> Result<f64> {
    let mut watch = Stopwatch::default();
    for _ in 0..SETUPS {
        if with_end {
            watch.lap(|| open(place, flags)?.close())?;
        } else {
            watch.lap(|| open(place, flags))?.close()?;
        }
    }
    Ok(watch.seconds())
}

fn region_opens(place: &Place) -> Result<f64> {
    const COUNT: u32 = 50;
    let session = open(place, 0)?;
    let mut watch = Stopwatch::default();
    for _ in 0..COUNT {
        watch.lap(|| session.region_open(&place.region))?.close()?;
    }
    session.close()?;
    Ok(watch.seconds())
}

fn open(place: &Place, flags: u32) -> Result<Session> {
    Session::open(Calls::linked(), &place.instance.socket(), flags)
}

/// Waits until the daemons have made up for what was taken from their pools, and the broker for the
/// sessions that it had prepared.
///
/// What they do meanwhile would be measured else: it takes the processor from both sides.
fn wait_for_supplies(instance: &Instance) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let begin = Instant::now();
    while ready_pool_objects(instance) < DAEMONS * POOL_OBJECTS || prepared(instance) < PREPARED {
        if begin.elapsed() > PATIENCE {
            let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(Error::System { what: "waiting for supplies".to_owned(), source });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Sessions whose objects are there. Those of sessions that ended go before others are prepared.
fn prepared(instance: &Instance) -> usize {
    let names = instance.objects();
    names.iter().filter(|name| name.contains(".record-")).count()
}

fn ready_pool_objects(instance: &Instance) -> u32 {
    let names = instance.objects();
    let pool = names.iter().filter(|name| name.contains(".pool-"));
    let is_ready = |name: &&String| {
        let object = fs::metadata(instance.object(name));
        object.is_ok_and(|object| object.len() == POOL_OBJECT_BYTES)
    };
    u32::try_from(pool.filter(is_ready).count()).unwrap_or(u32::MAX)
}
