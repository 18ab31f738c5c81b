//! Allocation over a broker that grants, refuses and delays.

mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;

use fake::{BLOCK_BYTES, Fake, Seeded, status, wait_until};
use libdmce::{AllocOptions, DmceAddr, Options, Prot, RegionOptions, Session, Status};

/// What an allocation is to hold: its content follows from a seed.
#[derive(Clone, Copy)]
struct Live {
    bytes: u64,
    seed: u64,
}

fn content(live: Live) -> Vec<u8> {
    Seeded(live.seed).bytes(usize::try_from(live.bytes).expect("tests hold little"))
}

fn check(session: &Session, addr: DmceAddr, live: Live) {
    let expected = content(live);
    let mut found = vec![0; expected.len()];
    assert_eq!(session.read(addr, &mut found), Ok(()));
    assert!(found == expected, "{addr:?}");
    assert!(session.usable_size(addr).is_ok_and(|usable| usable >= live.bytes));
}

fn size(random: &mut Seeded) -> u64 {
    let bits = match random.below(20) {
        0 => 21,
        1..4 => 17,
        _ => 12,
    };
    1 + random.below(1 << bits)
}

/// As policies of the instance may say, though nobody asked for it.
#[test]
fn every_allocation_keeps_its_bytes_until_it_is_freed() {
    let mut seed = 0;
    Fake::with_each_mode(|fake, session| {
        seed += 1;
        let mut random = Seeded(seed);
        let mut live: BTreeMap<DmceAddr, Live> = BTreeMap::new();
        let pick = |live: &BTreeMap<DmceAddr, Live>, random: &mut Seeded| {
            let place = usize::try_from(random.below(live.len() as u64)).unwrap();
            live.iter().nth(place).map(|(addr, live)| (*addr, *live)).unwrap()
        };
        for _ in 0..600 {
            match random.below(10) {
                0..5 if live.len() < 60 => {
                    let new = Live { bytes: size(&mut random), seed: random.bits() };
                    let addr = session.malloc(new.bytes).unwrap();
                    session.write(addr, &content(new)).unwrap();
                    assert!(live.insert(addr, new).is_none());
                }
                5..7 if !live.is_empty() => {
                    let (addr, old) = pick(&live, &mut random);
                    check(&session, addr, old);
                    let bytes = size(&mut random);
                    let moved = session.realloc(addr, bytes).unwrap();
                    live.remove(&addr);
                    let mut found = vec![0; usize::try_from(bytes.min(old.bytes)).unwrap()];
                    session.read(moved, &mut found).unwrap();
                    assert!(found == content(old)[..found.len()], "realloc keeps the bytes");
                    let new = Live { bytes, seed: random.bits() };
                    session.write(moved, &content(new)).unwrap();
                    assert!(live.insert(moved, new).is_none());
                }
                7 => {
                    let bytes = size(&mut random);
                    let addr = session.calloc(1, bytes).unwrap();
                    let mut found = vec![1; usize::try_from(bytes).unwrap()];
                    session.read(addr, &mut found).unwrap();
                    assert!(found.iter().all(|&byte| byte == 0), "calloc reads as zero");
                    session.fill(addr, 0xee, bytes).unwrap();
                    session.free(addr).unwrap();
                }
                _ if !live.is_empty() => {
                    let (addr, old) = pick(&live, &mut random);
                    check(&session, addr, old);
                    session.free(addr).unwrap();
                    live.remove(&addr);
                    assert_eq!(status(session.free(addr)), Status::Address);
                }
                _ => {}
            }
        }
        for (addr, old) in live {
            check(&session, addr, old);
            session.free(addr).unwrap();
        }
        assert_eq!(session.stat().unwrap().allocated_bytes, 0);
        session.close().unwrap();
        assert_eq!(fake.asked("Disconnect"), 1);
    });
}

