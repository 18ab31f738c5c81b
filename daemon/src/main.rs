//! The memory server of DMCE: holds blocks.
fn main() {}
