//! What the command line says.
//!
//! # Invariants
//!
//! 1. Numbers are within their limits when parsing has succeeded; whether they fit each other, and
//!    what a configuration file adds, is the servers' to say.
//! 2. An option that was not given is `None`, so that a configuration file may decide.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use dmce_abi::AddrLayout;
use dmce_abi::limits::{COPIES_MAX, DAEMONS_MAX};
use dmce_abi::name::Instance;
use dmce_config::Bytes;

use crate::address::Address;

/// Starts, stops and shows DMCE instances: memory of this host, lent to processes.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "dmce", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub struct Args {
    /// The broker's socket.
    #[arg(long, value_name = "PATH", global = true, help = SOCKET)]
    pub socket: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

const SOCKET: &str = "The broker's socket [default: that of DMCE_SOCKET, else that of the host's \
                      service, else that of the user's own instance]";

/// Daemons of an instance that nobody said another number for.
pub const DAEMONS: u32 = 3;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no broker, \
                          4 something is degraded or damaged (status, doctor).";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Start a private instance in the background, and print its socket
    Up(Up),
    /// Stop a private instance, and remove what it left in shared memory
    Down(Down),
    /// Show the instance as a whole
    Status(Listing),
    /// List the daemons
    Daemons(Listing),
    /// List the blocks with their copies and owners
    Blocks(Listing),
    /// List the sessions
    Sessions(Listing),
    /// List the regions
    Regions(Listing),
    /// Show what each daemon held over time, and what it did
    Usage(Listing),
    /// Decode an address: whose it is, and who has it mapped where
    Map(Map),
    /// Do something to a region
    #[command(subcommand)]
    Region(RegionCommand),
    /// Have a block that is lost go on with an older copy of it
    Adopt(Adopt),
    /// Have a copy of a block move to another daemon
    Migrate(Migrate),
    /// Have copies of two blocks change places
    Swap(Swap),
    /// Have all that a daemon has move to others, and give it nothing new
    Drain(Drain),
    /// Let a daemon that is drained take blocks again
    Undrain(Undrain),
    /// Have the copies of all blocks compared, or of one, and what is damaged repaired
    Scrub(Scrub),
    /// Say what on this host would make DMCE fail or slow, with the fix
    Doctor(Doctor),
    /// Watch over the servers of a directory; `up` starts it
    #[command(hide = true)]
    Supervise(Supervise),
}

/// `dmce up`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Up {
    /// The directory of the instance; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub plan: Plan,
}

/// What servers an instance is to have.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Plan {
    /// How many daemons there are to be [default: as at the last `up` on DIR, else 3]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(DAEMONS_MAX)))]
    pub daemons: Option<u32>,
    /// What each daemon may hold, such as 512MiB [default: as at the last `up` on DIR, else what
    /// the file says, else 3GiB]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Bytes>,
    /// Copies of what sessions allocate [default: as at the last `up` on DIR, else what the file
    /// says, else 1]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(COPIES_MAX)))]
    pub copies: Option<u32>,
    /// How addresses are divided: in-server, os32, os64, or widths such as 16/18/30 [default: as at
    /// the last `up` on DIR, else what the file says, else in-server]
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<AddrLayout>,
    /// A configuration file [default: that of the last `up` on DIR]; of the options of that `up`
    /// only the number of daemons is taken over then
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Leave a daemon that has died dead
    #[arg(long)]
    pub no_restart: bool,
}

impl Plan {
    /// How many daemons there are to be.
    pub fn daemons(&self) -> u32 {
        self.daemons.unwrap_or(DAEMONS)
    }
}

/// `dmce down`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Down {
    /// The directory of the instance
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Leave the memory to be found again by the next `up` on this directory
    #[arg(long)]
    pub keep: bool,
}

/// A listing that needs no more than its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Listing {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `dmce map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Map {
    /// A DMCE address, decimal or with 0x in front; without one, all that is mapped
    #[arg(value_name = "ADDR", allow_hyphen_values = true)]
    pub address: Option<Address>,
    /// Show what this session has mapped, and no other
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    pub session: Option<u32>,
    #[command(flatten)]
    pub listing: Listing,
}

/// `dmce region`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RegionCommand {
    /// Give all copies what one half has
    Resync(Resync),
    /// Ask for something else of a region that is used
    #[command(subcommand)]
    Set(RegionSet),
}

/// `dmce region set`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RegionSet {
    /// How many copies it has
    Copies(SetCopies),
}

