//! Every system call that DMCE makes, with its types.
