//! Copies that are cut, holders that are stopped, and what repair makes of a write that ended
//! between two copies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use dmce_abi::Status;
use dmce_shm::copies::{RepairError, Site, Wreck, repair};
use dmce_shm::lock::LockState;
use dmce_shm::slot::intent::{Progress, Undo};
use dmce_sys::map::Protection;
use dmce_sys::object::word::{ObjectWord, WordError};
use dmce_sys::object::{self, ObjectError};

use super::*;
use crate::reach::conformance::copied::{Rest, block_with, identity, party};
use crate::reach::conformance::{Session, object};
use crate::reach::mapped::MappedBlock;
use crate::reach::windowed::{WINDOW_BYTES, WindowCache, WindowedBlock};
use crate::reach::word::WORD_BYTES;

const BYTES: u64 = 64 * 4096;
const BASE: u64 = 9 << 30;

/// Answers what it was told to, and remembers what it was asked.
#[derive(Debug, Default)]
struct Told {
    answers: Mutex<Vec<Judgement>>,
    seen: Mutex<Vec<(&'static str, u32)>>,
    /// What is made whole again before the answer.
    cut: Mutex<Option<OwnedFd>>,
}

impl Told {
    fn note(&self, what: &'static str, damage: Damage) {
        assert_eq!((damage.block, damage.epoch), (identity().block, identity().epoch));
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((what, damage.daemon.get()));
    }

    fn seen(&self) -> Vec<(&'static str, u32)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Arbiter for Told {
    fn report(&self, damage: Damage) {
        self.note("reported", damage);
    }

    fn judge(&self, damage: Damage) -> Judgement {
        self.note("judged", damage);
        let answer = self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let answer = answer.expect("it is asked as often as the test says");
        if answer == Judgement::Good {
            let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
            object::commit(cut.as_ref().expect("it is given").as_fd(), 0, BYTES)
                .expect("the host has memory");
        }
        answer
    }

    fn give_up(&self, damage: Damage) {
        self.note("given up", damage);
    }
}

/// A block, with hands on all of its objects.
struct World {
    session: Session,
    first: OwnedFd,
    rest: Rest,
    told: Arc<Told>,
    block: CopiedBlock,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Mapped,
    Windowed,
}

impl World {
    fn new(copies: usize, how: How, answers: &[Judgement]) -> Self {
        Self::with(copies, copies, how, answers)
    }

    /// Of all copies so many are good.
    fn with(copies: usize, good: usize, how: How, answers: &[Judgement]) -> Self {
        dmce_sys::fault::install().unwrap();
        let (session, first) = (Session::new(), object("first", BYTES));
        let rest = Rest::new(copies, BYTES);
        let told = Arc::new(Told { answers: Mutex::new(answers.to_vec()), ..Told::default() });
        let cache = Arc::new(WindowCache::new(4 * WINDOW_BYTES, &session.operations).unwrap());
        let way = |fd: BorrowedFd<'_>| match how {
            How::Mapped => Way::Mapped(MappedBlock::new(fd, BYTES, Protection::ReadWrite).unwrap()),
            How::Windowed => {
                let (cache, fd) = (Arc::clone(&cache), fd.try_clone_to_owned().unwrap());
                let block = WindowedBlock::new(cache, fd, BYTES, Protection::ReadWrite);
                Way::Windowed(block.unwrap())
            }
        };
        let ways = [&first].into_iter().chain(&rest.others).map(|fd| way(fd.as_fd())).collect();
        let arbiter: Arc<dyn Arbiter> = Arc::clone(&told) as _;
        let party = party(&session, Duration::from_millis(30), arbiter);
        let block = block_with(ways, good, rest.table(BYTES, Protection::ReadWrite), party);
        Self { session, first, rest, told, block }
    }

    /// The object of a copy.
    fn fd(&self, copy: usize) -> BorrowedFd<'_> {
        copy.checked_sub(1).map_or(&self.first, |other| &self.rest.others[other]).as_fd()
    }

    fn write(&self, cell: u64, data: &[u8]) -> Result<(), Trouble> {
        let piece = Piece { cell, bytes: data.len(), committed: BYTES };
        // SAFETY: the data are readable, and the block is writable.
        self.session.operate(|| unsafe { self.block.write(piece, data.as_ptr()) })
    }

    fn read(&self, cell: u64, bytes: usize) -> Result<Vec<u8>, Trouble> {
        let mut buffer = vec![0; bytes];
        let piece = Piece { cell, bytes, committed: BYTES };
        let start = buffer.as_mut_ptr();
        // SAFETY: the buffer is as long as the piece.
        self.session.operate(|| unsafe { self.block.read(piece, start) })?;
        Ok(buffer)
    }

