//! Shared memory objects: named files of one directory of a memory file system.
//!
//! # Invariants
//!
//! 1. Every name is one path component, resolved against the directory's descriptor: renaming or
//!    covering the directory's path does not move us to another directory.
//! 2. What is created is a regular file of mode 0600 whatever the umask; nothing follows a symbolic
//!    link, and nothing that merely opens an object can hang on a fifo.
//! 3. Offsets and sizes are `u64`. An object of more than 2 GiB works in a 32-bit process.
//! 4. [`commit`] either reserves every page of its range or answers [`ObjectError::NoSpace`]; after
//!    success no store to the range can fail for lack of file system space.
//!
//! An opened object may be anyone's: what it is ([`stat`]) and whether to trust it is the caller's
//! to judge.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

pub mod watched;
pub mod word;

/// Where POSIX shared memory lives on Linux.
pub const DEFAULT_DIR: &str = "/dev/shm";

use crate::crash;

/// [`commit`] asks the kernel for this much at a time, so that a signal can be handled in between.
const COMMIT_STEP_BYTES: u64 = 64 << 20;

/// The longest name that the file systems of Linux take.
const NAME_BYTES_MAX: usize = 255;

const OBJECT_MODE: Mode = Mode::from_raw_mode(0o600);

/// Why an operation on an object or its directory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum ObjectError {
    /// The file system is full (or its quota is).
    #[error("{action}: no space left in the shared memory file system")]
    NoSpace { action: &'static str },
    /// No object of that name.
    #[error("{action}: {name} does not exist")]
    NotFound { action: &'static str, name: String },
    /// An object of that name is there already.
    #[error("{action}: {name} exists already")]
    Exists { action: &'static str, name: String },
    /// The kernel's permission check said no, or the name is a symbolic link.
    #[error("{action}: access to {name} is denied")]
    Denied { action: &'static str, name: String },
    /// Not one path component of 1 to 255 bytes.
    #[error("{name:?} is not the name of an object")]
    Name { name: String },
    /// The object ends before the bytes that were asked for.
    #[error("{action}: {done} of {wanted} bytes at {offset:#x} were transferred")]
    Short { action: &'static str, offset: u64, wanted: usize, done: usize },
    /// Anything else that the kernel answered.
    #[error("{action} of {name} failed")]
    Io { action: &'static str, name: String, source: io::Error },
}

impl ObjectError {
    fn of(action: &'static str, name: &str, errno: Errno) -> Self {
        let name = name.to_owned();
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { action },
            Errno::NOENT => Self::NotFound { action, name },
            Errno::EXIST => Self::Exists { action, name },
            Errno::ACCESS | Errno::PERM | Errno::LOOP => Self::Denied { action, name },
            other => Self::Io { action, name, source: other.into() },
        }
    }

    /// The same for a call that has only a descriptor to name the object by.
    fn of_fd(action: &'static str, errno: Errno) -> Self {
        Self::of(action, "an open object", errno)
    }
}

/// What the kernel says of an object. A claim of the moment: a writer may change sizes at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// The file size.
    pub bytes: u64,
    /// The bytes that the file really holds in memory: committed or touched pages.
    pub allocated_bytes: u64,
    /// Permission bits (the low 12 of the mode).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// Names that the file has; 0 after the last unlink.
    pub links: u32,
    /// A regular file, not a fifo, device, socket or directory.
    pub regular: bool,
    /// With the device, the identity of the file as long as anyone holds it.
    pub inode: u64,
}

/// An open directory of the shared memory file system.
#[derive(Debug)]
pub struct ObjectDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl ObjectDir {
    /// Opens the directory at `path`, [`DEFAULT_DIR`] or a folder of any tmpfs.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NotFound`], [`ObjectError::Denied`], or [`ObjectError::Io`] (not a
    /// directory).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ObjectError> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| fs::open(path, flags, Mode::empty()))
            .map_err(|errno| ObjectError::of("open directory", &path.to_string_lossy(), errno))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The path that the directory was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory lies in a tmpfs, so that its objects are memory.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Io`].
    pub fn is_tmpfs(&self) -> Result<bool, ObjectError> {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        let stat = retry_on_intr(|| fs::fstatfs(&self.fd)).map_err(|e| self.error("statfs", e))?;
        // `f_type` is a signed or unsigned word of 32 or 64 bits, by architecture.
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "a bit pattern")]
        Ok(stat.f_type as u64 == TMPFS_MAGIC)
    }

    /// Creates an empty object, mode 0600 whatever the umask, open for reading and writing.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Exists`], [`ObjectError::NoSpace`], [`ObjectError::Denied`],
    /// [`ObjectError::Name`], [`ObjectError::Io`].
    pub fn create(&self, name: &str) -> Result<OwnedFd, ObjectError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = self.open_at("create", name, flags, OBJECT_MODE)?;
        // A umask can only have taken bits away, so there was no moment of too much access.
        fs::fchmod(&fd, OBJECT_MODE).map_err(|errno| ObjectError::of("create", name, errno))?;
        crash::step();
        Ok(fd)
    }

    /// Creates an empty object that has no name, mode 0600 whatever the umask, open for reading and
    /// writing. It goes with its last descriptor, if it is not named before.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NoSpace`], [`ObjectError::Denied`], [`ObjectError::Io`].
    pub fn create_unnamed(&self) -> Result<OwnedFd, ObjectError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| fs::openat(&self.fd, ".", flags, OBJECT_MODE))
            .map_err(|errno| self.error("create", errno))?;
        fs::fchmod(&fd, OBJECT_MODE).map_err(|errno| self.error("create", errno))?;
        crash::step();
        Ok(fd)
    }

    /// Names an object of [`ObjectDir::create_unnamed`], as it is at this moment, and fails rather
    /// than replace another.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Exists`], [`ObjectError::Name`], [`ObjectError::Denied`],
    /// [`ObjectError::Io`].
    pub fn name_new(&self, fd: BorrowedFd<'_>, name: &str) -> Result<(), ObjectError> {
        check_name(name)?;
        let named = match fs::linkat(fd, "", &self.fd, name, AtFlags::EMPTY_PATH) {
            // Before Linux 6.10 that takes a privilege, which this does not.
            Err(Errno::NOENT) => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                fs::linkat(fs::CWD, path, &self.fd, name, AtFlags::SYMLINK_FOLLOW)
            }
            named => named,
        };
        named.map_err(|errno| ObjectError::of("name", name, errno))?;
        crash::step();
        Ok(())
    }

    /// Opens an object for reading and writing.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NotFound`], [`ObjectError::Denied`] (a symbolic link too),
    /// [`ObjectError::Name`], [`ObjectError::Io`].
    pub fn open_read_write(&self, name: &str) -> Result<OwnedFd, ObjectError> {
        self.open_at("open", name, OFlags::RDWR, Mode::empty())
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::open_read_write`].
    pub fn open_read_only(&self, name: &str) -> Result<OwnedFd, ObjectError> {
        self.open_at("open", name, OFlags::RDONLY, Mode::empty())
    }

    /// Renames an object, and fails rather than replace another.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Exists`] if `to` is taken, [`ObjectError::NotFound`] if `from` is not there,
    /// [`ObjectError::Denied`], [`ObjectError::Name`], [`ObjectError::Io`].
    pub fn rename_new(&self, from: &str, to: &str) -> Result<(), ObjectError> {
        check_name(from)?;
        check_name(to)?;
        fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE).map_err(
            |errno| {
                let name = if errno == Errno::EXIST { to } else { from };
                ObjectError::of("rename", name, errno)
            },
        )?;
        crash::step();
        Ok(())
    }

    /// Removes the name. The memory goes when the last descriptor and mapping are gone.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NotFound`], [`ObjectError::Denied`], [`ObjectError::Name`],
    /// [`ObjectError::Io`].
    pub fn unlink(&self, name: &str) -> Result<(), ObjectError> {
        check_name(name)?;
        fs::unlinkat(&self.fd, name, AtFlags::empty())
            .map_err(|errno| ObjectError::of("unlink", name, errno))?;
        crash::step();
        Ok(())
    }

    /// The names that begin with `prefix`, sorted. Names that are not UTF-8 are never ours and are
    /// left out.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Io`].
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        let entries = fs::Dir::read_from(&self.fd).map_err(|e| self.error("list", e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.error("list", e))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with(prefix) && name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What the file system could still hold for this user.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Io`].
    pub fn free_bytes(&self) -> Result<u64, ObjectError> {
        let stat = fs::fstatvfs(&self.fd).map_err(|e| self.error("statvfs", e))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The size of the file system; 0 for a tmpfs without a limit.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Io`].
    pub fn total_bytes(&self) -> Result<u64, ObjectError> {
        let stat = fs::fstatvfs(&self.fd).map_err(|e| self.error("statvfs", e))?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn open_at(
        &self,
        action: &'static str,
        name: &str,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, ObjectError> {
        check_name(name)?;
        // NONBLOCK: a fifo of that name must not hold us; for regular files it means nothing.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        retry_on_intr(|| fs::openat(&self.fd, name, flags, mode))
            .map_err(|errno| ObjectError::of(action, name, errno))
    }

    fn error(&self, action: &'static str, errno: Errno) -> ObjectError {
        ObjectError::of(action, &self.path.to_string_lossy(), errno)
    }
}

impl AsFd for ObjectDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel says of an open object.
///
/// # Errors
///
/// [`ObjectError::Io`].
pub fn stat(fd: BorrowedFd<'_>) -> Result<ObjectStat, ObjectError> {
    // `statx` and not `fstat`: its sizes are 64 bits wide in a 32-bit process too.
    let found = fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|errno| ObjectError::of_fd("stat", errno))?;
    let mode = u32::from(found.stx_mode);
    Ok(ObjectStat {
        bytes: found.stx_size,
        allocated_bytes: found.stx_blocks.saturating_mul(512),
        mode: mode & 0o7777,
        uid: found.stx_uid,
        links: found.stx_nlink,
        regular: mode & libc::S_IFMT == libc::S_IFREG,
        inode: found.stx_ino,
    })
}

