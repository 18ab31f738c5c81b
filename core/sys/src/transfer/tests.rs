//! Every routine, at every size and alignment that takes another way through it, whole and gone.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use super::*;
use crate::fault;
use crate::map::{FileRange, Populate, Protection, Reservation};
use crate::testing::{Lent, lend};

/// Sizes around each limit of the routines.
const SIZES: [usize; 24] = [
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1023, 1024, 5000, 16_384,
    70_001,
];

const STORES: [Store; 3] = [Store::Cached, Store::Streamed, Store::Unordered];

const PAGES: u64 = 20;

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    let byte = |i: usize| ((i + seed) * 7 + (i + seed) / 251).to_le_bytes()[0];
    (0..bytes).map(byte).collect()
}

fn lent() -> Lent {
    fault::install().unwrap();
    lend(PAGES, 0xaa)
}

fn range(lent: &Lent, at: usize, bytes: usize) -> MappedRange<'_> {
    lent.mapping.range(at as u64, bytes as u64).unwrap()
}

fn write(to: MappedRange<'_>, data: &[u8], how: Store) -> Result<(), Gone> {
    assert_eq!(to.len(), data.len());
    // SAFETY: the data is ours, the range is mapped writable.
    unsafe { store(to, data.as_ptr(), how) }
}

fn read(from: MappedRange<'_>, how: Store) -> Result<Vec<u8>, Gone> {
    let mut bytes = vec![0x11; from.len() + 2];
    // SAFETY: the bytes are ours, one more on each side.
    unsafe { load(from, bytes.as_mut_ptr().wrapping_add(1), how) }?;
    assert_eq!((bytes[0], bytes.pop()), (0x11, Some(0x11)), "written beside the target");
    bytes.remove(0);
    Ok(bytes)
}

#[test]
fn what_is_stored_is_loaded_and_nothing_beside_it_changes() {
    let lent = lent();
    for bytes in SIZES {
        for (offset, how) in [0, 1, 8, 61].into_iter().flat_map(|o| STORES.map(|how| (o, how))) {
            let data = pattern(bytes, offset);
            let at = 4096 + offset;
            write(range(&lent, at, bytes), &data, how).unwrap();
            assert_eq!(read(range(&lent, at, bytes), how).unwrap(), data, "{bytes} {offset}");
            let around =
                [read(range(&lent, at - 64, 64), how), read(range(&lent, at + bytes, 64), how)];
            assert_eq!(around, [Ok(vec![0xaa; 64]), Ok(vec![0xaa; 64])], "{bytes} {offset}");
            // SAFETY: the range is mapped writable.
            unsafe { fill(range(&lent, at, bytes), 0xaa, how) }.unwrap();
            assert_eq!(read(range(&lent, at, bytes), how).unwrap(), vec![0xaa; bytes]);
        }
    }
}

#[test]
fn fills_and_copies_between_shared_ranges_are_exact() {
    let (to, from) = (lent(), lent());
    for bytes in SIZES {
        for (offset, how) in [0, 3, 64].into_iter().flat_map(|o| STORES.map(|how| (o, how))) {
            let (source, target) = (range(&from, 17, bytes), range(&to, 100 + offset, bytes));
            // SAFETY: the range is mapped writable.
            unsafe { fill(source, 0x5c, how) }.unwrap();
            // SAFETY: two objects, the target mapped writable.
            unsafe { copy(target, source, how) }.unwrap();
            assert_eq!(read(target, how).unwrap(), vec![0x5c; bytes]);
            for beside in [range(&to, 36 + offset, 64), range(&to, 100 + offset + bytes, 64)] {
                assert_eq!(read(beside, how).unwrap(), [0xaa; 64]);
            }
            // SAFETY: the range is mapped writable.
            unsafe { fill(target, 0xaa, how) }.unwrap();
        }
    }
}

