//! Finding the broker, and starting one.
//!
//! ```text
//! option, DMCE_SOCKET -> only that one
//! else  /run/dmce/broker.sock -> $XDG_RUNTIME_DIR/dmce/broker.sock -> dmce up --dir ...
//! ```
//!
//! # Invariants
//!
//! 1. A socket that was named is the only one that is tried, and nothing is started for it. While
//!    it is there and nobody listens, its broker is being started again: it is waited for until
//!    the deadline. One that is not there is of no broker, and is told at once.
//!    Room in the queue of one who listens is waited for until the deadline, wherever it is.
//! 2. Without `XDG_RUNTIME_DIR` the private folder is `/tmp/dmce-UID`, and it is used only if it is
//!    a folder of this user's that nobody else may enter: anyone could have made it.
#![forbid(unsafe_code)]

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use dmce_abi::Status;
use dmce_sys::identity::effective_uid;
use dmce_sys::poll::wait_readable;
use dmce_sys::socket::SocketError;
use dmce_sys::{pidfd, process};

use crate::connection::{Connection, ConnectionError, Deadline};
use crate::error::Error;
use crate::options::Options;

const SYSTEM_SOCKET: &str = "/run/dmce/broker.sock";
const SOCKET_NAME: &str = "broker.sock";

/// How long to wait between two looks at a socket that another process is about to open.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A connection, and where it leads.
#[derive(Debug)]
pub(crate) struct Found {
    /// The connection.
    pub connection: Connection,
    /// The socket.
    pub path: PathBuf,
}

/// Connects to the broker that `options` and the environment name.
///
/// # Errors
///
/// [`Status::Unavailable`] if none is found or can be started; [`Status::Denied`] if the socket
/// that was named may not be used.
pub(crate) fn connect(options: &Options, deadline: Deadline) -> Result<Found, Error> {
    let named = options.socket.clone().or_else(|| non_empty("DMCE_SOCKET"));
    if let Some(path) = named {
        return connect_named(&path, deadline).map_err(Error::from);
    }
    let own = private_dir();
    let mut places = vec![PathBuf::from(SYSTEM_SOCKET)];
    if let Ok(dir) = &own
        && is_private(dir).is_ok()
    {
        places.push(dir.join(SOCKET_NAME));
    }
    let mut last = None;
    for place in places {
        match try_path(place, deadline) {
            Ok(found) => return Ok(found),
            // Somebody listens there: no other instance is to be had in place of that one.
            Err(error @ ConnectionError::Timeout) => return Err(error.into()),
            Err(error) => last = Some(error),
        }
    }
    if options.spawn {
        return start(&own?, deadline);
    }
    let reason = last.map_or_else(String::new, |error| error.to_string());
    Err(Error::new(Status::Unavailable, format!("no broker was found: {reason}")))
}

/// Connects to a socket that was named. The kernel does not tell when somebody begins to listen.
fn connect_named(path: &Path, deadline: Deadline) -> Result<Found, ConnectionError> {
    let mut was_there = false;
    loop {
        let error = match try_path(path.to_owned(), deadline) {
            Err(ConnectionError::Socket(error)) => error,
            tried => return tried,
        };
        let SocketError::NobodyListens { was_there: is_there, .. } = error else {
            return Err(error.into());
        };
        // A broker that starts puts a new socket in the place of the old one: none for a moment.
        was_there |= is_there && !is_other(path);
        if !was_there {
            return Err(error.into());
        }
        let left = deadline.left().ok_or(error)?;
        thread::sleep(LOOK_AGAIN.min(left));
    }
}

/// Whether there is something that is no socket.
fn is_other(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
}

fn try_path(path: PathBuf, deadline: Deadline) -> Result<Found, ConnectionError> {
    let connected = Connection::connect_until(&path, deadline);
    connected.map(|connection| Found { connection, path })
}

/// The folder of the user's own instance.
fn private_dir() -> Result<PathBuf, Error> {
    match non_empty("XDG_RUNTIME_DIR") {
        Some(dir) if dir.is_absolute() => Ok(dir.join("dmce")),
        Some(dir) => {
            let text = format!("XDG_RUNTIME_DIR is {}, no absolute path", dir.display());
            Err(Error::new(Status::Unavailable, text))
        }
        None => Ok(PathBuf::from(format!("/tmp/dmce-{}", effective_uid()))),
    }
}

/// Checks that a folder is this user's and closed to others.
fn is_private(dir: &Path) -> Result<(), Error> {
    let refused =
        |reason: &str| Error::new(Status::Unavailable, format!("{} {reason}", dir.display()));
    let found = fs::symlink_metadata(dir).map_err(|error| refused(&error.to_string()))?;
    if !found.is_dir() {
        return Err(refused("is not a folder"));
    }
    if found.uid() != effective_uid() {
        return Err(refused(&format!("belongs to user {}", found.uid())));
    }
    if found.mode() & 0o077 != 0 {
        return Err(refused(&format!("has mode {:o}, others may enter it", found.mode() & 0o7777)));
    }
    Ok(())
}

