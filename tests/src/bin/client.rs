//! `dmce-test-client`: does to DMCE what a test tells it, one command a line.
//!
//! ```text
//! open [spawn] [TIMEOUT_MS]       malloc BYTES -> ADDR            free ADDR
//! close                           realloc ADDR BYTES -> ADDR      usable ADDR -> BYTES
//! fill ADDR SEED BYTES            check ADDR SEED BYTES           stat -> WINDOWS BLOCKS
//! create VOLUME NAME BYTES MODE   ropen VOLUME NAME r|rw          rclose
//! rfill POINTER SEED BYTES        rcheck POINTER SEED BYTES       raddr POINTER -> ADDR
//! rfill-primary POINTER SEED BYTES
//! delete VOLUME NAME              list VOLUME -> NAMES            map ADDR BYTES r|rw -> POINTER
//! churn SEED [STEPS]              hold MIB -> ADDR..
//! torture VOLUME NAME WRITER SEED NEXT -> lines
//! count ADDR N add|cas            turns ADDR FIRST STEP N         raise ADDR BY -> VALUE
//! unmap POINTER                   vmalloc BYTES [COPIES] -> POINTER
//! vfree POINTER                   addrof POINTER -> ADDR          ptrof ADDR -> POINTER
//! sync POINTER BYTES              rmap r|rw -> POINTER
//! pfill POINTER SEED BYTES        pcheck POINTER SEED BYTES
//! ```
//!
//! Where `DMCE_TEST_MESSAGE_PATH` is set, the session is one on the message path.
//!
//! `churn` does what `dmce_tests::churn` says. It works for ever, and answers only if something is
//! wrong, unless it is told for how many steps. So does `torture`, as a campaign's writer
//! (`dmce_tests::torture`), and says lines of its own meanwhile. `raise` answers what the word was;
//! `count` raises it N times by one. `turns` waits until it is FIRST, FIRST + STEP.., N times, and
//! each time raises it by one and wakes the others.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;

use dmce_abi::DmceAddr;
use dmce_tests::churn::{self, ChurnError, pattern};
use dmce_tests::client::MESSAGE_PATH;
use dmce_tests::torture;
use libdmce::{AllocOptions, Error, Mirror, Options, Prot, Region, RegionOptions, Session};

#[derive(Default)]
struct State {
    session: Option<Session>,
    region: Option<Region>,
}

fn main() {
    let mut state = State::default();
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.expect("commands are text");
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match run(&mut state, &words) {
            Ok(text) => format!("ok {text}"),
            Err(Failure::Call(error)) => format!("err {} {error}", error.status().code()),
            Err(Failure::Wrong(text)) => format!("wrong {text}"),
        };
        writeln!(answers, "{answer}").expect("the test reads answers");
        answers.flush().expect("the test reads answers");
    }
}

