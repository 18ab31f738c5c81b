//! Measurements of DMCE as ratios.
fn main() {}
