//! The directory of a private instance: its files, its name, and whose turn it is to change it.
//!
//! ```text
//! DIR/broker.sock, DIR/daemon.sock    made by the broker
//! DIR/broker.pid, DIR/daemon-N.pid    decimal, for people and scripts; never read here
//! DIR/instance.json                   what `up` decided, so that `down` finds the same objects
//! DIR/up.lock                         held by an `up` or `down` at work
//! DIR/log/                            broker.log, daemon-N.log, supervisor.log: appended to
//! ```
//!
//! # Invariants
//!
//! 1. A [`Home`] is an absolute path without links, so one directory has one path, and the name
//!    that is derived from it is the same each time.
//! 2. Files appear whole (written aside, then renamed) or not at all.
//! 3. Who holds the [`Turn`] is the only `up` or `down` that changes the directory. The lock's file
//!    may be removed by its holder: who gets the lock makes sure that the file is still the one in
//!    the directory.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dmce_abi::AddrLayout;
use dmce_abi::name::Instance;
use dmce_config::Bytes;
use dmce_sys::identity::effective_uid;
use serde::{Deserialize, Serialize};

use crate::processes::Role;

/// The longest path of a socket that the kernel takes, without the zero after it.
const SOCKET_PATH_BYTES_MAX: usize = 107;

const NOTE: &str = "instance.json";
const LOCK: &str = "up.lock";
const SOCKETS: [&str; 2] = ["broker.sock", "daemon.sock"];

/// The directory of a private instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

/// What `up` decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The name that the objects carry.
    pub instance: String,
    /// Their folder.
    pub objects: PathBuf,
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// How addresses are divided, whatever said so.
    #[serde(default, with = "layout_text")]
    pub layout: Option<AddrLayout>,
    /// What options said: the next `up` takes it over.
    #[serde(default)]
    pub options: Options,
}

/// Options of `up` that were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "docs/command.md explains the options")]
pub struct Options {
    pub daemons: Option<u32>,
    pub capacity: Option<Bytes>,
    pub copies: Option<u32>,
    #[serde(with = "layout_text")]
    pub layout: Option<AddrLayout>,
}

/// A layout as it stands on a command line.
mod layout_text {
    use dmce_abi::AddrLayout;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    #[allow(
        clippy::ref_option,
        clippy::trivially_copy_pass_by_ref,
        reason = "serde says how it is called"
    )]
    pub fn serialize<S: Serializer>(
        layout: &Option<AddrLayout>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        layout.map(|layout| layout.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<AddrLayout>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
    }
}

/// Why a directory cannot be one of an instance.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum HomeError {
    /// A system call about one of its files failed.
    #[error("{} {}", action, path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Something else has its path.
    #[error("{} is not a directory", path.display())]
    NoDirectory { path: PathBuf },
    /// The directory belongs to somebody else, who could put links where files are written.
    #[error("{} belongs to user {owner}, not to user {user}", path.display())]
    Foreign { path: PathBuf, owner: u32, user: u32 },
    /// No socket address can hold the path.
    #[error("{} is {bytes} bytes long, and a socket's path is at most {SOCKET_PATH_BYTES_MAX}",
            path.display())]
    TooLong { path: PathBuf, bytes: usize },
    /// Another `up` or `down` is at work there.
    #[error("another dmce is starting or stopping {}", path.display())]
    Busy { path: PathBuf },
    /// The note is not what `up` writes.
    #[error("{} is damaged: remove it if it is not of this instance", path.display())]
    Note { path: PathBuf, source: serde_json::Error },
}