#[test]
fn what_is_no_allocation_is_refused_by_free_realloc_and_usable_size() {
    let fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(5_000).unwrap();
    let span = session.malloc(3 * BLOCK_BYTES).unwrap();
    let other = |raw| session.addr(raw).unwrap();
    for wrong in [
        other(addr.to_raw() + 16),
        other(addr.to_raw() + 4096),
        other(span.to_raw() + BLOCK_BYTES),
        other(4000 * BLOCK_BYTES),
        other(u64::MAX),
    ] {
        assert_eq!(status(session.free(wrong)), Status::Address, "{wrong:?}");
        assert_eq!(status(session.realloc(wrong, 10)), Status::Address, "{wrong:?}");
        assert_eq!(status(session.usable_size(wrong)), Status::Address, "{wrong:?}");
    }
    assert_eq!(status(session.addr(0)), Status::Address);
    assert_eq!(session.usable_size(span).unwrap(), 3 * BLOCK_BYTES);
    session.free(addr).unwrap();
    session.free(span).unwrap();
    assert_eq!(status(session.read(span, &mut [0])), Status::Address);
}

#[test]
fn sizes_and_options_that_cannot_be_are_refused_as_such() {
    let fake = Fake::start();
    let session = fake.open();
    assert_eq!(status(session.malloc(0)), Status::Invalid);
    assert_eq!(status(session.calloc(0, 8)), Status::Invalid);
    assert_eq!(status(session.calloc(u64::MAX, 2)), Status::NoSpace);
    assert_eq!(status(session.malloc(u64::MAX)), Status::NoSpace);
    assert_eq!(status(session.malloc(1 << 62)), Status::NoSpace);
    let with = |options: AllocOptions| status(session.malloc_with(64, &options));
    let default = AllocOptions::default();
    assert_eq!(with(AllocOptions { align: 48, ..default.clone() }), Status::Invalid);
    assert_eq!(with(AllocOptions { align: 4 << 20, ..default.clone() }), Status::Invalid);
    assert_eq!(with(AllocOptions { page_size: 5000, ..default.clone() }), Status::Invalid);
    assert_eq!(with(AllocOptions { copies: 9, ..default.clone() }), Status::Invalid);
    assert_eq!(with(AllocOptions { policy: 1, ..default.clone() }), Status::NotFound);
    assert_eq!(with(AllocOptions { numa_node: 1, ..default.clone() }), Status::Unsupported);
    for align in [1, 16, 64, 4096, 65_536, 2 << 20] {
        let options = AllocOptions { align, ..default.clone() };
        let addr = session.malloc_with(100, &options).unwrap();
        assert!(addr.to_raw().is_multiple_of(align.into()), "{addr:?} at {align}");
    }
    // An own page size means an own block.
    let options = AllocOptions { page_size: 65_536, ..default };
    let addr = session.malloc_with(100, &options).unwrap();
    let again = session.realloc(addr, 200).unwrap();
    assert_eq!(addr.to_raw() / BLOCK_BYTES, again.to_raw() / BLOCK_BYTES);
}

#[test]
fn what_an_allocation_was_made_with_stays_when_it_moves() {
    let fake = Fake::start();
    let session = fake.open();
    let options = AllocOptions { page_size: 2 << 20, copies: 1, ..AllocOptions::default() };
    let mut addr = session.malloc_with(1000, &options).unwrap();
    // In a block with others, from there to blocks of its own, to more of them, and back.
    for bytes in [1 << 20, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES, 100] {
        addr = session.realloc(addr, bytes).unwrap();
        let last = *fake.state().mallocs.last().unwrap();
        assert_eq!((last.page_size, last.copies), (2 << 20, 1), "{bytes} bytes");
    }
}

#[test]
fn a_full_instance_refuses_and_leaves_everything_as_it_was() {
    let fake = Fake::start();
    fake.state().capacity = 6 << 20;
    let session = fake.open();
    let mut held = Vec::new();
    loop {
        match session.malloc(300_000) {
            Ok(addr) => held.push(addr),
            Err(error) => break assert_eq!(error.status(), Status::NoSpace),
        }
    }
    // All that the broker has was asked for, also where a doubling did not fit.
    let committed = session.stat().unwrap().committed_bytes;
    assert!(committed > (6 << 20) - 400_000, "{committed}");
    session.write(held[0], &vec![5; 300_000]).unwrap();
    assert_eq!(status(session.realloc(held[0], 2 << 20)), Status::NoSpace);
    assert_eq!(status(session.malloc(64 << 20)), Status::NoSpace);
    assert_eq!(session.compare(held[0], &vec![5; 300_000]), Ok(std::cmp::Ordering::Equal));
    session.free(held.pop().unwrap()).unwrap();
    held.push(session.malloc(300_000).unwrap());
}

