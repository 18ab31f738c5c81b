//! The shared memory objects as the broker sees them: by name, checked, opened when needed.
//!
//! # Invariants
//!
//! 1. Nothing is opened that is not a regular file of this user with mode 0600 and one link.
//! 2. A descriptor for a reader is one that was opened for reading.
//! 3. The bytes of clients are never read here; of data objects only the size is looked at.
//! 4. No block is made of an object that is shorter than what is committed, whatever its daemon
//!    said of it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid};
use dmce_abi::name::{Instance, ObjectKind, ObjectName};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::HeldBlock;
use dmce_abi::{AddrLayout, Status};
use dmce_broker::dispatcher::{
    Descriptor, Event, Headers as Reported, Lent, Made, Millis, Rewritten,
};
use dmce_shm::header::{self, BlockHeader, HeaderError};
use dmce_sys::crash::{Point, point};
use dmce_sys::lock::{LockError, OfdLock};
use dmce_sys::object::{self, ObjectDir, ObjectError, ObjectStat};
use dmce_sys::{identity, lock};
use tracing::warn;

use super::ServerError;
use super::headers::Headers;
use super::sessions::Sessions;

/// The broker's place among the daemons, in the names of objects.
pub const BROKER: u32 = 0;

/// The folder of the objects, and whose objects count.
pub struct Objects {
    folder: ObjectDir,
    instance: Instance,
    layout: AddrLayout,
    uid: u32,
    /// The block that was made last, open already for who asked for it.
    made: Cell<Option<MadeBlock>>,
    headers: Headers,
}

/// The data of a block that was just made, open to read and write.
struct MadeBlock {
    daemon: DaemonId,
    block: BlockId,
    data: OwnedFd,
}

/// Why a reply goes out as a refusal after all.
pub struct OpenFailure {
    /// What the client is told.
    pub refusal: Refusal,
    /// What is not there any more.
    pub gone: Option<Gone>,
}

/// An object that is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A copy of a block.
    Copy(DaemonId, BlockId),
    /// The lock table of a block.
    Locks(BlockId),
}

impl Gone {
    /// What the dispatcher is told of it.
    pub const fn event(self) -> Event {
        match self {
            Self::Copy(daemon, block) => Event::OpenFailed { daemon, block },
            Self::Locks(block) => Event::LocksInspected { block, found: None },
        }
    }
}

/// A descriptor that travels with a reply.
pub enum Passed<'a> {
    /// It was opened for that.
    Opened(OwnedFd),
    /// It stays open here.
    Kept(BorrowedFd<'a>),
}

impl AsFd for Passed<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

impl Objects {
    /// The objects of `instance` in `folder`.
    pub fn new(folder: ObjectDir, instance: Instance, layout: AddrLayout) -> Self {
        let (uid, made) = (identity::effective_uid(), Cell::new(None));
        Self { folder, instance, layout, uid, made, headers: Headers::default() }
    }