impl Home {
    /// The directory for `up`: made, with mode 0700, if it is missing.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`], [`HomeError::NoDirectory`], [`HomeError::Foreign`],
    /// [`HomeError::TooLong`].
    pub fn create(dir: &Path) -> Result<Self, HomeError> {
        let failed = |action| move |source| HomeError::Io { action, path: dir.to_owned(), source };
        // Without what says nothing at its end, such as `/.`, which no folder is made by.
        let dir = &dir.components().collect::<PathBuf>();
        if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
            return Err(HomeError::NoDirectory { path: dir.clone() });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("making"))?;
        let path = fs::canonicalize(dir).map_err(failed("resolving"))?;
        let (owner, user) =
            (fs::metadata(&path).map_err(failed("looking at"))?.uid(), effective_uid());
        if owner != user {
            return Err(HomeError::Foreign { path, owner, user });
        }
        let home = Self { path };
        for socket in SOCKETS {
            let path = home.file(socket);
            let bytes = path.as_os_str().len();
            if bytes > SOCKET_PATH_BYTES_MAX {
                return Err(HomeError::TooLong { path, bytes });
            }
        }
        let log = home.file("log");
        match DirBuilder::new().mode(0o700).create(&log) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(HomeError::Io { action: "making", path: log, source })
            }
            _ => Ok(home),
        }
    }

    /// The directory for `down`, which may be gone already: then as much of its path is resolved as
    /// there is.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`], [`HomeError::NoDirectory`].
    pub fn find(dir: &Path) -> Result<Self, HomeError> {
        let failed = |source| HomeError::Io { action: "resolving", path: dir.to_owned(), source };
        let absolute = std::path::absolute(dir).map_err(failed)?;
        let mut missing = Vec::new();
        let mut there = absolute.as_path();
        loop {
            match fs::canonicalize(there) {
                Ok(path) if !path.is_dir() => return Err(HomeError::NoDirectory { path }),
                Ok(mut path) => {
                    path.extend(missing.iter().rev());
                    return Ok(Self { path });
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Err(error) => {
                    let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
                        return Err(failed(error));
                    };
                    missing.push(name.to_owned());
                    there = parent;
                }
            }
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory is there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The broker's socket for clients.
    pub fn socket(&self) -> PathBuf {
        self.file("broker.sock")
    }

    /// The log of a process.
    pub fn log(&self, role: Role) -> PathBuf {
        self.file("log").join(format!("{}.log", name_of(role)))
    }

    /// Opens the log of a process to be appended to.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn open_log(&self, role: Role) -> Result<File, HomeError> {
        let path = self.log(role);
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        opened.map_err(|source| HomeError::Io { action: "opening", path, source })
    }

    /// The name of an instance of this directory that no configuration names.
    pub fn derived_name(&self) -> Instance {
        let hash = fnv1a(self.path.as_os_str()) & 0xffff_ffff_ffff;
        Instance::new(&format!("p{hash:012x}")).expect("13 letters and digits are a name")
    }

    /// Takes the turn, without waiting for another.
    ///
    /// # Errors
    ///
    /// [`HomeError::Busy`], [`HomeError::Io`].
    pub fn try_turn(&self) -> Result<Turn, HomeError> {
        self.turn_by(|file| match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(HomeError::Busy { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(self.lock_failed(source)),
        })
    }

    /// Takes the turn when it is free: an `up` at work comes to its end within its limit.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn wait_turn(&self) -> Result<Turn, HomeError> {
        self.turn_by(|file| file.lock().map_err(|source| self.lock_failed(source)))
    }

    fn turn_by(&self, lock: impl Fn(&File) -> Result<(), HomeError>) -> Result<Turn, HomeError> {
        let path = self.file(LOCK);
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        loop {
            let (file, made) = match options.clone().create_new(true).open(&path) {
                Ok(file) => (Ok(file), true),
                Err(_) => (options.clone().create(true).open(&path), false),
            };
            let file = file.map_err(|source| self.lock_failed(source))?;
            lock(&file)?;
            let ours = file.metadata().map_err(|source| self.lock_failed(source))?;
            let same =
                |found: &fs::Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
            if fs::metadata(&path).is_ok_and(|found| same(&found)) {
                return Ok(Turn { path, made, _lock: file });
            }
        }
    }

    fn lock_failed(&self, source: io::Error) -> HomeError {
        HomeError::Io { action: "locking", path: self.file(LOCK), source }
    }

    /// What the last `up` decided, unless a `down` has ended that since.
    ///
    /// # Errors
    ///
    /// [`HomeError::Note`], [`HomeError::Io`].
    pub fn note(&self) -> Result<Option<Note>, HomeError> {
        let path = self.file(NOTE);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(note) => Ok(Some(note)),
                Err(source) => Err(HomeError::Note { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Io { action: "reading", path, source }),
        }
    }

    /// Writes down what `up` decided.
    ///
    /// # Errors
    ///
    /// [`HomeError::Note`] for a path that is no UTF-8, [`HomeError::Io`].
    pub fn write_note(&self, note: &Note) -> Result<(), HomeError> {
        let damaged = |source| HomeError::Note { path: self.file(NOTE), source };
        let mut text = serde_json::to_string_pretty(note).map_err(damaged)?;
        text.push('\n');
        self.write(NOTE, &text)
    }

    /// Writes the pid file of a process.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn write_pid(&self, role: Role, pid: u32) -> Result<(), HomeError> {
        self.write(&pid_file(role), &format!("{pid}\n"))
    }

    /// Removes the pid file of a process.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn remove_pid(&self, role: Role) -> Result<(), HomeError> {
        remove(&self.file(&pid_file(role)))
    }

    /// Removes what servers leave in the directory: sockets and pid files.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn remove_traces(&self) -> Result<(), HomeError> {
        let failed = |source| HomeError::Io { action: "listing", path: self.path.clone(), source };
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_str().is_some_and(is_trace) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes the sockets of a broker that has ended, and nothing else that is called so.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn remove_sockets(&self) -> Result<(), HomeError> {
        let is_socket = |path: &PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        };
        let sockets = SOCKETS.iter().map(|name| self.file(name)).filter(is_socket);
        sockets.into_iter().try_for_each(|socket| remove(&socket))
    }

    /// Removes the note: the next `up` decides anew.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn remove_note(&self) -> Result<(), HomeError> {
        remove(&self.file(NOTE))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), HomeError> {
        let path = self.file(name);
        let aside = self.file(&format!(".{name}.{}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&aside, &path));
        written.map_err(|source| {
            // What is left aside would stay for ever; that it stays is no worse than the error.
            let _ = fs::remove_file(&aside);
            HomeError::Io { action: "writing", path, source }
        })
    }
}

/// The right to start and stop what is in a directory, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    /// Whether its file was not there before.
    made: bool,
    _lock: File,
}

