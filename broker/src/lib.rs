//! The broker (Memory Dispatcher) of DMCE: the only authority over placement, tables and sessions.
//!
//! This library is the pure core. The program around it (`main`, `args`, `server`) turns readiness
//! of sockets, processes and timers into events, and the core's actions into system calls.
#![forbid(unsafe_code)]

pub mod dispatcher;