/// `dmce region set copies`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct SetCopies {
    /// The volume
    pub volume: String,
    /// The region
    pub name: String,
    /// How many
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(COPIES_MAX)))]
    pub copies: u32,
}

/// `dmce region resync`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Resync {
    /// The volume
    pub volume: String,
    /// The region
    pub name: String,
    /// The half that is right
    #[arg(long, value_name = "HALF")]
    pub from: Side,
}

/// A half of a region, as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// What was the primary.
    Primary,
    /// What was its mirror.
    Mirror,
}

/// `dmce adopt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Adopt {
    /// The block: one that is lost, and of which a stale copy is there
    #[arg(long, value_name = "BLOCK", value_parser = clap::value_parser!(u32).range(1..))]
    pub stale: u32,
    /// Whose copy, if several daemons have one
    #[arg(long, value_name = "DAEMON", value_parser = daemon())]
    pub from: Option<u32>,
}

/// `dmce migrate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Migrate {
    /// The block
    #[arg(value_name = "BLOCK", value_parser = clap::value_parser!(u32).range(1..))]
    pub block: u32,
    /// The daemon that gets it
    #[arg(long, value_name = "DAEMON", value_parser = daemon())]
    pub to: u32,
    /// Whose copy, if not the primary
    #[arg(long, value_name = "DAEMON", value_parser = daemon())]
    pub from: Option<u32>,
}

/// `dmce swap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Swap {
    /// A block
    #[arg(value_name = "BLOCK", value_parser = clap::value_parser!(u32).range(1..))]
    pub one: u32,
    /// The other
    #[arg(value_name = "OTHER", value_parser = clap::value_parser!(u32).range(1..))]
    pub other: u32,
}

/// `dmce drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Drain {
    /// The daemon
    #[arg(value_name = "DAEMON", value_parser = daemon())]
    pub daemon: u32,
}

/// `dmce scrub`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Scrub {
    /// The block; all, if none is named
    #[arg(value_name = "BLOCK", value_parser = clap::value_parser!(u32).range(1..))]
    pub block: Option<u32>,
    #[command(flatten)]
    pub listing: Listing,
}

/// `dmce undrain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Undrain {
    /// The daemon
    #[arg(value_name = "DAEMON", value_parser = daemon())]
    pub daemon: u32,
}

fn daemon() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(DAEMONS_MAX))
}

/// `dmce doctor`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Doctor {
    /// Look at the instance of this directory
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub listing: Listing,
}

/// The supervisor. `up` has resolved what can be: paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Supervise {
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long, value_parser = Instance::new)]
    pub instance: Instance,
    #[arg(long)]
    pub objects: PathBuf,
    #[command(flatten)]
    pub plan: Plan,
}

impl Args {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    ///
    /// [`Unparsed::Help`] if help or the version was asked for, [`Unparsed::Wrong`] with one line.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, Unparsed> {
        let args = Self::try_parse_from(line).map_err(|error| Unparsed::of(&error))?;
        let by_dir = match args.command {
            Command::Up(_) => "up",
            Command::Down(_) => "down",
            _ => return Ok(args),
        };
        match args.socket {
            // The parser knows it as an option of all subcommands.
            Some(_) => Err(Unparsed::Wrong(format!(
                "'{by_dir}' takes --dir, and --socket has no meaning for it; try 'dmce --help'"
            ))),
            None => Ok(args),
        }
    }

    /// The socket that was named, by option or by the variable `DMCE_SOCKET`. An empty variable is
    /// how a shell says that there is none.
    pub fn named_socket(&self, variable: Option<OsString>) -> Option<PathBuf> {
        let variable = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
        self.socket.clone().or(variable)
    }
}

/// A command line that asks for nothing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// What is to be printed on the standard output.
    Help(String),
    /// What is wrong with it.
    Wrong(String),
}

impl Unparsed {
    fn of(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Help(text),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Self::Wrong("a subcommand is missing; try 'dmce --help'".to_owned())
            }
            _ => Self::Wrong(one_line(&text)),
        }
    }
}

