//! Allocating and freeing, against the allocators that programs use, and Boost.Interprocess.
//!
//! Nobody writes to what is allocated, on either side. The others keep their lists in the memory
//! itself, though, and so touch it; DMCE does not. The first patterns reuse one object or a
//! thousand, so that all of it is in some cache.

use std::hint::black_box;
use std::path::Path;
use std::ptr;
use std::sync::mpsc;
use std::thread;

use crate::calls::Calls;
use crate::measure::{Pair, alternate, time};
use crate::peers::Peer;
use crate::session::Session;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::worker::Worker;
use crate::{Error, Result};

const SIZES: [usize; 6] = [64, 512, 4 << 10, 8 << 10, 16 << 10, 32 << 10];
/// Allocations of a batch.
const BATCH: usize = 1000;

/// Who allocates, and who frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// One thread, one at a time.
    Alone,
    /// The same in two threads at once, or, where memory is between processes, in two of these.
    Beside,
    /// One thread, a thousand and then their frees in the same order.
    Batches,
    /// One thread allocates a thousand after the other, and another one frees them.
    HandedOn,
}

impl Pattern {
    const fn text(self) -> &'static str {
        match self {
            Self::Alone => "one at a time",
            Self::Beside => "one at a time, 2 at once",
            Self::Batches => "1000 at a time",
            Self::HandedOn => "1000 at a time, freed by a second thread",
        }
    }
}

/// An allocator as the patterns see it.
trait Heap: Sync {
    fn malloc(&self, bytes: usize) -> Result<u64>;
    fn free(&self, addr: u64) -> Result<()>;
}

/// DMCE.
struct Ours<'a>(&'a Session);

impl Heap for Ours<'_> {
    #[inline]
    fn malloc(&self, bytes: usize) -> Result<u64> {
        self.0.malloc(bytes as u64)
    }

    #[inline]
    fn free(&self, addr: u64) -> Result<()> {
        self.0.free(addr)
    }
}

impl Heap for Peer {
    #[inline]
    fn malloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: what malloc is: it takes any size.
        let memory = unsafe { (self.malloc)(bytes) };
        if memory.is_null() { Err(refused()) } else { Ok(memory.expose_provenance() as u64) }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "it was a pointer")]
    fn free(&self, addr: u64) -> Result<()> {
        // SAFETY: what `malloc` above has returned, freed once.
        unsafe { (self.free)(ptr::with_exposed_provenance_mut(addr as usize)) };
        Ok(())
    }
}

#[cold]
fn refused() -> Error {
    Error::of("allocating", std::io::Error::from(std::io::ErrorKind::OutOfMemory))
}

/// Measures the group.
///
/// # Errors
///
/// Those of the session and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let instance = setting.start(dmce_tests::Instance::builder().daemons(3).capacity("3GiB"))?;
    let mut rows = Vec::new();
    for (calls, library) in setting.libraries()? {
        let session = Session::open(calls, &instance.socket(), 0)?;
        let ours = (Ours(&session), library);
        match Peer::mimalloc() {
            Some(mimalloc) => rows.extend(beside_mimalloc(setting, &ours, &mimalloc)?),
            None => eprintln!("left out: there is no libmimalloc.so.2"),
        }
        session.close()?;
    }
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    let ours = (Ours(&session), "static");
    for bytes in SIZES {
        rows.push(beside(setting, &ours, &Peer::libc(), (Pattern::Alone, bytes), Goal::None)?);
    }
    match setting.jemalloc.clone() {
        Some(program) => rows.extend(beside_program(setting, &ours, &JEMALLOC, &program)?),
        None => eprintln!("left out: there is no dmce-bench-jemalloc"),
    }
    match setting.interprocess.clone() {
        Some(program) => rows.extend(beside_program(setting, &ours, &INTERPROCESS, &program)?),
        None => eprintln!("left out: there is no dmce-bench-interprocess"),
    }
    Ok(rows)
}

fn beside_mimalloc(
    setting: &Setting,
    ours: &(Ours<'_>, &'static str),
    peer: &Peer,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pattern in [Pattern::Alone, Pattern::Beside, Pattern::Batches, Pattern::HandedOn] {
        for bytes in SIZES {
            rows.push(beside(setting, ours, peer, (pattern, bytes), Goal::AtLeast(0.5))?);
        }
    }
    Ok(rows)
}

fn beside(
    setting: &Setting,
    (ours, library): &(Ours<'_>, &'static str),
    peer: &Peer,
    (pattern, bytes): (Pattern, usize),
    goal: Goal,
) -> Result<Row> {
    let (rounds, count) = effort(setting);
    let pair = alternate(
        rounds,
        |_| run(ours, pattern, bytes, count),
        |_| run(peer, pattern, bytes, count),
    )?;
    Ok(row((library, peer.name), (pattern, bytes), goal, &pair))
}