#[test]
fn a_block_that_stays_empty_goes_back_and_a_pinned_one_does_not() {
    let fake = Fake::start();
    fake.state().idle_s = 0;
    let session = fake.open();
    let addr = session.malloc(100).unwrap();
    let pointer = session.map(addr, 100, Prot::READ).unwrap();
    assert_eq!(status(session.free(addr)), Status::Busy);
    assert_eq!(status(session.realloc(addr, 5_000)), Status::Busy);
    session.unmap(pointer).unwrap();
    session.free(addr).unwrap();
    wait_until("the empty block goes back", || fake.state().blocks.is_empty());
    assert_eq!(session.stat().unwrap().blocks, 0);
    assert_eq!(status(session.read(addr, &mut [0])), Status::Address);
    // And the next allocation gets a new one.
    session.malloc(100).unwrap();
    assert_eq!(session.stat().unwrap().blocks, 1);
}

#[test]
fn without_a_thread_poll_does_what_it_would_do() {
    let fake = Fake::start();
    fake.state().idle_s = 0;
    let session = Session::open(&Options { no_thread: true, ..fake.options() }).unwrap();
    let addr = session.malloc(100).unwrap();
    session.free(addr).unwrap();
    assert_eq!(fake.state().blocks.len(), 1);
    session.poll().unwrap();
    assert_eq!(fake.state().blocks.len(), 0);
}

#[test]
fn more_than_a_thread_keeps_is_freed_once_as_well() {
    Fake::with_each_mode(|_fake, session| {
        for bytes in [64, 512, 4096, 32_768] {
            let addrs: Vec<_> = (0..1000).map(|_| session.malloc(bytes).unwrap()).collect();
            assert_eq!(session.stat().unwrap().allocated_bytes, 1000 * bytes);
            for &addr in &addrs {
                assert_eq!(session.free(addr), Ok(()), "{bytes} bytes at {addr:?}");
            }
            assert_eq!(session.stat().unwrap().allocated_bytes, 0);
            assert!(addrs.iter().all(|&addr| status(session.free(addr)) == Status::Address));
        }
    });
}

#[test]
fn of_threads_that_free_the_same_addresses_each_is_freed_by_one() {
    Fake::with_each_mode(|_fake, session| {
        for round in 0..20 {
            let bytes = [16, 100, 4096, 40_000][round % 4];
            let addrs: Vec<_> = (0..100).map(|_| session.malloc(bytes).unwrap()).collect();
            let free_all = || {
                let freed = addrs.iter().map(|&addr| session.free(addr));
                let refused = |freed: &Result<(), _>| freed.is_err();
                let (refused, freed): (Vec<_>, Vec<_>) = freed.partition(refused);
                assert!(refused.into_iter().all(|refused| status(refused) == Status::Address));
                freed.len()
            };
            let all = std::thread::scope(|scope| {
                let others = [scope.spawn(free_all), scope.spawn(free_all)];
                let own = free_all();
                own + others.map(|other| other.join().unwrap()).iter().sum::<usize>()
            });
            assert_eq!(all, addrs.len());
        }
        assert_eq!(session.stat().unwrap().allocated_bytes, 0);
    });
}

#[test]
fn of_a_free_and_a_map_of_the_same_address_exactly_one_succeeds() {
    Fake::with_each_mode(|_fake, session| {
        for round in 0..200 {
            let addr = session.malloc([64, 100_000][round % 2]).unwrap();
            let begin = std::sync::Barrier::new(2);
            let (freed, mapped) = std::thread::scope(|scope| {
                let map = scope.spawn(|| {
                    begin.wait();
                    session.map(addr, 64, Prot::READ).map(<*mut u8>::expose_provenance)
                });
                begin.wait();
                (0..round * 100).for_each(|_| std::hint::spin_loop());
                (session.free(addr), map.join().unwrap())
            });
            match mapped {
                Ok(pointer) => {
                    assert_eq!(status(freed), Status::Busy);
                    session.unmap(std::ptr::with_exposed_provenance(pointer)).unwrap();
                    session.free(addr).unwrap();
                }
                refused => {
                    assert_eq!(freed, Ok(()));
                    assert_eq!(status(refused), Status::Address);
                }
            }
        }
    });
}

