//! `dmce_read` and `dmce_write` with one copy, against `memcpy` at the same places of a shared
//! memory object that was mapped by hand.
//!
//! The object gets huge pages if DMCE's memory has them, so that the difference is the library's
//! alone. A `memcpy` of 64 bytes is compiled as C compilers do it, without a call.

use std::hint::black_box;

use crate::measure::{alternate, time};
use crate::memory::{Anonymous, Area, OwnObject, copy};
use crate::offsets::{Offsets, Order};
use crate::session::Session;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::{Result, huge};

const BUFFER_BYTES: usize = 64 << 20;
/// From this share of huge pages on, the other side gets them too.
const MOSTLY: u64 = 50;

/// The direction of a copy, as DMCE's caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

/// One row.
#[derive(Clone, Copy)]
struct Case {
    bytes: usize,
    order: Order,
    way: Way,
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
    own: Area,
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
    let instance = setting.start(dmce_tests::Instance::builder().daemons(3).capacity("3GiB"))?;
    let own = OwnObject::new(bytes)?;
    let buffer = Anonymous::new(BUFFER_BYTES)?;
    let mut rows = Vec::new();
    for (calls, library) in setting.libraries()? {
        let session = Session::open(calls, &instance.socket(), 0)?;
        let addr = session.malloc(bytes as u64)?;
        let huge = settle(&session, addr, &own)?;
        let sides = Sides {
            session: &session,
            addr,
            own: own.area(),
            buffer: buffer.area(),
            library,
            huge,
        };
        let cases = if rows.is_empty() { [small(), large()].concat() } else { small() };
        for case in cases {
            rows.push(row(setting, &sides, case)?);
        }
        session.free(addr)?;
    }
    Ok(rows)
}

/// Waits for the huge pages of DMCE's memory, and gives the other side as many.
fn settle(session: &Session, addr: u64, own: &OwnObject) -> Result<u64> {
    let area = session.map(addr, own.area().bytes())?;
    area.touch();
    let percent = huge::wait(area)?;
    session.unmap(area)?;
    if percent >= MOSTLY && huge::percent(own.area())? < percent {
        own.collapse()?;
        own.area().touch_huge();
    }
    Ok(percent)
}

fn small() -> Vec<Case> {
    let goal = Goal::Added(15e-9);
    let orders = [(Order::Hot, 1 << 22), (Order::Random, 1 << 20)];
    both_ways(orders.map(|(order, count)| Case {
        bytes: 64,
        order,
        way: Way::Read,
        count,
        unit: Unit::Time,
        goal,
    }))
}

fn large() -> Vec<Case> {
    let orders = [(Order::Hot, 1 << 19), (Order::Random, 1 << 16)];
    let pages = orders.map(|(order, count)| Case {
        bytes: 4 << 10,
        order,
        way: Way::Read,
        count,
        unit: Unit::Time,
        goal: Goal::None,
    });
    let case = |bytes, order, way, count, goal| Case {
        bytes,
        order,
        way,
        count,
        unit: Unit::Rate(bytes as u64),
        goal,
    };
    let mut cases = both_ways(pages);
    for way in [Way::Read, Way::Write] {
        cases.push(case(1 << 20, Order::Random, way, 512, Goal::AtLeast(0.97)));
    }
    for (bytes, count) in [(16 << 20, 64), (64 << 20, 16)] {
        let order = Order::Sequential;
        cases.push(case(bytes, order, Way::Read, count, Goal::AtLeast(0.97)));
        cases.push(case(bytes, order, Way::Write, count, Goal::MoreThan(1.2)));
    }
    cases
}

fn both_ways<const N: usize>(cases: [Case; N]) -> Vec<Case> {
    cases.into_iter().flat_map(|case| [case, Case { way: Way::Write, ..case }]).collect()
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
    let call = match case.way {
        Way::Read => "dmce_read",
        Way::Write => "dmce_write",
    };
    let range = case.order.text(sides.own.bytes());
    let subject = Subject {
        quantity: format!("{call} ({})", sides.library),
        state: format!("{}, {range}, huge pages {} %", size(case.bytes as u64), sides.huge),
        against: "memcpy, own mapping",
        unit: case.unit,
        goal: case.goal,
    };
    Ok(super::told(Row::new(subject, &pair)))
}

#[inline(never)]
fn through_dmce(sides: &Sides<'_>, case: Case, seed: u64, count: u64) -> Result<()> {
    let (session, buffer) = (sides.session, sides.buffer.start());
    let mut offsets = Offsets::new(case.order, case.bytes, sides.own.bytes(), seed);
    for _ in 0..count {
        let addr = sides.addr + offsets.next();
        match case.way {
            // SAFETY: the buffer is longer than the longest copy.
            Way::Read => unsafe { session.read(addr, buffer, case.bytes)? },
            // SAFETY: the same.
            Way::Write => unsafe { session.write(addr, buffer, case.bytes)? },
        }
    }
    Ok(())
}

#[inline(never)]
fn by_hand(sides: &Sides<'_>, case: Case, seed: u64, count: u64) {
    let buffer = sides.buffer.start();
    let mut offsets = Offsets::new(case.order, case.bytes, sides.own.bytes(), seed);
    for _ in 0..count {
        #[allow(clippy::cast_possible_truncation, reason = "an offset inside a mapping")]
        let place = sides.own.start().wrapping_add(offsets.next() as usize);
        let (from, to) = match case.way {
            Way::Read => (place, buffer),
            Way::Write => (buffer, place),
        };
        // SAFETY: both ranges are mapped, and the mapping and the buffer are two.
        unsafe { copy(black_box(from), black_box(to), case.bytes) };
    }
}