#[test]
fn comparison_is_that_of_memcmp() {
    let lent = lent();
    let data = pattern(10_000, 0);
    write(range(&lent, 5, data.len()), &data, Store::Cached).unwrap();
    // SAFETY: the data is as long as the range, and ours.
    let compared = |data: &[u8]| unsafe { compare(range(&lent, 5, data.len()), data.as_ptr()) };
    assert_eq!(compared(&data), Ok(Ordering::Equal));
    for place in [0, 4095, 4096, 9_999] {
        let mut other = data.clone();
        other[place] = data[place].wrapping_add(1);
        let expected = data.as_slice().cmp(&other);
        assert_eq!(compared(&other), Ok(expected), "{place}");
    }
}

/// Each routine, from a page that is there into one that is not, or the other way round.
#[test]
fn what_is_gone_is_an_error_with_its_address_and_the_process_lives() {
    let lent = lent();
    lent.keep_pages(PAGES / 2);
    let edge = usize::try_from(PAGES / 2).unwrap() * page_bytes();
    let gone_from = lent.mapping.as_ptr().addr() + edge;
    // SAFETY: `errno` of this thread, as long as it lives.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { errno.write(4711) };
    for bytes in SIZES.into_iter().filter(|&bytes| bytes > 1 && bytes <= edge) {
        for (inside, how) in [1, bytes / 2, bytes].into_iter().flat_map(|i| STORES.map(|h| (i, h)))
        {
            let range = range(&lent, edge + inside - bytes, bytes);
            let is_right = |found: Result<(), Gone>| {
                let Err(Gone { addr }) = found else { panic!("{bytes} {inside}: {found:?}") };
                let end = range.as_ptr().addr() + bytes;
                assert!((gone_from..end).contains(&addr), "{bytes} {inside}: {addr:#x}");
            };
            // What is there already, so that a comparison comes to what is gone.
            let data = vec![0xaa; bytes];
            is_right(read(range, how).map(drop));
            is_right(write(range, &data, how));
            // SAFETY: the range is mapped writable.
            is_right(unsafe { fill(range, 0xaa, how) });
            // SAFETY: the data is as long as the range.
            is_right(unsafe { compare(range, data.as_ptr()) }.map(drop));
        }
    }
    // SAFETY: as above.
    assert_eq!(unsafe { errno.read() }, 4711);
    assert!(read(range(&lent, 0, edge), Store::Cached).is_ok(), "what is there stays");
}

#[test]
fn both_ranges_of_a_copy_are_covered() {
    for bytes in [64, 4096, 70_001] {
        for gone in [0, 1] {
            let pair = [lent(), lent()];
            pair[gone].keep_pages(0);
            let (to, from) = (range(&pair[0], 64, bytes), range(&pair[1], 7, bytes));
            for how in STORES {
                // SAFETY: two objects, the target mapped writable.
                let copied = unsafe { copy(to, from, how) };
                let Err(Gone { addr }) = copied else { panic!("{copied:?}") };
                let start = [to, from][gone].as_ptr().addr();
                assert!((start..start + bytes).contains(&addr));
            }
        }
    }
}

/// Readers copy while the range changes between a good object and one that is partly gone: what is
/// called good is the good one's.
#[test]
fn a_mapping_that_is_lost_and_replaced_meanwhile_is_whole_or_an_error() {
    const ROUNDS: u64 = 400;
    const READERS: usize = 3;
    let (good, lost) = (lent(), lent());
    lost.keep_pages(1);
    let bytes = good.mapping.len() as u64;
    let reservation = Reservation::new(bytes).unwrap();
    let map = |from: &Lent| {
        let range = FileRange { offset: 0, bytes };
        let fd = std::os::fd::AsFd::as_fd(&from.fd);
        reservation.map_at(0, fd, range, Protection::ReadWrite, Populate::No).unwrap();
    };
    map(&good);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = || {
            let mut reads = 0_u64;
            while !done.load(Relaxed) || reads == 0 {
                if let Ok(bytes) = read(reservation.whole(), Store::Cached) {
                    assert!(bytes.iter().all(|&byte| byte == 0xaa));
                    reads += 1;
                }
            }
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        for _ in 0..ROUNDS {
            map(&lost);
            thread::yield_now();
            map(&good);
            thread::yield_now();
        }
        done.store(true, Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!(read(reservation.whole(), Store::Cached).unwrap(), vec![0xaa; reservation.len()]);
}