#[test]
fn what_is_in_use_is_shown_when_the_session_is_quiet_whoever_allocated_and_freed() {
    Fake::with_each_mode(|fake, session| {
        let addrs: Vec<_> = (0..100).map(|_| session.malloc(64).unwrap()).collect();
        let large = session.malloc(100_000).unwrap();
        let shown = (100 * 64 + 102_400, (2 << 20) - 100 * 64 - 102_400, 101);
        wait_until("what was allocated is shown", || fake.usage() == shown);
        std::thread::scope(|scope| {
            scope.spawn(|| addrs[1..].iter().for_each(|&addr| session.free(addr).unwrap()));
        });
        wait_until("what another thread freed is shown", || {
            fake.usage() == (102_464, (2 << 20) - 102_464, 2)
        });
        session.free(large).unwrap();
        session.free(addrs[0]).unwrap();
        wait_until("nothing is shown", || fake.usage() == (0, 2 << 20, 0));
    });
}

#[test]
fn what_a_thread_that_ended_kept_is_used_by_others() {
    Fake::with_each_mode(|_fake, session| {
        let committed = |session: &Session| session.stat().unwrap().committed_bytes;
        let allocate = || (0..256).map(|_| session.malloc(4096).unwrap()).collect::<Vec<_>>();
        let free = |addrs: Vec<DmceAddr>| addrs.iter().for_each(|&a| session.free(a).unwrap());
        free(allocate());
        let before = committed(&session);
        for _ in 0..20 {
            std::thread::scope(|scope| scope.spawn(|| free(allocate())).join().unwrap());
        }
        assert!(committed(&session) <= before + (4 << 20), "{}", committed(&session));
    });
}

#[test]
fn small_allocations_stop_when_their_session_is_closed() {
    Fake::with_each_mode(|_fake, session| {
        let begun = Barrier::new(5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut kept = vec![session.malloc(48).unwrap()];
                    begun.wait();
                    let ended = loop {
                        let (freed, made) = (session.free(kept.remove(0)), session.malloc(48));
                        match (freed, made) {
                            (Ok(()), Ok(addr)) => kept.push(addr),
                            (Err(error), _) | (_, Err(error)) => break error,
                        }
                    };
                    assert_eq!(ended.status(), Status::Closed);
                    assert_eq!(status(session.malloc(48)), Status::Closed);
                });
            }
            begun.wait();
            session.close().unwrap();
            assert_eq!(status(session.malloc(48)), Status::Closed);
        });
    });
}

#[test]
fn a_thread_allocates_in_more_sessions_than_it_has_gates() {
    Fake::with_each_mode(|fake, _session| {
        let sessions: Vec<Session> = (0..6).map(|_| fake.open()).collect();
        let mut live = vec![Vec::new(); sessions.len()];
        for turn in 0..600 {
            let at = turn % sessions.len();
            live[at].push(sessions[at].malloc(48).unwrap());
            if turn % 5 == 0 {
                let addr = live[at].remove(0);
                sessions[at].free(addr).unwrap();
                assert_eq!(status(sessions[at].free(addr)), Status::Address);
            }
        }
        for (session, live) in sessions.iter().zip(live) {
            let apart: BTreeSet<DmceAddr> = live.iter().copied().collect();
            assert_eq!(apart.len(), live.len());
            for addr in live {
                session.free(addr).unwrap();
            }
        }
    });
}

