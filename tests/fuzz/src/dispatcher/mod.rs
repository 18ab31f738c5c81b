//! The broker's dispatcher under any sequence of what clients, daemons and the host can do.
//!
//! The bytes choose a configuration, then move by move what happens: sound requests with ids and
//! GUIDs that were seen, any frame that decodes, daemons that serve, refuse or lie, processes that
//! die, a broker that starts on what its predecessor left.
//!
//! `tests/sim` plays honest clients and checks what they may rely on. Here nobody is honest, and
//! what is checked is what the broker owes to itself, its shell and everybody else:
//!
//! 1. It never panics, and its tables agree with each other after every event.
//! 2. A request is answered once, in a frame, or waits and is counted.
//! 3. Grants, generations and sessions are stored as the shell can store them.
//! 4. Nobody gets a descriptor of another session's block.

mod claims;
mod daemons;
mod requests;
mod shell;
mod world;

use arbitrary::Unstructured;

use world::World;

/// Moves of one input: more find nothing that fewer do not.
const MOVES_MAX: usize = 400;

pub fn run(data: &[u8]) {
    let bytes = &mut Unstructured::new(data);
    let Ok(mut world) = World::begin(bytes) else { return };
    for _ in 0..MOVES_MAX {
        // Bytes that end too soon are fewer moves.
        if bytes.is_empty() || world.step(bytes).is_err() {
            break;
        }
    }
}
