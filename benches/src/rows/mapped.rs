//! Loads and stores through the pointer of `dmce_map`, against anonymous memory.
//!
//! The other side is what malloc gives: anonymous memory with pages of 4 KiB. The daemons make
//! their memory of huge pages in the background; this waits for them, and says how many there are.

use crate::calls::Calls;
use crate::measure::{alternate, time};
use crate::memory::{Anonymous, Area};
use crate::session::Session;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::{Result, huge};

/// Smaller than the first cache, together with all that the loop needs.
const HOT_BYTES: usize = 16 << 10;

/// A way of access.
struct Access {
    quantity: &'static str,
    order: &'static str,
    unit: Unit,
    goal: Goal,
    /// Operations of a round: bytes for a rate.
    count: u64,
    run: fn(Area, u64, u64),
}

/// Measures the group.
///
/// # Errors
///
/// Those of the session and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let effort = setting.effort;
    let bytes: usize = effort.pick(2 << 30, 256 << 20);
    let builder = dmce_tests::Instance::builder().daemons(3).capacity("3GiB");
    let instance = setting.start(builder)?;
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    let ours = session.map(session.malloc(bytes as u64)?, bytes)?;
    let anonymous = Anonymous::new(bytes)?;
    let theirs = anonymous.area();
    ours.touch();
    let percent = huge::wait(ours)?;
    ours.lay_chain();
    theirs.lay_chain();

    let mut rows = Vec::new();
    let accesses = [dependent(effort.pick(1 << 20, 1 << 16))].into_iter();
    let accesses = accesses.chain(random(effort.pick(1 << 22, 1 << 18)));
    for access in accesses.chain(sequential(bytes as u64)) {
        let state = format!("{}, {}, huge pages {percent} %", access.order, size(bytes as u64));
        rows.push(row(setting, &access, state, [ours, theirs])?);
    }
    let access = hot();
    let state = format!("{}, {}", access.order, size(HOT_BYTES as u64));
    rows.push(row(setting, &access, state, [ours, theirs].map(first_part))?);
    session.unmap(ours)?;
    Ok(rows)
}

fn row(setting: &Setting, access: &Access, state: String, areas: [Area; 2]) -> Result<Row> {
    let side = |area: Area| {
        move |round: u64| {
            time(access.count, || {
                (access.run)(area, round, access.count);
                Ok(())
            })
        }
    };
    let rounds = setting.effort.pick(15, 3);
    let pair = alternate(rounds, side(areas[0]), side(areas[1]))?;
    let subject = Subject {
        quantity: access.quantity.to_owned(),
        state,
        against: "anonymous memory, 4 KiB pages",
        unit: access.unit,
        goal: access.goal,
    };
    Ok(super::told(Row::new(subject, &pair)))
}

fn dependent(count: u64) -> Access {
    Access {
        quantity: "mapped: dependent loads",
        order: "random lines",
        unit: Unit::Time,
        goal: Goal::AtLeast(1.2),
        count,
        run: Area::follow_chain,
    }
}

fn random(count: u64) -> [Access; 2] {
    let access = |quantity, run| Access {
        quantity,
        order: "random lines",
        unit: Unit::Time,
        goal: Goal::AtLeast(1.0),
        count,
        run,
    };
    [
        access("mapped: independent loads", Area::random_loads as fn(Area, u64, u64)),
        access("mapped: stores", Area::random_stores),
    ]
}

fn sequential(bytes: u64) -> [Access; 2] {
    let access = |quantity, run| Access {
        quantity,
        order: "sequential",
        unit: Unit::Rate(1),
        goal: Goal::AtLeast(1.0),
        count: bytes,
        run,
    };
    let loads: fn(Area, u64, u64) = |area, _, _| area.scan_loads();
    [access("mapped: loads", loads), access("mapped: stores", |area, _, _| area.scan_stores())]
}

fn hot() -> Access {
    Access {
        quantity: "mapped: independent loads",
        order: "hot, random lines",
        unit: Unit::Time,
        goal: Goal::AtLeast(1.0),
        count: 1 << 25,
        run: Area::random_loads,
    }
}

fn first_part(area: Area) -> Area {
    // SAFETY: a part of a range that is used by this thread alone.
    unsafe { Area::new(area.start(), HOT_BYTES) }
}
