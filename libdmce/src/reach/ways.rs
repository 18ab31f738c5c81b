//! Which way a session reaches a block.
//!
//! # Invariants
//!
//! 1. A session on the message path maps nothing.
//! 2. A block is mapped whole where the process has the address space; behind windows where the
//!    session has a budget, and where mapping it whole failed for lack of space. Of a block with
//!    copies that goes for each copy.
#![forbid(unsafe_code)]

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use dmce_abi::Status;
use dmce_abi::wire::client::{BlockInfo, CopyInfo};
use dmce_sys::map::{MapError, Protection};

use super::copied::{
    CopiedBlock, Copy, CopySet, Identity, LockTable, Party, Size, TableFault, Way,
};
use super::given::Given;
use super::mapped::MappedBlock;
use super::message::LinkTable;
use super::windowed::{WindowCache, WindowedBlock};
use crate::block::Backing;
use crate::error::Error;
use crate::operations::Operations;
use crate::options::Options;
use crate::size;

const BUDGET_VARIABLE: &str = "DMCE_WINDOW_BUDGET";
const ROUTE_VARIABLE: &str = "DMCE_MESSAGE_ROUTE";

/// How the daemons of a session on the message path are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Over links (FIG. 3), and through the broker where there is none.
    Direct,
    /// Through the broker (FIG. 2).
    Broker,
}

/// How blocks are to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    budget: u64,
    maps_whole: bool,
    /// Set on the message path.
    route: Option<Route>,
}

/// How blocks of a session are reached.
#[derive(Debug)]
pub(crate) struct Ways {
    plan: Plan,
    operations: Operations,
    /// Who accesses blocks with copies.
    party: Arc<Party>,
    /// Made when the first block needs it.
    cache: Mutex<Option<Arc<WindowCache>>>,
    links: LinkTable,
}

impl Plan {
    /// As `options` and the environment say.
    ///
    /// # Errors
    ///
    /// [`Status::Invalid`] for a budget in the environment that is no size, and for a route that is
    /// none.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let budget = match options.window_budget {
            0 => budget_of_environment()?,
            budget => Some(budget),
        };
        let maps_whole = budget.is_none() && cfg!(target_pointer_width = "64");
        let budget = budget.unwrap_or(Options::DEFAULT_WINDOW_BUDGET);
        let route = options.message_path.then(route_of_environment).transpose()?;
        Ok(Self { budget, maps_whole, route })
    }
}

impl Ways {
    /// Those of a plan, for accesses inside operations.
    pub(crate) fn new(plan: Plan, operations: Operations, party: Arc<Party>) -> Self {
        Self { plan, operations, party, cache: Mutex::new(None), links: LinkTable::default() }
    }

    /// How daemons are asked, on the message path.
    pub(crate) const fn route(&self) -> Option<Route> {
        self.plan.route
    }

    /// The links to daemons.
    pub(crate) const fn links(&self) -> &LinkTable {
        &self.links
    }

    /// Makes a block's bytes reachable; on the message path, when they are used. `base` is the DMCE
    /// address of its first cell.
    ///
    /// # Errors
    ///
    /// [`Unreached`].
    pub(crate) fn admit(
        &self,
        info: &BlockInfo,
        given: Given,
        base: u64,
    ) -> Result<Backing, Unreached> {
        if info.lost {
            return Ok(Backing::Lost);
        }
        if self.plan.route.is_some() {
            return Ok(Backing::Absent);
        }
        let protection = if info.writable { Protection::ReadWrite } else { Protection::Read };
        let (copies, locks) = given.into_parts(info);
        let way = |fd| self.way(info, fd, protection);
        let Some(locks) = locks else {
            let only = copies.into_iter().next().map(way).transpose()?;
            return Ok(only.map_or(Backing::Lost, |way| match way {
                Way::Mapped(mapped) => Backing::Mapped(mapped),
                Way::Windowed(windowed) => Backing::Windowed(windowed),
            }));
        };
        let size = Size { committed: info.committed, bytes_max: info.bytes_max };
        let who = (info.block, info.guid, info.epoch);
        let locks = LockTable::map(locks.as_fd(), who, size, protection)?;
        let identity = Identity { block: info.block, epoch: info.epoch, base };
        let copies = info.written().zip(copies);
        let copies = copies
            .map(|(CopyInfo { daemon, half, .. }, fd)| Ok(Copy { daemon, half, way: way(fd)? }));
        let copies = copies.collect::<Result<Vec<Copy>, Error>>()?;
        let copies = CopySet { copies, good: info.good().count() };
        Ok(Backing::Copied(CopiedBlock::new(identity, copies, locks, Arc::clone(&self.party))))
    }

