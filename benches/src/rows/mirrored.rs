//! A value that two holders have before the call returns: `dmce_write` with two copies, against
//! Redis with a replica that is waited for, and against libpmemobj with a replica.
//!
//! Redis is fastest where all of it runs on one processor: what a wake-up of another one costs
//! comes on top otherwise. The goals are for the former, and the latter is shown. libpmemobj's
//! replica is written by the same process, as DMCE's second copy is, and its pool is for one
//! process alone.

use std::path::Path;

use dmce_tests::Instance;

use crate::affinity::Cpus;
use crate::calls::Calls;
use crate::measure::{alternate, time};
use crate::places::Places;
use crate::redis;
use crate::session::{Session, Wanted};
use crate::setting::{Setting, servers};
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::worker::Worker;
use crate::{Error, Result};

const COPIES: u32 = 2;

/// Values of one size.
#[derive(Clone, Copy)]
struct Values {
    bytes: usize,
    /// How many there are: a power of two.
    count: u64,
    /// How often one is stored in Redis in a round.
    stored: u64,
    /// For each of these, how often in DMCE, so that both take a time that can be measured.
    factor: u64,
    /// How often faster than Redis the design wants it.
    goal: f64,
}

const SIZES: [Values; 3] = [
    Values { bytes: 64, count: 1 << 17, stored: 10_000, factor: 100, goal: 100.0 },
    Values { bytes: 4 << 10, count: 1 << 14, stored: 5_000, factor: 25, goal: 25.0 },
    Values { bytes: 1 << 20, count: 1 << 6, stored: 64, factor: 16, goal: 15.0 },
];

impl Values {
    fn all_bytes(self) -> u64 {
        self.count * self.bytes as u64
    }

    fn text(self) -> String {
        format!("{}, random in {}", size(self.bytes as u64), size(self.all_bytes()))
    }
}

/// Values in DMCE.
struct Ours<'a> {
    session: &'a Session,
    addr: u64,
    values: Values,
    value: &'a [u8],
}

impl Ours<'_> {
    fn store(&self, seed: u64, count: u64) -> Result<()> {
        let (bytes, mut places) = (self.values.bytes, Places::below(self.values.count, seed));
        (0..count).try_for_each(|_| {
            let addr = self.addr + places.next() * bytes as u64;
            // SAFETY: the value is as long as is said.
            unsafe { self.session.write(addr, self.value.as_ptr(), bytes) }
        })
    }
}

/// Measures the group.
///
/// # Errors
///
/// Those of the session, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let instance = setting.start(Instance::builder().daemons(COPIES).capacity("1GiB"))?;
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    let redis = redis::Pair::start(instance.dir())?;
    if redis.is_none() {
        eprintln!("left out: redis-server is not installed");
    }
    let mut pmemobj = pmemobj(setting, &instance)?;
    let mut rows = Vec::new();
    for values in SIZES {
        let addr =
            session.malloc_as(values.all_bytes(), Wanted { copies: COPIES, page_size: 0 })?;
        let value = vec![b'v'; values.bytes];
        let ours = Ours { session: &session, addr, values, value: &value };
        // Every place once, so that its memory is there.
        ours.store(0, values.count * 16)?;
        if let Some(redis) = &redis {
            rows.extend(beside_redis(setting, &instance, &ours, redis)?);
        }
        if let Some(pmemobj) = &mut pmemobj {
            rows.push(beside_pmemobj(setting, &ours, pmemobj)?);
        }
        session.free(addr)?;
    }
    Ok(rows)
}