    /// Makes this process the only broker of the instance, as long as the lock lives.
    pub fn lock(&self) -> Result<OfdLock, ServerError> {
        let name = self.name(BROKER, ObjectKind::Lock);
        loop {
            let (fd, stat) = match self.open(BROKER, ObjectKind::Lock, true) {
                Ok(opened) => opened,
                Err(ObjectFailure::Object(ObjectError::NotFound { .. })) => {
                    match self.folder.create(&name) {
                        Ok(_) | Err(ObjectError::Exists { .. }) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(failure) => return Err(ServerError::Foreign { reason: failure.to_string() }),
            };
            let lock = OfdLock::try_exclusive(fd).map_err(|error| match error {
                LockError::Held => ServerError::InUse { instance: self.instance.clone() },
                other => ServerError::Lock(other),
            })?;
            // Who cleans up may have removed the name between the look and the lock: only a lock on
            // what the name names keeps others out.
            let named = self.open(BROKER, ObjectKind::Lock, true);
            if named.is_ok_and(|(_, found)| found.inode == stat.inode) {
                return Ok(lock);
            }
        }
    }

    /// The folder itself.
    pub const fn folder(&self) -> &ObjectDir {
        &self.folder
    }

    /// The name of an object; daemon 0 is the broker.
    pub fn name(&self, daemon: u32, kind: ObjectKind) -> String {
        ObjectName { instance: self.instance.clone(), daemon, kind }.to_string()
    }

    /// Every object of the instance, by daemon; 0 is the broker.
    pub fn list(&self) -> Result<BTreeMap<u32, BTreeSet<ObjectKind>>, ObjectError> {
        let mut all: BTreeMap<u32, BTreeSet<ObjectKind>> = BTreeMap::new();
        for name in self.folder.names(&self.instance.prefix())? {
            match ObjectName::parse(&name) {
                Ok(name) => _ = all.entry(name.daemon).or_default().insert(name.kind),
                Err(error) => warn!(object = name, "left alone: {error}"),
            }
        }
        Ok(all)
    }

    /// Whether a process holds the lock of `daemon`.
    pub fn is_served(&self, daemon: DaemonId) -> bool {
        let name = self.name(daemon.get(), ObjectKind::Lock);
        let Ok(fd) = self.folder.open_read_write(&name) else { return false };
        lock::holder_exists(fd.as_fd()).unwrap_or(false)
    }

    /// The blocks of a daemon, as far as their objects are sound.
    pub fn read_headers(&self, daemon: DaemonId) -> Reported {
        let names = self.folder.names(&self.instance.daemon_prefix(daemon.get()));
        let mut headers = Reported::default();
        for name in names.unwrap_or_default() {
            let Ok(ObjectName { kind: ObjectKind::Header(id), .. }) = ObjectName::parse(&name)
            else {
                continue;
            };
            match self.read_header(daemon, id) {
                Ok(block) => headers.held.push(block),
                // It is being made, or its daemon died over it: nobody was told of it.
                Err(Unsound::Header(error)) if error.is_removable() => {}
                Err(reason) => {
                    warn!(object = name, "not taken in: {reason}");
                    headers.damaged.extend(BlockId::try_from(id));
                }
            }
        }
        headers
    }

    fn read_header(&self, daemon: DaemonId, id: u32) -> Result<HeldBlock, Unsound> {
        let (fd, _) = self.open(daemon.get(), ObjectKind::Header(id), false)?;
        let header = header::read(fd.as_fd(), self.layout)?;
        if header.daemon != daemon || header.description.block.get() != id {
            let block = header.description.block;
            return Err(Unsound::Misplaced { block, daemon: header.daemon });
        }
        let committed = match self.open(daemon.get(), ObjectKind::Data(id), false) {
            Ok((_, stat)) => stat.bytes,
            // It says all the same which copies are the good ones by now.
            Err(ObjectFailure::Object(ObjectError::NotFound { .. }))
                if header.description.has_locks() =>
            {
                0
            }
            Err(failure) => return Err(failure.into()),
        };
        Ok(HeldBlock { description: header.description, committed })
    }

    /// Whether an object is ours, as far as it can be looked at.
    pub fn may_be_own(&self, daemon: u32, kind: ObjectKind) -> bool {
        self.open(daemon, kind, false).map_or_else(|failure| !failure.is_absence(), |_| true)
    }

    /// Whether what has a name is somebody else's, or is nothing that a server makes.
    pub fn is_foreign(&self, daemon: u32, kind: ObjectKind) -> bool {
        let opened = self.open(daemon, kind, false);
        opened.is_err_and(|failure| {
            matches!(
                failure,
                ObjectFailure::Foreign { .. } | ObjectFailure::Object(ObjectError::Denied { .. })
            )
        })
    }

    /// Opens and checks an object.
    pub fn open(
        &self,
        daemon: u32,
        kind: ObjectKind,
        writable: bool,
    ) -> Result<(OwnedFd, ObjectStat), ObjectFailure> {
        let name = self.name(daemon, kind);
        let opened = if writable {
            self.folder.open_read_write(&name)
        } else {
            self.folder.open_read_only(&name)
        };
        let fd = opened?;
        let stat = object::stat(fd.as_fd())?;
        let ours = stat.regular && stat.uid == self.uid && stat.mode & 0o777 == 0o600;
        if ours && stat.links == 1 { Ok((fd, stat)) } else { Err(ObjectFailure::Foreign { name }) }
    }

    /// Makes a block of an object that a daemon has lent, or nothing. As long as that daemon lives,
    /// nobody else has the object, or makes anything of the block's names.
    pub fn make_block(
        &mut self,
        daemon: DaemonId,
        lent: Lent,
        description: BlockDescription,
        committed: u64,
    ) -> Made {
        let block = description.block;
        let pool = self.name(daemon.get(), ObjectKind::Pool(lent.place.0));
        let data = self.name(daemon.get(), ObjectKind::Data(block.get()));
        if let Err(error) = self.folder.rename_new(&pool, &data) {
            return failed_to_make(&error);
        }
        point(Point::DataNamed);
        let header = BlockHeader { daemon, description };
        let made = self.cut((daemon, block), committed).and_then(|fd| {
            point(Point::DataCut);
            let name = self.name(daemon.get(), ObjectKind::Header(block.get()));
            self.headers.make(&self.folder, &name, &header)?;
            Ok(fd)
        });
        let error = match made {
            Ok(data) => {
                self.made.set(Some(MadeBlock { daemon, block, data }));
                return Made::Whole;
            }
            Err(error) => error,
        };
        if let Err(error) = self.folder.unlink(&data) {
            warn!(object = data, "it stays behind: {error}");
        }
        match error {
            Unfit::Header(HeaderError::Object(error)) => failed_to_make(&error),
            error => Made::Unusable { reason: error.to_string() },
        }
    }

    /// Writes the header of a copy anew, in place of one of the same block, or of none.
    pub fn rewrite_header(
        &mut self,
        daemon: DaemonId,
        description: BlockDescription,
        committed: u64,
    ) -> Rewritten {
        let (id, guid) = (description.block, description.guid);
        // A header whose data are gone is not to be the only one that is believed.
        if let Some(gone) = self.without_data(daemon, id, committed) {
            return gone;
        }
        let opened = self.open(daemon.get(), ObjectKind::Header(id.get()), true);
        let fd = match opened {
            Ok((fd, _)) => fd,
            Err(ObjectFailure::Object(ObjectError::NotFound { .. })) => {
                return self.restore_header(daemon, description);
            }
            Err(ObjectFailure::Object(error)) => {
                return Rewritten::Failed { reason: error.to_string() };
            }
            Err(failure) => return Rewritten::Gone { reason: failure.to_string() },
        };
        let written = match header::read(fd.as_fd(), self.layout) {
            Ok(found) if found.daemon == daemon && found.description.guid == guid => {
                header::update(fd.as_fd(), &BlockHeader { daemon, description })
            }
            Ok(_) => return Rewritten::Gone { reason: "its header is another block's".to_owned() },
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => Rewritten::Written,
            Err(HeaderError::Object(error)) => Rewritten::Failed { reason: error.to_string() },
            Err(error) => Rewritten::Gone { reason: error.to_string() },
        }
    }

    /// Why no header of a copy is written, if its data are not there.
    fn without_data(&self, daemon: DaemonId, block: BlockId, needs: u64) -> Option<Rewritten> {
        match self.open(daemon.get(), ObjectKind::Data(block.get()), false) {
            Ok((_, stat)) if stat.bytes >= needs => None,
            Ok((_, stat)) => {
                let reason = format!("its object has {} bytes of {needs}", stat.bytes);
                Some(Rewritten::Gone { reason })
            }
            Err(ObjectFailure::Object(error)) if !matches!(error, ObjectError::NotFound { .. }) => {
                Some(Rewritten::Failed { reason: error.to_string() })
            }
            Err(failure) => Some(Rewritten::Gone { reason: failure.to_string() }),
        }
    }

    /// Writes the header of a copy that has none, and whose data are there. It is whole when it has
    /// its name: a daemon would remove what is under a header that is not.
    fn restore_header(&mut self, daemon: DaemonId, description: BlockDescription) -> Rewritten {
        let block = description.block.get();
        let name = self.name(daemon.get(), ObjectKind::Header(block));
        warn!(object = name, "it was removed, and is written again");
        match self.headers.make(&self.folder, &name, &BlockHeader { daemon, description }) {
            Ok(()) => Rewritten::Written,
            // Its daemon may have been first: it is written in its place.
            Err(HeaderError::Object(error)) => Rewritten::Failed { reason: error.to_string() },
            Err(error) => Rewritten::Gone { reason: error.to_string() },
        }
    }

    /// Remembers that a daemon is drained, or not any more, by an object without bytes.
    pub fn remember_drain(&self, daemon: DaemonId, is_draining: bool) {
        let name = self.name(BROKER, ObjectKind::Drain(daemon.get()));
        let done = if is_draining {
            self.folder.create(&name).map(drop)
        } else {
            self.folder.unlink(&name)
        };
        match done {
            Ok(()) | Err(ObjectError::Exists { .. } | ObjectError::NotFound { .. }) => {}
            Err(error) => warn!(object = name, "a broker that comes back will not know: {error}"),
        }
    }

    /// Removes the header of a copy that nobody wants any more, if nobody serves its daemon.
    pub fn remove_header(&self, daemon: DaemonId, (block, guid): (BlockId, Guid)) {
        let kind = ObjectKind::Header(block.get());
        let Ok((fd, _)) = self.open(daemon.get(), kind, false) else { return };
        let is_it = header::read(fd.as_fd(), self.layout)
            .is_ok_and(|found| found.daemon == daemon && found.description.guid == guid);
        if !is_it || self.is_served(daemon) {
            return;
        }
        let name = self.name(daemon.get(), kind);
        match self.folder.unlink(&name) {
            Ok(()) => point(Point::StaleHeaderRemoved),
            Err(error) => warn!(object = name, "it stays behind: {error}"),
        }
    }

    /// Opens what a block is made of, and gives back what the block does not need of it.
    fn cut(&self, (daemon, block): (DaemonId, BlockId), committed: u64) -> Result<OwnedFd, Unfit> {
        let (fd, stat) = self.open(daemon.get(), ObjectKind::Data(block.get()), true)?;
        let bytes = stat.bytes;
        if bytes < committed {
            return Err(Unfit::Short { bytes, committed });
        }
        if bytes > committed {
            object::truncate(fd.as_fd(), committed).map_err(ObjectFailure::from)?;
        }
        Ok(fd)
    }

    /// When something is to be made ahead.
    pub const fn due_at(&self) -> Option<Millis> {
        self.headers.due_at()
    }

    /// Makes ahead what is due.
    pub fn tend(&mut self, now: Millis) {
        self.headers.tend(&self.folder, now);
    }

    /// Lets go of what nobody has asked for.
    pub fn forget_made(&self) {
        self.made.set(None);
    }

    /// The data of a block: as it is open since it was made, or opened now.
    fn open_data(
        &self,
        (daemon, block): (DaemonId, BlockId),
        writable: bool,
    ) -> Result<OwnedFd, ObjectFailure> {
        match self.made.take() {
            Some(made) if writable && (made.daemon, made.block) == (daemon, block) => Ok(made.data),
            _ => Ok(self.open(daemon.get(), ObjectKind::Data(block.get()), writable)?.0),
        }
    }

    /// Opens what travels with a reply, all or nothing.
    pub fn open_all<'a>(
        &self,
        sessions: &'a Sessions,
        descriptors: &[Descriptor],
    ) -> Result<Vec<Passed<'a>>, OpenFailure> {
        let open_one = |descriptor: &Descriptor| match *descriptor {
            Descriptor::Block { daemon, block, writable } => {
                self.open_data((daemon, block), writable).map(Passed::Opened).map_err(|failure| {
                    let gone = failure.is_absence();
                    let status = if gone { Status::Lost } else { Status::Internal };
                    let refusal = Refusal::new(status, format!("block {block}: {failure}"));
                    OpenFailure { refusal, gone: gone.then_some(Gone::Copy(daemon, block)) }
                })
            }
            Descriptor::Locks { block, writable, session } => {
                let undo = if writable { sessions.commit_undo(session) } else { Ok(()) };
                undo.map_err(|refusal| OpenFailure { refusal, gone: None })?;
                let opened = self.open(BROKER, ObjectKind::LockTable(block.get()), writable);
                opened.map(|(fd, _)| Passed::Opened(fd)).map_err(|failure| {
                    let text = format!("lock table of block {block}: {failure}");
                    let gone = failure.is_absence();
                    let status = if gone { Status::Unavailable } else { Status::Internal };
                    let refusal = Refusal::new(status, text);
                    OpenFailure { refusal, gone: gone.then_some(Gone::Locks(block)) }
                })
            }
            Descriptor::SessionObject(session) => {
                sessions.object(session).map(Passed::Kept).map_err(|e| no_session(&e))
            }
            Descriptor::Doorbell(session) => {
                sessions.doorbell(session).map(Passed::Kept).map_err(|e| no_session(&e))
            }
            Descriptor::Link { .. } => unreachable!("a link is no object"),
        };
        descriptors.iter().map(open_one).collect()
    }

