//! What all ways to reach a block must do alike, on real objects.

use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use dmce_sys::futex::wide::Heard;
use dmce_sys::map::Protection;
use dmce_sys::object::{self, DEFAULT_DIR, ObjectDir};

use dmce_abi::block::{Guid, SessionId};
use dmce_shm::Fence;
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::map::SessionMap;
use dmce_shm::session::object::SessionObject;

use super::mapped::MappedBlock;
use super::message::{AskedBlock, fake};
use super::windowed::{BUDGET_MAX, WINDOW_BYTES, WindowCache, WindowedBlock};
use super::word::{Change, WORD_BYTES, Watch};
use super::{Piece, Reach, Trouble};
use crate::block::{Backing, Obstacle};
use crate::operations::Operations;
use crate::quick::tests::{BlockOf, Quick};
use crate::slots::Slots;

/// An object without a name: nothing of it is left, whatever happens.
pub(crate) fn object(label: &str, bytes: u64) -> OwnedFd {
    // Tests of one process run at the same time.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = ObjectDir::open(DEFAULT_DIR).unwrap();
    let number = NEXT.fetch_add(1, Relaxed);
    let name = format!("dmce.test-{}-reach-{label}-{number}", std::process::id());
    let fd = dir.create(&name).unwrap();
    dir.unlink(&name).unwrap();
    object::commit(fd.as_fd(), 0, bytes).unwrap();
    fd
}

const BYTES: u64 = 3 * WINDOW_BYTES + 12_288;

/// A session object, so that accesses are inside operations as a session's are.
pub(crate) struct Session {
    map: Arc<SessionMap>,
    slots: Slots,
    pub operations: Operations,
    /// As the broker holds it.
    pub object: SessionObject,
}

impl Session {
    pub(crate) fn new() -> Self {
        let fence = Fence::register();
        let id = SessionId::try_from(1).unwrap();
        let identity = SessionIdentity { session: id, guid: Guid([1; 16]) };
        let object = SessionObject::create(object("session", 4096), identity, fence).unwrap();
        object.commit_undo().unwrap();
        let map = Arc::new(SessionMap::map(object.as_fd(), identity, fence).unwrap());
        let operations = Operations::new(Arc::clone(&map), fence);
        Self { map, slots: Slots::new(), operations, object }
    }

    /// Its object's mapping, and who has which slot.
    pub(crate) fn parts(&self) -> (Arc<SessionMap>, Slots) {
        (Arc::clone(&self.map), self.slots.clone())
    }

    pub(crate) fn operate<R>(&self, access: impl FnOnce() -> R) -> R {
        let slot = self.slots.own().unwrap();
        let _inside = self.map.begin(slot).unwrap();
        access()
    }
}

/// How a kind of reach is made for an object.
trait Kind {
    type Reach: Reach + Sync;
    const LABEL: &'static str;
    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> Self::Reach;
    fn session(&self) -> &Session;

    /// The same block, for small accesses past a door.
    fn backing(&self, _reach: Self::Reach) -> Option<Backing> {
        None
    }

    fn block(
        &self,
        fd: BorrowedFd<'_>,
        bytes_max: u64,
        protection: Protection,
    ) -> Block<'_, Self::Reach> {
        let backing = self.backing(self.open(fd, bytes_max, protection));
        let block = backing.map(|backing| BlockOf { bytes_max, protection, backing });
        let quick = block.map(|block| Quick::new(self.session(), block));
        Block { reach: self.open(fd, bytes_max, protection), session: self.session(), quick }
    }
}

struct Mapped(Session);

impl Kind for Mapped {
    type Reach = MappedBlock;
    const LABEL: &'static str = "mapped";
    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> MappedBlock {
        MappedBlock::new(fd, bytes_max, protection).unwrap()
    }
    fn session(&self) -> &Session {
        &self.0
    }
}

/// Mapped blocks, of which small pieces are read and written past a door.
struct QuickMapped(Session);

impl Kind for QuickMapped {
    type Reach = MappedBlock;
    const LABEL: &'static str = "quickmapped";
    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> MappedBlock {
        MappedBlock::new(fd, bytes_max, protection).unwrap()
    }
    fn session(&self) -> &Session {
        &self.0
    }
    fn backing(&self, reach: MappedBlock) -> Option<Backing> {
        Some(Backing::Mapped(reach))
    }
}

/// The same for blocks behind windows.
struct QuickWindowed(Windowed);

