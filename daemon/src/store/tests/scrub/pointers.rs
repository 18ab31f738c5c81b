//! What pointers of applications store is on the primary alone until it is carried.

use std::sync::atomic::AtomicBool;
use std::thread;

use dmce_shm::lock::{LockOwner, PageLock};
use dmce_shm::parking::{Deadline, Kernel};
use dmce_shm::session::object::SessionObject;
use dmce_shm::session::pin::PinnedRange;
use dmce_shm::table::{LockTable, Size};
use dmce_sys::map::Protection;

use super::rig::addr;
use super::*;

const fn pin(addr: u64, bytes: u64, writable: bool) -> PinnedRange {
    PinnedRange { addr, bytes, writable }
}

#[test]
fn a_page_that_a_pointer_stores_to_is_left() {
    let mut rig = Rig::new(&[1, 2, 3]);
    assert_eq!(rig.scrub(), NOTHING);
    let (_object, map) = rig.session();
    let pinned = map.take_pin(pin(addr(4) + 100, 4000, true)).unwrap();
    assert_eq!(rig.scrub(), NOTHING, "nothing was stored yet");
    rig.flip(1, 4);
    rig.flip(1, 5);
    let stored = [4, 5].map(|page| rig.page_of(1, page));
    assert_eq!(rig.scrub(), ScrubFound { pinned: 2, ..NOTHING }, "it reaches into page 5");
    map.leave_pin(pinned);
    assert_eq!(rig.scrub(), ScrubFound { pinned: 2, ..NOTHING });
    assert_eq!([4, 5].map(|page| rig.page_of(1, page)), stored);
    rig.flip(3, 3);
    rig.flip(3, 6);
    let found = ScrubFound { pinned: 2, repaired: 2, ..NOTHING };
    assert_eq!(rig.scrub(), found, "beside it nothing is explained");
}

/// Also of more pages than are locked for a part.
#[test]
fn pages_that_pointers_store_to_are_not_locked() {
    let mut rig = Rig::new(&[1, 2]);
    let (_object, map) = rig.session();
    let _pinned = map.take_pin(pin(addr(0), BYTES, true)).unwrap();
    (0..PAGES).for_each(|page| rig.flip(1, page));
    let all = u32::try_from(BYTES).unwrap();
    assert_eq!(rig.part(0, all), (all, ScrubFound { pinned: PAGES, ..NOTHING }));
}

#[test]
fn a_pointer_that_is_gone_or_only_reads_explains_nothing() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), NOTHING);
    let (_object, map) = rig.session();
    let pinned = map.take_pin(pin(addr(4), 4096, true)).unwrap();
    let _reads = map.take_pin(pin(addr(4), 4096, false)).unwrap();
    map.free_pin(pinned);
    rig.flip(1, 4);
    assert_eq!(rig.scrub(), REPAIRED);
    // What a pin was seen over is not what it was: stores move no sequence.
    let pinned = map.take_pin(pin(addr(4), 1, true)).unwrap();
    rig.flip(1, 4);
    assert_eq!(rig.scrub(), PINNED);
    map.free_pin(pinned);
    assert_eq!(rig.scrub(), QUARANTINED);
}

#[test]
fn nothing_is_judged_while_a_session_cannot_be_asked() {
    let mut rig = Rig::new(&[1, 2, 3]);
    assert_eq!(rig.scrub(), NOTHING);
    let (object, _map) = rig.session();
    rig.flip(2, 4);
    let cut = |object: &SessionObject, bytes| object::truncate(object.as_fd(), bytes).unwrap();
    let bytes = object::end(object.as_fd()).unwrap();
    for wrong in [0, 4096, bytes + 4096] {
        cut(&object, wrong);
        assert_eq!(rig.scrub(), BUSY);
    }
    cut(&object, bytes);
    assert_eq!(rig.word(4), (0, 0));
    assert_eq!(rig.scrub(), REPAIRED);
}

/// A pointer is given, stores, is carried as by its client, and given back, again and again.
#[test]
fn no_store_of_a_pointer_is_taken_back_or_called_wrong() {
    let mut rig = Rig::new(&[1, 2, 3]);
    let (_object, map) = rig.session();
    let size = Size { committed: BYTES, bytes_max: description(1).bytes_max };
    let whose = (id(1), description(1).guid, u64::MAX);
    let table = LockTable::map(rig.table().as_fd(), whose, size, Protection::ReadWrite).unwrap();
    let data = [1, 2, 3].map(|daemon| rig.data(daemon));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let lock: &PageLock = &table.words(8..9)[0];
            let owner = LockOwner::new(SessionId::try_from(77).unwrap(), 0);
            let mut last = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                let pinned = map.take_pin(pin(addr(8), 4096, true)).unwrap();
                let mut found = [0; 8];
                object::read_at(data[0].as_fd(), &mut found, cell(8) + 64).unwrap();
                assert_eq!(u64::from_le_bytes(found), last, "what was carried stays");
                last += 1;
                object::write_at(data[0].as_fd(), &last.to_le_bytes(), cell(8) + 64).unwrap();
                thread::yield_now();
                lock.lock(owner, Deadline::NEVER, &Kernel).unwrap();
                lock.begin_write();
                object::read_at(data[0].as_fd(), &mut found, cell(8) + 64).unwrap();
                assert_eq!(u64::from_le_bytes(found), last, "what was stored stays");
                for other in &data[1..] {
                    object::write_at(other.as_fd(), &found, cell(8) + 64).unwrap();
                }
                lock.end_write();
                lock.unlock(owner, &Kernel).unwrap();
                map.free_pin(pinned);
            }
            last
        });
        let mut found = ScrubFound::default();
        for _ in 0..4000 {
            let (_, of_part) = rig.part(cell(8), 4096);
            found.repaired += of_part.repaired;
            found.quarantined += of_part.quarantined;
            found.pinned += of_part.pinned;
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(client.join().unwrap() > 0);
        assert_eq!(ScrubFound { pinned: 0, ..found }, NOTHING);
    });
}
