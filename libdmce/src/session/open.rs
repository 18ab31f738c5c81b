//! Opening a session: Setup, its checks, and what is made from its answer.
//!
//! # Invariants
//!
//! 1. Nothing is used of what the broker said before it was checked.
//! 2. A session that could not be taken into use is ended again: what fails before its answer is
//!    here is told after it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use dmce_abi::limits::{BLOCK_IDS_MAX, COPIES_MAX, PAGE_BYTES, SESSION_NAME_BYTES_MAX};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Ready, Setup};
use dmce_abi::{AddrLayout, Status, name};
use dmce_shm::Fence;
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::map::{SessionMap, SessionMapError};
use dmce_sys::fault;
use dmce_sys::map::WipeOnForkPage;
use std::os::fd::AsFd;

use super::arbiter::AskBroker;
use super::bell::Bell;
use super::core::Core;
use super::link::{Descriptors, Link, Wires};
use super::pointers::LockedRanges;
use super::service::{Chores, Service};
use super::tracking::Tracking;
use crate::alloc::Allocator;
use crate::connection::Deadline;
use crate::doors::Doors;
use crate::error::Error;
use crate::events::Events;
use crate::locate::{self, Found};
use crate::operations::Operations;
use crate::options::Options;
use crate::places::Places;
use crate::reach::copied::Party;
use crate::reach::ways::{Plan, Ways, of_map};
use crate::slots::Slots;
use crate::table::Table;
use crate::turn::Turn;

/// Opens a session.
pub(super) fn open(options: &Options) -> Result<Arc<Core>, Error> {
    check_options(options)?;
    let (plan, check) = (Plan::new(options)?, Options::checks()?);
    let deadline = Deadline::after_ms(options.timeout_ms());
    let Found { mut connection, path } = locate::connect(options, deadline)?;
    let setup = Setup {
        segment_version: SEGMENT_VERSION,
        pointer_bits: if cfg!(target_pointer_width = "32") { 32 } else { 64 },
        bytes: options.reserve_bytes,
        accept_partial: options.accept_partial,
        copies: options.copies,
        name: options.name.clone(),
    };
    let asked = connection.ask(&ClientRequest::Setup(setup), deadline)?;
    // While the broker is at it.
    let own = Own::make();
    let (reply, fds) = connection.answer(asked, deadline)?;
    let ClientReply::Ready(ready) = reply else {
        return Err(Error::unexpected_reply("Setup"));
    };
    let (layout, descriptors) = (check_ready(&ready)?, Descriptors::of(fds)?);
    let Own { wires, fork, fence } = match own {
        Ok(own) => own,
        Err(error) => {
            let _ = connection.request_until(&ClientRequest::Disconnect, deadline);
            return Err(error);
        }
    };
    let identity = SessionIdentity { session: ready.session, guid: ready.guid };
    let map = map_object(&descriptors, identity, fence);
    let link = Link::new((connection, path), identity, descriptors, wires)?;
    match map.map(|map| assemble((plan, check), (layout, ready), map, fork)) {
        Ok(parts) => finish(options, link, parts),
        Err(error) => {
            link.disconnect(deadline);
            Err(error)
        }
    }
}

/// What a session makes for itself, whatever the broker answers.
struct Own {
    wires: Wires,
    fork: WipeOnForkPage,
    fence: Fence,
}

impl Own {
    fn make() -> Result<Self, Error> {
        fault::install().map_err(|error| Error::new(Status::Io, error.to_string()))?;
        // Registered once for the process, which waits for all of its threads then.
        let fence = Fence::register();
        let fork = WipeOnForkPage::new().map_err(|error| of_map(&error))?;
        Ok(Self { wires: Wires::new()?, fork, fence })
    }
}

/// What a session needs besides its link.
struct Parts {
    check: bool,
    layout: AddrLayout,
    ready: Ready,
    plan: Plan,
    map: Arc<SessionMap>,
    operations: Operations,
    fork: WipeOnForkPage,
}

fn assemble(
    (plan, check): (Plan, bool),
    (layout, ready): (AddrLayout, Ready),
    (map, fence): (SessionMap, Fence),
    fork: WipeOnForkPage,
) -> Parts {
    let map = Arc::new(map);
    let operations = Operations::new(Arc::clone(&map), fence);
    Parts { check, layout, ready, plan, map, operations, fork }
}