/// The rows of one size, on one processor and, where there are two, on these.
fn beside_redis(
    setting: &Setting,
    instance: &Instance,
    ours: &Ours<'_>,
    redis: &redis::Pair,
) -> Result<Vec<Row>> {
    let put = |pid, cpus| setting.allowed.put(pid, cpus);
    let all = servers(instance).into_iter().chain([redis.primary.pid(), redis.replica.pid()]);
    all.chain([std::process::id()]).try_for_each(|pid| put(pid, Cpus::One))?;
    let keys: Vec<String> = (0..ours.values.count).map(|key| format!("key{key:06}")).collect();
    let goal = Goal::AtLeast(ours.values.goal);
    let mut client = redis.primary.connect()?;
    let mut rows = vec![redis_row(setting, ours, (&mut client, &keys), ("one processor", goal))?];
    if setting.allowed.count() > 1 {
        put(redis.replica.pid(), Cpus::Others)?;
        let state = ("its replica on another processor", Goal::None);
        rows.push(redis_row(setting, ours, (&mut client, &keys), state)?);
    } else {
        eprintln!("left out: there is one processor, so that the replica can have no other");
    }
    put(std::process::id(), Cpus::Any)?;
    servers(instance).into_iter().try_for_each(|pid| put(pid, Cpus::Any))?;
    Ok(rows)
}

fn redis_row(
    setting: &Setting,
    ours: &Ours<'_>,
    (client, keys): (&mut redis::Client, &[String]),
    (state, goal): (&str, Goal),
) -> Result<Row> {
    let values = ours.values;
    let stored = setting.effort.pick(values.stored, values.stored / 16);
    let many = stored * values.factor;
    let pair = alternate(
        setting.effort.pick(11, 3),
        |round| time(many, || ours.store(round + 1, many)),
        |round| {
            let mut places = Places::below(values.count, round + 1);
            time(stored, || {
                (0..stored).try_for_each(|_| {
                    let key = usize::try_from(places.next()).ok().and_then(|key| keys.get(key));
                    client.store_mirrored(key.expect("a place is a key"), ours.value)
                })
            })
        },
    )?;
    let subject = Subject {
        quantity: "mirrored value: dmce_write".to_owned(),
        state: format!("{}, {state}", values.text()),
        against: "Redis, 1 replica, WAIT 1, Unix socket",
        unit: Unit::Time,
        goal,
    };
    Ok(super::told(Row::new(subject, &pair)))
}

/// The program with a pool of libpmemobj that has a replica. Its files have names for no longer
/// than it takes to map them; they are such that the janitor knows them.
fn pmemobj(setting: &Setting, instance: &Instance) -> Result<Option<Worker>> {
    let Some(program) = &setting.pmemobj else {
        eprintln!("left out: there is no dmce-bench-pmemobj");
        return Ok(None);
    };
    let parts = instance.object(&format!("dmce.{}.pmemobj", instance.name()));
    let set = instance.dir().join("pmemobj.set");
    let all = SIZES.iter().map(|values| values.all_bytes()).max().unwrap_or(0);
    // The shared memory file system keeps what it has for as long as the host runs, as memory that
    // persists does. Without this the library would ask for it by msync.
    let mut worker = Worker::start_with(program, &[("PMEM_IS_PMEM_FORCE", "1")])?;
    worker.ask(&format!("open {} {} {all}", text(&set)?, text(&parts)?))?;
    Ok(Some(worker))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::of(path.display().to_string(), std::io::Error::other("the path is not UTF-8"))
    })
}

fn beside_pmemobj(setting: &Setting, ours: &Ours<'_>, pmemobj: &mut Worker) -> Result<Row> {
    let values = ours.values;
    let many = setting.effort.pick(values.stored, values.stored / 16) * values.factor;
    let command = |round| format!("store {} {} {many} {round}", values.bytes, values.count);
    // Every place once, on that side too.
    pmemobj.ask(&format!("store {} {} {} 0", values.bytes, values.count, values.count * 16))?;
    let pair = alternate(
        setting.effort.pick(11, 3),
        |round| time(many, || ours.store(round + 1, many)),
        |round| pmemobj.seconds(&command(round + 1)),
    )?;
    let subject = Subject {
        quantity: "mirrored value: dmce_write".to_owned(),
        state: values.text(),
        against: "pmemobj_memcpy_persist, 1 replica",
        unit: Unit::Time,
        goal: Goal::None,
    };
    Ok(super::told(Row::new(subject, &pair)))
}