/// The size alone: a fraction of the cost of [`stat`], for checks between other calls. Moves the
/// position that all holders of this open file description share, which no function here uses.
///
/// # Errors
///
/// [`ObjectError::Io`].
pub fn end(fd: BorrowedFd<'_>) -> Result<u64, ObjectError> {
    fs::seek(fd, fs::SeekFrom::End(0)).map_err(|errno| ObjectError::of_fd("measure", errno))
}

/// Sets the size. Growing does not commit; shrinking makes mapped pages beyond the end raise
/// SIGBUS.
///
/// # Errors
///
/// [`ObjectError::Denied`] for a read-only descriptor or a sealed file, [`ObjectError::Io`].
pub fn truncate(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), ObjectError> {
    match retry_on_intr(|| fs::ftruncate(fd, bytes)) {
        Ok(()) => {
            crash::step();
            Ok(())
        }
        // What the kernel answers for a descriptor that is not open for writing.
        Err(Errno::INVAL | Errno::BADF) if !is_writable(fd) => {
            Err(ObjectError::of_fd("truncate", Errno::ACCESS))
        }
        Err(errno) => Err(ObjectError::of_fd("truncate", errno)),
    }
}

/// Reserves memory for `bytes` at `offset`, growing the file where needed; pages that are there
/// stay.
///
/// The pages are charged to the calling process's cgroup. On failure a part of the range may stay
/// reserved and the file may have grown: the caller truncates back to the size it knows.
///
/// # Errors
///
/// [`ObjectError::NoSpace`] when the file system is full, [`ObjectError::Denied`],
/// [`ObjectError::Io`].
pub fn commit(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<(), ObjectError> {
    let end = offset.checked_add(bytes).ok_or_else(|| ObjectError::of_fd("commit", Errno::FBIG))?;
    let mut next = offset;
    while next < end {
        let step = (end - next).min(COMMIT_STEP_BYTES);
        match retry_on_intr(|| fs::fallocate(fd, FallocateFlags::empty(), next, step)) {
            Ok(()) => {
                next += step;
                crash::step();
            }
            Err(Errno::BADF) => return Err(ObjectError::of_fd("commit", Errno::ACCESS)),
            Err(errno) => return Err(ObjectError::of_fd("commit", errno)),
        }
    }
    Ok(())
}

/// Gives the memory of a range back and leaves zeros; the size stays.
///
/// # Errors
///
/// [`ObjectError::Denied`], [`ObjectError::Io`].
pub fn punch_hole(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<(), ObjectError> {
    if bytes == 0 {
        return Ok(());
    }
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry_on_intr(|| fs::fallocate(fd, mode, offset, bytes)) {
        Ok(()) => Ok(()),
        Err(Errno::BADF) => Err(ObjectError::of_fd("punch hole", Errno::ACCESS)),
        Err(errno) => Err(ObjectError::of_fd("punch hole", errno)),
    }
}

/// Fills `buf` from `offset`.
///
/// # Errors
///
/// [`ObjectError::Short`] when the object ends before that, [`ObjectError::Io`].
pub fn read_at(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<(), ObjectError> {
    let done = read_at_most(fd, buf, offset)?;
    if done < buf.len() {
        return Err(ObjectError::Short { action: "read", offset, wanted: buf.len(), done });
    }
    Ok(())
}

/// Reads from `offset` until `buf` is full or the object ends; returns the bytes read.
///
/// # Errors
///
/// [`ObjectError::Io`].
pub fn read_at_most(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<usize, ObjectError> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let at = offset.saturating_add(done as u64);
        match retry_on_intr(|| rustix::io::pread(fd, &mut *rest, at)) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(errno) => return Err(ObjectError::of_fd("read", errno)),
        }
    }
    Ok(done)
}

/// Writes all of `data` at `offset`, growing the object where needed.
///
/// # Errors
///
/// [`ObjectError::NoSpace`] when a page that is not committed could not be had,
/// [`ObjectError::Short`], [`ObjectError::Io`].
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<(), ObjectError> {
    let mut done = 0;
    while done < data.len() {
        let at = offset.saturating_add(done as u64);
        match retry_on_intr(|| rustix::io::pwrite(fd, &data[done..], at)) {
            Ok(0) => {
                let wanted = data.len();
                return Err(ObjectError::Short { action: "write", offset, wanted, done });
            }
            Ok(bytes) => done += bytes,
            Err(Errno::BADF) => return Err(ObjectError::of_fd("write", Errno::ACCESS)),
            Err(errno) => return Err(ObjectError::of_fd("write", errno)),
        }
    }
    crash::step();
    Ok(())
}

/// A second descriptor of the same object that can only read, to be granted to a reader.
///
/// It is a new open file description: neither position, flags nor OFD locks are shared. Needs
/// `/proc`, and works after the name was removed.
///
/// # Errors
///
/// [`ObjectError::Denied`], [`ObjectError::NotFound`] where `/proc` is not mounted,
/// [`ObjectError::Io`].
pub fn reopen_read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd, ObjectError> {
    let path = proc_path(fd);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    retry_on_intr(|| fs::open(&path, flags, Mode::empty()))
        .map_err(|errno| ObjectError::of("reopen", &path, errno))
}

/// Whether the descriptor was opened for writing.
#[must_use]
pub fn is_writable(fd: BorrowedFd<'_>) -> bool {
    fs::fcntl_getfl(fd).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR))
}

/// The path that names an open descriptor of this process.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn check_name(name: &str) -> Result<(), ObjectError> {
    let is_one_component = Path::new(name).file_name() == Some(OsStr::new(name));
    if !is_one_component || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(ObjectError::Name { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
