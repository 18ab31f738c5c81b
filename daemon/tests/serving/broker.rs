//! The broker of one test: a listener, one connection, and the daemons that it has started.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dmce_abi::Status;
use dmce_abi::block::SessionId;
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::name::{Instance, ObjectKind, ObjectName};
use dmce_abi::rate::Rate;
use dmce_abi::wire::daemon::{
    DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock, PoolPlace, Register,
};
use dmce_abi::wire::data::{DataAnswer, DataRequest, LinkGrant, LinkId};
use dmce_abi::wire::{self, FrameHeader, Reply};
use dmce_sys::object::ObjectDir;
use dmce_sys::pidfd::{self, Signal};
use dmce_sys::poll;
use dmce_sys::process;
use dmce_sys::socket::{Listener, Socket};

const OBJECTS: &str = "/dev/shm";

/// What nothing here takes, unless something hangs.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// The broker of one test, and the daemons that it has started.
pub struct Broker {
    pub instance: Instance,
    pub dir: PathBuf,
    listener: Option<Listener>,
    connection: Option<Socket>,
    requests: u64,
    daemons: Vec<Child>,
    /// What the daemon has lent on this connection, and the broker was told.
    pub lent: Vec<PoolPlace>,
}

/// What a daemon says of itself when it connects.
pub struct Introduction {
    pub register: Register,
    pub blocks: Vec<HeldBlock>,
}

impl Broker {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-daemon-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir(&dir).unwrap();
        let instance = Instance::new(&name).unwrap();
        let (listener, connection, requests, daemons) = (None, None, 0, Vec::new());
        let lent = Vec::new();
        let mut broker = Self { instance, dir, listener, connection, requests, daemons, lent };
        broker.listen();
        broker
    }

    /// Ends, with its socket file, and comes again.
    ///
    /// Without the file, since a process that another test starts at this moment has a copy of the
    /// listener until it executes its program.
    pub fn restart(&mut self) {
        let listener = self.listener.take().expect("the broker listens");
        listener.unlink().unwrap();
        // As with the listener: a copy of it would keep the connection alive.
        if let Some(connection) = self.connection.take() {
            connection.shutdown();
        }
        self.listen();
    }

    fn listen(&mut self) {
        self.listener = Some(Listener::bind(self.dir.join("daemon.sock"), 0o600).unwrap());
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dmce-daemon"));
        command.args(["--id", "1", "--capacity", "256MiB", "--instance", self.instance.as_str()]);
        command.arg("--dir").arg(&self.dir);
        command.env("DMCE_DAEMON_MARGIN", "16MiB").env("DMCE_DAEMON_CHECK_MS", "50");
        command.env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub fn start_daemon(&mut self) {
        self.start(&mut self.command());
    }

    pub fn start(&mut self, command: &mut Command) {
        let log = File::options().create(true).append(true).open(self.dir.join("log"));
        let child = command.stderr(log.unwrap()).spawn().unwrap();
        self.daemons.push(child);
    }

    pub fn daemon(&mut self) -> &mut Child {
        self.daemons.last_mut().expect("a daemon was started")
    }

    pub fn signal(&mut self, signal: Signal) {
        let pidfd = pidfd::open(self.daemon().id()).unwrap();
        pidfd::signal(pidfd.as_fd(), signal).unwrap();
    }

    /// Stops the daemon, and waits until it does nothing more.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
        let (pid, begin) = (self.daemon().id(), Instant::now());
        while !process::is_stopped(pid).unwrap() {
            assert!(begin.elapsed() < WATCHDOG, "it does not stop");
            std::thread::yield_now();
        }
    }

    /// `SIGKILL`, and the end of the process.
    pub fn kill_daemon(&mut self) {
        self.daemon().kill().unwrap();
        self.daemon().wait().unwrap();
        self.connection = None;
    }

    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let pidfd = pidfd::open(self.daemon().id()).unwrap();
        assert!(poll::wait_readable(pidfd.as_fd(), Some(WATCHDOG)).unwrap(), "it does not end");
        self.daemon().wait().unwrap()
    }

    /// Waits for the daemon's connection and takes in what it says first.
    pub fn accept(&mut self) -> Introduction {
        let listener = self.listener.as_ref().expect("the broker listens");
        assert!(poll::wait_readable(listener.as_fd(), Some(WATCHDOG)).unwrap(), "nobody connects");
        self.connection = Some(listener.accept_nonblocking().unwrap());
        self.lent.clear();
        let DaemonMessage::Register(register) = self.receive().1 else {
            panic!("the first message is not Register");
        };
        let mut all = Vec::new();
        loop {
            match self.receive().1 {
                DaemonMessage::Holds { blocks, last, .. } => {
                    all.extend(blocks);
                    if last {
                        break;
                    }
                }
                other => panic!("{other:?} came before the last of Holds"),
            }
        }
        self.send(0, &DaemonRequest::Settled);
        Introduction { register, blocks: all }
    }

    pub fn connection(&self) -> &Socket {
        self.connection.as_ref().expect("the daemon is connected")
    }

    fn send(&self, request: u64, message: &DaemonRequest) {
        let frame = wire::encode(FrameHeader { request, fds: 0 }, message).unwrap();
        self.connection().send(&frame, &[]).unwrap();
    }

    /// Makes a link over which a block may be reached; the client's end.
    pub fn link(&self, link: u64, grant: LinkGrant) -> LinkEnd {
        self.link_of((1000, Rate::UNLIMITED), link, grant)
    }

    /// The same for a user who may ask for so much.
    pub fn link_of(&self, (uid, rate): (u32, Rate), link: u64, grant: LinkGrant) -> LinkEnd {
        let (client, daemon) = Socket::pair().unwrap();
        let session = SessionId::try_from(1).unwrap();
        let message = DaemonRequest::Link { link: LinkId(link), session, uid, rate, grant };
        let frame = wire::encode(FrameHeader { request: 0, fds: 1 }, &message).unwrap();
        self.connection().send(&frame, &[daemon.as_fd()]).unwrap();
        LinkEnd { socket: client }
    }

    /// Tells something that is not answered.
    pub fn tell(&self, message: &DaemonRequest) {
        self.send(0, message);
    }

    /// Sends a request; its number.
    pub fn request(&mut self, message: &DaemonRequest) -> u64 {
        self.requests += 1;
        self.send(self.requests, message);
        self.requests
    }

    /// The next message but for what is lent, which is kept.
    pub fn receive(&mut self) -> (u64, DaemonMessage) {
        loop {
            match self.receive_any() {
                (0, DaemonMessage::Notice(DaemonNotice::Lent { place, .. })) => {
                    self.lent.push(place);
                }
                other => return other,
            }
        }
    }

    /// Waits until the daemon has lent so many objects on this connection, and says nothing else.
    pub fn receive_lent(&mut self, count: usize) {
        while self.lent.len() < count {
            match self.receive_any() {
                (0, DaemonMessage::Notice(DaemonNotice::Lent { place, .. })) => {
                    self.lent.push(place);
                }
                other => panic!("{other:?} came before {count} objects were lent"),
            }
        }
    }

    fn receive_any(&self) -> (u64, DaemonMessage) {
        let socket = self.connection();
        assert!(poll::wait_readable(socket.as_fd(), Some(WATCHDOG)).unwrap(), "nothing comes");
        let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        let received = socket.recv(&mut buffer, &mut fds).unwrap();
        let frame = &buffer[..received.bytes];
        let header = wire::decode_header(frame, fds.len()).unwrap();
        (header.request, wire::decode_body(frame).unwrap())
    }

    pub fn receive_reply(&mut self) -> (u64, Reply<DaemonAnswer>) {
        match self.receive() {
            (request, DaemonMessage::Reply(reply)) => (request, reply),
            other => panic!("a reply was awaited, and {other:?} came"),
        }
    }

    pub fn ask(&mut self, message: &DaemonRequest) -> Reply<DaemonAnswer> {
        let request = self.request(message);
        let (replied, reply) = self.receive_reply();
        assert_eq!(replied, request);
        reply
    }

    /// Waits until the daemon has closed the connection.
    pub fn wait_for_hangup(&mut self) {
        let socket = self.connection.take().expect("the daemon was connected");
        let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        loop {
            assert!(poll::wait_readable(socket.as_fd(), Some(WATCHDOG)).unwrap(), "it stays");
            if socket.recv(&mut buffer, &mut fds).is_err() {
                return;
            }
        }
    }

    pub fn path(&self, kind: ObjectKind) -> PathBuf {
        let name = ObjectName { instance: self.instance.clone(), daemon: 1, kind };
        Path::new(OBJECTS).join(name.to_string())
    }

    pub fn open_data(&self, block: u32) -> File {
        let path = self.path(ObjectKind::Data(block));
        File::options().read(true).write(true).open(path).unwrap()
    }
}

