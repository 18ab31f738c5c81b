//! Work without end, drawn from a seed: everything that leaves something behind at its broker when
//! the process that does it is killed.
//!
//! | what | checked |
//! |---|---|
//! | allocations: small, of a block, spans; written, resized, read, freed | every byte |
//! | mappings of parts of them, written and read through the pointer, unmapped | every byte |
//! | regions of its own: created, opened, written, closed, deleted | every byte |
//! | regions that all such clients share, which each deletes as it likes | that no call fails |
//!
//! The bytes behind a pointer are reached through `/proc/self/mem`, as safe code can.
//!
//! # Invariants
//!
//! 1. A client holds at most [`HELD_MAX`] bytes and some objects of each kind, so that a few fit
//!    an instance. To find no room there is no failure.
//! 2. Nothing is asked of others: shared regions may come and go, whatever a client does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process;

use dmce_abi::{DmceAddr, Status};
use libdmce::{Error, Mirror, Prot, Region, RegionOptions, Session};

use crate::Seeded;

/// The volume of all regions: they outlive their creators, and who is last deletes them.
pub const VOLUME: &str = "churn";

/// Bytes that a client holds at most.
pub const HELD_MAX: u64 = 96 << 20;

/// Regions that clients share.
const SHARED: u64 = 3;

/// Bytes of a shared region.
const SHARED_BYTES: u64 = 300_000;

/// Allocations, mappings and regions of its own that a client has at a time.
const PIECES_MAX: usize = 64;
const MAPPINGS_MAX: usize = 6;
const REGIONS_MAX: usize = 4;

/// Why a client stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChurnError {
    /// A call failed that must not.
    #[error("{what}: {error}")]
    Call {
        /// What was done.
        what: &'static str,
        /// How it failed.
        error: Error,
    },
    /// Bytes are not what was written.
    #[error("{what}: byte {place} of {bytes} is wrong")]
    Wrong {
        /// Where.
        what: &'static str,
        /// The first that differs.
        place: usize,
        /// How many there are.
        bytes: usize,
    },
    /// The process's own memory cannot be reached.
    #[error("own memory")]
    Memory(#[from] io::Error),
}

/// Bytes of a seed's.
struct Piece {
    addr: DmceAddr,
    content: u64,
    bytes: u64,
}

/// A part of an allocation behind a pointer. The allocation stays as it is meanwhile.
struct Mapped {
    piece: Piece,
    pointer: *const u8,
}

/// A region that nobody else knows by name.
struct OwnRegion {
    name: String,
    content: u64,
    bytes: u64,
    open: Option<Region>,
}

struct Churn<'a> {
    session: &'a Session,
    memory: File,
    random: Seeded,
    block_bytes: u64,
    held: u64,
    pieces: Vec<Piece>,
    mapped: Vec<Mapped>,
    regions: Vec<OwnRegion>,
    shared: Vec<Region>,
    named: u64,
}

/// Does so many steps of work, or works until the process is killed.
///
/// # Errors
///
/// [`ChurnError`]: something is wrong.
pub fn churn(session: &Session, seed: u64, steps: u64) -> Result<(), ChurnError> {
    let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
    let mut churn = Churn {
        session,
        memory,
        random: Seeded::quiet(seed),
        block_bytes: session.layout().block_bytes(),
        held: 0,
        pieces: Vec::new(),
        mapped: Vec::new(),
        regions: Vec::new(),
        shared: Vec::new(),
        named: 0,
    };
    for _ in 0..steps {
        churn.step()?;
    }
    Ok(())
}

