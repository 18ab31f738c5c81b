//! The broker (Memory Dispatcher) of DMCE.
fn main() {}