impl Turn {
    /// Gives the turn back and leaves no file.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn end(self) -> Result<(), HomeError> {
        remove(&self.path)
    }

    /// Gives the turn back and leaves the file if it was there before.
    ///
    /// # Errors
    ///
    /// [`HomeError::Io`].
    pub fn undo(self) -> Result<(), HomeError> {
        if self.made { self.end() } else { Ok(()) }
    }
}

/// What the files of a process are called.
pub fn name_of(role: Role) -> String {
    match role {
        Role::Supervisor => "supervisor".to_owned(),
        Role::Broker => "broker".to_owned(),
        Role::Daemon(id) => format!("daemon-{id}"),
    }
}

fn pid_file(role: Role) -> String {
    format!("{}.pid", name_of(role))
}

fn is_trace(name: &str) -> bool {
    let is_daemon = |name: &str| {
        let id = name.strip_prefix("daemon-").and_then(|name| name.strip_suffix(".pid"));
        id.is_some_and(|id| id.parse::<u32>().is_ok())
    };
    SOCKETS.contains(&name) || name == "broker.pid" || is_daemon(name)
}

fn remove(path: &Path) -> Result<(), HomeError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(HomeError::Io { action: "removing", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The 64-bit FNV-1a hash: the same in every release, because memory is found again by it.
fn fnv1a(text: &OsStr) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    text.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of a test, removed with all that is in it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let unique = format!("dmce-test-{}-{name}", std::process::id());
            let path = fs::canonicalize(std::env::temp_dir()).unwrap().join(unique);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Memory of an earlier release is found by this name.
    #[test]
    fn the_derived_name_is_a_hash_of_the_path_for_ever() {
        assert_eq!(fnv1a(OsStr::new("")), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(OsStr::new("foobar")), 0x8594_4171_f739_67e8);
        let home = Home { path: "/tmp/mine".into() };
        assert_eq!(home.derived_name().as_str(), "pc7304802258f");
    }

    #[test]
    fn one_directory_has_one_name_by_whatever_path() {
        let scratch = Scratch::new("paths");
        let home = Home::create(&scratch.0.join("a/b")).unwrap();
        assert_eq!(fs::metadata(home.path()).unwrap().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(home.path(), scratch.0.join("link")).unwrap();
        for path in ["a/b/", "a/../a/b/.", "link"] {
            assert_eq!(Home::create(&scratch.0.join(path)).unwrap(), home, "{path}");
            assert_eq!(Home::find(&scratch.0.join(path)).unwrap(), home, "{path}");
        }
        fs::remove_dir_all(home.path()).unwrap();
        assert_eq!(Home::find(&scratch.0.join("a/b")).unwrap(), home, "it is gone");
        fs::remove_dir_all(scratch.0.join("a")).unwrap();
        assert_eq!(Home::find(&scratch.0.join("a/b")).unwrap(), home, "its parent, too");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_at_once() {
        let scratch = Scratch::new("long");
        let error = Home::create(&scratch.0.join("x".repeat(90))).unwrap_err();
        assert!(error.to_string().ends_with("a socket's path is at most 107"), "{error}");
    }

    #[test]
    fn one_turn_at_a_time_and_never_on_a_file_that_was_removed() {
        let scratch = Scratch::new("turn");
        let home = Home::create(&scratch.0).unwrap();
        let turn = home.try_turn().unwrap();
        assert!(matches!(home.try_turn(), Err(HomeError::Busy { .. })));

        let waiting = std::thread::spawn({
            let home = home.clone();
            move || home.wait_turn().map(|turn| turn.end().unwrap()).unwrap()
        });
        turn.end().unwrap();
        waiting.join().unwrap();
        assert!(!scratch.0.join(LOCK).exists());
        drop(home.try_turn().unwrap());
        assert!(home.try_turn().is_ok(), "dropped is given back");
    }

    #[test]
    fn a_note_is_found_again_and_a_damaged_one_is_named() {
        let scratch = Scratch::new("note");
        let home = Home::create(&scratch.0).unwrap();
        assert_eq!(home.note().unwrap(), None);
        let options = Options {
            daemons: Some(2),
            capacity: Some(Bytes(5 << 12)),
            copies: Some(1),
            layout: Some(AddrLayout::OS32),
        };
        let note = Note {
            instance: "x".into(),
            objects: "/dev/shm".into(),
            config: Some("/c".into()),
            layout: Some(AddrLayout::new(16, 20, 28).unwrap()),
            options,
        };
        home.write_note(&note).unwrap();
        assert_eq!(home.note().unwrap(), Some(note));
        let least = r#"{ "instance": "x", "objects": "/o", "config": null }"#;
        fs::write(scratch.0.join(NOTE), least).unwrap();
        assert_eq!(home.note().unwrap().unwrap().options, Options::default());
        fs::write(scratch.0.join(NOTE), "{").unwrap();
        assert!(home.note().unwrap_err().to_string().contains("instance.json is damaged"));
        home.remove_note().unwrap();
        assert_eq!(home.note().unwrap(), None);
    }

    #[test]
    fn traces_of_servers_are_removed_and_nothing_else() {
        let scratch = Scratch::new("traces");
        let home = Home::create(&scratch.0).unwrap();
        home.write_pid(Role::Broker, 1).unwrap();
        home.write_pid(Role::Daemon(12), 4711).unwrap();
        assert_eq!(fs::read_to_string(scratch.0.join("daemon-12.pid")).unwrap(), "4711\n");
        for name in ["daemon.sock", "daemon-x.pid", "mine.pid", "daemon-1.pid.bak"] {
            fs::write(scratch.0.join(name), "").unwrap();
        }
        home.remove_traces().unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["daemon-1.pid.bak", "daemon-x.pid", "log", "mine.pid"]);
    }
}
