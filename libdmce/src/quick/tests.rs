//! A block that is read and written past a door, and what shuts doors.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmce_abi::block::{BlockId, DaemonId, Guid, Half};
use dmce_abi::wire::client::{BlockInfo, CopyInfo};
use dmce_shm::session::map::SessionMap;
use dmce_sys::map::Protection;

use super::{BYTES_MAX, read_rest, write_rest};
use crate::alloc::Key;
use crate::block::{Backing, Block};
use crate::door::Ways;
use crate::doors::Doors;
use crate::reach::Piece;
use crate::reach::conformance::{Session, object};
use crate::reach::mapped::MappedBlock;
use crate::slots::Slots;
use crate::table::{Retired, Table};
use crate::thread;

/// As whoever leaves the rest to a second try does.
///
/// # Safety
///
/// As [`super::read`].
unsafe fn read(key: usize, from: u64, buffer: *mut u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    let done = unsafe { super::read(key, from, buffer, bytes) };
    // SAFETY: as above.
    done || unsafe { read_rest(key, from, buffer, bytes) }
}

/// # Safety
///
/// As [`super::write`].
unsafe fn write(key: usize, to: u64, data: *const u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    let done = unsafe { super::write(key, to, data, bytes) };
    // SAFETY: as above.
    done || unsafe { write_rest(key, to, data, bytes) }
}

const BLOCK: u32 = 5;
/// One that the table's first leaf has no place for.
const BEHIND: u32 = 3000;
const CELL_BITS: u8 = 40;
const BYTES: u64 = 1 << 20;

/// What doors lead to: a table of one block, with a key of its own.
pub(crate) struct Quick {
    doors: Doors,
    table: Box<Table>,
    map: Arc<SessionMap>,
    slots: Slots,
    key: Key,
    done: AtomicU64,
}

impl Quick {
    pub(crate) fn new(session: &Session, block: BlockOf) -> Self {
        let (map, slots) = session.parts();
        let table = Table::new(BEHIND + 1);
        assert!(table.insert(block.finish(BLOCK)).is_empty());
        let key = Key::new(slots.own_key()).unwrap();
        let doors = Doors::new(map.look().fence);
        Self { doors, table, map, slots, key, done: AtomicU64::new(0) }
    }

    /// Has this thread a door, unless the process cannot do it.
    pub(crate) fn open(&self, may_write: bool) -> bool {
        let slot = self.slots.own().unwrap();
        let door = thread::door(self.key).unwrap();
        let (own, look) = (&self.map.slots()[slot], self.map.look());
        let ways = Ways { slot: own, look, table: &*self.table, cell_bits: CELL_BITS };
        // SAFETY: the table, the map and the slots go after the doors; the slot is this thread's.
        unsafe { self.doors.open((slot, door), self.key, may_write, &ways) };
        door.is_open(self.key)
    }

    /// Opens a door for the thread if it is shut, and says where a piece is.
    fn prepare(&self, piece: Piece) -> u64 {
        self.slots.own().unwrap();
        if !thread::door(self.key).unwrap().is_open(self.key) {
            self.open(true);
        }
        self.block().set_committed(piece.committed);
        at(piece.cell)
    }

    /// The block, for what is not done past doors.
    pub(crate) fn block(&self) -> Arc<Block> {
        self.table.find(BlockId::try_from(BLOCK).unwrap()).unwrap()
    }

    /// Reads past the door. False: not done.
    pub(crate) fn read(&self, piece: Piece, buffer: &mut [u8]) -> bool {
        let from = self.prepare(piece);
        // SAFETY: the buffer is as long as it says.
        let done = unsafe { read(self.key.number(), from, buffer.as_mut_ptr(), buffer.len()) };
        self.done.fetch_add(done.into(), Ordering::Relaxed);
        done
    }

    /// Writes past the door. False: not done.
    pub(crate) fn write(&self, piece: Piece, data: &[u8]) -> bool {
        let to = self.prepare(piece);
        // SAFETY: the data is as long as it says.
        let done = unsafe { write(self.key.number(), to, data.as_ptr(), data.len()) };
        self.done.fetch_add(done.into(), Ordering::Relaxed);
        done
    }

