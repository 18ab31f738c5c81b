//! What a broker finds when it starts: names, sessions, headers of daemons that do not live.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::name::ObjectKind;
use dmce_broker::dispatcher::{FoundContent, FoundDaemon, Headers, Started};
use dmce_sys::object::ObjectError;
use tracing::warn;

use super::objects::{BROKER, Objects};
use super::sessions::Sessions;
use super::tables;

/// Reads the folder. What is left of sessions that had ended, or that nobody had, goes here.
pub fn read(objects: &Objects, sessions: &mut Sessions) -> Result<Started, ObjectError> {
    let mut started = Started::default();
    for (daemon, kinds) in objects.list()? {
        if daemon == BROKER {
            started.sessions = sessions.take_up(objects, &kinds);
            started.tables = tables::all(objects, &kinds);
            started.draining = draining(objects, &kinds);
            continue;
        }
        match DaemonId::try_from(daemon) {
            Ok(daemon) => started.daemons.extend(found(objects, daemon, &kinds)),
            Err(error) => warn!("objects left alone: {error}"),
        }
    }
    Ok(started)
}

/// The daemons that are drained, as objects of this user say.
fn draining(objects: &Objects, kinds: &BTreeSet<ObjectKind>) -> BTreeSet<DaemonId> {
    let ids = kinds.iter().filter_map(|kind| match *kind {
        ObjectKind::Drain(id) if objects.open(BROKER, *kind, false).is_ok() => {
            DaemonId::try_from(id).ok()
        }
        _ => None,
    });
    ids.collect()
}

/// What a daemon's names say; `None` if there is nothing of it but a lock that nobody holds, and
/// names that another user made.
fn found(objects: &Objects, daemon: DaemonId, kinds: &BTreeSet<ObjectKind>) -> Option<FoundDaemon> {
    let ids = kinds.iter().filter_map(|kind| match *kind {
        ObjectKind::Data(id) | ObjectKind::Header(id) => BlockId::try_from(id).ok(),
        _ => None,
    });
    let blocks: BTreeSet<BlockId> = ids.collect();
    let served = objects.is_served(daemon);
    // Any user may make names that begin like ours: they are no sign of a daemon.
    let is_own = |kind: &ObjectKind| {
        matches!(kind, ObjectKind::Data(_) | ObjectKind::Header(_))
            && objects.may_be_own(daemon.get(), *kind)
    };
    if !served && !kinds.iter().any(is_own) {
        return None;
    }
    let Headers { held, damaged } = objects.read_headers(daemon);
    let content = if served { FoundContent::Expected } else { FoundContent::Read(held) };
    Some(FoundDaemon { daemon, blocks: blocks.into_iter().collect(), damaged, content })
}