    /// How an object's bytes are reached.
    fn way(&self, info: &BlockInfo, fd: OwnedFd, protection: Protection) -> Result<Way, Error> {
        if self.plan.maps_whole {
            match MappedBlock::new(fd.as_fd(), info.bytes_max, protection) {
                Ok(mapped) => return Ok(Way::Mapped(mapped)),
                Err(MapError::AddressSpace { bytes }) => {
                    tracing::info!(block = %info.block, bytes, "no room to map it whole");
                }
                Err(error) => return Err(of_map(&error)),
            }
        }
        let cache = self.cache()?;
        let windowed = WindowedBlock::new(cache, fd, info.bytes_max, protection);
        windowed.map(Way::Windowed).map_err(|error| of_map(&error))
    }

    /// Gives address space up that the application needs for a mapping. False if there is none to
    /// give. Not from inside an operation.
    pub(crate) fn shrink(&self) -> bool {
        self.made().is_some_and(|cache| cache.shrink())
    }

    /// Windows that are mapped, and bytes of address space for them.
    pub(crate) fn windows(&self) -> (u64, u64) {
        let made = self.made();
        match made {
            Some(cache) => (cache.mapped(), cache.budget()),
            None if self.plan.maps_whole || self.plan.route.is_some() => (0, 0),
            None => (0, self.plan.budget),
        }
    }

    fn made(&self) -> Option<Arc<WindowCache>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> Result<Arc<WindowCache>, Error> {
        let mut made = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = &*made {
            return Ok(Arc::clone(cache));
        }
        let cache = WindowCache::new(self.plan.budget, &self.operations);
        let cache = Arc::new(cache.map_err(|error| of_map(&error))?);
        *made = Some(Arc::clone(&cache));
        Ok(cache)
    }
}

/// Why a block's bytes cannot be reached.
#[derive(Debug)]
pub(crate) enum Unreached {
    /// Its lock table is not what it should be: who made it can mend that.
    Harmed(TableFault),
    /// [`Status::NoMem`] if there is no address space for it, not even for windows.
    Failed(Error),
}

impl From<Error> for Unreached {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<TableFault> for Unreached {
    fn from(fault: TableFault) -> Self {
        match fault {
            TableFault::Map(error) => Self::Failed(of_map(&error)),
            fault => Self::Harmed(fault),
        }
    }
}

/// What a caller gets when something could not be mapped.
pub(crate) fn of_map(error: &MapError) -> Error {
    let status = match error {
        MapError::AddressSpace { .. } => Status::NoMem,
        MapError::Denied => Status::Denied,
        MapError::Lost => Status::Lost,
        _ => Status::Io,
    };
    Error::new(status, error.to_string())
}

fn route_of_environment() -> Result<Route, Error> {
    let Some(text) = env::var_os(ROUTE_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(Route::Direct);
    };
    match text.to_str() {
        Some("direct") => Ok(Route::Direct),
        Some("broker") => Ok(Route::Broker),
        _ => {
            let text = text.to_string_lossy();
            let text = format!("{ROUTE_VARIABLE} is {text:?}, neither direct nor broker");
            Err(Error::invalid(text))
        }
    }
}

fn budget_of_environment() -> Result<Option<u64>, Error> {
    let Some(text) = env::var_os(BUDGET_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let budget = text.to_str().and_then(size::parse).filter(|&bytes| bytes > 0);
    budget.map(Some).ok_or_else(|| {
        let text = text.to_string_lossy();
        Error::invalid(format!("{BUDGET_VARIABLE} is {text:?}, not a size such as 256MiB"))
    })
}