#[test]
fn what_threads_keep_is_given_back_before_an_allocation_is_refused() {
    let fake = Fake::start();
    fake.state().capacity = 6 << 20;
    let session = fake.open();
    std::thread::scope(|scope| {
        let keep = || {
            let addrs: Vec<_> = (0..60).map(|_| session.malloc(16_384).unwrap()).collect();
            for addr in addrs {
                session.free(addr).unwrap();
            }
        };
        scope.spawn(keep).join().unwrap();
        keep();
    });
    let refused = std::iter::repeat_with(|| session.malloc(300_000)).find(Result::is_err);
    assert_eq!(status(refused.unwrap()), Status::NoSpace);
    // Each thread kept a MiB; of what those leave some is too short for one more.
    let allocated = session.stat().unwrap().allocated_bytes;
    assert!(allocated > 5 << 20, "{allocated}");
}

/// Allocates pieces until there is no more, and frees them: their blocks stay here for a while.
fn fill_and_free(session: &Session, piece: u64) {
    let mut held = Vec::new();
    let refused = loop {
        match session.malloc(piece) {
            Ok(addr) => held.push(addr),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.status(), Status::NoSpace);
    for addr in held {
        session.free(addr).expect("it is allocated");
    }
}

#[test]
fn a_session_is_refused_nothing_that_it_holds_empty() {
    Fake::with_and_without_thread(|fake, session| {
        fake.state().capacity = 6 << 20;
        // Runs, and objects that threads keep.
        for piece in [300_000, 16_000] {
            fill_and_free(&session, piece);
            let span = session.malloc(5 << 20).unwrap();
            session.free(span).unwrap();
            fill_and_free(&session, piece);
            let other = AllocOptions { page_size: 65536, ..AllocOptions::default() };
            let addr = session.malloc_with(2 << 20, &other).unwrap();
            assert!(fake.state().mallocs.last().is_some_and(|last| last.page_size == 65536));
            session.free(addr).unwrap();
            fill_and_free(&session, piece);
            session.region_create("v", "r", 6 << 20, &RegionOptions::default()).unwrap();
            session.region_delete("v", "r").unwrap();
        }
    });
}

/// What is in use is not given back, and asked for twice at most.
#[test]
fn who_holds_nothing_empty_is_refused_at_once() {
    let fake = Fake::start();
    fake.state().capacity = 6 << 20;
    let session = fake.open();
    let used = session.malloc(300_000).unwrap();
    let pinned = AllocOptions { page_size: 65536, ..AllocOptions::default() };
    let pinned = session.malloc_with(300_000, &pinned).unwrap();
    let pointer = session.map(pinned, 300_000, Prot::READ_WRITE).unwrap();
    session.fill(used, 5, 300_000).unwrap();
    for _ in 0..2 {
        let before = fake.state().mallocs.len();
        assert_eq!(status(session.malloc(5 << 20)), Status::NoSpace);
        assert_eq!(fake.state().mallocs.len(), before + 1);
        let region = session.region_create("v", "r", 5 << 20, &RegionOptions::default());
        assert_eq!(status(region), Status::NoSpace);
    }
    assert!(fake.state().deletes.is_empty());
    assert_eq!(session.compare(used, &vec![5; 300_000]), Ok(std::cmp::Ordering::Equal));
    session.unmap(pointer).unwrap();
}

#[test]
fn many_threads_allocate_write_and_free_apart() {
    Fake::with_each_mode(|_fake, session| {
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let session = &session;
                scope.spawn(move || {
                    let mut random = Seeded(thread);
                    let mut live = Vec::new();
                    for _ in 0..150 {
                        let new = Live { bytes: 1 + random.below(30_000), seed: random.bits() };
                        let addr = session.malloc(new.bytes).unwrap();
                        session.write(addr, &content(new)).unwrap();
                        live.push((addr, new));
                        if live.len() > 12 {
                            let place = usize::try_from(random.below(12)).unwrap();
                            let (addr, old) = live.swap_remove(place);
                            check(session, addr, old);
                            session.free(addr).unwrap();
                        }
                    }
                    for (addr, old) in live {
                        check(session, addr, old);
                        session.free(addr).unwrap();
                    }
                });
            }
        });
        assert_eq!(session.stat().unwrap().allocated_bytes, 0);
    });
}
