//! Memory with two copies, against the same done by hand: two `memcpy`s to two shared memory
//! objects that the measuring program mapped itself, and two atomic additions to them.
//!
//! By hand nobody sees to it that both hold the same, whoever dies; what that costs is the row. A
//! read goes to one of the two, on either side.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use dmce_tests::Instance;

use crate::measure::{alternate, time};
use crate::memory::{Anonymous, Area, OwnObject, copy};
use crate::offsets::{Offsets, Order};
use crate::session::{Session, Wanted};
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::{Error, Result, huge};

const COPIES: u32 = 2;
const BUFFER_BYTES: usize = 64 << 20;
const WORD_BYTES: usize = 8;
/// From this share of huge pages on, the other side gets them too.
const MOSTLY: u64 = 50;

/// What is done to the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Read,
    Write,
    /// Makes a word that is 0 a 0 again: it succeeds, and is written.
    Exchange,
    Add,
}

impl Deed {
    const fn call(self) -> &'static str {
        match self {
            Self::Read => "dmce_read",
            Self::Write => "dmce_write",
            Self::Exchange => "dmce_cas64",
            Self::Add => "dmce_add64",
        }
    }

    const fn by_hand(self) -> &'static str {
        match self {
            Self::Read => "memcpy, own mapping",
            Self::Write => "two memcpys, own mappings",
            Self::Exchange | Self::Add => "two atomic additions, own mappings",
        }
    }
}

/// One row.
#[derive(Clone, Copy)]
struct Case {
    deed: Deed,
    bytes: usize,
    order: Order,
    /// Operations of a round.
    count: u64,
    unit: Unit,
    goal: Goal,
}

/// The memory of both sides.
struct Sides<'a> {
    session: &'a Session,
    /// DMCE's address of the first byte.
    addr: u64,
    own: [Area; 2],
    buffer: Area,
    /// What the session's functions are called in the table.
    library: &'static str,
    huge: u64,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the session and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let bytes: usize = setting.effort.pick(1 << 30, 128 << 20);
    let instance = setting.start(Instance::builder().daemons(COPIES).capacity("3GiB"))?;
    let own = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
    let buffer = Anonymous::new(BUFFER_BYTES)?;
    let mut rows = Vec::new();
    for (calls, library) in setting.libraries()? {
        let session = Session::open(calls, &instance.socket(), 0)?;
        let addr = session.malloc_as(bytes as u64, Wanted { copies: COPIES, page_size: 0 })?;
        fill(&session, addr, bytes, buffer.area())?;
        let sides = Sides {
            session: &session,
            addr,
            huge: settle(&instance, &own)?,
            own: own.each_ref().map(OwnObject::area),
            buffer: buffer.area(),
            library,
        };
        let cases = if rows.is_empty() { [small(), words(), large()].concat() } else { small() };
        for case in cases {
            rows.push(row(setting, &sides, case)?);
        }
        session.free(addr)?;
    }
    Ok(rows)
}

/// Writes all of the memory, so that each page of both copies is there and holds 0.
fn fill(session: &Session, addr: u64, bytes: usize, buffer: Area) -> Result<()> {
    let parts = (0..bytes as u64).step_by(buffer.bytes());
    // SAFETY: the buffer is as long as is said.
    parts.into_iter().try_for_each(|offset| unsafe {
        session.write(addr + offset, buffer.start(), buffer.bytes())
    })
}

/// Waits for the huge pages of all copies, and gives the other side as many.
fn settle(instance: &Instance, own: &[OwnObject; 2]) -> Result<u64> {
    let (mut sum, mut objects) = (0, 0);
    for block in instance.blocks() {
        for copy in block.copies {
            let (daemon, block) = (copy.daemon, block.block);
            let name = format!("dmce.{}.{daemon}.data-{block:08x}", instance.name());
            sum += huge::wait_object(instance, &name)?;
            objects += 1;
        }
    }
    let percent = sum / objects.max(1);
    for own in own {
        if percent >= MOSTLY && huge::percent(own.area())? < percent {
            own.collapse()?;
            own.area().touch_huge();
        }
    }
    Ok(percent)
}