impl Kind for QuickWindowed {
    type Reach = WindowedBlock;
    const LABEL: &'static str = "quickwindowed";
    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> WindowedBlock {
        self.0.open(fd, bytes_max, protection)
    }
    fn session(&self) -> &Session {
        self.0.session()
    }
    fn backing(&self, reach: WindowedBlock) -> Option<Backing> {
        Some(Backing::Windowed(reach))
    }
}

struct Windowed(Arc<WindowCache>, Session);

impl Kind for Windowed {
    type Reach = WindowedBlock;
    const LABEL: &'static str = "windowed";
    fn open(&self, fd: BorrowedFd<'_>, bytes_max: u64, protection: Protection) -> WindowedBlock {
        let fd = fd.try_clone_to_owned().unwrap();
        WindowedBlock::new(Arc::clone(&self.0), fd, bytes_max, protection).unwrap()
    }
    fn session(&self) -> &Session {
        &self.1
    }
}

struct Asked(Session);

impl Kind for Asked {
    type Reach = AskedBlock;
    const LABEL: &'static str = "asked";
    fn open(&self, fd: BorrowedFd<'_>, _bytes_max: u64, _protection: Protection) -> AskedBlock {
        fake::asked(fd.try_clone_to_owned().unwrap())
    }
    fn session(&self) -> &Session {
        &self.0
    }
}

fn windowed(windows: u64) -> Windowed {
    let session = Session::new();
    let cache = WindowCache::new(windows * WINDOW_BYTES, &session.operations).unwrap();
    Windowed(Arc::new(cache), session)
}

/// A block, accessed inside operations.
struct Block<'a, R> {
    reach: R,
    session: &'a Session,
    /// Tried first.
    quick: Option<Quick>,
}

impl<R: Reach> Block<'_, R> {
    /// Runs an access, as callers do.
    fn access<T>(&self, access: impl Fn() -> Result<T, Trouble>) -> Result<T, Trouble> {
        self.session.operate(&access)
    }

    fn get(&self, cell: u64, buffer: &mut [u8], committed: u64) -> Result<(), Trouble> {
        let piece = Piece { cell, bytes: buffer.len(), committed };
        if self.quick.as_ref().is_some_and(|quick| quick.read(piece, buffer)) {
            return Ok(());
        }
        let buffer = buffer.as_mut_ptr();
        if let Some(quick) = &self.quick {
            let block = quick.block();
            // SAFETY: as below.
            return self.access(|| unsafe { block.read(piece, buffer) }.map_err(trouble));
        }
        // SAFETY: the buffer is a private one of that length.
        self.access(|| unsafe { self.reach.read(piece, buffer) })
    }

    fn put(&self, cell: u64, data: &[u8], committed: u64) -> Result<(), Trouble> {
        let piece = Piece { cell, bytes: data.len(), committed };
        if self.quick.as_ref().is_some_and(|quick| quick.write(piece, data)) {
            return Ok(());
        }
        if let Some(quick) = &self.quick {
            let block = quick.block();
            // SAFETY: as below.
            return self.access(|| unsafe { block.write(piece, data.as_ptr()) }.map_err(trouble));
        }
        // SAFETY: the data is a private buffer of that length; tests write writable blocks.
        self.access(|| unsafe { self.reach.write(piece, data.as_ptr()) })
    }

    fn set(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        self.access(|| self.reach.fill(piece, byte))
    }

    fn change(&self, cell: u64, change: Change) -> Result<u64, Trouble> {
        self.access(|| self.reach.change(word_at(cell), change))
    }

    fn wake(&self, cell: u64, count: u32) -> Result<(), Trouble> {
        self.access(|| self.reach.wake(word_at(cell), count))
    }

    fn watch(&self, cell: u64) -> Result<Watch, Trouble> {
        self.access(|| self.reach.watch(word_at(cell)))
    }

    fn order(&self, cell: u64, data: &[u8], committed: u64) -> Result<Ordering, Trouble> {
        let piece = Piece { cell, bytes: data.len(), committed };
        // SAFETY: as in `put`.
        self.access(|| unsafe { self.reach.compare(piece, data.as_ptr()) })
    }
}

fn trouble(obstacle: Obstacle) -> Trouble {
    match obstacle {
        Obstacle::Trouble(trouble) => trouble,
        other => panic!("{other:?}"),
    }
}