    /// The sizes of data objects. One that could not be looked at is left out: that says nothing
    /// about its block, and to call it lost would be to lose it.
    pub fn inspect(&self, daemon: DaemonId, blocks: &[BlockId]) -> Vec<(BlockId, Option<u64>)> {
        let mut found = Vec::with_capacity(blocks.len());
        let mut unseen: usize = 0;
        for &block in blocks {
            match self.open(daemon.get(), ObjectKind::Data(block.get()), false) {
                Ok((_, stat)) => found.push((block, Some(stat.bytes))),
                Err(failure) if failure.is_absence() => found.push((block, None)),
                Err(failure) => {
                    if unseen == 0 {
                        warn!(%block, "not looked at: {failure}");
                    }
                    unseen += 1;
                }
            }
        }
        if unseen > 1 {
            warn!(%daemon, "{unseen} objects could not be looked at");
        }
        found
    }
}

fn failed_to_make(error: &ObjectError) -> Made {
    let reason = error.to_string();
    match error {
        ObjectError::Exists { .. } => Made::NameTaken { reason },
        _ => Made::Unusable { reason },
    }
}

fn no_session(error: &std::io::Error) -> OpenFailure {
    let refusal = Refusal::new(Status::Internal, format!("the session's descriptors: {error}"));
    OpenFailure { refusal, gone: None }
}