/// The first paragraph of what the parser says, without its label, as one line.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraph = text.lines().take_while(|line| !line.trim().is_empty());
    let words: Vec<_> = paragraph.flat_map(str::split_whitespace).collect();
    format!("{}; try 'dmce --help'", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, Unparsed> {
        Args::read(["dmce"].into_iter().chain(line.split_whitespace()).map(OsString::from))
    }

    fn wrong(line: &str) -> String {
        match read(line) {
            Err(Unparsed::Wrong(text)) => text,
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_parser_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_was_not_given_is_left_to_the_configuration() {
        let Command::Up(up) = read("up --dir d").unwrap().command else { panic!("not up") };
        let nothing = Plan {
            daemons: None,
            capacity: None,
            copies: None,
            layout: None,
            config: None,
            no_restart: false,
        };
        assert_eq!(up, Up { dir: "d".into(), plan: nothing });
    }

    #[test]
    fn sizes_layouts_and_addresses_are_read_in_their_forms() {
        let line = "up --dir d --daemons 2 --capacity 512MiB --layout 16/20/28 --copies 2";
        let Command::Up(up) = read(line).unwrap().command else { panic!("not up") };
        assert_eq!(up.plan.capacity, Some(Bytes::mib(512)));
        assert_eq!(up.plan.layout, AddrLayout::new(16, 20, 28).ok());
        for (text, address) in [("0x40000010", 0x4000_0010), ("1073741840", 0x4000_0010)] {
            let Command::Map(map) = read(&format!("map {text} --json")).unwrap().command else {
                panic!("not map")
            };
            assert_eq!((map.address, map.listing.json), (Some(Address(address)), true));
        }
        let Command::Map(map) = read("map --session 7").unwrap().command else { panic!("not map") };
        assert_eq!((map.address, map.session, map.listing.json), (None, Some(7), false));
    }

    #[test]
    fn the_socket_may_stand_before_and_behind_the_subcommand() {
        for line in ["--socket s status", "status --socket s"] {
            assert_eq!(read(line).unwrap().socket, Some("s".into()), "{line}");
        }
    }

    #[test]
    fn the_option_comes_before_the_variable_and_an_empty_variable_is_none() {
        let named = |line: &str, variable: Option<&str>| {
            read(line).unwrap().named_socket(variable.map(OsString::from))
        };
        assert_eq!(named("status --socket s", Some("v")), Some("s".into()));
        assert_eq!(named("status", Some("v")), Some("v".into()));
        assert_eq!(named("status", Some("")), None);
        assert_eq!(named("status", None), None);
    }

    #[test]
    fn wrong_usage_is_one_line_that_names_it() {
        for (line, named) in [
            ("", "subcommand"),
            ("fly", "'fly'"),
            ("up", "--dir <DIR>"),
            ("up --dir d --capacity 3GB", "\"3GB\" is no size"),
            ("up --dir d --capacity -1", "-1"),
            ("up --dir d --daemons 0", "1..=256"),
            ("up --dir d --daemons 257", "1..=256"),
            ("up --dir d --copies 4", "1..=3"),
            ("up --dir d --layout 1/2/3", "1/2/3 make no 64-bit layout"),
            ("adopt", "--stale <BLOCK>"),
            ("adopt --stale 0", "0 is not in 1.."),
            ("adopt --stale 5 --from 257", "1..=256"),
            ("migrate 5", "--to <DAEMON>"),
            ("migrate 0 --to 1", "0 is not in 1.."),
            ("migrate 5 --to 257", "1..=256"),
            ("swap 5", "<OTHER>"),
            ("drain", "<DAEMON>"),
            ("undrain 0", "1..=256"),
            ("map --session 0", "0 is not in 1.."),
            ("map 0xg", "'0xg' for '[ADDR]': an address is a number, decimal or hexadecimal"),
            ("map 7f001000", "'7f001000' for '[ADDR]': an address is a number, decimal or"),
            ("map 0x", "'0x' for '[ADDR]': an address is a number"),
            ("map +5", "'+5' for '[ADDR]': an address is a number"),
            ("map 0x+5", "'0x+5' for '[ADDR]': an address is a number"),
            ("map -5", "'-5' for '[ADDR]': an address is a number"),
            ("map 18446744073709551616", "'18446744073709551616' for '[ADDR]': an address has"),
            ("map 0x10000000000000000", "an address has 64 bits, and this number more"),
            ("doctor --dir d --socket s", "--socket"),
            ("blocks --yaml", "--yaml"),
        ] {
            let text = wrong(line);
            assert!(text.contains(named), "{line}: {text}");
            assert!(!text.contains('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn help_is_no_error() {
        for line in ["--help", "up --help", "--version"] {
            assert!(matches!(read(line), Err(Unparsed::Help(_))), "{line}");
        }
    }
}
