//! The broker (Memory Dispatcher) of DMCE.
