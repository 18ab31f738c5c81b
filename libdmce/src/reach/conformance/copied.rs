//! Blocks with copies: what each of them has is what the first one has.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dmce_abi::block::{BlockId, DaemonId, Half};
use dmce_shm::table::{LockTableHeader, TableIdentity, table_bytes};

use super::*;
use crate::reach::copied::{
    Arbiter, CopiedBlock, Copy, CopySet, Damage, Identity, Judgement, LockTable, Party, Size, Way,
};

/// The epoch of the blocks here.
const EPOCH: u64 = 5;

/// Says that every copy that cannot be written is good no more.
#[derive(Debug)]
struct DropsAll;

impl Arbiter for DropsAll {
    fn report(&self, _: Damage) {}

    fn judge(&self, _: Damage) -> Judgement {
        Judgement::Dropped
    }

    fn give_up(&self, damage: Damage) {
        panic!("nothing is given up here: {damage:?}");
    }
}

/// How each copy is reached.
trait OneWay {
    fn way(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> Way;
    fn session(&self) -> &Session;
}

impl OneWay for Mapped {
    fn way(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> Way {
        Way::Mapped(self.open(fd, bytes_max, protection))
    }
    fn session(&self) -> &Session {
        &self.0
    }
}

impl OneWay for Windowed {
    fn way(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> Way {
        Way::Windowed(self.open(fd, bytes_max, protection))
    }
    fn session(&self) -> &Session {
        &self.1
    }
}

/// What all who have a block open share, but for its first copy.
pub(crate) struct Rest {
    pub others: Vec<OwnedFd>,
    pub locks: OwnedFd,
}

/// Blocks of so many copies.
struct Copied<W> {
    way: W,
    copies: usize,
    /// By the first copy's object.
    made: Mutex<HashMap<u64, Arc<Rest>>>,
}

impl Rest {
    /// The other copies of a block, and its lock table.
    pub(crate) fn new(copies: usize, bytes_max: u64) -> Self {
        let header = LockTableHeader::new(TableIdentity { epoch: EPOCH - 1, ..identity() });
        let locks = object("locks", table_bytes(bytes_max));
        header.write(locks.as_fd()).unwrap();
        Self { others: (1..copies).map(|_| object("copy", bytes_max)).collect(), locks }
    }

    /// The lock table, mapped.
    pub(crate) fn table(&self, bytes_max: u64, protection: Protection) -> LockTable {
        let TableIdentity { block, guid, .. } = identity();
        let who = (block, guid, EPOCH);
        let size = Size { committed: bytes_max, bytes_max };
        LockTable::map(self.locks.as_fd(), who, size, protection).unwrap()
    }
}

pub(crate) fn identity() -> TableIdentity {
    TableIdentity { block: BlockId::try_from(9).unwrap(), guid: Guid([9; 16]), epoch: EPOCH }
}

/// The session of a test, as accesses of blocks with copies need it.
pub(crate) fn party(session: &Session, timeout: Duration, arbiter: Arc<dyn Arbiter>) -> Arc<Party> {
    let (map, slots) = session.parts();
    let session = SessionId::try_from(1).unwrap();
    Arc::new(Party { map, slots, session, timeout, arbiter })
}

pub(crate) fn block_of(ways: Vec<Way>, locks: LockTable, party: Arc<Party>) -> CopiedBlock {
    let good = ways.len();
    block_with(ways, good, locks, party)
}

/// One of whose copies so many are good.
pub(crate) fn block_with(
    ways: Vec<Way>,
    good: usize,
    locks: LockTable,
    party: Arc<Party>,
) -> CopiedBlock {
    let daemons = (1..).map(|daemon| DaemonId::try_from(daemon).unwrap());
    let halves = (0..3).filter_map(Half::of);
    let copies = daemons.zip(halves).zip(ways);
    let copies = copies.map(|((daemon, half), way)| Copy { daemon, half, way }).collect();
    let identity = Identity { block: identity().block, epoch: EPOCH, base: 9 << 30 };
    CopiedBlock::new(identity, CopySet { copies, good }, locks, party)
}

impl<W: OneWay> Kind for Copied<W> {
    type Reach = CopiedBlock;
    const LABEL: &'static str = "copied";

    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> CopiedBlock {
        let inode = object::stat(fd).unwrap().inode;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = made.entry(inode).or_insert_with(|| Arc::new(Rest::new(self.copies, bytes_max)));
        let first = self.way.way(fd, bytes_max, protection);
        let others = rest.others.iter();
        let others = others.map(|fd| self.way.way(fd.as_fd(), bytes_max, protection));
        let ways = std::iter::once(first).chain(others).collect();
        let party = party(self.way.session(), Duration::from_secs(10), Arc::new(DropsAll));
        block_of(ways, rest.table(bytes_max, protection), party)
    }

    fn session(&self) -> &Session {
        self.way.session()
    }
}

fn mapped(copies: usize) -> Copied<Mapped> {
    Copied { way: Mapped(Session::new()), copies, made: Mutex::default() }
}

fn behind(windows: u64, copies: usize) -> Copied<Windowed> {
    Copied { way: windowed(windows), copies, made: Mutex::default() }
}

conform_all!(one_copy_that_is_left, mapped(1));
conform_all!(one_windowed_copy_that_is_left, behind(6, 1));

mod two_copies {
    use super::*;
    conform_whole!(mapped(2));
}
mod three_copies {
    use super::*;
    conform_whole!(mapped(3));
}
mod two_windowed_copies {
    use super::*;
    conform_whole!(behind(6, 2));
}
mod three_copies_behind_four_windows {
    use super::*;
    conform_whole!(behind(4, 3));
}

/// Whatever is written goes to all of them.
#[test]
fn after_every_kind_of_write_the_copies_are_equal() {
    fn run<W: OneWay>(kind: &Copied<W>) {
        let fd = object("equal", BYTES);
        let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
        let mut seed = 3;
        for step in 0..400 {
            let large = number(&mut seed, 20) == 0;
            let bytes = number(&mut seed, if large { 3 << 20 } else { 9_000 }) + 1;
            let cell = number(&mut seed, BYTES - bytes);
            let len = usize::try_from(bytes).unwrap();
            match step % 3 {
                0 => block.put(cell, &pattern(step, len), BYTES).unwrap(),
                1 => block.set(Piece { cell, bytes: len, committed: BYTES }, 7).unwrap(),
                _ => drop(block.change(cell / 8 * 8, Change::Add(step)).unwrap()),
            }
        }
        let content = |fd: BorrowedFd<'_>| {
            let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
            object::read_at(fd, &mut bytes, 0).unwrap();
            bytes
        };
        let first = content(fd.as_fd());
        let made = kind.made.lock().unwrap();
        let rest = made.values().next().unwrap();
        assert_eq!(rest.others.len(), kind.copies - 1);
        assert!(rest.others.iter().all(|other| content(other.as_fd()) == first));
    }
    run(&mapped(2));
    run(&mapped(3));
    run(&behind(6, 3));
}