/// A client's end of a link.
pub struct LinkEnd {
    pub socket: Socket,
}

impl LinkEnd {
    pub fn send(&self, request: &DataRequest) {
        let frame = wire::encode(FrameHeader { request: 7, fds: 0 }, request).unwrap();
        self.socket.send(&frame, &[]).unwrap();
    }

    /// The next answer; `None` if the daemon has ended the link, and has said so.
    pub fn receive(&self) -> Option<DataAnswer> {
        assert!(poll::wait_readable(self.socket.as_fd(), Some(WATCHDOG)).unwrap(), "no answer");
        let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        let received = self.socket.recv(&mut buffer, &mut fds).ok()?;
        let frame = &buffer[..received.bytes];
        let answer: DataAnswer = wire::decode_body(frame).unwrap();
        match wire::decode_header(frame, 0).unwrap().request {
            7 => Some(answer),
            request => {
                assert_eq!((request, answer.unwrap_err().status), (0, Status::Closed));
                assert!(self.socket.recv(&mut buffer, &mut fds).is_err(), "it has ended");
                None
            }
        }
    }

    pub fn ask(&self, request: &DataRequest) -> DataAnswer {
        self.send(request);
        self.receive().expect("the link stands")
    }

    pub fn status(&self, request: &DataRequest) -> Status {
        self.ask(request).expect_err("it is refused").status
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            eprintln!("--- what the daemon said\n{log}---");
        }
        let dir = ObjectDir::open(OBJECTS).unwrap();
        for name in dir.names(&self.instance.prefix()).unwrap_or_default() {
            let _ = dir.unlink(&name);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