/// Starts a private instance, and connects to it.
fn start(dir: &Path, deadline: Deadline) -> Result<Found, Error> {
    let unavailable = |text: String| Error::new(Status::Unavailable, text);
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(unavailable(format!("making {} failed: {error}", dir.display())));
        }
        _ => is_private(dir)?,
    }
    let command = command();
    let mut up = Command::new(&command);
    up.arg("up").arg("--dir").arg(dir);
    up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process::unblock_signals(&mut up);
    let child = up
        .spawn()
        .map_err(|error| unavailable(format!("starting {} failed: {error}", command.display())))?;
    let ended = wait(child, deadline).map_err(|error| {
        unavailable(format!("waiting for {} failed: {error}", command.display()))
    })?;
    tracing::debug!(command = %command.display(), dir = %dir.display(), status = %ended, "started");
    let socket = dir.join(SOCKET_NAME);
    loop {
        // If the command refused, another process may be starting the same instance.
        match try_path(socket.clone(), deadline) {
            Ok(found) => return Ok(found),
            Err(error) if ended.success() => return Err(error.into()),
            Err(error) if deadline.left().is_none() => {
                let text = format!("{} up ended with {ended}: {error}", command.display());
                return Err(unavailable(text));
            }
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Waits for a child until the deadline, and ends it then.
fn wait(mut child: Child, deadline: Deadline) -> io::Result<ExitStatus> {
    let pidfd = pidfd::open(child.id()).map_err(io::Error::other)?;
    while let Some(left) = deadline.left() {
        if wait_readable(pidfd.as_fd(), Some(left))? {
            return child.wait();
        }
    }
    child.kill()?;
    child.wait()?;
    Err(io::ErrorKind::TimedOut.into())
}

/// The command `dmce`: as the environment says, else beside the running program, else in `PATH`.
fn command() -> PathBuf {
    if let Some(command) = non_empty("DMCE_COMMAND") {
        return command;
    }
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.join("dmce")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("dmce"))
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::mpsc;

    use dmce_sys::socket::Listener;

    fn scratch(label: &str) -> PathBuf {
        let dir = env::temp_dir().join(format!("dmce-test-{label}-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        dir
    }

    #[test]
    fn a_folder_that_others_may_enter_or_that_is_a_link_is_not_private() {
        let dir = scratch("private");
        assert!(is_private(&dir).is_ok());
        let link = dir.join("link");
        symlink(&dir, &link).unwrap();
        assert!(is_private(&link).is_err());
        fs::set_permissions(&dir, Permissions::from_mode(0o710)).unwrap();
        let error = is_private(&dir).unwrap_err();
        assert!(error.text().ends_with("has mode 710, others may enter it"), "{error}");
        assert!(is_private(&dir.join("nothing")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_socket_that_was_named_is_the_only_one() {
        let dir = scratch("named");
        let socket = Some(dir.join("broker.sock"));
        let options = Options { socket, spawn: true, ..Options::default() };
        let error = connect(&options, Deadline::after_ms(5_000)).unwrap_err();
        assert_eq!(error.status(), Status::Unavailable);
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Whether a thread of this process sleeps.
    fn sleeps(thread: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    }

    fn own_thread() -> u32 {
        let path = fs::read_link("/proc/thread-self").unwrap();
        path.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn a_named_socket_at_which_somebody_listens_again_is_waited_for() {
        let dir = scratch("restart");
        let socket = dir.join("broker.sock");
        // The file stays, as after a kill.
        drop(Listener::bind(&socket, 0o600).unwrap());
        let options = Options { socket: Some(socket.clone()), ..Options::default() };
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let opener = scope.spawn(|| {
                tell.send(own_thread()).unwrap();
                connect(&options, Deadline::after_ms(60_000))
            });
            let its = told.recv().unwrap();
            while !opener.is_finished() && !sleeps(its) {
                thread::yield_now();
            }
            let listener = Listener::bind(&socket, 0o600).unwrap();
            assert_eq!(opener.join().unwrap().unwrap().path, socket);
            drop(listener);
        });
        let error = connect(&options, Deadline::after_ms(20)).unwrap_err();
        assert_eq!(error.status(), Status::Unavailable);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_not_waited_for() {
        let dir = scratch("none");
        let never = Deadline::after_ms(u32::MAX);
        let missing = dir.join("missing.sock");
        let file = dir.join("file");
        fs::write(&file, "").unwrap();
        for socket in [missing, file, dir.clone()] {
            let options = Options { socket: Some(socket), ..Options::default() };
            assert_eq!(connect(&options, never).unwrap_err().status(), Status::Unavailable);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