/// What is measured through both libraries: where the way of a call shows.
fn small() -> Vec<Case> {
    let case = |deed, bytes, order, count, goal| Case {
        deed,
        bytes,
        order,
        count,
        unit: Unit::Time,
        goal,
    };
    let write = |bytes, [hot, random]: [u64; 2]| {
        [
            case(Deed::Write, bytes, Order::Hot, hot, Goal::Added(15e-9)),
            case(Deed::Write, bytes, Order::Random, random, Goal::Added(90e-9)),
        ]
    };
    let read = |bytes, [hot, random]: [u64; 2]| {
        [
            case(Deed::Read, bytes, Order::Hot, hot, Goal::None),
            case(Deed::Read, bytes, Order::Random, random, Goal::None),
        ]
    };
    let (lines, pages) = ([1 << 21, 1 << 20], [1 << 19, 1 << 16]);
    [write(64, lines), write(4 << 10, pages), read(64, lines), read(4 << 10, pages)].concat()
}

fn words() -> Vec<Case> {
    let case = |deed, order, count| Case {
        deed,
        bytes: WORD_BYTES,
        order,
        count,
        unit: Unit::Time,
        goal: Goal::None,
    };
    // The exchanges first: they want every word to be 0 still.
    [Deed::Exchange, Deed::Add]
        .into_iter()
        .flat_map(|deed| [case(deed, Order::Hot, 1 << 20), case(deed, Order::Random, 1 << 20)])
        .collect()
}

fn large() -> Vec<Case> {
    let case = |bytes: usize, order, count, goal| Case {
        deed: Deed::Write,
        bytes,
        order,
        count,
        unit: Unit::Rate(bytes as u64),
        goal,
    };
    vec![
        case(1 << 20, Order::Random, 256, Goal::AtLeast(1.4)),
        case(64 << 20, Order::Sequential, 8, Goal::AtLeast(1.7)),
    ]
}

fn row(setting: &Setting, sides: &Sides<'_>, case: Case) -> Result<Row> {
    let rounds = setting.effort.pick(15, 3);
    let count = setting.effort.pick(case.count, (case.count / 8).max(2));
    let pair = alternate(
        rounds,
        |round| time(count, || through_dmce(sides, case, round, count)),
        |round| {
            time(count, || {
                by_hand(sides, case, round, count);
                Ok(())
            })
        },
    )?;
    let (bytes, range) = (size(case.bytes as u64), case.order.text(sides.own[0].bytes()));
    let subject = Subject {
        quantity: format!("two copies: {} ({})", case.deed.call(), sides.library),
        state: format!("{bytes}, {range}, huge pages {} %", sides.huge),
        against: case.deed.by_hand(),
        unit: case.unit,
        goal: case.goal,
    };
    Ok(super::told(Row::new(subject, &pair)))
}

#[inline(never)]
fn through_dmce(sides: &Sides<'_>, case: Case, seed: u64, count: u64) -> Result<()> {
    let (session, buffer) = (sides.session, sides.buffer.start());
    let mut offsets = Offsets::new(case.order, case.bytes, sides.own[0].bytes(), seed);
    for _ in 0..count {
        let addr = sides.addr + offsets.next();
        match case.deed {
            // SAFETY: the buffer is longer than the longest copy.
            Deed::Read => unsafe { session.read(addr, buffer, case.bytes)? },
            // SAFETY: the same.
            Deed::Write => unsafe { session.write(addr, buffer, case.bytes)? },
            Deed::Exchange => {
                let found = session.cas64(addr, 0, 0)?;
                if found != 0 {
                    return Err(Error::Content { addr, found, expected: 0 });
                }
            }
            Deed::Add => {
                session.add64(addr, 1)?;
            }
        }
    }
    Ok(())
}

#[inline(never)]
fn by_hand(sides: &Sides<'_>, case: Case, seed: u64, count: u64) {
    let buffer = sides.buffer.start();
    let mut offsets = Offsets::new(case.order, case.bytes, sides.own[0].bytes(), seed);
    for _ in 0..count {
        #[allow(clippy::cast_possible_truncation, reason = "an offset inside a mapping")]
        let offset = offsets.next() as usize;
        let [first, second] = sides.own.map(|own| black_box(own.start().wrapping_add(offset)));
        match case.deed {
            // SAFETY: both ranges are mapped, and the mapping and the buffer are two.
            Deed::Read => unsafe { copy(first, buffer, case.bytes) },
            Deed::Write => {
                // SAFETY: the same.
                unsafe { copy(buffer, first, case.bytes) };
                // SAFETY: the same.
                unsafe { copy(buffer, second, case.bytes) };
            }
            Deed::Exchange | Deed::Add => {
                for word in [first, second] {
                    // SAFETY: a mapped word, aligned as offsets are multiples of its size.
                    let word = unsafe { AtomicU64::from_ptr(word.cast()) };
                    word.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
}