    /// What the object of a copy has.
    fn content(&self, copy: usize, cell: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        object::read_at(self.fd(copy), &mut buffer, cell).unwrap();
        buffer
    }

    fn word(&self, page: usize) -> &PageLock {
        &self.block.locks.all()[page]
    }

    /// Takes the lock of a page, as another session that is stopped then.
    fn stop_in(&self, page: usize) -> LockOwner {
        let other = LockOwner::new(SessionId::try_from(2).unwrap(), 0);
        self.word(page).try_lock(other).unwrap();
        self.word(page).begin_write();
        other
    }
}

fn both() -> [How; 2] {
    [How::Mapped, How::Windowed]
}

#[test]
fn a_read_goes_on_with_the_next_copy_and_reports_the_one_that_is_cut_once() {
    for how in both() {
        let world = World::new(3, how, &[]);
        world.write(0, &vec![7; 70_000]).unwrap();
        object::truncate(world.fd(0), 4096).unwrap();
        for _ in 0..3 {
            assert_eq!(world.read(0, 70_000).unwrap(), vec![7; 70_000], "{how:?}");
        }
        assert_eq!(world.told.seen(), [("reported", 1)]);
        object::truncate(world.fd(1), 0).unwrap();
        assert_eq!(world.read(60_000, 10_000).unwrap(), vec![7; 10_000]);
        let piece = Piece { cell: 40_000, bytes: WORD_BYTES, committed: BYTES };
        let found = world.session.operate(|| world.block.change(piece, Change::None));
        assert_eq!(found, Ok(u64::from_ne_bytes([7; 8])));
        assert_eq!(world.told.seen(), [("reported", 1), ("reported", 2)]);
        object::truncate(world.fd(2), 0).unwrap();
        assert_eq!(world.read(60_000, 10_000), Err(Trouble::Lost));
    }
}

#[test]
fn a_write_goes_on_without_a_copy_that_is_good_no_more() {
    for how in both() {
        for cut in 0..3 {
            let world = World::new(3, how, &[Judgement::Dropped]);
            object::truncate(world.fd(cut), 0).unwrap();
            world.write(100, &vec![5; 200_000]).unwrap();
            assert_eq!(world.told.seen(), [("judged", u32::try_from(cut + 1).unwrap())]);
            for copy in (0..3).filter(|copy| *copy != cut) {
                assert_eq!(world.content(copy, 100, 200_000), vec![5; 200_000], "{how:?} {cut}");
            }
            assert!((0..64).all(|page| world.word(page).state() == LockState::Free));
        }
        let world = World::new(2, how, &[Judgement::Dropped, Judgement::Dropped]);
        (0..2).for_each(|copy| object::truncate(world.fd(copy), 0).unwrap());
        assert_eq!(world.write(0, &[5; 9000]), Err(Trouble::Lost), "nothing is left");
        assert!((0..64).all(|page| world.word(page).state() == LockState::Free));
    }
}

#[test]
fn a_copy_that_is_there_again_is_written_again() {
    for cut in 0..2 {
        let world = World::new(2, How::Mapped, &[Judgement::Good]);
        *world.told.cut.lock().unwrap() = Some(world.fd(cut).try_clone_to_owned().unwrap());
        object::truncate(world.fd(cut), 4096).unwrap();
        world.write(0, &vec![9; 20_000]).unwrap();
        for copy in 0..2 {
            assert_eq!(world.content(copy, 0, 20_000), vec![9; 20_000], "{cut}");
        }
    }
}

#[test]
fn a_word_is_changed_once_though_its_first_copy_goes_meanwhile() {
    let world = World::new(2, How::Mapped, &[Judgement::Dropped]);
    let piece = Piece { cell: 8192, bytes: WORD_BYTES, committed: BYTES };
    let add = || world.session.operate(|| world.block.change(piece, Change::Add(3)));
    assert_eq!((add(), add()), (Ok(0), Ok(3)));
    object::truncate(world.fd(0), 4096).unwrap();
    assert_eq!(add(), Ok(6));
    assert_eq!(world.content(1, 8192, 8), 9_u64.to_le_bytes());
    assert_eq!(world.told.seen(), [("judged", 1)]);
}

