//! A 32-bit process on more memory than it can address, against the same program with 64 bits and
//! against `pread64` on the objects.
//!
//! One region serves all: both processes have it open, and the 32-bit one reads its objects by name
//! too. So what is compared is the way to the memory and never the memory.

use std::path::Path;

use dmce_tests::Instance;

use crate::calls::Calls;
use crate::measure::{Pair, alternate};
use crate::session::{RegionName, Session};
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::worker::{CALL_BYTES, Worker};
use crate::{Result, huge};

const REGION: &str = "narrow";

/// Where random accesses go.
#[derive(Clone, Copy)]
struct Locality {
    /// Pieces of the working set; 0: it is all of the region.
    pieces: u64,
    piece_bytes: u64,
    goal: Goal,
    /// Accesses of a round.
    count: u64,
}

const LOCALITIES: [Locality; 4] = [
    Locality { pieces: 0, piece_bytes: 0, goal: Goal::AtLeast(0.95), count: 1 << 18 },
    Locality { pieces: 1, piece_bytes: 1 << 20, goal: Goal::AtLeast(10.0), count: 1 << 21 },
    Locality { pieces: 1, piece_bytes: 64 << 20, goal: Goal::AtLeast(10.0), count: 1 << 20 },
    Locality { pieces: 64, piece_bytes: 1 << 20, goal: Goal::None, count: 1 << 18 },
];

/// Measures the group; without a 32-bit worker it has no rows.
///
/// # Errors
///
/// Those of the workers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let Some(program) = setting.i386_worker.clone() else {
        eprintln!("left out: there is no dmce-bench-worker for 32 bits");
        return Ok(Vec::new());
    };
    let bytes: u64 = setting.effort.pick(8 << 30, 2 << 30);
    let instance = setting.start(Instance::builder().daemons(3).capacity("3GiB"))?;
    Session::open(Calls::linked(), &instance.socket(), 0)?
        .region_create(&RegionName::new(REGION)?, bytes)?;
    let mut wide = open(&setting.worker, &instance)?;
    let mut narrow = open(&program, &instance)?;
    // Both processes, and the memory, before anything is waited for or measured.
    wide.seconds(&format!("write {bytes}"))?;
    let percent = settle(&instance)?;

    let mut rows = Vec::new();
    for way in ["write", "read"] {
        let pair = sequential(setting, way, bytes, [&mut narrow, &mut wide])?;
        rows.push(sequential_row(way, bytes, percent, &pair));
    }
    for locality in LOCALITIES {
        for way in ["read", "write"] {
            let pair = random(setting, way, bytes, locality, &mut narrow)?;
            rows.push(random_row(way, bytes, locality, percent, &pair));
        }
    }
    Ok(rows)
}

fn open(program: &Path, instance: &Instance) -> Result<Worker> {
    let mut worker = Worker::open(program, &instance.socket())?;
    worker.ask(&format!("region {REGION}"))?;
    let paths = objects(instance).into_iter().map(|name| instance.object(&name));
    let paths: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    worker.ask(&format!("objects {}", paths.join(" ")))?;
    Ok(worker)
}

/// The data of the region's blocks, in their order.
fn objects(instance: &Instance) -> Vec<String> {
    let mut blocks: Vec<(u32, u32)> = instance
        .blocks()
        .iter()
        .filter_map(|row| Some((row.block, row.copies.first()?.daemon)))
        .collect();
    blocks.sort_unstable();
    let name = |(block, daemon)| format!("dmce.{}.{daemon}.data-{block:08x}", instance.name());
    blocks.into_iter().map(name).collect()
}

/// Waits for the huge pages of every block; how much of all has them.
fn settle(instance: &Instance) -> Result<u64> {
    let objects = objects(instance);
    let mut sum = 0;
    for name in &objects {
        sum += huge::wait_object(instance, name)?;
    }
    Ok(sum / objects.len().max(1) as u64)
}

fn sequential(
    setting: &Setting,
    way: &str,
    bytes: u64,
    [narrow, wide]: [&mut Worker; 2],
) -> Result<Pair> {
    let command = format!("{way} {bytes}");
    alternate(setting.effort.pick(5, 2), |_| narrow.seconds(&command), |_| wide.seconds(&command))
}

fn sequential_row(way: &str, bytes: u64, percent: u64, pair: &Pair) -> Row {
    let (all, call) = (size(bytes), size(CALL_BYTES as u64));
    let subject = Subject {
        quantity: format!("i386: dmce_{way}"),
        state: format!("sequential over {all}, {call} a call, huge pages {percent} %"),
        against: "the same, 64-bit process",
        unit: Unit::Rate(bytes),
        goal: Goal::AtLeast(0.85),
    };
    super::told(Row::new(subject, pair))
}

fn random(
    setting: &Setting,
    way: &str,
    bytes: u64,
    locality: Locality,
    worker: &mut Worker,
) -> Result<Pair> {
    let count = setting.effort.pick(locality.count, locality.count / 8);
    let (pieces, piece_bytes) = match locality.pieces {
        0 => (1, bytes),
        pieces => (pieces, locality.piece_bytes),
    };
    let worker = std::cell::RefCell::new(worker);
    let side = |way: String| {
        let worker = &worker;
        move |round: u64| {
            let command = format!("random {way} {count} {round} {bytes} {pieces} {piece_bytes}");
            worker.borrow_mut().seconds(&command)
        }
    };
    alternate(setting.effort.pick(7, 3), side(way.to_owned()), side(format!("p{way}")))
}

fn random_row(way: &str, bytes: u64, locality: Locality, percent: u64, pair: &Pair) -> Row {
    let all = size(bytes);
    let state = match locality.pieces {
        0 => format!("64 B, random over {all}"),
        1 => format!("64 B, random in {} of {all}", size(locality.piece_bytes)),
        pieces => {
            format!("64 B, random in {pieces} pieces of {} of {all}", size(locality.piece_bytes))
        }
    };
    let subject = Subject {
        quantity: format!("i386: dmce_{way}"),
        state: format!("{state}, huge pages {percent} %"),
        against: if way == "read" { "pread64 on the objects" } else { "pwrite64 on the objects" },
        unit: Unit::Time,
        goal: locality.goal,
    };
    super::told(Row::new(subject, pair))
}