const fn word_at(cell: u64) -> Piece {
    Piece { cell, bytes: WORD_BYTES, committed: BYTES }
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

fn number(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn agrees_with_a_plain_buffer<K: Kind>(kind: &K) {
    let fd = object(&format!("model-{}", K::LABEL), BYTES);
    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
    let mut model = vec![0_u8; usize::try_from(BYTES).unwrap()];
    let mut seed = 7;
    for step in 0..3_000 {
        let large = number(&mut seed, 40) == 0;
        let bytes = number(&mut seed, if large { 5 << 20 } else { 5_000 }) + 1;
        let bytes = bytes.min(BYTES);
        // Half of the accesses are near each other, so that windows are found too.
        let near = number(&mut seed, 2) == 0;
        let cell = number(&mut seed, if near { 100_000 } else { BYTES }).min(BYTES - bytes);
        let (start, len) = (usize::try_from(cell).unwrap(), usize::try_from(bytes).unwrap());
        let expected = &mut model[start..start + len];
        match number(&mut seed, 4) {
            0 => {
                let data = pattern(step, len);
                block.put(cell, &data, BYTES).unwrap();
                expected.copy_from_slice(&data);
            }
            1 => {
                let piece = Piece { cell, bytes: len, committed: BYTES };
                block.set(piece, step.to_le_bytes()[0]).unwrap();
                expected.fill(step.to_le_bytes()[0]);
            }
            2 => {
                assert_eq!(block.order(cell, expected, BYTES), Ok(Ordering::Equal));
                let mut other = expected.to_vec();
                let last = other.len() - 1;
                other[last] ^= 1;
                let order = expected[last].cmp(&other[last]);
                assert_eq!(block.order(cell, &other, BYTES), Ok(order));
            }
            _ => {
                let mut found = vec![0; len];
                block.get(cell, &mut found, BYTES).unwrap();
                assert!(found == expected, "step {step}: {len} bytes at {cell}");
            }
        }
    }
    let mut found = vec![0; model.len()];
    object::read_at(fd.as_fd(), &mut found, 0).unwrap();
    assert!(found == model, "the object itself");
    if let Some(quick) = &block.quick {
        // About three in four of the 3,000 are small, and half of all read or write.
        let is_possible = block.session.operations.fence() == Fence::Asymmetric;
        assert_eq!(quick.done() > 800, is_possible, "{} were quick", quick.done());
    }
}

fn what_another_process_writes_is_seen<K: Kind>(kind: &K) {
    let fd = object(&format!("other-{}", K::LABEL), BYTES);
    let block = kind.block(fd.as_fd(), BYTES, Protection::Read);
    for round in 0..6_u8 {
        for cell in [0, WINDOW_BYTES - 3, BYTES - 64] {
            object::write_at(fd.as_fd(), &[round; 64], cell).unwrap();
            let mut found = [0; 64];
            block.get(cell, &mut found, BYTES).unwrap();
            assert_eq!(found, [round; 64]);
        }
    }
}

fn what_is_committed_later_is_there<K: Kind>(kind: &K) {
    let fd = object(&format!("grow-{}", K::LABEL), 8192);
    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
    for _ in 0..5 {
        block.put(8_000, &[1; 192], 8192).unwrap();
    }
    object::commit(fd.as_fd(), 0, BYTES).unwrap();
    let data = pattern(3, usize::try_from(BYTES).unwrap() - 8192);
    block.put(8192, &data, BYTES).unwrap();
    assert_eq!(block.order(8192, &data, BYTES), Ok(Ordering::Equal));
}

/// The danger: a file that somebody truncates under its readers and writers.
fn a_truncated_object_is_lost_and_raises_no_signal<K: Kind>(kind: &K) {
    dmce_sys::fault::install().unwrap();
    let fd = object(&format!("cut-{}", K::LABEL), BYTES);
    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
    let large = usize::try_from(BYTES).unwrap();
    // Some of it is in windows, some is not.
    block.put(0, &pattern(1, large), BYTES).unwrap();
    object::truncate(fd.as_fd(), 4096).unwrap();
    let mut buffer = vec![0; large];
    for cell in [4096, WINDOW_BYTES, BYTES - 64] {
        let piece = Piece { cell, bytes: 64, committed: BYTES };
        assert_eq!(block.get(cell, &mut buffer[..64], BYTES), Err(Trouble::Lost));
        assert_eq!(block.order(cell, &[9; 64], BYTES), Err(Trouble::Lost));
        assert_eq!(block.put(cell, &[9; 64], BYTES), Err(Trouble::Lost));
        assert_eq!(block.set(piece, 9), Err(Trouble::Lost));
        assert_eq!(object::end(fd.as_fd()).unwrap(), 4096);
    }
    assert_eq!(block.get(0, &mut buffer, BYTES), Err(Trouble::Lost));
    assert_eq!(block.put(0, &pattern(2, large), BYTES), Err(Trouble::Lost));
}

fn many_threads_see_each_their_own_bytes<K: Kind>(kind: &K) {
    const THREADS: u64 = 8;
    let fd = object(&format!("threads-{}", K::LABEL), 16 * WINDOW_BYTES);
    let committed = 16 * WINDOW_BYTES;
    let block = kind.block(fd.as_fd(), committed, Protection::ReadWrite);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let block = &block;
            scope.spawn(move || {
                let mut seed = thread + 1;
                for round in 0..2_000_u64 {
                    // Each thread has its own 64 bytes of every page.
                    let page = number(&mut seed, committed / 4096);
                    let cell = page * 4096 + thread * 64;
                    let data = pattern(thread << 32 | round, 64);
                    block.put(cell, &data, committed).unwrap();
                    let mut found = [0; 64];
                    block.get(cell, &mut found, committed).unwrap();
                    assert_eq!(found[..], data);
                }
            });
        }
    });
}

