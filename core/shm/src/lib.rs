//! The shared memory objects of DMCE, typed.