impl Churn<'_> {
    fn step(&mut self) -> Result<(), ChurnError> {
        match self.random.below(20) {
            0..=6 => self.malloc(),
            7..=11 => self.free(),
            12 | 13 => self.realloc(),
            14 => self.map(),
            15 => self.unmap(),
            16 => self.create_region(),
            17 | 18 => self.use_region(),
            _ => self.use_shared(),
        }
    }

    /// Small ones mostly, some of a part of a block, a few that need several blocks.
    fn some_bytes(&mut self) -> u64 {
        let most = match self.random.below(32) {
            0 => self.block_bytes * 2,
            1 | 2 => self.block_bytes / 8,
            3..=5 => 300_000,
            _ => 20_000,
        };
        1 + self.random.below(most.min(HELD_MAX / 2))
    }

    fn some_place(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count as u64)).expect("it is below a length")
    }

    fn malloc(&mut self) -> Result<(), ChurnError> {
        let bytes = self.some_bytes();
        if self.pieces.len() >= PIECES_MAX || self.held + bytes > HELD_MAX {
            return Ok(());
        }
        let Some(addr) = unless(self.session.malloc(bytes), &[Status::NoSpace], "malloc")? else {
            return Ok(());
        };
        let piece = Piece { addr, content: self.random.bits(), bytes };
        self.write(&piece)?;
        self.held += bytes;
        self.pieces.push(piece);
        Ok(())
    }

    fn free(&mut self) -> Result<(), ChurnError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let place = self.some_place(self.pieces.len());
        let piece = self.pieces.swap_remove(place);
        self.check(&piece, piece.bytes)?;
        self.held -= piece.bytes;
        done(self.session.free(piece.addr), "free")
    }

    fn realloc(&mut self) -> Result<(), ChurnError> {
        let bytes = self.some_bytes();
        if self.pieces.is_empty() || self.held + bytes > HELD_MAX {
            return Ok(());
        }
        let place = self.some_place(self.pieces.len());
        let old = &self.pieces[place];
        let moved = self.session.realloc(old.addr, bytes);
        let Some(addr) = unless(moved, &[Status::NoSpace], "realloc")? else {
            return self.check(old, old.bytes);
        };
        let mut piece = Piece { addr, content: old.content, bytes };
        self.check(&piece, old.bytes.min(bytes))?;
        self.held = self.held - old.bytes + bytes;
        piece.content = self.random.bits();
        self.write(&piece)?;
        self.pieces[place] = piece;
        Ok(())
    }

    fn map(&mut self) -> Result<(), ChurnError> {
        if self.pieces.is_empty() || self.mapped.len() >= MAPPINGS_MAX {
            return Ok(());
        }
        let place = self.some_place(self.pieces.len());
        let Piece { addr, bytes, .. } = self.pieces[place];
        let Ok(length) = usize::try_from(bytes) else { return Ok(()) };
        let mapped = self.session.map(addr, length, Prot::READ_WRITE);
        // A 32-bit process may have no address space for a pointer, and the message path has none.
        let impossible = [Status::NoMem, Status::Unsupported];
        let Some(pointer) = unless(mapped, &impossible, "map")? else {
            return Ok(());
        };
        let mut piece = self.pieces.swap_remove(place);
        let mut found = vec![0; length];
        self.memory.read_exact_at(&mut found, pointer.addr() as u64)?;
        same(&pattern(piece.content, bytes), &found, "behind a pointer")?;
        piece.content = self.random.bits();
        self.memory.write_all_at(&pattern(piece.content, bytes), pointer.addr() as u64)?;
        self.mapped.push(Mapped { piece, pointer });
        Ok(())
    }

    fn unmap(&mut self) -> Result<(), ChurnError> {
        if self.mapped.is_empty() {
            return Ok(());
        }
        let place = self.some_place(self.mapped.len());
        let Mapped { piece, pointer } = self.mapped.swap_remove(place);
        self.check(&piece, piece.bytes)?;
        done(self.session.unmap(pointer), "unmap")?;
        self.pieces.push(piece);
        Ok(())
    }

    fn create_region(&mut self) -> Result<(), ChurnError> {
        let bytes = self.some_bytes();
        if self.regions.len() >= REGIONS_MAX || self.held + bytes > HELD_MAX {
            return Ok(());
        }
        self.named += 1;
        let name = format!("{}-{}", process::id(), self.named);
        let made = self.session.region_create(VOLUME, &name, bytes, &RegionOptions::default());
        if unless(made, &[Status::NoSpace], "creating a region")?.is_some() {
            self.held += bytes;
            let content = self.random.bits();
            self.regions.push(OwnRegion { name, content, bytes, open: None });
        }
        Ok(())
    }

    /// Opens a region and writes it; or checks it, closes it, and perhaps deletes it.
    fn use_region(&mut self) -> Result<(), ChurnError> {
        if self.regions.is_empty() {
            return Ok(());
        }
        let place = self.some_place(self.regions.len());
        let deletes = self.random.below(2) == 0;
        let region = &mut self.regions[place];
        let expected = pattern(region.content, region.bytes);
        if let Some(open) = region.open.take() {
            let mut found = vec![0; expected.len()];
            done(open.read(0, &mut found, Mirror::Any), "reading a region")?;
            same(&expected, &found, "in a region")?;
            done(open.close(), "closing a region")?;
        } else {
            let open = self.session.region_open(VOLUME, &region.name, Prot::READ_WRITE);
            let open = call(open, "opening a region")?;
            done(open.write(0, &expected, Mirror::Both), "writing a region")?;
            region.open = Some(open);
            return Ok(());
        }
        if deletes {
            let region = self.regions.swap_remove(place);
            self.held -= region.bytes;
            done(self.session.region_delete(VOLUME, &region.name), "deleting a region")?;
        }
        Ok(())
    }

    /// Does something with a region that others use as well.
    fn use_shared(&mut self) -> Result<(), ChurnError> {
        let name = format!("shared-{}", self.random.below(SHARED));
        let at = self.random.below(SHARED_BYTES - 1000);
        let whatever = [Status::NotFound, Status::Exists, Status::Busy, Status::NoSpace];
        match self.random.below(5) {
            0 => {
                let options = RegionOptions::default();
                let made = self.session.region_create(VOLUME, &name, SHARED_BYTES, &options);
                unless(made, &whatever, "creating a shared region")?;
            }
            1 if self.shared.len() < REGIONS_MAX => {
                let open = self.session.region_open(VOLUME, &name, Prot::READ_WRITE);
                self.shared.extend(unless(open, &whatever, "opening a shared region")?);
            }
            1 | 2 => {
                if let Some(region) = self.shared.pop() {
                    done(region.close(), "closing a shared region")?;
                }
            }
            3 if self.shared.is_empty() => {
                let deleted = self.session.region_delete(VOLUME, &name);
                unless(deleted, &whatever, "deleting a shared region")?;
            }
            _ => {
                if let Some(region) = self.shared.last() {
                    let data = pattern(at, 1000);
                    done(region.write(at, &data, Mirror::Both), "writing a shared region")?;
                    let mut found = [0; 1000];
                    done(region.read(at, &mut found, Mirror::Any), "reading a shared region")?;
                }
            }
        }
        Ok(())
    }

    fn write(&self, piece: &Piece) -> Result<(), ChurnError> {
        done(self.session.write(piece.addr, &pattern(piece.content, piece.bytes)), "write")
    }

    /// Compares the first bytes of a piece.
    fn check(&self, piece: &Piece, bytes: u64) -> Result<(), ChurnError> {
        let expected = pattern(piece.content, bytes);
        let mut found = vec![0; expected.len()];
        done(self.session.read(piece.addr, &mut found), "read")?;
        same(&expected, &found, "in an allocation")
    }
}

