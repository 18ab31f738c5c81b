//! `dmce::vector` against `std::vector`, in a C++ program of 64 bits.

use dmce_tests::Instance;

use crate::measure::alternate;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::worker::Worker;
use crate::{Result, huge};

const NUMBER_BYTES: u64 = 8;

/// A loop of the program.
#[derive(Clone, Copy)]
struct Loop {
    command: &'static str,
    quantity: &'static str,
    order: &'static str,
    goal: Goal,
}

const fn in_order(command: &'static str, quantity: &'static str, order: &'static str) -> Loop {
    Loop { command, quantity, order, goal: Goal::AtLeast(0.9) }
}

const SEQUENTIAL: [Loop; 4] = [
    in_order("loads", "dmce::vector: loads", "sequential, iterators"),
    in_order("indexed", "dmce::vector: loads", "sequential, indices"),
    in_order("stores", "dmce::vector: stores", "sequential, iterators"),
    in_order("pushed", "dmce::vector: push_back", "sequential, reserved"),
];

const RANDOM: [Loop; 2] = [
    Loop {
        command: "random-loads",
        quantity: "dmce::vector: loads",
        order: "random",
        goal: Goal::None,
    },
    Loop {
        command: "random-stores",
        quantity: "dmce::vector: stores",
        order: "random",
        goal: Goal::None,
    },
];

/// Measures the group; without the program it has no rows.
///
/// # Errors
///
/// Those of the program and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let Some(program) = setting.vector.clone() else {
        eprintln!("left out: there is no dmce-bench-vector");
        return Ok(Vec::new());
    };
    let bytes: u64 = setting.effort.pick(1 << 30, 64 << 20);
    let instance = setting.start(Instance::builder().daemons(3).capacity("3GiB"))?;
    let socket = instance.socket().display().to_string();
    let mut worker = Worker::start_with(&program, &[("DMCE_SOCKET", &socket)])?;
    worker.ask(&format!("open {}", bytes / NUMBER_BYTES))?;
    let percent = huge::wait_elsewhere(|| worker.count("huge"))?;
    let state = |order| format!("{order}, {}, huge pages {percent} %", size(bytes));

    let mut rows = Vec::new();
    for one in SEQUENTIAL {
        let unit = Unit::Rate(NUMBER_BYTES);
        rows.push(row(setting, &mut worker, one, (state(one.order), unit, ""))?);
    }
    let count = setting.effort.pick(1 << 23, 1 << 18);
    for one in RANDOM {
        let places = format!(" {count}");
        rows.push(row(setting, &mut worker, one, (state(one.order), Unit::Time, &places))?);
    }
    Ok(rows)
}

fn row(
    setting: &Setting,
    worker: &mut Worker,
    one: Loop,
    (state, unit, places): (String, Unit, &str),
) -> Result<Row> {
    let worker = std::cell::RefCell::new(worker);
    let side = |name: &'static str| {
        let worker = &worker;
        move |round: u64| {
            let seed = if places.is_empty() { String::new() } else { format!(" {round}") };
            let command = format!("{name} {}{places}{seed}", one.command);
            worker.borrow_mut().seconds(&command)
        }
    };
    let pair = alternate(setting.effort.pick(15, 3), side("dmce"), side("std"))?;
    let subject = Subject {
        quantity: one.quantity.to_owned(),
        state,
        against: "std::vector",
        unit,
        goal: one.goal,
    };
    Ok(super::told(Row::new(subject, &pair)))
}
