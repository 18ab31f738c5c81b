//! What holds when processes die: real processes, `SIGKILL`, at any point.
#![forbid(unsafe_code)]

mod brokers;
mod clients;
mod copies;
mod copies_by_message;
mod daemons;
mod everything;
mod messages;
mod moving;
mod objects;
mod pointers;
mod points;
mod scrubbing;
mod silent;
mod stale;
mod steps;
mod surplus;
mod syncing;
mod torture;
mod two;
