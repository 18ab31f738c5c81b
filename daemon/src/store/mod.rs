//! The block store: what a daemon holds, and what it does about a request.
//!
//! ```text
//!            begin(request)                       run, here or in a worker
//!  request ----------------> Begun::Working(job) -------------------------> done
//!              |                                                              |
//!              v                                                              v
//!        Begun::Answered(reply)                  reply <---------------- finish(done)
//! ```
//!
//! # Invariants
//!
//! 1. A block is in the table from the moment its header is ready until its header is unlinked.
//! 2. For one block at most one job is under way, and no request is begun meanwhile: whoever calls
//!    sees to that.
//! 3. What is refused has changed nothing, in the table or among the objects.
//! 4. Bytes that clients can write are read and written for clients alone (`access`). Sizes that
//!    they can change are compared with the table, and the table is what counts.

mod access;
mod adopt;
mod block;
mod check;
mod commit;
mod copied;
mod folder;
mod lay;
mod ledger;
mod pool;
mod prepare;
mod requests;
mod room;
mod stamped;
#[cfg(test)]
mod tests;
mod upkeep;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dmce_abi::block::{BlockDescription, BlockId, DaemonId};
use dmce_abi::name::Instance;
use dmce_abi::wire::Reply;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonNotice, HeldBlock};
use dmce_config::DaemonSection;
use dmce_shm::header::BlockHeader;
use dmce_sys::lock::OfdLock;
use dmce_sys::object::{ObjectDir, ObjectError};
use tracing::warn;

use adopt::Adopted;
use ledger::Ledger;
use pool::Pool;

pub use adopt::Foreign;
pub use block::Data;
#[cfg(test)]
pub use commit::Growth;
pub use folder::{Folder, ServeError};
pub use prepare::{Preparation, Preparer, Task, TaskDone};
pub use work::{Done, Job, Remains};

/// What a store is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The instance.
    pub instance: Instance,
    /// Whose objects they are.
    pub daemon: DaemonId,
    /// Their folder.
    pub objects: PathBuf,
    /// Capacity, pool, margin.
    pub section: DaemonSection,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The daemon's id is not ours to serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The folder cannot be opened, or an object in it not be looked at.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// What became of a request.
#[derive(Debug)]
pub enum Begun {
    /// It is done, or refused.
    Answered(Reply<DaemonAnswer>),
    /// It will be, when [`Store::finish`] has what comes of this job.
    Working(Job),
}

/// The blocks of a daemon.
#[derive(Debug)]
pub struct Store {
    folder: Arc<Folder>,
    blocks: BTreeMap<BlockId, Held>,
    /// What the headers say that were there alone at the last look.
    bare: Vec<BlockDescription>,
    foreign: Vec<Foreign>,
    damaged: Vec<BlockId>,
    ledger: Ledger,
    pool: Pool,
    /// Whether to look if the pool is short: after use, and by the clock.
    refill_due: bool,
    notices: Vec<DaemonNotice>,
    tasks: Vec<Task>,
    /// What could not be removed at once.
    remains: Vec<Remains>,
    /// What clients reach by message.
    open_objects: access::OpenObjects,
    /// The same of blocks of several copies.
    copied: copied::Copied,
    /// Blocks that jobs are committing more for.
    growing: usize,
    /// Where the next check goes on.
    checked: Option<BlockId>,
    _lock: OfdLock,
}

/// A block of the table.
#[derive(Debug)]
struct Held {
    header: BlockHeader,
    data: Data,
    condition: Condition,
    /// Set when the block ends, for those who prepare its pages.
    gone: Arc<AtomicBool>,
    /// What its pages were when all copies agreed.
    quiet: copied::Quiet,
}

/// How a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// As it should be.
    Whole,
    /// A job is committing more.
    Growing,
    /// Its pages are coming back: some were given away by a client.
    Mending,
    /// Its object is gone or short. The broker has been told.
    Lost,
    /// Its object is short, and it was reported all the same, to a broker that may not know of it.
    Short,
}

impl Condition {
    /// Whether its bytes are not what they were.
    const fn is_lost(self) -> bool {
        matches!(self, Self::Lost | Self::Short)
    }
}