#[test]
fn who_wants_a_page_of_a_stopped_writer_gets_it_or_is_told_in_time() {
    let world = World::new(2, How::Mapped, &[]);
    world.write(0, &[1; 8192]).unwrap();
    let other = world.stop_in(1);
    assert_eq!(world.write(0, &[2; 8192]), Err(Trouble::Held));
    assert_eq!(world.read(0, 8192), Err(Trouble::Held));
    assert_eq!(world.read(0, 4096).unwrap(), [1; 4096], "the page before is nobody's");
    world.word(1).end_write();
    world.word(1).unlock(other, &Kernel).unwrap();
    assert_eq!(world.read(0, 8192).unwrap(), [1; 8192]);
    world.write(0, &[2; 8192]).unwrap();
    assert_eq!(world.read(0, 8192).unwrap(), [2; 8192]);
}

#[test]
fn a_write_that_is_held_up_has_changed_nothing_or_says_that_it_has() {
    const BATCH: usize = 16 * 4096;
    let world = World::new(2, How::Mapped, &[]);
    world.write(0, &vec![1; 2 * BATCH]).unwrap();
    let other = world.stop_in(16);
    assert_eq!(world.write(BATCH as u64, &vec![2; BATCH]), Err(Trouble::Held));
    let late = world.write(4096, &vec![2; BATCH]);
    assert_eq!(late.map_err(Trouble::status), Err(Status::Timeout));
    assert_eq!(world.content(1, 4096, BATCH), vec![1; BATCH], "one batch is written, or is not");
    let begun = world.write(0, &vec![2; BATCH + 1]);
    assert_eq!(begun, Err(Trouble::Begun(Status::Timeout)));
    assert_eq!(world.content(1, 0, BATCH + 1)[BATCH - 1..], [2, 1]);
    world.word(16).end_write();
    world.word(16).unlock(other, &Kernel).unwrap();
}

#[test]
fn a_lost_page_is_told_until_all_of_it_is_written() {
    use dmce_shm::lock::Left;
    let world = World::new(2, How::Mapped, &[]);
    let other = world.stop_in(3);
    world.word(3).take_over(other).unwrap();
    world.word(3).release_repaired(Left::Lost, &Kernel).unwrap();
    assert_eq!(world.read(3 * 4096, 1), Err(Trouble::Unwritten));
    assert_eq!(world.read(0, 20_000), Err(Trouble::Unwritten));
    assert_eq!(world.write(3 * 4096, &[1; 4095]), Err(Trouble::Unwritten));
    world.write(3 * 4096 - 1, &[1; 4098]).unwrap();
    assert_eq!(world.read(3 * 4096 - 1, 4098).unwrap(), [1; 4098]);
}

#[test]
fn a_copy_that_is_syncing_is_written_and_never_read() {
    for how in both() {
        for good in 1..3 {
            let world = World::with(good + 1, good, how, &[]);
            for bytes in [100, 5000, 200_000] {
                world.write(50, &vec![7; bytes]).unwrap();
                assert_eq!(world.content(good, 50, bytes), vec![7; bytes], "{how:?} {bytes}");
            }
            let piece = Piece { cell: 8192, bytes: WORD_BYTES, committed: BYTES };
            world.session.operate(|| world.block.change(piece, Change::Add(3))).unwrap();
            assert_eq!(world.content(good, 8192, 8), world.content(0, 8192, 8));
            (0..good).for_each(|copy| object::truncate(world.fd(copy), 0).unwrap());
            assert_eq!(world.read(50, 100), Err(Trouble::Lost));
            assert_eq!(world.block.place_of(Half::of(good).unwrap()), Err(Trouble::NoHalf));
        }
    }
}

#[test]
fn a_write_goes_on_without_a_copy_that_was_syncing_and_not_with_that_alone() {
    for how in both() {
        let world = World::with(2, 1, how, &[Judgement::Dropped]);
        object::truncate(world.fd(1), 0).unwrap();
        world.write(100, &vec![5; 100_000]).unwrap();
        assert_eq!(world.content(0, 100, 100_000), vec![5; 100_000], "{how:?}");
        assert_eq!(world.told.seen(), [("judged", 2)]);
        let world = World::with(2, 1, how, &[Judgement::Dropped]);
        object::truncate(world.fd(0), 0).unwrap();
        assert_eq!(world.write(100, &[5; 5000]), Err(Trouble::Lost));
        assert!((0..64).all(|page| world.word(page).state() == LockState::Free));
    }
}

/// The last copy is not written without what it had being kept.
#[test]
fn what_the_last_copy_had_is_in_the_undo_buffer() {
    let world = World::new(1, How::Mapped, &[]);
    let old: Vec<u8> = (0..8192).map(|place: u32| place.to_le_bytes()[0]).collect();
    world.write(4096, &old).unwrap();
    world.write(5000, &[0xee; 3000]).unwrap();
    let mut kept = [0; 3000];
    world.session.object.undo(world.block.slot(), &mut kept).unwrap();
    assert_eq!(kept, old[904..3904]);
    // What lies in two pages is written as two batches.
    world.write(8000, &[0xdd; 300]).unwrap();
    world.session.object.undo(world.block.slot(), &mut kept[..108]).unwrap();
    assert_eq!(kept[..108], old[4096..4204]);
}

