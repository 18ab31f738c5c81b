//! Redis without persistence, on a Unix socket, alone or with a replica; and a client of it.
//!
//! A replica follows its primary over TCP, which is all that Redis has for it: the loopback here.
//!
//! A client sends commands as arrays of bulk strings, several in one `write` where they belong
//! together, and reads the answers in their order:
//!
//! ```text
//! *3\r\n $3\r\n SET\r\n $1\r\n k\r\n $5\r\n value\r\n    ->  +OK\r\n
//! *3\r\n $4\r\n WAIT\r\n $1\r\n 1\r\n $1\r\n 0\r\n      ->  :1\r\n      replicas that have it
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::server::Server;
use crate::{Error, Result};

const PROGRAM: &str = "redis-server";
/// How long a replica may take to get all that its primary has.
const SYNC_MS: &str = "20000";

/// An answer of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Status(String),
    Number(u64),
    Refused(String),
}

/// What a server is.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// It lets replicas follow it at this port.
    Primary(u16),
    /// It follows who is at this port.
    ReplicaOf(u16),
}

/// A server.
#[derive(Debug)]
pub struct Node(Server);

/// A primary with its one replica.
#[derive(Debug)]
pub struct Pair {
    /// Who takes writes.
    pub primary: Node,
    /// Who follows.
    pub replica: Node,
}

impl Pair {
    /// Starts both, with their sockets in `folder`, and waits until the replica has all that the
    /// primary has. `None` if Redis is not installed.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Worker`].
    pub fn start(folder: &Path) -> Result<Option<Self>> {
        let port = free_port().map_err(Error::system("looking for a port"))?;
        let Some(primary) = Node::start(folder, Role::Primary(port))? else { return Ok(None) };
        let Some(replica) = Node::start(folder, Role::ReplicaOf(port))? else { return Ok(None) };
        let (mut client, patience) = (primary.connect()?, SYNC_MS.as_bytes());
        client.send(&[&[b"SET", b"first", b"value"], &[b"WAIT", b"1", patience]])?;
        client.expect(&Answer::Status("OK".to_owned()))?;
        client.expect(&Answer::Number(1))?;
        Ok(Some(Self { primary, replica }))
    }
}

impl Node {
    fn start(folder: &Path, role: Role) -> Result<Option<Self>> {
        let socket = folder.join(match role {
            Role::Primary(_) => "redis-primary.sock",
            Role::ReplicaOf(_) => "redis-replica.sock",
        });
        let arguments = arguments(folder, &socket, role);
        Ok(Server::start(PROGRAM, &arguments, &socket)?.map(Self))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// A client of it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it does not listen.
    pub fn connect(&self) -> Result<Client> {
        let connection = BufReader::new(self.0.connect()?);
        Ok(Client { connection, frame: Vec::new(), line: String::new() })
    }

    /// Sends it `SIGKILL`, and does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    connection: BufReader<UnixStream>,
    frame: Vec<u8>,
    line: String,
}

impl Client {
    /// Stores a value, and waits until the replica has it.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Worker`].
    pub fn store_mirrored(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.send(&[&[b"SET", key.as_bytes(), value], &[b"WAIT", b"1", b"0"]])?;
        self.expect(&Answer::Status("OK".to_owned()))?;
        self.expect(&Answer::Number(1))
    }

    /// Stores a value.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the server is gone, [`Error::Worker`] if it refuses.
    pub fn store(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.send(&[&[b"SET", key.as_bytes(), value]])?;
        self.expect(&Answer::Status("OK".to_owned()))
    }

    /// Makes a replica one that takes writes.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Worker`].
    pub fn promote(&mut self) -> Result<()> {
        self.send(&[&[b"REPLICAOF", b"NO", b"ONE"]])?;
        self.expect(&Answer::Status("OK".to_owned()))
    }

    fn send(&mut self, commands: &[&[&[u8]]]) -> Result<()> {
        self.frame.clear();
        for words in commands {
            encode(&mut self.frame, words);
        }
        let sent = self.connection.get_mut().write_all(&self.frame);
        sent.map_err(Error::system("asking Redis"))
    }

    fn expect(&mut self, wanted: &Answer) -> Result<()> {
        self.line.clear();
        let read = self.connection.read_line(&mut self.line);
        if read.map_err(Error::system("hearing Redis"))? == 0 {
            let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(Error::system("hearing Redis")(ended));
        }
        match decode(&self.line) {
            Some(answer) if answer == *wanted => Ok(()),
            _ => Err(Error::Worker {
                command: format!("{wanted:?} was expected of Redis"),
                answer: self.line.trim_end().to_owned(),
            }),
        }
    }
}

fn arguments(folder: &Path, socket: &Path, role: Role) -> Vec<String> {
    let common = "--appendonly no --loglevel warning --bind 127.0.0.1";
    let own = match role {
        // A new replica is served at once, and from memory.
        Role::Primary(port) => {
            format!("--port {port} --repl-diskless-sync yes --repl-diskless-sync-delay 0")
        }
        // Nothing of it is a file either.
        Role::ReplicaOf(port) => {
            format!("--port 0 --replicaof 127.0.0.1 {port} --repl-diskless-load on-empty-db")
        }
    };
    let words = common.split(' ').chain(own.split(' ')).map(str::to_owned);
    let paths = [folder, socket].map(|path| path.display().to_string());
    let [folder, socket] = paths;
    // An empty list of times to save at means never.
    let rest = ["--save", "", "--dir", &folder, "--unixsocket", &socket].map(str::to_owned);
    words.chain(rest).collect()
}

/// A port of the loopback that nobody has. Another may take it until it is used; then the server
/// ends, and the run with it.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Adds a command.
fn encode(frame: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to a vector cannot fail.
    let _ = write!(frame, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(frame, "${}\r\n", word.len());
        frame.extend_from_slice(word);
        frame.extend_from_slice(b"\r\n");
    }
}

/// Reads an answer of one line; `None` if it is none.
fn decode(line: &str) -> Option<Answer> {
    let text = line.strip_suffix("\r\n")?;
    let (kind, rest) = text.split_at_checked(1)?;
    match kind {
        "+" => Some(Answer::Status(rest.to_owned())),
        "-" => Some(Answer::Refused(rest.to_owned())),
        ":" => rest.parse().ok().map(Answer::Number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings_with_their_lengths() {
        let mut frame = Vec::new();
        encode(&mut frame, &[b"SET", b"k", b"a\r\nb"]);
        encode(&mut frame, &[b"WAIT", b"1", b"0"]);
        let wanted = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n\
            *3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n";
        assert_eq!(frame, wanted);
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        assert_eq!(decode("+OK\r\n"), Some(Answer::Status("OK".to_owned())));
        assert_eq!(decode(":1\r\n"), Some(Answer::Number(1)));
        let refused = "READONLY You can't write against a read only replica.";
        let line = format!("-{refused}\r\n");
        assert_eq!(decode(&line), Some(Answer::Refused(refused.to_owned())));
        for broken in ["", "\r\n", "+OK", ":one\r\n", "$-1\r\n", "\u{e9}\r\n"] {
            assert_eq!(decode(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_replica_listens_for_nobody_and_saves_nothing() {
        let folder = Path::new("/there");
        let all = arguments(folder, &folder.join("s"), Role::ReplicaOf(7)).join(" ");
        assert!(all.contains("--port 0 --replicaof 127.0.0.1 7 "), "{all}");
        assert!(all.ends_with("--save  --dir /there --unixsocket /there/s"), "{all}");
    }
}