/// Why no block was made of an object.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// It could not be opened, or cut.
    #[error(transparent)]
    Object(#[from] ObjectFailure),
    /// It is not as long as its daemon has said.
    #[error("it has {bytes} bytes, {committed} are to be committed")]
    Short {
        /// Its bytes.
        bytes: u64,
        /// Those of the block.
        committed: u64,
    },
    /// The header could not be made.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Why the objects of a block are not taken in.
#[derive(Debug, thiserror::Error)]
enum Unsound {
    /// One of them could not be opened.
    #[error(transparent)]
    Object(#[from] ObjectFailure),
    /// The header says nothing.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The header is that of something else.
    #[error("it is the header of block {block} of daemon {daemon}")]
    Misplaced {
        /// The block that it speaks of.
        block: BlockId,
        /// The daemon that it speaks of.
        daemon: DaemonId,
    },
}

/// Why an object is not opened.
#[derive(Debug, thiserror::Error)]
pub enum ObjectFailure {
    /// It could not be opened.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It is not what a server of ours makes.
    #[error("{name} is not a regular file of the service's own, with mode 0600 and one link")]
    Foreign {
        /// Its name.
        name: String,
    },
}

impl ObjectFailure {
    /// Whether it says that there is no such object of ours. Anything else, such as no descriptor
    /// being left, says nothing about the object.
    pub const fn is_absence(&self) -> bool {
        use ObjectError::{Denied, NotFound};
        matches!(self, Self::Foreign { .. } | Self::Object(NotFound { .. } | Denied { .. }))
    }
}

#[cfg(test)]
mod tests;
