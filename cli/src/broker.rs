//! Questions to the broker: where it is, and listings of more rows than a message holds.
//!
//! # Invariants
//!
//! 1. A socket that was named is the only one that is tried; else the first of the usual ones at
//!    which somebody listens.
//! 2. A listing ends: pages that do not advance are refused.
//! 3. Every wait has a limit.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dmce_abi::Status;
use dmce_abi::wire::admin::{
    AdminReply, AdminRequest, BlockRow, DaemonRow, Location, MappedRow, MappingKey, RegionRow,
    SampleKey, SessionRow, StatusReport, UsageRow,
};
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionName};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_sys::identity::effective_uid;
use dmce_sys::socket::SocketError;
use libdmce::connection::{Connection, ConnectionError, Deadline};

/// Where the service of the host listens.
const SERVICE: &str = "/run/dmce/broker.sock";

/// How long a broker may take to answer.
const PATIENCE_MS: u32 = 10_000;

/// A connection to a broker.
#[derive(Debug)]
pub struct Broker {
    connection: Connection,
    path: PathBuf,
    patience_ms: u32,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum BrokerError {
    /// Nobody listens.
    #[error("no broker: nobody listens at {}", path.display())]
    Nobody { path: PathBuf },
    /// Nobody listens at any of the usual places, and none was named.
    #[error(
        "no broker: nobody listens at {}; name another by --socket or DMCE_SOCKET",
        one_of(tried)
    )]
    Nowhere { tried: Vec<PathBuf> },
    /// Somebody listens who does not answer as a broker does.
    #[error("no broker answers at {}", path.display())]
    NoAnswer { path: PathBuf, source: ConnectionError },
    /// Somebody answered something else.
    #[error("no broker answers at {}: the reply does not fit the question", path.display())]
    WrongAnswer { path: PathBuf },
    /// The socket's mode keeps this user out.
    #[error("access to {} is denied", path.display())]
    Denied { path: PathBuf },
    /// Broker and command are of different releases.
    #[error("the broker at {} is of another release", path.display())]
    Version { path: PathBuf, source: ConnectionError },
    /// The broker said no.
    #[error("{text}")]
    Refused { status: Status, text: String },
}

impl BrokerError {
    /// Whether there is no broker, as opposed to one that cannot do what was asked.
    pub const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Nobody { .. }
                | Self::Nowhere { .. }
                | Self::NoAnswer { .. }
                | Self::WrongAnswer { .. }
        )
    }

    fn of(path: &Path, error: ConnectionError) -> Self {
        let path = path.to_owned();
        match error {
            ConnectionError::Socket(SocketError::NobodyListens { .. }) => Self::Nobody { path },
            ConnectionError::Socket(SocketError::Denied { .. }) => Self::Denied { path },
            error if error.status() == Status::Version => Self::Version { path, source: error },
            ConnectionError::Refused(refusal) => {
                let text = match refusal.text.as_str() {
                    "" => refusal.status.text().to_owned(),
                    text => text.to_owned(),
                };
                Self::Refused { status: refusal.status, text }
            }
            source => Self::NoAnswer { path, source },
        }
    }
}

impl Broker {
    /// Connects to the socket that was named, or to the first of the usual ones.
    ///
    /// # Errors
    ///
    /// All but [`BrokerError::Refused`].
    pub fn find(named: Option<&Path>) -> Result<Self, BrokerError> {
        if let Some(path) = named {
            return Self::connect(path, PATIENCE_MS);
        }
        let mut tried = Vec::new();
        for path in usual_sockets(std::env::var_os("XDG_RUNTIME_DIR"), effective_uid()) {
            match Self::connect(&path, PATIENCE_MS) {
                Err(BrokerError::Nobody { path }) => tried.push(path),
                found => return found,
            }
        }
        Err(BrokerError::Nowhere { tried })
    }

