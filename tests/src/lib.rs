//! Tests of DMCE with real processes, and the harness that starts them.
