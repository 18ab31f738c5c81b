//! A broker and daemons for one test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use dmce_abi::wire::admin::{
    AdminReply, AdminRequest, BlockRow, DaemonRow, DaemonState, Health, MappedRow, MappingKey,
    RegionRow, SessionRow, StatusReport,
};
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionName};
use libdmce::connection::Connection;
use libdmce::{Options, Session};

use crate::programs::program;
use crate::{wait_for, wait_until};

/// What an instance is to be like.
#[derive(Clone, Debug)]
pub struct Builder {
    daemons: u32,
    capacity: String,
    config: String,
    layout: String,
    objects: PathBuf,
    region_copies: u32,
    sync_blocks: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            daemons: 2,
            capacity: "256MiB".into(),
            config: String::new(),
            layout: "in-server".into(),
            objects: PathBuf::from("/dev/shm"),
            region_copies: 1,
            sync_blocks: 0,
        }
    }
}

impl Builder {
    /// How many daemons there are.
    #[must_use]
    pub fn daemons(mut self, daemons: u32) -> Self {
        self.daemons = daemons;
        self
    }

    /// What each daemon may hold, as the configuration writes it.
    #[must_use]
    pub fn capacity(mut self, capacity: &str) -> Self {
        self.capacity = capacity.into();
        self
    }

    /// The address layout.
    #[must_use]
    pub fn layout(mut self, layout: &str) -> Self {
        self.layout = layout.into();
        self
    }

    /// The folder of its objects.
    #[must_use]
    pub fn objects(mut self, folder: &Path) -> Self {
        self.objects = folder.into();
        self
    }

    /// How many copies a region has that does not say.
    #[must_use]
    pub fn region_copies(mut self, copies: u32) -> Self {
        self.region_copies = copies;
        self
    }

    /// How many blocks get a copy again at one time.
    #[must_use]
    pub fn sync_blocks(mut self, blocks: u32) -> Self {
        self.sync_blocks = blocks;
        self
    }

    /// Text of the configuration file.
    #[must_use]
    pub fn config(mut self, config: &str) -> Self {
        self.config = config.into();
        self
    }

    /// Starts the servers and waits until they serve.
    ///
    /// # Panics
    ///
    /// If they do not.
    #[must_use]
    pub fn start(self) -> Instance {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let place = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{}-{place}", std::process::id());
        let dir = std::env::temp_dir().join(format!("dmce-{name}"));
        fs::create_dir_all(&dir).expect("the temporary folder takes folders");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("it is our own");
        // Most tests are about something else than copies, and have few daemons.
        let copies = self.region_copies;
        let objects = self.objects.display();
        let objects =
            format!("instance.objects = \"{objects}\"\ninstance.region_copies = {copies}\n");
        fs::write(dir.join("dmce.toml"), objects + &self.config)
            .expect("the temporary folder takes files");
        let mut instance =
            Instance { made_of: self, name, dir, broker: None, daemons: BTreeMap::new() };
        instance.start_broker();
        for daemon in 1..=instance.made_of.daemons {
            instance.start_daemon(daemon);
        }
        instance.wait_serving();
        instance
    }
}

/// A running instance. Dropped, it ends, and its objects are removed.
#[derive(Debug)]
pub struct Instance {
    made_of: Builder,
    name: String,
    dir: PathBuf,
    broker: Option<Child>,
    daemons: BTreeMap<u32, Child>,
}

impl Instance {
    /// So many daemons of 256 MiB.
    #[must_use]
    pub fn start(daemons: u32) -> Self {
        Builder::default().daemons(daemons).start()
    }