fn changes_of_words_are_in_the_object_and_lose_nothing<K: Kind>(kind: &K) {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 2_000;
    let fd = object(&format!("words-{}", K::LABEL), BYTES);
    // Two blocks over one object, as two processes have.
    let blocks = [(); 2].map(|()| kind.block(fd.as_fd(), BYTES, Protection::ReadWrite));
    let cells = [8, WINDOW_BYTES - 8, BYTES - 8];
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let block = &blocks[usize::try_from(thread % 2).unwrap()];
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let cell = cells[usize::try_from((thread + round) % 3).unwrap()];
                    let mut seen = block.change(cell, Change::None).unwrap();
                    if thread < 2 {
                        block.change(cell, Change::Add(1 << 32)).unwrap();
                        continue;
                    }
                    loop {
                        let exchange = Change::Exchange { expected: seen, desired: seen + 1 };
                        match block.change(cell, exchange).unwrap() {
                            before if before == seen => break,
                            before => seen = before,
                        }
                    }
                }
            });
        }
    });
    let mut all = 0;
    for cell in cells {
        let mut bytes = [0; 8];
        object::read_at(fd.as_fd(), &mut bytes, cell).unwrap();
        all += u64::from_ne_bytes(bytes);
    }
    assert_eq!(all, 2 * ROUNDS * ((1 << 32) + 1));
}

fn a_watch_shows_the_word_and_its_sleeper_is_woken<K: Kind>(kind: &K) {
    let fd = object(&format!("watch-{}", K::LABEL), BYTES);
    let (reader, writer) = (
        kind.block(fd.as_fd(), BYTES, Protection::Read),
        kind.block(fd.as_fd(), BYTES, Protection::ReadWrite),
    );
    let silence = AtomicU32::new(0);
    for cell in [8, WINDOW_BYTES + 4096, BYTES - 8] {
        let watch = reader.watch(cell).unwrap();
        assert_eq!(watch.look(), Ok(0));
        let heard = Heard { bell: &silence, value: 0 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while watch.look().unwrap() == 0 {
                    watch.sleep(0, heard, None).unwrap();
                }
            });
            writer.change(cell, Change::Add(1 << 40)).unwrap();
            reader.wake(cell, u32::MAX).unwrap();
        });
        assert_eq!(watch.look(), Ok(1 << 40));
    }
}

fn a_word_of_a_truncated_object_is_lost<K: Kind>(kind: &K) {
    dmce_sys::fault::install().unwrap();
    let fd = object(&format!("cutword-{}", K::LABEL), BYTES);
    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
    // One in a window, one not.
    block.put(0, &pattern(1, usize::try_from(WINDOW_BYTES).unwrap()), BYTES).unwrap();
    let watch = block.watch(8192).unwrap();
    object::truncate(fd.as_fd(), 4096).unwrap();
    for cell in [8192, WINDOW_BYTES + 8] {
        for change in [Change::None, Change::Add(1), Change::Exchange { expected: 0, desired: 1 }] {
            assert_eq!(block.change(cell, change), Err(Trouble::Lost), "{change:?} at {cell}");
        }
        assert_eq!(block.wake(cell, 1), Err(Trouble::Lost));
        assert_eq!(object::end(fd.as_fd()).unwrap(), 4096);
    }
    assert_eq!(watch.look(), Err(Trouble::Lost));
}

