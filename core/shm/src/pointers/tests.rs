//! Over every interleaving and every value that the memory model allows; then with real futexes.

use super::*;

fn owner(number: u32) -> PointerOwner {
    PointerOwner::new(number).unwrap()
}

fn read(cell: u64, bytes: u64) -> Wanted {
    Wanted { cell, bytes, exclusive: false }
}

fn write(cell: u64, bytes: u64) -> Wanted {
    Wanted { cell, bytes, exclusive: true }
}

/// The cells of a range.
#[cfg(not(loom))]
fn cells_of<T>(cells: &[T], wanted: Wanted) -> &[T] {
    let place = |cell| usize::try_from(cell).unwrap();
    &cells[place(wanted.cell)..place(wanted.end())]
}

const WAITS: Terms = Terms { wait: Wait::InTurn, deadline: Deadline::NEVER, take_dirty: false };
const NO_WAIT: Terms = Terms { wait: Wait::Never, ..WAITS };
const QUEUES: Terms = Terms { wait: Wait::Queued, ..WAITS };

#[cfg(not(loom))]
mod orders;
#[cfg(not(loom))]
mod plain;

#[cfg(loom)]
mod model;
