//! Examples of the client library of DMCE.