impl Store {
    /// Takes the lock of the daemon and adopts what is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        let Settings { instance, daemon, objects, section } = settings;
        let folder = Folder::open(&objects, instance, daemon)?.with_huge_pages(section.huge_pages);
        let lock = folder.lock()?;
        let adopted = adopt::adopt(&folder)?;
        let mut store = Self {
            folder: Arc::new(folder),
            blocks: BTreeMap::new(),
            bare: Vec::new(),
            foreign: Vec::new(),
            damaged: Vec::new(),
            ledger: Ledger::new(&section),
            pool: Pool::new(&section),
            refill_due: true,
            notices: Vec::new(),
            tasks: Vec::new(),
            remains: Vec::new(),
            open_objects: access::OpenObjects::default(),
            copied: copied::Copied::default(),
            growing: 0,
            checked: None,
            _lock: lock,
        };
        store.take_in(adopted);
        Ok(store)
    }

    fn take_in(&mut self, adopted: Adopted) {
        for foreign in adopted.foreign {
            if !self.foreign.contains(&foreign) {
                let Foreign { object, reason } = &foreign;
                warn!(%object, %reason, "an object of our name is left as it is");
                self.foreign.push(foreign);
            }
        }
        self.damaged.extend(adopted.damaged);
        self.damaged.sort_unstable();
        self.damaged.dedup();
        for (block, (header, data)) in adopted.blocks {
            self.ledger.adopt(data.bytes);
            self.blocks.insert(block, Held::new(header, data));
        }
        for (block, bytes) in adopted.excess {
            self.notice_excess(block, bytes);
        }
    }

    /// Prepares for a report to another broker: takes in what the one before made of lent objects,
    /// and wrote into headers, forgets blocks that are gone, tells again of those that are short,
    /// and lends the rest anew.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if an object could not be looked at.
    pub fn look_again(&mut self) -> Result<(), ObjectError> {
        self.pool.lend_anew(&self.folder)?;
        self.look_at_lost()?;
        self.read_headers_again();
        let is_known = |block| self.blocks.contains_key(&block);
        let mut adopted = adopt::adopt_unknown(&self.folder, is_known)?;
        self.bare = std::mem::take(&mut adopted.bare);
        self.take_in(adopted);
        self.refill_due = true;
        Ok(())
    }

    /// What the broker may make blocks of and has not been told yet.
    pub fn lend(&mut self) -> impl Iterator<Item = DaemonNotice> {
        let lent = self.pool.lend().into_iter();
        lent.map(|(place, bytes)| DaemonNotice::Lent { place, bytes })
    }

    /// The folder, for those who carry out jobs.
    pub fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.folder)
    }

    /// The folder of the objects, to be watched.
    pub fn dir(&self) -> &ObjectDir {
        self.folder.dir()
    }

    /// The blocks, as the broker is told of them. Those that are lost are left out, unless there is
    /// something of them that it may want to have removed, or a header, which has no byte then.
    pub fn held(&self) -> impl Iterator<Item = HeldBlock> {
        let there = self.blocks.values().filter(|held| held.condition != Condition::Lost);
        let there = there.map(|held| (&held.header.description, held.data.bytes));
        let all = there.chain(self.bare.iter().map(|description| (description, 0)));
        all.map(|(description, committed)| HeldBlock {
            description: description.clone(),
            committed,
        })
    }

    /// Blocks that were made once, and whose objects are not right.
    pub fn damaged(&self) -> &[BlockId] {
        &self.damaged
    }

    /// What was left as it is.
    pub fn foreign(&self) -> &[Foreign] {
        &self.foreign
    }

    /// Bytes of all blocks.
    pub fn committed(&self) -> u64 {
        self.ledger.committed()
    }

    /// What the broker is to be told unasked, since the last call.
    pub fn take_notices(&mut self) -> Vec<DaemonNotice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether a block is growing, so that nobody can be told how large it is.
    pub fn is_growing(&self) -> bool {
        self.growing > 0
    }

    /// What is to be done when there is time, since the last call.
    pub fn take_tasks(&mut self) -> Vec<Task> {
        std::mem::take(&mut self.tasks)
    }

    /// Whether to call [`Store::refill`] before long; says so once.
    pub fn is_refill_due(&mut self) -> bool {
        std::mem::take(&mut self.refill_due)
    }
}

impl Held {
    fn new(header: BlockHeader, data: Data) -> Self {
        let (gone, quiet) = (Arc::default(), copied::Quiet::default());
        Self { header, data, condition: Condition::Whole, gone, quiet }
    }
}