enum Failure {
    Call(Error),
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<ChurnError> for Failure {
    fn from(error: ChurnError) -> Self {
        Self::Wrong(error.to_string())
    }
}

type Answer = Result<String, Failure>;

fn run(state: &mut State, words: &[&str]) -> Answer {
    let (command, rest) = words.split_first().ok_or_else(|| wrong("an empty command"))?;
    match *command {
        "open" => {
            let spawn = rest.contains(&"spawn");
            let message_path = std::env::var_os(MESSAGE_PATH).is_some();
            let timeout_ms = rest.iter().find_map(|word| word.parse().ok()).unwrap_or(0);
            let options = Options { spawn, message_path, timeout_ms, ..Options::default() };
            state.session = Some(Session::open(&options)?);
            Ok(String::new())
        }
        "close" => {
            state.session.take().ok_or_else(|| wrong("no session"))?.close()?;
            Ok(String::new())
        }
        "torture" => torture(state, rest),
        "create" | "ropen" | "rclose" | "rfill" | "rfill-primary" | "rcheck" | "raddr"
        | "delete" | "list" | "rmap" => regions(state, command, rest),
        "vmalloc" | "vfree" | "addrof" | "ptrof" | "sync" | "pfill" | "pcheck" => {
            transparent(state, command, rest)
        }
        _ => memory(state, command, rest),
    }
}

fn transparent(state: &State, command: &str, rest: &[&str]) -> Answer {
    let session = state.session.as_ref().ok_or_else(|| wrong("no session"))?;
    match (command, rest) {
        ("vmalloc", [bytes, copies @ ..]) => {
            let copies = copies.first().map_or(Ok(0), |copies| copies.parse());
            let copies = copies.map_err(|_| wrong("no number of copies"))?;
            let options = AllocOptions { copies, ..AllocOptions::default() };
            let memory = session.vmalloc(number(bytes)?, &options)?;
            Ok((memory.into_raw().expose_provenance()).to_string())
        }
        ("vfree", [at]) => {
            session.vfree(pointer(at)?)?;
            Ok(String::new())
        }
        ("addrof", [at]) => Ok(session.addr_of(pointer(at)?)?.to_raw().to_string()),
        ("ptrof", [at]) => Ok(session.ptr_of(addr(session, at)?)?.addr().to_string()),
        ("sync", [at, bytes]) => {
            session.sync(pointer(at)?, number(bytes)?)?;
            Ok(String::new())
        }
        ("pfill", [at, seed, bytes]) => {
            let data = pattern(number(seed)?, number(bytes)?);
            own_memory()?.write_all_at(&data, number(at)?).map_err(|_| wrong("not mapped"))?;
            Ok(String::new())
        }
        ("pcheck", [at, seed, bytes]) => {
            let expected = pattern(number(seed)?, number(bytes)?);
            let mut found = vec![0; expected.len()];
            let read = own_memory()?.read_exact_at(&mut found, number(at)?);
            read.map_err(|_| wrong("not mapped"))?;
            same(&expected, &found)
        }
        _ => Err(wrong("no such command")),
    }
}

/// What this process has mapped, by its own page tables: as loads and stores reach it, but where
/// they would raise a signal.
fn own_memory() -> Result<File, Failure> {
    let memory = File::options().read(true).write(true).open("/proc/self/mem");
    memory.map_err(|error| wrong(&error.to_string()))
}

fn pointer(text: &str) -> Result<*mut u8, Failure> {
    let pointer = text.parse().map_err(|_| wrong("not a pointer"))?;
    Ok(std::ptr::with_exposed_provenance_mut(pointer))
}

fn memory(state: &State, command: &str, rest: &[&str]) -> Answer {
    let session = state.session.as_ref().ok_or_else(|| wrong("no session"))?;
    match (command, rest) {
        ("malloc", [bytes]) => Ok(session.malloc(number(bytes)?)?.to_raw().to_string()),
        ("realloc", [at, bytes]) => {
            Ok(session.realloc(addr(session, at)?, number(bytes)?)?.to_raw().to_string())
        }
        ("free", [at]) => {
            session.free(addr(session, at)?).map(|()| String::new()).map_err(Into::into)
        }
        ("usable", [at]) => Ok(session.usable_size(addr(session, at)?)?.to_string()),
        ("fill", [at, seed, bytes]) => {
            let at = addr(session, at)?;
            session.write(at, &pattern(number(seed)?, number(bytes)?))?;
            Ok(String::new())
        }
        ("check", [at, seed, bytes]) => {
            let expected = pattern(number(seed)?, number(bytes)?);
            let mut found = vec![0; expected.len()];
            session.read(addr(session, at)?, &mut found)?;
            same(&expected, &found)
        }
        ("map", [at, bytes, rights]) => {
            let bytes = usize::try_from(number(bytes)?).map_err(|_| wrong("too long"))?;
            Ok((session.map(addr(session, at)?, bytes, prot(rights)?)? as usize).to_string())
        }
        ("unmap", [pointer]) => {
            let pointer: usize = pointer.parse().map_err(|_| wrong("not a pointer"))?;
            session.unmap(pointer as *const u8)?;
            Ok(String::new())
        }
        ("stat", []) => {
            let stat = session.stat()?;
            Ok(format!("{} {}", stat.windows, stat.blocks))
        }
        ("count", [at, times, way]) => {
            count(session, addr(session, at)?, number(times)?, *way == "cas")
        }
        ("turns", [at, first, step, times]) => {
            let turns = (number(first)?..).step_by(usize::try_from(number(step)?).unwrap_or(1));
            let times = usize::try_from(number(times)?).map_err(|_| wrong("too often"))?;
            take_turns(session, addr(session, at)?, turns.take(times))
        }
        ("wait", [at, equal, ms]) => {
            let timeout_ms = ms.parse().map_err(|_| wrong("no time"))?;
            session.wait64(addr(session, at)?, number(equal)?, timeout_ms)?;
            Ok(String::new())
        }
        ("raise", [at, by]) => Ok(session.add64(addr(session, at)?, number(by)?)?.to_string()),
        ("hold", [mib]) => hold(session, number(mib)?),
        ("churn", [seed]) => {
            churn::churn(session, number(seed)?, u64::MAX)?;
            Ok(String::new())
        }
        ("churn", [seed, steps]) => {
            churn::churn(session, number(seed)?, number(steps)?)?;
            Ok(String::new())
        }
        _ => Err(wrong("no such command")),
    }
}

fn regions(state: &mut State, command: &str, rest: &[&str]) -> Answer {
    let session = state.session.as_ref().ok_or_else(|| wrong("no session"))?;
    match (command, rest) {
        ("create", [volume, name, bytes, mode]) => {
            let mode = u32::from_str_radix(mode, 8).map_err(|_| wrong("a mode is octal"))?;
            let options = RegionOptions { mode, ..RegionOptions::default() };
            session.region_create(volume, name, number(bytes)?, &options)?;
            Ok(String::new())
        }
        ("ropen", [volume, name, rights]) => {
            state.region = Some(session.region_open(volume, name, prot(rights)?)?);
            Ok(String::new())
        }
        ("delete", [volume, name]) => {
            session.region_delete(volume, name)?;
            Ok(String::new())
        }
        ("list", [volume]) => Ok(session.region_list(volume)?.join(" ")),
        _ => {
            let region = state.region.as_ref().ok_or_else(|| wrong("no region"))?;
            in_region(region, command, rest)
        }
    }
}

fn in_region(region: &Region, command: &str, rest: &[&str]) -> Answer {
    match (command, rest) {
        ("rclose", []) => region.close().map(|()| String::new()).map_err(Into::into),
        ("rfill" | "rfill-primary", [at, seed, bytes]) => {
            let halves = if command == "rfill" { Mirror::Both } else { Mirror::Primary };
            region.write(number(at)?, &pattern(number(seed)?, number(bytes)?), halves)?;
            Ok(String::new())
        }
        ("rcheck", [at, seed, bytes]) => {
            let expected = pattern(number(seed)?, number(bytes)?);
            let mut found = vec![0; expected.len()];
            region.read(number(at)?, &mut found, Mirror::Any)?;
            same(&expected, &found)
        }
        ("rmap", [rights]) => Ok(region.map(prot(rights)?)?.expose_provenance().to_string()),
        ("raddr", [at]) => Ok(region.addr(number(at)?)?.to_raw().to_string()),
        _ => Err(wrong("no such command")),
    }
}

/// Writes a campaign's records to a region.
fn torture(state: &State, rest: &[&str]) -> Answer {
    let session = state.session.as_ref().ok_or_else(|| wrong("no session"))?;
    let [volume, name, writer, seed, next] = rest else { return Err(wrong("five words follow")) };
    let writer = writer.parse().map_err(|_| wrong("not a number"))?;
    let region = session.region_open(volume, name, Prot::READ_WRITE)?;
    let text = torture::work(session, &region, (writer, number(next)?), number(seed)?)?;
    Err(wrong(&text))
}

/// Raises a word so often by one.
fn count(session: &Session, at: DmceAddr, times: u64, by_exchange: bool) -> Answer {
    for _ in 0..times {
        if !by_exchange {
            session.add64(at, 1)?;
            continue;
        }
        let mut seen = session.add64(at, 0)?;
        loop {
            let before = session.cas64(at, seen, seen + 1)?;
            if before == seen {
                break;
            }
            seen = before;
        }
    }
    Ok(String::new())
}

/// Waits for each of its turns with a word, and gives it to the next.
fn take_turns(session: &Session, at: DmceAddr, turns: impl Iterator<Item = u64>) -> Answer {
    for turn in turns {
        let mut now = session.add64(at, 0)?;
        while now != turn {
            if now > turn {
                return Err(wrong(&format!("turn {turn} was taken by another: {now}")));
            }
            session.wait64(at, now, 0)?;
            now = session.add64(at, 0)?;
        }
        session.add64(at, 1)?;
        session.wake(at, u32::MAX)?;
    }
    Ok(String::new())
}

/// Allocates and fills so many MiB, one by one; answers their addresses.
fn hold(session: &Session, mib: u64) -> Answer {
    let mut addrs = Vec::new();
    for place in 0..mib {
        let at = session.malloc(1 << 20)?;
        session.write(at, &pattern(place, 1 << 20))?;
        addrs.push(at.to_raw().to_string());
    }
    Ok(addrs.join(" "))
}

fn same(expected: &[u8], found: &[u8]) -> Answer {
    match expected.iter().zip(found).position(|(a, b)| a != b) {
        None => Ok(String::new()),
        Some(place) => Err(wrong(&format!(
            "byte {place} of {}: {} is not {}",
            found.len(),
            found[place],
            expected[place]
        ))),
    }
}

fn number(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| wrong("not a number"))
}

fn addr(session: &Session, text: &str) -> Result<DmceAddr, Failure> {
    Ok(session.addr(number(text)?)?)
}

fn prot(text: &str) -> Result<Prot, Failure> {
    match text {
        "r" => Ok(Prot::READ),
        "rw" => Ok(Prot::READ | Prot::WRITE),
        _ => Err(wrong("rights are r or rw")),
    }
}

fn wrong(text: &str) -> Failure {
    Failure::Wrong(text.to_owned())
}
