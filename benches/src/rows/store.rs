//! A small value stored and fetched by another process: in DMCE by an address, in Redis and
//! memcached by a key, over a Unix socket.
//!
//! All run on one processor, where the servers are fastest: a round trip is two switches then, and
//! not two wake-ups of another processor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use dmce_tests::Instance;

use crate::affinity::Cpus;
use crate::calls::Calls;
use crate::measure::{alternate, time};
use crate::places::Places;
use crate::server::Server;
use crate::session::Session;
use crate::setting::{Setting, servers};
use crate::table::{Goal, Row, Subject, Unit};
use crate::{Error, Result};

/// Values that there are.
const KEYS: u64 = 1 << 17;
const VALUE_BYTES: usize = 64;
/// How often faster than a server's the design wants it.
const GOAL: f64 = 20.0;

/// Measures the group.
///
/// # Errors
///
/// Those of the session, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let instance = setting.start(Instance::builder().daemons(1).capacity("512MiB"))?;
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    let values = session.malloc(KEYS * VALUE_BYTES as u64)?;
    for key in 0..KEYS {
        put(&session, values, key)?;
    }
    let one = |pid| setting.allowed.put(pid, Cpus::One);
    servers(&instance).into_iter().try_for_each(one)?;
    one(std::process::id())?;
    let mut rows = Vec::new();
    for kind in [Kind::Redis, Kind::Memcached] {
        let Some(mut keeper) = Keeper::start(kind, instance.dir())? else {
            eprintln!("{} is not installed: its rows are left out", kind.program());
            continue;
        };
        one(keeper.server.pid())?;
        for key in 0..KEYS {
            keeper.put(key)?;
        }
        for is_put in [true, false] {
            rows.push(row(setting, &session, values, &mut keeper, is_put)?);
        }
    }
    setting.allowed.put(std::process::id(), Cpus::Any)?;
    Ok(rows)
}

fn row(
    setting: &Setting,
    session: &Session,
    values: u64,
    keeper: &mut Keeper,
    is_put: bool,
) -> Result<Row> {
    let count = setting.effort.pick(20_000, 500);
    let pair = alternate(
        setting.effort.pick(11, 3),
        |round| {
            // Far more of them, so that both sides are measured for a time that can be.
            let (many, mut keys) = (count * 50, Places::below(KEYS, round + 1));
            time(many, || {
                (0..many).try_for_each(|_| {
                    let act = if is_put { put } else { get };
                    act(session, values, keys.next())
                })
            })
        },
        |round| {
            let mut keys = Places::below(KEYS, round + 1);
            time(count, || {
                (0..count).try_for_each(|_| {
                    let act = if is_put { Keeper::put } else { Keeper::get };
                    act(keeper, keys.next())
                })
            })
        },
    )?;
    let subject = Subject {
        quantity: if is_put { "a value is stored" } else { "a value is fetched" }.to_owned(),
        state: format!("{VALUE_BYTES} B, random of {KEYS}, all on one processor"),
        against: keeper.kind.title(),
        unit: Unit::Time,
        goal: Goal::AtLeast(GOAL),
    };
    Ok(super::told(Row::new(subject, &pair)))
}

/// The value of a key: its number, and filling.
fn value_of(key: u64) -> [u8; VALUE_BYTES] {
    let mut value = [b'v'; VALUE_BYTES];
    value[..8].copy_from_slice(&key.to_le_bytes());
    value
}

fn check(key: u64, value: &[u8; VALUE_BYTES], addr: u64) -> Result<()> {
    let found = u64::from_le_bytes(*value.first_chunk().expect("a value begins with a number"));
    if found == key { Ok(()) } else { Err(Error::Content { addr, found, expected: key }) }
}

fn put(session: &Session, values: u64, key: u64) -> Result<()> {
    let value = value_of(key);
    // SAFETY: the value is as long as is said.
    unsafe { session.write(values + key * VALUE_BYTES as u64, value.as_ptr(), VALUE_BYTES) }
}