    /// Connects to the broker at `path`, and waits no longer than `patience_ms` for that and for
    /// each answer.
    ///
    /// # Errors
    ///
    /// As [`Broker::find`].
    pub fn connect(path: &Path, patience_ms: u32) -> Result<Self, BrokerError> {
        match Connection::connect_until(path, Deadline::after_ms(patience_ms)) {
            Ok(connection) => Ok(Self { connection, path: path.to_owned(), patience_ms }),
            Err(error) => Err(BrokerError::of(path, error)),
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The instance as a whole.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn status(&mut self) -> Result<StatusReport, BrokerError> {
        match self.ask(AdminRequest::Status)? {
            AdminReply::Status(report) => Ok(report),
            _ => Err(self.wrong_answer()),
        }
    }

    /// All daemons, by id.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn daemons(&mut self) -> Result<Vec<DaemonRow>, BrokerError> {
        self.list(Pages {
            before_first: 0,
            request: |after| AdminRequest::Daemons { after },
            rows: |reply| match reply {
                AdminReply::Daemons { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &DaemonRow| row.daemon,
        })
    }

    /// All blocks, by id.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn blocks(&mut self) -> Result<Vec<BlockRow>, BrokerError> {
        self.list(Pages {
            before_first: 0,
            request: |after| AdminRequest::Blocks { after },
            rows: |reply| match reply {
                AdminReply::Blocks { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &BlockRow| row.block,
        })
    }

    /// All sessions, by id.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn sessions(&mut self) -> Result<Vec<SessionRow>, BrokerError> {
        self.list(Pages {
            before_first: 0,
            request: |after| AdminRequest::Sessions { after },
            rows: |reply| match reply {
                AdminReply::Sessions { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &SessionRow| row.session,
        })
    }

    /// All regions, by volume and name.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn regions(&mut self) -> Result<Vec<RegionRow>, BrokerError> {
        self.list(Pages {
            before_first: RegionName { volume: String::new(), name: String::new() },
            request: |after| AdminRequest::Regions { after },
            rows: |reply| match reply {
                AdminReply::Regions { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &RegionRow| row.region.clone(),
        })
    }

    /// The usage history of all daemons, by daemon and age.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn usage(&mut self) -> Result<Vec<UsageRow>, BrokerError> {
        self.list(Pages {
            before_first: SampleKey { daemon: 0, sample: 0 },
            request: |after| AdminRequest::Usage { after },
            rows: |reply| match reply {
                AdminReply::Usage { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &UsageRow| row.key,
        })
    }

    /// Where the byte of an address is.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Refused`] for an address of no block, and as for the others.
    pub fn locate(&mut self, address: u64) -> Result<Location, BrokerError> {
        match self.ask(AdminRequest::WhereIs { addr: address })? {
            AdminReply::WhereIs(location) => Ok(location),
            _ => Err(self.wrong_answer()),
        }
    }

    /// What processes say that they have mapped, by session and OS address: all, or what contains
    /// an address, of all sessions or of one.
    ///
    /// # Errors
    ///
    /// As [`Broker::locate`].
    pub fn mappings(
        &mut self,
        addr: Option<u64>,
        session: Option<u32>,
    ) -> Result<Vec<MappedRow>, BrokerError> {
        let (addr, session) = (addr.unwrap_or(0), session.unwrap_or(0));
        self.list(Pages {
            before_first: MappingKey { session: 0, os_address: 0 },
            request: |after| AdminRequest::Mappings { addr, session, after },
            rows: |reply| match reply {
                AdminReply::Mappings { rows, more } => Some((rows, more)),
                _ => None,
            },
            key: |row: &MappedRow| row.key,
        })
    }

    /// Has a block that is lost go on with the stale copy of a daemon, or with the only one if that
    /// is 0.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Refused`] where there is nothing to be adopted, and as for the others.
    pub fn adopt_stale(&mut self, block: u32, from: u32) -> Result<(), BrokerError> {
        match self.ask(AdminRequest::AdoptStale { block, from })? {
            AdminReply::Adopted { .. } => Ok(()),
            _ => Err(self.wrong_answer()),
        }
    }

    /// One block, if there is such a one.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn block(&mut self, id: u32) -> Result<Option<BlockRow>, BrokerError> {
        match self.ask(AdminRequest::Blocks { after: id.saturating_sub(1) })? {
            AdminReply::Blocks { rows, .. } => Ok(rows.into_iter().find(|row| row.block == id)),
            _ => Err(self.wrong_answer()),
        }
    }

    /// Has a copy of a block move, that of `from` or the primary if that is 0, however long it
    /// takes: from where, and where to.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Refused`] where it cannot be, and as for the others.
    pub fn migrate(&mut self, block: u32, from: u32, to: u32) -> Result<(u32, u32), BrokerError> {
        self.move_by(AdminRequest::Migrate { block, from, to })
    }

    /// Has copies of two blocks change places, however long it takes.
    ///
    /// # Errors
    ///
    /// As [`Broker::migrate`].
    pub fn swap(&mut self, one: u32, other: u32) -> Result<(u32, u32), BrokerError> {
        self.move_by(AdminRequest::Swap { one, other })
    }

    fn move_by(&mut self, request: AdminRequest) -> Result<(u32, u32), BrokerError> {
        match self.ask_until(request, Deadline::NEVER)? {
            AdminReply::Moved { from, to, .. } => Ok((from, to)),
            _ => Err(self.wrong_answer()),
        }
    }

    /// Has a daemon be drained, or not any more.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn set_draining(&mut self, daemon: u32, is_draining: bool) -> Result<(), BrokerError> {
        match self.ask(AdminRequest::Drain { daemon, is_draining })? {
            AdminReply::Draining { .. } => Ok(()),
            _ => Err(self.wrong_answer()),
        }
    }

    /// Asks for so many copies of a region: its first block, and how many blocks it has.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Refused`] where they cannot be, and as for the others.
    pub fn set_copies(
        &mut self,
        region: RegionName,
        copies: u32,
    ) -> Result<(u32, u32), BrokerError> {
        match self.ask(AdminRequest::SetCopies { region, copies })? {
            AdminReply::CopiesSet { first, count } => Ok((first, count)),
            _ => Err(self.wrong_answer()),
        }
    }

    /// Has the copies of a block compared, or of all if that is 0, however long it takes: how many
    /// blocks were gone through, and what was found.
    ///
    /// # Errors
    ///
    /// As [`Broker::migrate`].
    pub fn scrub(&mut self, block: u32) -> Result<(u32, ScrubFound), BrokerError> {
        match self.ask_until(AdminRequest::Scrub { block }, Deadline::NEVER)? {
            AdminReply::Scrubbed { blocks, found } => Ok((blocks, found)),
            _ => Err(self.wrong_answer()),
        }
    }

    /// Another connection to the same broker.
    ///
    /// # Errors
    ///
    /// As [`Broker::connect`].
    pub fn again(&self) -> Result<Self, BrokerError> {
        Self::connect(&self.path, self.patience_ms)
    }

    fn list<K: Ord + Clone, R, A: Fn(K) -> AdminRequest>(
        &mut self,
        pages: Pages<K, R, A>,
    ) -> Result<Vec<R>, BrokerError> {
        let mut all = Vec::new();
        let mut after = pages.before_first;
        loop {
            let reply = self.ask((pages.request)(after.clone()))?;
            let (rows, more) = (pages.rows)(reply).ok_or_else(|| self.wrong_answer())?;
            let last = rows.last().map(pages.key);
            all.extend(rows);
            match last {
                _ if !more => return Ok(all),
                Some(last) if last > after => after = last,
                _ => return Err(self.wrong_answer()),
            }
        }
    }

    fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, BrokerError> {
        self.ask_until(request, Deadline::after_ms(self.patience_ms))
    }

    fn ask_until(
        &mut self,
        request: AdminRequest,
        deadline: Deadline,
    ) -> Result<AdminReply, BrokerError> {
        match self.connection.request_until(&ClientRequest::Admin(request), deadline) {
            Ok((ClientReply::Admin(reply), _)) => Ok(reply),
            Ok(_) => Err(self.wrong_answer()),
            Err(error) => Err(BrokerError::of(&self.path, error)),
        }
    }

    fn wrong_answer(&self) -> BrokerError {
        BrokerError::WrongAnswer { path: self.path.clone() }
    }
}

/// How a listing is asked for, page by page.
struct Pages<K, R, A> {
    before_first: K,
    request: A,
    rows: fn(AdminReply) -> Option<(Vec<R>, bool)>,
    key: fn(&R) -> K,
}

/// The sockets that are tried if none was named, in this order.
fn usual_sockets(runtime_dir: Option<OsString>, uid: u32) -> Vec<PathBuf> {
    let of_user = match runtime_dir.filter(|dir| !dir.is_empty()) {
        Some(dir) => Some(PathBuf::from(dir).join("dmce")),
        None => Some(PathBuf::from(format!("/tmp/dmce-{uid}"))).filter(|dir| is_private(dir, uid)),
    };
    let service = PathBuf::from(SERVICE);
    [service].into_iter().chain(of_user.map(|dir| dir.join("broker.sock"))).collect()
}

/// Whether a folder in a place where everybody may write is the user's and closed to others.
fn is_private(dir: &Path, uid: u32) -> bool {
    let found = fs::symlink_metadata(dir);
    found.is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o777 == 0o700)
}

fn one_of(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(" or ")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use dmce_abi::limits::FRAME_BYTES_MAX;
    use dmce_abi::wire::admin::DaemonState;
    use dmce_abi::wire::{self, Refusal, Reply};
    use dmce_sys::socket::{Listener, Socket};

    use super::*;

    /// A broker that gives the replies in turn, and what the command makes of it.
    fn with_replies<T: Send>(
        replies: Vec<Reply<ClientReply>>,
        ask: impl FnOnce(&mut Broker) -> T,
    ) -> (T, Vec<ClientRequest>) {
        let (ours, theirs) = Socket::pair().unwrap();
        let server = thread::spawn(move || {
            let (mut frame, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
            let mut asked = Vec::new();
            for reply in replies {
                let received = theirs.recv(&mut frame, &mut fds).unwrap();
                let header = wire::decode_header(&frame[..received.bytes], 0).unwrap();
                asked.push(wire::decode_body(&frame[..received.bytes]).unwrap());
                theirs.send(&wire::encode(header, &reply).unwrap(), &[]).unwrap();
            }
            asked
        });
        let path = PathBuf::from("/b");
        let mut broker =
            Broker { connection: Connection::over(ours), path, patience_ms: PATIENCE_MS };
        let answer = ask(&mut broker);
        drop(broker);
        (answer, server.join().unwrap())
    }

    fn daemons(ids: &[u32], more: bool) -> ClientReply {
        let row = |&daemon| DaemonRow {
            daemon,
            state: DaemonState::Up,
            pid: 1,
            capacity: 0,
            committed: 0,
            reserved: 0,
            pool: 0,
            blocks: 0,
            is_draining: false,
        };
        let rows = ids.iter().map(row).collect();
        ClientReply::Admin(AdminReply::Daemons { rows, more })
    }

    #[test]
    fn a_listing_of_several_pages_is_one_listing() {
        let replies = [daemons(&[1, 2], true), daemons(&[4], true), daemons(&[], false)];
        let (listed, asked) = with_replies(replies.map(Ok).into(), Broker::daemons);
        let ids: Vec<_> = listed.unwrap().iter().map(|row| row.daemon).collect();
        assert_eq!(ids, [1, 2, 4]);
        let expected = [0, 2, 4].map(|after| ClientRequest::Admin(AdminRequest::Daemons { after }));
        assert_eq!(asked, expected);
    }

    #[test]
    fn pages_that_do_not_advance_end_the_listing_with_an_error() {
        for second in [daemons(&[1, 2], true), daemons(&[], true)] {
            let replies = [daemons(&[1, 2], true), second].map(Ok).into();
            let (listed, _) = with_replies(replies, Broker::daemons);
            assert!(matches!(listed, Err(BrokerError::WrongAnswer { .. })));
        }
    }

    #[test]
    fn a_broker_whose_queue_is_full_does_not_answer() {
        let name = format!("dmce-test-cli-full-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = Listener::bind(&path, 0o600).unwrap();
        while Socket::try_connect(&path).is_ok() {}
        let (tell, told) = mpsc::channel();
        let its = path.clone();
        thread::spawn(move || tell.send(Broker::connect(&its, 20).map(drop)));
        let connected = told.recv_timeout(Duration::from_secs(60)).expect("it has a limit");
        listener.unlink().unwrap();
        let error = connected.unwrap_err();
        assert!(error.is_absence(), "{error}");
        assert_eq!(error.to_string(), format!("no broker answers at {}", path.display()));
    }

    #[test]
    fn a_refusal_is_the_brokers_word_and_no_absence() {
        let refusal = Err(Refusal::new(Status::Address, "block 9 is free"));
        let (answer, _) = with_replies(vec![refusal], |broker| broker.locate(7));
        let error = answer.unwrap_err();
        assert_eq!(error.to_string(), "block 9 is free");
        assert!(!error.is_absence());
    }

    #[test]
    fn who_answers_something_else_or_nothing_is_no_broker() {
        let (answer, _) = with_replies(vec![Ok(ClientReply::Done)], Broker::status);
        assert!(answer.unwrap_err().is_absence());
        let (answer, _) = with_replies(vec![], Broker::status);
        assert!(answer.unwrap_err().is_absence());
    }

    #[test]
    fn the_service_comes_before_the_users_own() {
        let sockets = usual_sockets(Some("/run/user/7".into()), 7);
        assert_eq!(sockets, [SERVICE, "/run/user/7/dmce/broker.sock"].map(PathBuf::from));
        // Nobody owns a folder for a user who does not exist.
        assert_eq!(usual_sockets(Some(OsString::new()), u32::MAX - 7), [PathBuf::from(SERVICE)]);
    }
}
