//! The C interface of DMCE.
