//! The client library of DMCE.