/// `bytes` bytes of a seed's. They repeat, at no multiple of a page: long ones are soon made.
#[must_use]
pub fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    const PERIOD: usize = 8191;
    let bytes = usize::try_from(bytes).expect("a test's buffer fits");
    let mut content = vec![0; bytes.min(PERIOD)];
    Seeded::quiet(seed).fill(&mut content);
    while content.len() < bytes {
        // What is there is a multiple of the period, so that it goes on as it began.
        content.extend_from_within(..content.len().min(bytes - content.len()));
    }
    content
}

fn same(expected: &[u8], found: &[u8], what: &'static str) -> Result<(), ChurnError> {
    if expected == found {
        return Ok(());
    }
    match expected.iter().zip(found).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(place) => Err(ChurnError::Wrong { what, place, bytes: found.len() }),
    }
}

fn call<T>(result: Result<T, Error>, what: &'static str) -> Result<T, ChurnError> {
    result.map_err(|error| ChurnError::Call { what, error })
}

fn done(result: Result<(), Error>, what: &'static str) -> Result<(), ChurnError> {
    call(result, what)
}

/// What a call gave; `None` if it failed as it may.
fn unless<T>(
    result: Result<T, Error>,
    allowed: &[Status],
    what: &'static str,
) -> Result<Option<T>, ChurnError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if allowed.contains(&error.status()) => Ok(None),
        Err(error) => Err(ChurnError::Call { what, error }),
    }
}