#[test]
fn what_is_in_one_page_goes_the_short_way_and_the_whole_one_where_that_ends() {
    let piece = |cell, bytes| Piece { cell, bytes, committed: BYTES };
    let write = |world: &World, cell, data: &[u8]| {
        // SAFETY: the data are readable, and the block is writable.
        let write = || unsafe { world.block.write_small(piece(cell, data.len()), data.as_ptr()) };
        world.session.operate(write)
    };
    let read = |world: &World, cell, bytes| {
        let mut found = vec![0; bytes];
        let start = found.as_mut_ptr();
        // SAFETY: the buffer is as long as the piece.
        let done =
            world.session.operate(|| unsafe { world.block.read_small(piece(cell, bytes), start) });
        done.then_some(found)
    };
    for bytes in [1, 64, 256, 257, 4096] {
        for cut in [None, Some(0), Some(1), Some(2)] {
            let world = World::new(3, How::Mapped, &[Judgement::Dropped]);
            assert!(write(&world, 8192, &vec![1; bytes]));
            if let Some(cut) = cut {
                object::truncate(world.fd(cut), 0).unwrap();
            }
            assert!(write(&world, 8192, &vec![2; bytes]), "{cut:?} {bytes}");
            for copy in (0..3).filter(|copy| Some(*copy) != cut) {
                assert_eq!(world.content(copy, 8192, bytes), vec![2; bytes], "{cut:?} {bytes}");
            }
            assert_eq!(world.word(2).state(), LockState::Free);
            let found = read(&world, 8192, bytes);
            assert_eq!(found.is_none(), cut == Some(0), "{cut:?} {bytes}");
            assert!(found.is_none_or(|found| found == vec![2; bytes]));
        }
    }
    let world = World::new(2, How::Mapped, &[]);
    assert!(!write(&world, 4095, &[1; 2]), "in two pages");
    assert!(read(&world, 4095, 2).is_none());
    let other = world.stop_in(1);
    assert!(!write(&world, 4096, &[1; 64]), "nobody waits here");
    assert!(read(&world, 4096, 64).is_none());
    world.word(1).end_write();
    world.word(1).unlock(other, &Kernel).unwrap();
    assert!(write(&world, 4096, &[1; 64]));
    let alone = World::new(1, How::Mapped, &[]);
    assert!(!write(&alone, 0, &[1; 64]), "the last copy is written with care");
    let world = World::new(2, How::Mapped, &[Judgement::Unknown]);
    object::truncate(world.fd(1), 0).unwrap();
    assert!(!write(&world, 0, &[1; 64]));
    assert_eq!(world.told.seen(), [("judged", 2), ("given up", 2)]);
}

/// The objects as the broker has them.
struct Objects<'a>(&'a World);

/// What the broker meets.
#[derive(Debug)]
#[allow(dead_code, reason = "shown when a test fails")]
enum SiteError {
    Word(WordError),
    Object(ObjectError),
}

impl Objects<'_> {
    fn word_at(&self, page: u64) -> Result<ObjectWord, SiteError> {
        let offset = dmce_shm::table::word_offset(page * 4096);
        ObjectWord::map(self.0.rest.locks.as_fd(), offset).map_err(SiteError::Word)
    }

    fn of(&self, copy: DaemonId) -> BorrowedFd<'_> {
        self.0.fd(copy.index() - 1)
    }
}

impl Site for Objects<'_> {
    type Error = SiteError;

    fn word(&mut self, page: u64) -> Result<u64, SiteError> {
        self.word_at(page)?.load().map_err(SiteError::Word)
    }

    fn exchange(&mut self, page: u64, expected: u64, desired: u64) -> Result<u64, SiteError> {
        self.word_at(page)?.compare_exchange(expected, desired).map_err(SiteError::Word)
    }

    fn wake(&mut self, page: u64) -> Result<(), SiteError> {
        self.word_at(page)?.wake(u32::MAX).map_err(SiteError::Word)
    }

    fn read(&mut self, copy: DaemonId, cell: u64, into: &mut [u8]) -> Result<(), SiteError> {
        object::read_at(self.of(copy), into, cell).map_err(SiteError::Object)
    }

    fn write(&mut self, copy: DaemonId, cell: u64, data: &[u8]) -> Result<(), SiteError> {
        object::write_at(self.of(copy), data, cell).map_err(SiteError::Object)
    }

    fn undo(&mut self, into: &mut [u8]) -> Result<(), SiteError> {
        self.0.session.object.undo(self.0.block.slot(), into).expect("the undo buffers are there");
        Ok(())
    }
}