    /// Something else.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Its name, as in the names of its objects.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of its sockets and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where clients connect.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("broker.sock")
    }

    /// Options that name its socket.
    #[must_use]
    pub fn options(&self) -> Options {
        Options { socket: Some(self.socket()), ..Options::default() }
    }

    /// Opens a session.
    ///
    /// # Panics
    ///
    /// If the broker refuses.
    #[must_use]
    pub fn open(&self) -> Session {
        Session::open(&self.options()).expect("the broker serves")
    }

    /// Starts the broker.
    ///
    /// # Panics
    ///
    /// If there is one.
    pub fn start_broker(&mut self) {
        self.start_broker_with(&[]);
    }

    /// Starts the broker with something in its environment.
    ///
    /// # Panics
    ///
    /// If there is one.
    pub fn start_broker_with(&mut self, environment: &[(&str, String)]) {
        assert!(self.broker.is_none(), "a broker is running");
        let mut command = self.server("dmce-broker", "broker.log");
        command.args(["--layout", &self.made_of.layout]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        self.broker = Some(command.spawn().expect("the broker starts"));
    }

    /// Starts a daemon.
    ///
    /// # Panics
    ///
    /// If it is running.
    pub fn start_daemon(&mut self, daemon: u32) {
        self.start_daemon_with(daemon, &[]);
    }

    /// Starts a daemon with something in its environment.
    ///
    /// # Panics
    ///
    /// If it is running.
    pub fn start_daemon_with(&mut self, daemon: u32, environment: &[(&str, String)]) {
        assert!(!self.daemons.contains_key(&daemon), "daemon {daemon} is running");
        let mut command = self.server("dmce-daemon", &format!("daemon-{daemon}.log"));
        command.args(["--id", &daemon.to_string(), "--capacity", &self.made_of.capacity]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        self.daemons.insert(daemon, command.spawn().expect("the daemon starts"));
    }

    /// A server that dies with the thread which started it, as a test's own does when it ends.
    fn server(&self, name: &str, log: &str) -> Command {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(log))
            .expect("the temporary folder takes files");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program(name));
        command.arg("--dir").arg(&self.dir).args(["--instance", &self.name]);
        command.arg("--config").arg(self.dir.join("dmce.toml"));
        // What most tests lose is to stay lost.
        command.env("DMCE_BROKER_SYNC_BLOCKS", self.made_of.sync_blocks.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Kills the broker (`SIGKILL`) and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn kill_broker(&mut self) {
        kill(self.broker.take().expect("a broker is running"));
    }

    /// Kills a daemon (`SIGKILL`) and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub fn kill_daemon(&mut self, daemon: u32) {
        kill(self.daemons.remove(&daemon).expect("the daemon is running"));
    }

    /// Takes in that a server has died of itself. `false` while all that were started run.
    ///
    /// # Panics
    ///
    /// If it cannot be asked.
    pub fn reap(&mut self) -> bool {
        let mut is_any = false;
        while self.reap_one().is_some() {
            is_any = true;
        }
        is_any
    }

    /// Takes in that one server has died of itself: which (0 is the broker), and how.
    ///
    /// # Panics
    ///
    /// If it cannot be asked.
    pub fn reap_one(&mut self) -> Option<(u32, ExitStatus)> {
        let ended = |child: &mut Child| child.try_wait().expect("own children are asked");
        if let Some(status) = self.broker.as_mut().and_then(ended) {
            self.broker = None;
            return Some((0, status));
        }
        let mut all = self.daemons.iter_mut();
        let (daemon, status) = all.find_map(|(id, child)| Some((*id, ended(child)?)))?;
        self.daemons.remove(&daemon);
        Some((daemon, status))
    }

    /// Kills all servers (`SIGKILL`).
    pub fn kill_all(&mut self) {
        for child in
            self.broker.take().into_iter().chain(std::mem::take(&mut self.daemons).into_values())
        {
            kill(child);
        }
    }

    /// Starts every server that is not running, and waits until they serve.
    pub fn start_all(&mut self) {
        if self.broker.is_none() {
            self.start_broker();
        }
        for daemon in 1..=self.made_of.daemons {
            if !self.daemons.contains_key(&daemon) {
                self.start_daemon(daemon);
            }
        }
        self.wait_serving();
    }

    /// The broker's process.
    #[must_use]
    pub fn broker_pid(&self) -> Option<u32> {
        self.broker.as_ref().map(Child::id)
    }

    /// A daemon's process.
    #[must_use]
    pub fn daemon_pid(&self, daemon: u32) -> Option<u32> {
        self.daemons.get(&daemon).map(Child::id)
    }

    /// Waits until the broker answers and every running daemon serves.
    pub fn wait_serving(&self) {
        wait_until("the instance serves", || self.is_serving());
    }

    /// Whether the broker answers and every running daemon serves.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        // By their processes: a broker may take one for up that has just been killed.
        let Some(AdminReply::Daemons { rows, .. }) = self.ask(AdminRequest::Daemons { after: 0 })
        else {
            return false;
        };
        self.daemons.iter().all(|(&daemon, child)| {
            let wanted = (daemon, DaemonState::Up, child.id());
            rows.iter().any(|row| (row.daemon, row.state, row.pid) == wanted)
        })
    }

    /// Asks as an administrator; `None` while no broker answers.
    ///
    /// # Panics
    ///
    /// If something else is answered than what administrators are told.
    #[must_use]
    pub fn ask(&self, request: AdminRequest) -> Option<AdminReply> {
        let mut connection = Connection::connect(self.socket()).ok()?;
        match connection.request(&ClientRequest::Admin(request)).ok()?.0 {
            ClientReply::Admin(reply) => Some(reply),
            other => panic!("an administrator asked, and {other:?} came"),
        }
    }

    /// The instance as a whole; `None` while no broker answers.
    #[must_use]
    pub fn try_status(&self) -> Option<StatusReport> {
        match self.ask(AdminRequest::Status)? {
            AdminReply::Status(status) => Some(status),
            other => panic!("the status was asked for, and {other:?} came"),
        }
    }

    /// The instance as a whole.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        wait_for("the broker answers", || self.try_status())
    }

    /// All daemons.
    #[must_use]
    pub fn daemons(&self) -> Vec<DaemonRow> {
        let mut all: Vec<DaemonRow> = Vec::new();
        loop {
            let after = all.last().map_or(0, |row| row.daemon);
            match wait_for("the broker answers", || self.ask(AdminRequest::Daemons { after })) {
                AdminReply::Daemons { rows, more } => {
                    all.extend(rows);
                    if !more {
                        return all;
                    }
                }
                other => panic!("daemons were asked for, and {other:?} came"),
            }
        }
    }

    /// The first blocks; `None` while no broker answers.
    #[must_use]
    pub fn try_blocks(&self) -> Option<Vec<BlockRow>> {
        match self.ask(AdminRequest::Blocks { after: 0 })? {
            AdminReply::Blocks { rows, .. } => Some(rows),
            other => panic!("blocks were asked for, and {other:?} came"),
        }
    }

    /// All blocks.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockRow> {
        let mut all: Vec<BlockRow> = Vec::new();
        loop {
            let after = all.last().map_or(0, |row| row.block);
            match wait_for("the broker answers", || self.ask(AdminRequest::Blocks { after })) {
                AdminReply::Blocks { rows, more } => {
                    all.extend(rows);
                    if !more {
                        return all;
                    }
                }
                other => panic!("blocks were asked for, and {other:?} came"),
            }
        }
    }

    /// All sessions.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionRow> {
        let mut all: Vec<SessionRow> = Vec::new();
        loop {
            let after = all.last().map_or(0, |row| row.session);
            match wait_for("the broker answers", || self.ask(AdminRequest::Sessions { after })) {
                AdminReply::Sessions { rows, more } => {
                    all.extend(rows);
                    if !more {
                        return all;
                    }
                }
                other => panic!("sessions were asked for, and {other:?} came"),
            }
        }
    }

    /// What processes say that they have mapped: the first page.
    #[must_use]
    pub fn mappings(&self) -> Vec<MappedRow> {
        let after = MappingKey { session: 0, os_address: 0 };
        let ask = || self.ask(AdminRequest::Mappings { addr: 0, session: 0, after });
        match wait_for("the broker answers", ask) {
            AdminReply::Mappings { rows, .. } => rows,
            other => panic!("mappings were asked for, and {other:?} came"),
        }
    }

    /// The first page of regions.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionRow> {
        let after = RegionName { volume: String::new(), name: String::new() };
        let ask = || self.ask(AdminRequest::Regions { after: after.clone() });
        match wait_for("the broker answers", ask) {
            AdminReply::Regions { rows, .. } => rows,
            other => panic!("regions were asked for, and {other:?} came"),
        }
    }

    /// The names of its objects, sorted.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        let prefix = format!("dmce.{}.", self.name);
        let mut names: Vec<String> = fs::read_dir(&self.made_of.objects)
            .expect("there is shared memory")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        names.sort();
        names
    }

    /// The folder of its objects.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.made_of.objects
    }

    /// The path of one of its objects.
    #[must_use]
    pub fn object(&self, name: &str) -> PathBuf {
        self.made_of.objects.join(name)
    }

    /// Waits until nothing of any session is left: in the tables, in the charges, in shared memory.
    pub fn wait_empty(&self) {
        wait_until("nothing of a session is left", || self.is_empty());
        assert!(self.status().state != Health::Damaged);
    }

    /// Whether nothing of any session is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let status = self.status();
        let tables = (status.sessions, status.blocks, status.committed, status.reserved);
        tables == (0, 0, 0, 0) && !self.has_objects_of_sessions()
    }

    /// Whether there are objects of a session, or more of those that are made for nobody yet than
    /// the broker keeps.
    fn has_objects_of_sessions(&self) -> bool {
        const PREPARED_MAX: usize = 16;
        let names = self.objects();
        if names.iter().any(|name| name.contains("data-") || name.contains("head-")) {
            return true;
        }
        // A daemon keeps its own for as long as it is connected.
        let is_clients = |name: &&String| !self.is_of_daemon(&name.replace("session-", "record-"));
        let of = |kind: &str| -> Vec<&String> {
            names.iter().filter(|name| name.contains(kind)).filter(is_clients).collect()
        };
        let (sessions, records) = (of("session-"), of("record-"));
        let is_alone = |name: &&String| !names.contains(&name.replace("session-", "record-"));
        records.len() > PREPARED_MAX
            || sessions.len() > PREPARED_MAX
            || sessions.iter().any(is_alone)
            || records.iter().any(|name| self.is_ready(name))
    }

    /// Whether a record is somebody's.
    fn is_ready(&self, record: &str) -> bool {
        let page = fs::read(self.object(record)).unwrap_or_default();
        page.get(16..20).is_some_and(|ready| ready != [0; 4])
    }

    /// Whether a record is that of a daemon's session.
    fn is_of_daemon(&self, record: &str) -> bool {
        let page = fs::read(self.object(record)).unwrap_or_default();
        self.is_ready(record) && page.get(96..100) == Some(&[0; 4])
    }

    /// What a server has logged.
    #[must_use]
    pub fn log(&self, server: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{server}.log"))).unwrap_or_default()
    }
}

fn kill(mut child: Child) {
    child.kill().expect("an own child can be killed");
    child.wait().expect("an own child can be waited for");
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in ["broker".to_owned()]
                .into_iter()
                .chain((1..=self.made_of.daemons).map(|daemon| format!("daemon-{daemon}")))
            {
                eprintln!("--- {server}\n{}", self.log(&server));
            }
        }
        self.kill_all();
        for name in self.objects() {
            let _ = fs::remove_file(self.object(&name));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
