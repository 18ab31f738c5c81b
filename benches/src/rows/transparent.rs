//! Loads and stores through the pointer of `dmce_vmalloc`, against anonymous memory with pages of
//! the same size; and what it takes to translate a pointer or an address.

use std::hint::black_box;

use crate::calls::Calls;
use crate::measure::{Pair, alternate, time};
use crate::memory::{Anonymous, Area, LINE_BYTES};
use crate::places::Places;
use crate::session::Session;
use crate::setting::{Effort, Setting};
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
    let bytes: usize = setting.effort.pick(2 << 30, 256 << 20);
    for has_huge in [false, true] {
        let config = format!("daemon.huge_pages = {has_huge}\n");
        let builder = dmce_tests::Instance::builder().daemons(3).capacity("3GiB").config(&config);
        let instance = setting.start(builder)?;
        let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
        // Who has memory first gets other physical pages, which may be slower or faster.
        let mut orders = Vec::new();
        for ours_first in [true, false] {
            let sides = Sides::new(&session, (bytes, has_huge), ours_first)?;
            let pairs: Vec<Pair> = ACCESSES
                .iter()
                .map(|access| sides.measure(setting, access))
                .collect::<Result<_>>()?;
            orders.push((sides.percents, pairs));
            session.vfree(sides.areas[0])?;
        }
        if let [(percents, first), (_, second)] = &*orders {
            for ((access, one), other) in ACCESSES.iter().zip(first).zip(second) {
                rows.push(row(access, bytes, *percents, &one.joined(other)));
            }
        }
        if has_huge {
            let ours = session.vmalloc(bytes)?;
            rows.extend(translations(setting, &session, ours)?);
            session.vfree(ours)?;
        }
        session.close()?;
    }
    Ok(rows)
}
/// A way of access.
struct Access {
    name: &'static str,
    order: &'static str,
    unit: Unit,
    /// Operations of a round of an area of so many bytes, which is a quick one or not.
    count: fn(u64, Effort) -> u64,
    run: fn(Area, u64, u64),
}

const ACCESSES: [Access; 3] = [
    Access {
        name: "triad",
        order: "sequential",
        unit: Unit::Rate(1),
        // A word is loaded from two parts and stored to a third.
        count: |bytes, _| bytes / 4 * 3,
        run: |area, _, _| area.triad(),
    },
    Access {
        name: "dependent loads, 8 B",
        order: "random lines",
        unit: Unit::Time,
        count: |_, effort| effort.pick(1 << 20, 1 << 16),
        run: Area::follow_chain,
    },
    Access {
        name: "independent loads, 8 B",
        order: "random lines",
        unit: Unit::Time,
        count: |_, effort| effort.pick(1 << 22, 1 << 18),
        run: Area::random_loads,
    },
];

/// Transparent memory, and anonymous memory.
struct Sides {
    areas: [Area; 2],
    /// How much of each has huge pages.
    percents: [u64; 2],
    _anonymous: Anonymous,
}

impl Sides {
    fn new(session: &Session, (bytes, is_huge): (usize, bool), ours_first: bool) -> Result<Self> {
        let anonymous = || if is_huge { Anonymous::huge(bytes) } else { Anonymous::new(bytes) };
        let (ours, anonymous) = if ours_first {
            let ours = session.vmalloc(bytes)?;
            (ours, anonymous()?)
        } else {
            let anonymous = anonymous()?;
            (session.vmalloc(bytes)?, anonymous)
        };
        ours.touch();
        let areas = [ours, anonymous.area()];
        let percent = |area| if is_huge { huge::wait(area) } else { huge::percent(area) };
        let percents = [percent(areas[0])?, percent(areas[1])?];
        Ok(Self { areas, percents, _anonymous: anonymous })
    }

    fn measure(&self, setting: &Setting, access: &Access) -> Result<Pair> {
        self.areas.into_iter().for_each(Area::lay_chain);
        let count = (access.count)(self.areas[0].bytes() as u64, setting.effort);
        let side = |area: Area| {
            move |round: u64| {
                time(count, || {
                    (access.run)(area, round, count);
                    Ok(())
                })
            }
        };
        alternate(setting.effort.pick(9, 3), side(self.areas[0]), side(self.areas[1]))
    }
}

fn row(access: &Access, bytes: usize, percents: [u64; 2], pair: &Pair) -> Row {
    let [own, others] = percents;
    let pages = format!("huge pages {own} % and {others} %");
    let subject = Subject {
        quantity: format!("transparent: {}", access.name),
        state: format!("{}, {}, {pages}", access.order, size(bytes as u64)),
        against: "anonymous memory, the same page size",
        unit: access.unit,
        goal: GOAL,
    };
    super::told(Row::new(subject, pair))
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