fn finish(options: &Options, link: Link, parts: Parts) -> Result<Arc<Core>, Error> {
    let Parts { check, layout, ready, plan, map, operations, fork } = parts;
    let (block_ids, fence) = (ready.block_ids, operations.fence());
    let slots = Slots::new();
    let timeout_ms = options.timeout_ms();
    let accessor = party_of(&ready, timeout_ms, (&map, &slots));
    let core = Arc::new_cyclic(|core| Core {
        doors: Doors::new(map.look().fence),
        layout,
        cell_bits: layout.cell_bits(),
        timeout_ms,
        tracking: Tracking::default(),
        locked: LockedRanges::new(options.timeout_ms, timeout_ms),
        verify: options.verify,
        check,
        table: Table::new(ready.block_ids),
        ways: Ways::new(plan, operations.clone(), Arc::new(accessor(core))),
        map,
        operations,
        allocator: Allocator::new(block_ids, layout.cell_bits(), fence),
        policies: OnceLock::new(),
        sizes_matter: AtomicBool::new(false),
        events: Events::default(),
        is_threaded: !options.no_thread,
        growing: Turn::new(()),
        changing: Turn::new(()),
        pins: Mutex::new(BTreeMap::new()),
        pinned: AtomicUsize::new(0),
        spread: AtomicUsize::new(0),
        places: Places::new(layout.cell_bits(), block_ids),
        told: Mutex::default(),
        holders: Mutex::default(),
        regions: Mutex::new(BTreeMap::new()),
        chores: Mutex::new(Chores::default()),
        service: Service::default(),
        link: Arc::new(link),
        bell: Bell::default(),
        tickets: AtomicU64::new(1),
        fork,
        key: AtomicUsize::new(slots.own_key()),
        slots,
        ready,
        closed: AtomicBool::new(false),
        given_up: AtomicBool::new(false),
        torn_down: AtomicBool::new(false),
    });
    if !options.no_thread
        && let Err(error) = Service::start(&core)
    {
        let _ = core.close();
        return Err(Error::new(Status::NoMem, format!("no service thread: {error}")));
    }
    tracing::debug!(session = %core.ready.session, instance = %core.ready.instance, "open");
    Ok(core)
}

/// Who accesses blocks with copies, for a session that is yet to be.
fn party_of(
    ready: &Ready,
    timeout_ms: u32,
    (map, slots): (&Arc<SessionMap>, &Slots),
) -> impl FnOnce(&Weak<Core>) -> Party + use<> {
    let (session, timeout) = (ready.session, Duration::from_millis(timeout_ms.into()));
    let (map, slots) = (Arc::clone(map), slots.clone());
    move |core| {
        let arbiter = Arc::new(AskBroker { core: Weak::clone(core) });
        Party { map, slots, session, timeout, arbiter }
    }
}

fn check_options(options: &Options) -> Result<(), Error> {
    if options.copies > COPIES_MAX {
        let text = format!("{} copies, limit {COPIES_MAX}", options.copies);
        return Err(Error::invalid(text));
    }
    if !options.name.is_empty() {
        name::check("session", &options.name, SESSION_NAME_BYTES_MAX)
            .map_err(|error| Error::invalid(error.to_string()))?;
    }
    Ok(())
}

fn check_ready(ready: &Ready) -> Result<AddrLayout, Error> {
    let field = |field: &str, fits: bool| {
        if fits {
            return Ok(());
        }
        let text = format!("the broker's description of the session: its {field} cannot be");
        Err(Error::new(Status::Internal, text))
    };
    let [server, block, cell] = ready.layout;
    let layout = AddrLayout::new(server, block, cell);
    field("layout", layout.is_ok())?;
    let layout = layout?;
    field("layout", layout.cell_bits() == cell)?;
    let ids_max = layout.block_ids().min(BLOCK_IDS_MAX.into());
    field("block ids", (2..=ids_max).contains(&ready.block_ids.into()))?;
    let block_bytes = PAGE_BYTES..=layout.block_bytes();
    field("block size", block_bytes.contains(&ready.block_bytes_max))?;
    Ok(layout)
}

fn map_object(
    descriptors: &Descriptors,
    identity: SessionIdentity,
    fence: Fence,
) -> Result<(SessionMap, Fence), Error> {
    let mapped = SessionMap::map(descriptors.object.as_fd(), identity, fence);
    mapped.map(|map| (map, fence)).map_err(|error| {
        let status = match &error {
            SessionMapError::OtherVersion { .. } => Status::Version,
            SessionMapError::Map(_) => Status::NoMem,
            _ => Status::Internal,
        };
        Error::new(status, error.to_string())
    })
}
