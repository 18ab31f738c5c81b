//! The administrator's command of DMCE.
fn main() {}
