//! What every part of DMCE agrees on: addresses, messages, status codes, limits, versions.
