//! What a broker finds when it starts: names, sessions that live, headers of daemons that do not.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::name::ObjectKind;
use dmce_broker::dispatcher::{FoundContent, FoundDaemon, Started};
use dmce_sys::object::ObjectError;
use tracing::warn;

use super::objects::{BROKER, Objects};
use super::sessions::Sessions;

/// Reads the folder. Sessions whose process is gone lose their objects here.
pub fn read(objects: &Objects, sessions: &mut Sessions) -> Result<Started, ObjectError> {
    let mut started = Started::default();
    for (daemon, kinds) in objects.list()? {
        if daemon == BROKER {
            started.sessions = sessions.take_up(objects, &kinds);
            continue;
        }
        match DaemonId::try_from(daemon) {
            Ok(daemon) => started.daemons.extend(found(objects, daemon, &kinds)),
            Err(error) => warn!("objects left alone: {error}"),
        }
    }
    Ok(started)
}

/// What a daemon's names say; `None` if there is nothing of it but a lock that nobody holds.
fn found(objects: &Objects, daemon: DaemonId, kinds: &BTreeSet<ObjectKind>) -> Option<FoundDaemon> {
    let ids = kinds.iter().filter_map(|kind| match *kind {
        ObjectKind::Data(id) | ObjectKind::Header(id) => BlockId::try_from(id).ok(),
        _ => None,
    });
    let blocks: BTreeSet<BlockId> = ids.collect();
    let headers = kinds.iter().filter_map(|kind| match *kind {
        ObjectKind::Header(id) => BlockId::try_from(id).ok(),
        _ => None,
    });
    let served = objects.is_served(daemon);
    if !served && blocks.is_empty() {
        return None;
    }
    let content = if served {
        FoundContent::Expected
    } else {
        FoundContent::Read(objects.read_headers(daemon))
    };
    let (blocks, headers) = (blocks.into_iter().collect(), headers.collect());
    Some(FoundDaemon { daemon, blocks, headers, content })
}
