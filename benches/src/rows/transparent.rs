//! Loads and stores through the pointer of `dmce_vmalloc`, against anonymous memory with pages of
//! the same size; and what it takes to translate a pointer or an address.

use std::hint::black_box;

use crate::calls::Calls;
use crate::measure::{alternate, time};
use crate::memory::{Anonymous, Area, LINE_BYTES, OwnObject};
use crate::places::Places;
use crate::session::Session;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::{Result, huge};

/// As good as memory that is the process's own.
const GOAL: Goal = Goal::AtLeast(0.98);

/// Measures the group, with pages of either size.
///
/// # Errors
///
/// Those of the session and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for has_huge in [false, true] {
        let config = format!("daemon.huge_pages = {has_huge}\n");
        let builder = dmce_tests::Instance::builder().daemons(3).capacity("3GiB").config(&config);
        let instance = setting.start(builder)?;
        let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
        let bytes: usize = setting.effort.pick(2 << 30, 256 << 20);
        let ours = session.vmalloc(bytes)?;
        let anonymous = if has_huge { Anonymous::huge(bytes)? } else { Anonymous::new(bytes)? };
        let areas = [ours, anonymous.area()];
        ours.touch();
        let percents = [percent(ours, has_huge)?, percent(areas[1], has_huge)?];
        let against = "anonymous memory, the same page size";
        rows.extend(access(setting, areas, percents, against)?);
        drop(anonymous);
        if has_huge {
            rows.extend(translations(setting, &session, ours)?);
        } else {
            // What of that is the kernel's: small pages of an object and anonymous ones differ.
            let own = OwnObject::new(bytes)?;
            let percents = [percents[0], percent(own.area(), false)?];
            rows.extend(access(setting, [ours, own.area()], percents, "an own shared object")?);
        }
        session.vfree(ours)?;
        session.close()?;
    }
    Ok(rows)
}

/// How much of an area has huge pages; all of it, where they are to be.
fn percent(area: Area, is_huge: bool) -> Result<u64> {
    if is_huge { huge::wait(area) } else { huge::percent(area) }
}

fn access(
    setting: &Setting,
    areas: [Area; 2],
    percents: [u64; 2],
    against: &'static str,
) -> Result<Vec<Row>> {
    type Access = fn(Area, u64, u64);
    let effort = setting.effort;
    let triad: Access = |area, _, _| area.triad();
    // A word is loaded from two parts and stored to a third.
    let moved = areas[0].bytes() as u64 / 4 * 3;
    let all: [(&str, &str, Unit, u64, Access); 3] = [
        ("triad", "sequential", Unit::Rate(1), moved, triad),
        (
            "dependent loads, 8 B",
            "random lines",
            Unit::Time,
            effort.pick(1 << 20, 1 << 16),
            Area::follow_chain,
        ),
        (
            "independent loads, 8 B",
            "random lines",
            Unit::Time,
            effort.pick(1 << 22, 1 << 18),
            Area::random_loads,
        ),
    ];
    let mut rows = Vec::new();
    for (name, order, unit, count, run) in all {
        areas.into_iter().for_each(Area::lay_chain);
        let side = |area: Area| {
            move |round: u64| {
                time(count, || {
                    run(area, round, count);
                    Ok(())
                })
            }
        };
        let pair = alternate(effort.pick(15, 3), side(areas[0]), side(areas[1]))?;
        let [own, others] = percents;
        let pages = format!("huge pages {own} % and {others} %");
        let subject = Subject {
            quantity: format!("transparent: {name}"),
            state: format!("{order}, {}, {pages}", size(areas[0].bytes() as u64)),
            against,
            unit,
            goal: GOAL,
        };
        rows.push(super::told(Row::new(subject, &pair)));
    }
    Ok(rows)
}

fn translations(setting: &Setting, session: &Session, area: Area) -> Result<Vec<Row>> {
    let count: u64 = setting.effort.pick(1 << 22, 1 << 18);
    let lines = (area.bytes() / LINE_BYTES) as u64;
    let first = session.addr_of(area.start())?;
    // The places of both sides are found in the same way, which is part of what is shown.
    let each = |round, mut act: Box<dyn FnMut(u64) -> Result<()> + '_>| {
        let mut places = Places::below(lines, round);
        time(count, || (0..count).try_for_each(|_| act(places.next() * LINE_BYTES as u64)))
    };
    let read = |round| {
        let mut word = [0_u8; 8];
        each(
            round,
            Box::new(|offset| {
                // SAFETY: the buffer has as many bytes.
                unsafe { session.read(first + offset, word.as_mut_ptr(), word.len()) }
            }),
        )
    };
    let addr_of = |round| {
        each(
            round,
            Box::new(|offset| {
                let pointer = area.start().wrapping_add(usize::try_from(offset).unwrap_or(0));
                black_box(session.addr_of(pointer)?);
                Ok(())
            }),
        )
    };
    let ptr_of = |round| {
        each(
            round,
            Box::new(|offset| {
                black_box(session.ptr_of(first + offset)?);
                Ok(())
            }),
        )
    };
    let rounds = setting.effort.pick(15, 3);
    let pairs = [
        ("transparent: dmce_addr_of", alternate(rounds, addr_of, read)?),
        ("transparent: dmce_ptr_of", alternate(rounds, ptr_of, read)?),
    ];
    let rows = pairs.map(|(name, pair)| {
        let subject = Subject {
            quantity: name.to_owned(),
            state: format!("random lines, {}", size(area.bytes() as u64)),
            against: "dmce_read 8 B, same places",
            unit: Unit::Time,
            goal: Goal::None,
        };
        super::told(Row::new(subject, &pair))
    });
    Ok(rows.into())
}