fn get(session: &Session, values: u64, key: u64) -> Result<()> {
    let (mut value, addr) = ([0; VALUE_BYTES], values + key * VALUE_BYTES as u64);
    // SAFETY: the value is as long as is said.
    unsafe { session.read(addr, value.as_mut_ptr(), VALUE_BYTES)? };
    check(key, &value, addr)
}

/// Which server it is.
#[derive(Clone, Copy)]
enum Kind {
    Redis,
    Memcached,
}

impl Kind {
    const fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Memcached => "memcached",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Redis => "Redis, Unix socket",
            Self::Memcached => "memcached, Unix socket",
        }
    }

    fn arguments(self, socket: &Path) -> Vec<String> {
        let socket = socket.display().to_string();
        let words = match self {
            Self::Redis => "--port 0 --save --appendonly no --loglevel warning --unixsocket",
            Self::Memcached => "-u root -t 1 -m 256 -s",
        };
        // An empty word for `--save` means never.
        let words = words.split(' ').flat_map(|word| match word {
            "--save" => vec!["--save".to_owned(), String::new()],
            word => vec![word.to_owned()],
        });
        words.chain([socket]).collect()
    }
}

/// A server that keeps values, and a connection to it.
struct Keeper {
    kind: Kind,
    server: Server,
    connection: BufReader<UnixStream>,
    frame: Vec<u8>,
}

impl Keeper {
    /// Starts it, if it is installed.
    fn start(kind: Kind, folder: &Path) -> Result<Option<Self>> {
        let socket = folder.join(format!("{}.sock", kind.program()));
        let Some(server) = Server::start(kind.program(), &kind.arguments(&socket), &socket)? else {
            return Ok(None);
        };
        let connection = BufReader::new(server.connect()?);
        Ok(Some(Self { kind, server, connection, frame: Vec::new() }))
    }

    fn put(&mut self, key: u64) -> Result<()> {
        self.frame.clear();
        // Writing to a vector cannot fail.
        let _ = match self.kind {
            Kind::Redis => {
                write!(self.frame, "*3\r\n$3\r\nSET\r\n$9\r\nkey{key:06}\r\n${VALUE_BYTES}\r\n")
            }
            Kind::Memcached => write!(self.frame, "set key{key:06} 0 0 {VALUE_BYTES}\r\n"),
        };
        self.frame.extend(value_of(key));
        self.frame.extend(b"\r\n");
        let wanted = match self.kind {
            Kind::Redis => "+OK\r\n",
            Kind::Memcached => "STORED\r\n",
        };
        self.ask()?;
        self.expect(wanted)
    }

    fn get(&mut self, key: u64) -> Result<()> {
        self.frame.clear();
        // As above.
        let _ = match self.kind {
            Kind::Redis => write!(self.frame, "*2\r\n$3\r\nGET\r\n$9\r\nkey{key:06}\r\n"),
            Kind::Memcached => write!(self.frame, "get key{key:06}\r\n"),
        };
        self.ask()?;
        match self.kind {
            Kind::Redis => self.expect(&format!("${VALUE_BYTES}\r\n"))?,
            Kind::Memcached => self.expect(&format!("VALUE key{key:06} 0 {VALUE_BYTES}\r\n"))?,
        }
        let mut value = [0; VALUE_BYTES];
        self.connection.read_exact(&mut value).map_err(Error::system("reading a value"))?;
        self.expect("\r\n")?;
        if matches!(self.kind, Kind::Memcached) {
            self.expect("END\r\n")?;
        }
        check(key, &value, key)
    }

    fn ask(&mut self) -> Result<()> {
        let sent = self.connection.get_mut().write_all(&self.frame);
        sent.map_err(Error::system("asking a server"))
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        let read = self.connection.read_line(&mut line);
        read.map_err(Error::system("reading an answer"))?;
        if line == wanted {
            return Ok(());
        }
        Err(Error::Worker { command: self.kind.title().to_owned(), answer: line })
    }
}