/// A write that nobody judges keeps its pages, and ends its session; the broker makes them whole.
#[test]
fn a_write_that_nobody_judges_is_repaired_as_that_of_the_dead() {
    for (cut, bytes) in [(0, 20_000), (1, 20_000), (0, 100), (1, 100)] {
        let world = World::new(2, How::Mapped, &[Judgement::Unknown]);
        world.write(0, &vec![1; bytes]).unwrap();
        object::truncate(world.fd(cut), 0).unwrap();
        assert_eq!(world.write(0, &vec![2; bytes]), Err(trouble_of(cut, bytes)), "{cut} {bytes}");
        if trouble_of(cut, bytes) == Trouble::Lost {
            // It could not even be saved: nothing was stored.
            assert_eq!(world.word(0).state(), LockState::Free);
            continue;
        }
        let daemon = u32::try_from(cut + 1).unwrap();
        assert_eq!(world.told.seen(), [("judged", daemon), ("given up", daemon)]);
        let (map, slots) = world.session.parts();
        assert!(map.begin(slots.own().unwrap()).is_err(), "no operation begins any more");

        let intents = world.session.object.intents().unwrap();
        let [(slot, claim)] = intents[..] else { panic!("{intents:?}") };
        let undo = if bytes <= 256 { Undo::Saved } else { Undo::Absent };
        let expected = [Progress::First { first: 1, undo }, Progress::Others { first: 1, undo }];
        assert_eq!((claim.addr, claim.progress), (BASE, expected[cut]));
        let owner = LockOwner::new(SessionId::try_from(1).unwrap(), slot);
        assert_eq!(world.word(0).state(), LockState::Held(owner));

        let wreck = Wreck::new(owner, &claim, claim.addr - BASE, BYTES).unwrap();
        let daemons = [1, 2].map(|daemon| DaemonId::try_from(daemon).unwrap());
        let mut site = Objects(&world);
        if cut == 1 {
            // The broker still takes both for good: it does not give the pages back.
            object::truncate(world.fd(0), 0).unwrap();
            let failed = repair(&wreck, &daemons, &mut site).unwrap_err();
            assert!(matches!(failed, RepairError::Copy { .. }), "{failed}");
            assert_eq!(world.word(0).state(), LockState::Repair);
            object::commit(world.fd(0), 0, BYTES).unwrap();
            object::write_at(world.fd(0), &vec![2; bytes], 0).unwrap();
        }
        let good = [daemons[1 - cut]];
        let repaired = repair(&wreck, &good, &mut site).unwrap();
        world.session.object.clear_intent(slot).unwrap();
        assert_eq!(repaired.lost, []);
        let expected = if cut == 0 { 1 } else { 2 };
        assert_eq!(world.content(1 - cut, 0, bytes), vec![expected; bytes]);
        assert_eq!(world.word(0).state(), LockState::Free);
        assert!(world.word(0).begin_read().is_some());
    }
}

/// What a writer is told whose copy is cut, when nobody judges.
fn trouble_of(cut: usize, bytes: usize) -> Trouble {
    if cut == 0 && bytes <= 256 { Trouble::Lost } else { Trouble::Abandoned }
}

/// Writers of the same pages, and readers of both widths of access.
#[test]
fn many_writers_of_the_same_pages_leave_equal_copies_and_show_whole_ones() {
    const THREADS: u8 = 4;
    for how in both() {
        let world = World::new(2, how, &[]);
        std::thread::scope(|scope| {
            for thread in 1..=THREADS {
                let world = &world;
                scope.spawn(move || {
                    for round in 0..200_u32 {
                        let cell = u64::from(round % 3) * 4096;
                        match world.write(cell, &[thread; 8192]) {
                            // The machine is slow; nothing was written.
                            Ok(()) | Err(Trouble::Held) => {}
                            Err(other) => panic!("{other}"),
                        }
                        let Ok(found) = world.read(cell, 4096) else { continue };
                        assert_eq!(found, vec![found[0]; 4096]);
                    }
                });
            }
        });
        let bytes = usize::try_from(BYTES).unwrap();
        assert!(world.content(0, 0, bytes) == world.content(1, 0, bytes));
        assert!((0..64).all(|page| world.word(page).state() == LockState::Free));
    }
}