/// Tests of a kind that is made anew for each.
macro_rules! conform {
    ($kind:expr; $($test:ident),+ $(,)?) => {
        $(#[test] fn $test() { super::$test(&$kind); })+
    };
}

/// All of them, or those alone that no lost object is part of.
macro_rules! conform_all {
    ($name:ident, $kind:expr) => {
        mod $name {
            use super::*;
            conform_whole!($kind);
            conform!(
                $kind;
                a_truncated_object_is_lost_and_raises_no_signal,
                a_word_of_a_truncated_object_is_lost,
            );
        }
    };
}

macro_rules! conform_whole {
    ($kind:expr) => {
        conform!(
            $kind;
            agrees_with_a_plain_buffer,
            what_another_process_writes_is_seen,
            what_is_committed_later_is_there,
            many_threads_see_each_their_own_bytes,
            changes_of_words_are_in_the_object_and_lose_nothing,
            a_watch_shows_the_word_and_its_sleeper_is_woken,
        );
    };
}

conform_all!(mapped_blocks, Mapped(Session::new()));
conform_all!(windowed_blocks, windowed(6));
conform_all!(blocks_that_are_asked_for, Asked(Session::new()));
conform_all!(mapped_blocks_past_a_door, QuickMapped(Session::new()));
conform_all!(windowed_blocks_past_a_door, QuickWindowed(windowed(6)));
conform_all!(blocks_behind_two_windows, windowed(2));

pub(crate) mod copied;

#[test]
fn a_cache_that_gave_half_of_itself_up_still_serves() {
    let kind = windowed(8);
    let fd = object("shrink", BYTES);
    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
    let data = pattern(5, usize::try_from(BYTES).unwrap());
    block.put(0, &data, BYTES).unwrap();
    assert_eq!(kind.0.mapped(), 4);
    assert_eq!(kind.0.budget(), 8 * WINDOW_BYTES);
    assert!(kind.0.shrink());
    assert!(!kind.0.shrink());
    assert_eq!(kind.0.budget(), 4 * WINDOW_BYTES);
    assert_eq!(block.order(0, &data, BYTES), Ok(Ordering::Equal));
    assert!(kind.0.mapped() <= 4);
    drop(block);
    assert_eq!(kind.0.mapped(), 0);
}

/// Places go from block to block, through limbo and out of it, while there are fewer of them.
#[test]
fn windows_change_hands_and_show_each_block_its_own_bytes() {
    const ROUNDS: u8 = 20;
    let kind = windowed(8);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let kind = &kind;
            scope.spawn(move || {
                let large = usize::try_from(WINDOW_BYTES).unwrap();
                for round in 0..ROUNDS {
                    if (thread, round) == (0, ROUNDS / 2) {
                        assert!(kind.0.shrink());
                    }
                    let byte = round.wrapping_mul(4).wrapping_add(thread);
                    let fd = object(&format!("hands-{thread}"), BYTES);
                    let block = kind.block(fd.as_fd(), BYTES, Protection::ReadWrite);
                    for cell in [0, WINDOW_BYTES, 2 * WINDOW_BYTES] {
                        let piece = Piece { cell, bytes: large, committed: BYTES };
                        block.set(piece, byte).unwrap();
                    }
                    let mut found = [0; 64];
                    for cell in (0..3 * WINDOW_BYTES).step_by(large / 8) {
                        block.get(cell, &mut found, BYTES).unwrap();
                        assert_eq!(found, [byte; 64], "{thread} {round} {cell}");
                    }
                    let mut all = [0; 4096];
                    object::read_at(fd.as_fd(), &mut all, 3 * WINDOW_BYTES - 4096).unwrap();
                    assert_eq!(all, [byte; 4096]);
                }
            });
        }
    });
    assert_eq!(kind.0.mapped(), 0);
    assert_eq!(kind.0.budget(), 4 * WINDOW_BYTES);
}

#[test]
fn a_budget_is_kept_and_bounded_and_halved_until_it_fits() {
    let session = Session::new();
    let cache = |budget| WindowCache::new(budget, &session.operations).unwrap();
    for (budget, places) in [(0, 2), (3, 2), (4, 2), (5, 2), (7, 2), (8, 4), (13, 6), (256, 128)] {
        assert_eq!(cache(budget << 20).budget(), places * WINDOW_BYTES, "{budget} MiB");
    }
    let most = cache(u64::MAX).budget();
    if cfg!(target_pointer_width = "64") {
        assert_eq!(most, BUDGET_MAX);
    } else {
        // What is free of 4 GiB is not known.
        assert!((256 << 20..4 << 30).contains(&most), "{most}");
    }
}
