//! The dispatcher as a whole: what clients, daemons and a restart see of it.

mod access;
mod carrying;
mod copies;
mod copysets;
mod daemons;
mod lending;
mod links;
mod locks;
mod making;
mod moving;
mod names;
mod notices;
mod opening;
mod patience;
mod policies;
mod prepared;
mod rates;
mod regions;
mod repairs;
mod reported_copies;
mod restart;
mod rig;
mod seats;
mod silent;
mod stale;
mod syncing;