/// A peer that is a program of its own.
struct Program {
    name: &'static str,
    patterns: &'static [Pattern],
    goal: Goal,
}

/// It has to be there when a program starts.
const JEMALLOC: Program = Program {
    name: "malloc, free (jemalloc)",
    patterns: &[Pattern::Alone, Pattern::Beside, Pattern::Batches],
    goal: Goal::None,
};

/// It is another language.
const INTERPROCESS: Program = Program {
    name: "Boost.Interprocess",
    patterns: &[Pattern::Alone, Pattern::Beside],
    goal: Goal::AtLeast(10.0),
};

fn beside_program(
    setting: &Setting,
    (ours, library): &(Ours<'_>, &'static str),
    peer: &Program,
    program: &Path,
) -> Result<Vec<Row>> {
    let mut worker = Worker::start(program)?;
    let (rounds, count) = effort(setting);
    let mut rows = Vec::new();
    for &pattern in peer.patterns {
        for bytes in SIZES {
            let command = match pattern {
                Pattern::Beside => format!("pairs {bytes} {count} 2"),
                Pattern::Batches => format!("batches {bytes} {count}"),
                _ => format!("pairs {bytes} {count} 1"),
            };
            let theirs = |_| worker.seconds(&command);
            let pair = alternate(rounds, |_| run(ours, pattern, bytes, count), theirs)?;
            rows.push(row((*library, peer.name), (pattern, bytes), peer.goal, &pair));
        }
    }
    Ok(rows)
}

fn effort(setting: &Setting) -> (u64, u64) {
    (setting.effort.pick(15, 3), setting.effort.pick(1 << 20, 1 << 15))
}

fn row(
    (library, against): (&str, &'static str),
    (pattern, bytes): (Pattern, usize),
    goal: Goal,
    pair: &Pair,
) -> Row {
    let subject = Subject {
        quantity: format!("dmce_malloc, dmce_free ({library})"),
        state: format!("{}, {}", size(bytes as u64), pattern.text()),
        against,
        unit: Unit::Time,
        goal,
    };
    super::told(Row::new(subject, pair))
}

/// The seconds of one allocation with its free, where each thread does `count`.
fn run(heap: &impl Heap, pattern: Pattern, bytes: usize, count: u64) -> Result<f64> {
    match pattern {
        Pattern::Alone => time(count, || pairs(heap, bytes, count)),
        Pattern::Beside => time(count, || {
            thread::scope(|scope| {
                let other = scope.spawn(|| pairs(heap, bytes, count));
                let own = pairs(heap, bytes, count);
                other.join().expect("it does not panic").and(own)
            })
        }),
        Pattern::Batches => {
            let batches = (count / BATCH as u64).max(1);
            time(batches * BATCH as u64, || in_batches(heap, bytes, batches))
        }
        Pattern::HandedOn => {
            let batches = (count / BATCH as u64).max(1);
            time(batches * BATCH as u64, || handed_on(heap, bytes, batches))
        }
    }
}

#[inline(never)]
fn pairs(heap: &impl Heap, bytes: usize, count: u64) -> Result<()> {
    for _ in 0..count {
        let addr = heap.malloc(black_box(bytes))?;
        heap.free(black_box(addr))?;
    }
    Ok(())
}

#[inline(never)]
fn in_batches(heap: &impl Heap, bytes: usize, batches: u64) -> Result<()> {
    let mut addrs = vec![0; BATCH];
    for _ in 0..batches {
        allocate_all(heap, bytes, &mut addrs)?;
        free_all(heap, &addrs)?;
    }
    Ok(())
}

/// Two batches go round, so that neither thread waits for each step of the other.
fn handed_on(heap: &impl Heap, bytes: usize, batches: u64) -> Result<()> {
    let (full, filled) = mpsc::channel::<Vec<u64>>();
    let (empty, emptied) = mpsc::channel::<Vec<u64>>();
    thread::scope(|scope| {
        let freeing = scope.spawn(move || {
            for addrs in filled {
                free_all(heap, &addrs)?;
                // Nobody wants the last ones.
                let _ = empty.send(addrs);
            }
            Ok(())
        });
        for batch in 0..batches {
            let fresh = (batch < 2).then(|| vec![0; BATCH]);
            let Some(mut addrs) = fresh.or_else(|| emptied.recv().ok()) else { break };
            allocate_all(heap, bytes, &mut addrs)?;
            if full.send(addrs).is_err() {
                break;
            }
        }
        drop(full);
        freeing.join().expect("it does not panic")
    })
}

#[inline]
fn allocate_all(heap: &impl Heap, bytes: usize, addrs: &mut [u64]) -> Result<()> {
    for addr in addrs {
        *addr = heap.malloc(black_box(bytes))?;
    }
    Ok(())
}

#[inline]
fn free_all(heap: &impl Heap, addrs: &[u64]) -> Result<()> {
    addrs.iter().try_for_each(|&addr| heap.free(addr))
}