    /// How often something was done.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// A block to be made.
pub(crate) struct BlockOf {
    pub bytes_max: u64,
    pub protection: Protection,
    pub backing: Backing,
}

impl BlockOf {
    fn finish(self, id: u32) -> Block {
        let block = BlockId::try_from(id).unwrap();
        let daemon = DaemonId::try_from(1).unwrap();
        let info = BlockInfo {
            block,
            guid: Guid([3; 16]),
            epoch: 1,
            committed: self.bytes_max,
            bytes_max: self.bytes_max,
            span_first: block,
            span_count: 1,
            page_size: 4096,
            writable: self.protection == Protection::ReadWrite,
            lost: false,
            copies: [Some(CopyInfo { daemon, since: 0, half: Half::PRIMARY }), None, None],
            syncing: None,
            has_locks: false,
            is_moving: false,
        };
        Block::of_info(&info, self.backing)
    }
}

const fn at(cell: u64) -> u64 {
    (BLOCK as u64) << CELL_BITS | cell
}

fn mapped(session: &Session, fd: &OwnedFd, protection: Protection) -> Quick {
    let backing = Backing::Mapped(MappedBlock::new(fd.as_fd(), BYTES, protection).unwrap());
    Quick::new(session, BlockOf { bytes_max: BYTES, protection, backing })
}

#[test]
fn who_was_told_that_its_session_is_over_is_let_in_no_more() {
    let (session, fd) = (Session::new(), object("told", BYTES));
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    if !quick.open(true) {
        return;
    }
    let key = quick.key.number();
    assert!(reads(key, at(0)) && writes(key, at(0)));
    thread::shut(quick.key);
    assert!(!reads(key, at(0)) && !writes(key, at(0)));
}

#[test]
fn a_block_behind_the_first_leaf_is_no_other() {
    let (session, fd) = (Session::new(), object("behind", BYTES));
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    if !quick.open(true) {
        return;
    }
    let key = quick.key.number();
    let behind = |cell| u64::from(BEHIND) << CELL_BITS | cell;
    assert!(!reads(key, behind(0)) && !writes(key, behind(0)), "it is not there yet");
    let other = object("behind-2", BYTES);
    let backing =
        Backing::Mapped(MappedBlock::new(other.as_fd(), BYTES, Protection::Read).unwrap());
    let block = BlockOf { bytes_max: BYTES, protection: Protection::Read, backing };
    assert!(quick.table.insert(block.finish(BEHIND)).is_empty());
    assert!(writes(key, at(16)) && reads(key, behind(16)));
    assert!(!writes(key, behind(16)), "it is for reading");
    let mut word = [1; 8];
    // SAFETY: the buffer has so many.
    assert!(unsafe { read(key, behind(16), word.as_mut_ptr(), 8) });
    assert_eq!(word, [0; 8]);
    assert!(!reads(key, behind(1 << 39)) && !reads(key, behind(0) + at(0)));
}

/// A raw read of 8 bytes.
fn reads(key: usize, from: u64) -> bool {
    let mut buffer = [0; 8];
    // SAFETY: the buffer has so many.
    unsafe { read(key, from, buffer.as_mut_ptr(), 8) }
}

/// A raw write of 8 bytes.
fn writes(key: usize, to: u64) -> bool {
    // SAFETY: the array has so many.
    unsafe { write(key, to, [7_u8; 8].as_ptr(), 8) }
}

#[test]
fn is_for_ranges_inside_the_block_and_for_who_has_the_key_and_the_right() {
    let (session, fd) = (Session::new(), object("quick", BYTES));
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    let key = quick.key.number();
    assert!(!reads(key, at(0)), "there is no door yet");
    if !quick.open(true) {
        return;
    }
    for from in [at(0), at(3), at(BYTES - 8)] {
        assert!(reads(key, from) && writes(key, from), "{from:#x}");
    }
    let beyond = [0, 8, at(BYTES - 7), at(BYTES), at(1 << 39), at(0) - 8, at(0) << 1, u64::MAX];
    for from in beyond {
        assert!(!reads(key, from) && !writes(key, from), "{from:#x}");
    }
    for wrong in [0, 1, 3, key ^ 1, key + 16, key ^ 4, !key, usize::MAX] {
        assert!(!reads(wrong, at(0)) && !writes(wrong, at(0)), "{wrong:#x}");
    }
    let mut buffer = vec![0; BYTES_MAX + 1];
    for (bytes, is_done) in [(0, false), (1, true), (BYTES_MAX, true), (BYTES_MAX + 1, false)] {
        // SAFETY: the buffer has so many.
        assert_eq!(unsafe { read(key, at(0), buffer.as_mut_ptr(), bytes) }, is_done, "{bytes}");
        // SAFETY: as above.
        assert_eq!(unsafe { write(key, at(0), buffer.as_ptr(), bytes) }, is_done, "{bytes}");
    }
    assert!(std::thread::scope(|scope| scope.spawn(|| !reads(key, at(0))).join().unwrap()));
    assert!(quick.open(false));
    assert!(reads(key, at(0)) && !writes(key, at(0)), "what is verified is not for doors");
    drop(quick);
    assert!(!reads(key, at(0)) && !writes(key, at(0)), "the session has ended");
}

#[test]
fn a_block_for_reading_is_not_written() {
    let (session, fd) = (Session::new(), object("quickread", BYTES));
    let quick = mapped(&session, &fd, Protection::Read);
    let key = quick.key.number();
    if quick.open(true) {
        assert!(reads(key, at(8)) && !writes(key, at(8)));
    }
}

#[test]
fn nothing_is_done_inside_an_operation_and_after_a_change() {
    let (session, fd) = (Session::new(), object("quickmoved", BYTES));
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    let key = quick.key.number();
    if !quick.open(true) {
        return;
    }
    let inside = quick.map.begin(quick.slots.own().unwrap()).unwrap();
    assert!(!reads(key, at(0)), "a handler has interrupted an operation");
    drop(inside);
    assert!(reads(key, at(0)));
    quick.map.settle(7);
    assert!(!reads(key, at(0)) && !writes(key, at(0)), "the generation is not the known one");
    quick.map.settle(0);
    assert!(reads(key, at(0)));
    quick.map.settle(u64::MAX);
    assert!(!reads(key, at(0)), "the session is closed");
}

#[test]
fn a_forked_child_finds_every_door_shut() {
    let (session, fd) = (Session::new(), object("quickfork", BYTES));
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    let key = quick.key.number();
    if !quick.open(true) {
        return;
    }
    // SAFETY: the child only loads, stores and exits: nothing that a lock of another thread could
    // hold up.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let is_shut = !reads(key, at(0)) && !writes(key, at(0));
        // SAFETY: ends the child at once, without running anything of the parent's.
        unsafe { libc::_exit(is_shut.into()) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(libc::WEXITSTATUS(status), 1);
    assert!(reads(key, at(0)));
}

/// One thread reads all the time, while another takes the block away or ends the session.
#[test]
fn what_doors_lead_to_goes_when_nobody_is_inside() {
    use std::sync::Barrier;
    const ROUNDS: u64 = 300;
    let (session, fd) = (Session::new(), object("quickend", BYTES));
    let (begin, stop) = (Barrier::new(2), std::sync::atomic::AtomicBool::new(false));
    for round in 0..ROUNDS {
        let quick = mapped(&session, &fd, Protection::ReadWrite);
        let key = quick.key.number();
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                quick.open(true);
                begin.wait();
                let mut times = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    times += u64::from(reads(key, at(0)));
                }
                times
            });
            begin.wait();
            (0..round % 50).for_each(|_| std::thread::yield_now());
            let retired: Retired = quick.table.remove(BlockId::try_from(BLOCK).unwrap());
            session.operations.wait();
            // SAFETY: every operation is over that could have found it.
            unsafe { retired.release() };
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert!(!reads(key, at(0)));
    }
}

#[test]
fn the_end_of_a_session_waits_for_who_is_inside() {
    let (session, fd) = (Session::new(), object("quickwait", BYTES));
    let entered = std::sync::Barrier::new(2);
    let has_left = std::sync::atomic::AtomicBool::new(false);
    let quick = mapped(&session, &fd, Protection::ReadWrite);
    let (key, is_allowed) = (quick.key, quick.doors.are_allowed());
    if !is_allowed {
        return;
    }
    let opened = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let owned = &quick;
        let (entered, opened, has_left) = (&entered, &opened, &has_left);
        scope.spawn(move || {
            assert!(owned.open(true));
            opened.wait();
            let door = thread::door(key).unwrap();
            let inside = door.enter(key, crate::door::Wish::Read, dmce_shm::Fence::Asymmetric);
            entered.wait();
            (0..1_000).for_each(|_| std::thread::yield_now());
            has_left.store(true, Ordering::Relaxed);
            drop(inside.unwrap());
        });
        opened.wait();
        entered.wait();
        quick.doors.shut_all();
        assert!(has_left.load(Ordering::Relaxed));
    });
    assert!(!reads(key.number(), at(0)));
}
