//! Memory of one session: small, large, over several daemons; mapped and in windows.

use dmce_abi::{DmceAddr, Status};
use dmce_tests::{Instance, Seeded, wait_until};
use libdmce::{AllocOptions, Options, Prot, RegionOptions, Session};

/// The two ways to reach memory, which must not differ in what they do.
fn both_ways(instance: &Instance) -> [Session; 2] {
    let windowed = Options { window_budget: 8 << 20, ..instance.options() };
    [instance.open(), Session::open(&windowed).expect("the broker serves")]
}

#[test]
fn keeps_what_was_written_at_every_size() {
    let instance = Instance::start(2);
    for session in both_ways(&instance) {
        let mut random = Seeded::quiet(1);
        let mut live = Vec::new();
        for bytes in [1_usize, 15, 16, 17, 100, 4096, 5000, 32 << 10, 70_000, 1 << 20, 9 << 20] {
            let mut content = vec![0; bytes];
            random.fill(&mut content);
            let addr = session.malloc(bytes as u64).unwrap();
            session.write(addr, &content).unwrap();
            live.push((addr, content));
        }
        for (addr, content) in &live {
            let mut found = vec![0; content.len()];
            session.read(*addr, &mut found).unwrap();
            assert!(found == *content, "{} bytes at {addr:?}", content.len());
            assert!(session.usable_size(*addr).unwrap() >= content.len() as u64);
        }
        for (addr, _) in &live {
            session.free(*addr).unwrap();
            assert_eq!(session.free(*addr).unwrap_err().status(), Status::Address);
        }
        session.close().unwrap();
    }
    instance.wait_empty();
}

/// Where no bytes may be read and written: in an allocation, and at its very end.
#[test]
fn no_bytes_are_accessed_where_some_may_be_or_end() {
    let instance = Instance::builder().daemons(2).layout("16/22/26").start();
    let layout = dmce_abi::AddrLayout::new(16, 22, 26).unwrap();
    let asked = Session::open(&Options { message_path: true, ..instance.options() }).unwrap();
    let made = instance.open();
    made.region_create("zero", "region", 1 << 20, &RegionOptions::default()).unwrap();
    made.close().unwrap();
    for session in both_ways(&instance).into_iter().chain([asked]) {
        let nothing = |at: DmceAddr| {
            let order = session.compare(at, b"").map(|order| assert!(order.is_eq()));
            let found = [
                session.read(at, &mut []),
                session.write(at, b""),
                session.fill(at, 1, 0),
                session.copy(at, at, 0),
                order,
            ];
            let found = found.map(|done| done.map_err(|error| error.status()));
            assert_eq!(found, [found[0]; 5], "{at:?}");
            found[0]
        };
        let region = session.region_open("zero", "region", Prot::READ).unwrap();
        let start = region.addr(0).unwrap();
        for at in [start, start.checked_add(layout, 1 << 20).unwrap()] {
            session.read(at, &mut []).unwrap();
            assert_eq!(session.write(at, b"").unwrap_err().status(), Status::Denied);
        }
        // Of a slab, of pages, of half a block, of a whole one, and of a span.
        for bytes in [16, 8192, 3 << 20, 64 << 20, 70 << 20] {
            let addr = session.malloc(bytes).unwrap();
            let usable = session.usable_size(addr).unwrap();
            for offset in [0, 1, bytes - 1, bytes, usable] {
                let at = addr.checked_add(layout, offset).unwrap();
                assert_eq!(nothing(at), Ok(()), "{offset} of {bytes}");
            }
            session.free(addr).unwrap();
        }
        let addr = session.malloc(70 << 20).unwrap();
        session.free(addr).unwrap();
        assert_eq!(nothing(addr.checked_add(layout, 1 << 20).unwrap()), Err(Status::Address));
        session.close().unwrap();
    }
}

#[test]
fn a_span_lies_over_several_daemons_and_reads_as_one() {
    let builder = Instance::builder().daemons(3).capacity("64MiB").layout("16/22/26");
    let instance = builder.start();
    for session in both_ways(&instance) {
        let bytes = 150 << 20;
        let addr = session.malloc(bytes).unwrap();
        assert_eq!(instance.daemons().iter().filter(|daemon| daemon.blocks != 0).count(), 3);

        // Across the end of a block, which is that of a daemon here.
        let layout = dmce_abi::AddrLayout::new(16, 22, 26).unwrap();
        let at = addr.checked_add(layout, (64 << 20) - 5).unwrap();
        session.write(at, b"0123456789").unwrap();
        let mut found = [0; 10];
        session.read(at, &mut found).unwrap();
        assert_eq!(&found, b"0123456789");

        let last = addr.checked_add(layout, bytes - 4).unwrap();
        session.write(last, b"last").unwrap();
        assert_eq!(session.write(last, b"lasts").unwrap_err().status(), Status::Address);
        session.free(addr).unwrap();
        assert_eq!(session.read(at, &mut found).unwrap_err().status(), Status::Address);
        session.close().unwrap();
    }
    instance.wait_empty();
}

#[test]
fn copy_fill_and_compare_work_across_blocks_and_overlaps() {
    let instance = Instance::builder().daemons(3).capacity("32MiB").layout("16/24/24").start();
    let layout = dmce_abi::AddrLayout::new(16, 24, 24).unwrap();
    for session in both_ways(&instance) {
        let addr = session.malloc(40 << 20).unwrap();
        let mut model = vec![0_u8; 40 << 20];
        let mut random = Seeded::quiet(7);
        for _ in 0..60 {
            let bytes = 1 + random.below(3 << 20) as usize;
            let from = random.below((model.len() - bytes) as u64) as usize;
            let to = random.below((model.len() - bytes) as u64) as usize;
            let at = |offset: usize| addr.checked_add(layout, offset as u64).unwrap();
            match random.below(3) {
                0 => {
                    let mut content = vec![0; bytes];
                    random.fill(&mut content);
                    session.write(at(to), &content).unwrap();
                    model[to..to + bytes].copy_from_slice(&content);
                }
                1 => {
                    session.copy(at(to), at(from), bytes as u64).unwrap();
                    model.copy_within(from..from + bytes, to);
                }
                _ => {
                    let byte = random.bits() as u8;
                    session.fill(at(to), byte, bytes as u64).unwrap();
                    model[to..to + bytes].fill(byte);
                }
            }
        }
        assert_eq!(session.compare(addr, &model).unwrap(), std::cmp::Ordering::Equal);
        model[30 << 20] ^= 1;
        assert_ne!(session.compare(addr, &model).unwrap(), std::cmp::Ordering::Equal);
        session.close().unwrap();
    }
}

#[test]
fn a_mapped_pointer_shows_the_same_bytes_and_pins_them() {
    let instance = Instance::start(1);
    for session in both_ways(&instance) {
        let addr = session.malloc(100_000).unwrap();
        session.write(addr, b"through the call").unwrap();
        let pointer = session.map(addr, 100_000, Prot::READ | Prot::WRITE).unwrap();
        assert!(!pointer.is_null());
        assert_eq!(session.free(addr).unwrap_err().status(), Status::Busy);
        session.unmap(pointer).unwrap();
        assert_eq!(session.unmap(pointer).unwrap_err().status(), Status::NotFound);
        session.free(addr).unwrap();
        session.close().unwrap();
    }
}

#[test]
fn realloc_moves_the_bytes_and_calloc_zeroes_them() {
    let instance = Instance::start(2);
    for session in both_ways(&instance) {
        let dirty = session.malloc(50_000).unwrap();
        session.fill(dirty, 0xaa, 50_000).unwrap();
        session.free(dirty).unwrap();
        let zeroed = session.calloc(50, 1000).unwrap();
        assert_eq!(session.compare(zeroed, &[0; 50_000]).unwrap(), std::cmp::Ordering::Equal);

        session.fill(zeroed, 0x55, 50_000).unwrap();
        let larger = session.realloc(zeroed, 20 << 20).unwrap();
        assert_eq!(session.compare(larger, &[0x55; 50_000]).unwrap(), std::cmp::Ordering::Equal);
        let smaller = session.realloc(larger, 10).unwrap();
        assert_eq!(session.compare(smaller, &[0x55; 10]).unwrap(), std::cmp::Ordering::Equal);
        session.close().unwrap();
    }
}

#[test]
fn alignment_is_as_asked() {
    let instance = Instance::start(1);
    let session = instance.open();
    assert_eq!(session.malloc(1).unwrap().to_raw() % 16, 0);
    assert_eq!(session.malloc(5000).unwrap().to_raw() % 4096, 0);
    for align in [64_u32, 4096, 65_536, 2 << 20] {
        let options = AllocOptions { align, ..AllocOptions::default() };
        let addr = session.malloc_with(100, &options).unwrap();
        assert_eq!(addr.to_raw() % u64::from(align), 0, "{align}");
    }
}

#[test]
fn an_alignment_that_was_asked_for_stays_with_the_place_and_no_longer() {
    let instance = Instance::start(1);
    for session in both_ways(&instance) {
        for align in [64_u32, 4096, 65_536] {
            let options = AllocOptions { align, ..AllocOptions::default() };
            let addr = session.malloc_with(100, &options).unwrap();
            session.write(addr, &[7; 100]).unwrap();
            let room = session.usable_size(addr).unwrap();
            assert_eq!(session.realloc(addr, room), Ok(addr), "it fits where it is");
            // Elsewhere it is aligned as any other of its size.
            let small = session.realloc(addr, room * 2 + 16).unwrap();
            assert_eq!(small.to_raw() % 16, 0);
            let large = session.realloc(small, 3 << 20).unwrap();
            assert_eq!(large.to_raw() % 4096, 0);
            assert_eq!(session.compare(large, &[7; 100]).unwrap(), std::cmp::Ordering::Equal);
            session.free(large).unwrap();
        }
        session.close().unwrap();
    }
}

/// One allocation keeps all that its block has.
#[test]
fn a_block_goes_back_whole_or_not_at_all() {
    let config = "broker.idle_s = 0\n[[policy]]\nup_to = \"1GiB\"\nblock_bytes = \"32MiB\"\n";
    let instance = Instance::builder().config(config).start();
    let session = instance.open();
    let allocate = |count| (0..count).map(|_| session.malloc(1 << 20).unwrap()).collect();
    let mut all: Vec<_> = allocate(16);
    let held = (1, instance.status().committed);
    let now = || (instance.status().blocks, instance.status().committed);
    assert_eq!(now(), held);
    for addr in all.drain(1..) {
        session.free(addr).unwrap();
    }
    session.poll().unwrap();
    assert_eq!(now(), held, "a part of it is no use to the daemon");
    all.extend(allocate(15));
    assert_eq!(now(), held, "to the session it is");
    // What has blocks of its own goes at once, whatever else there is.
    let large = session.malloc(40 << 20).unwrap();
    assert!(now().0 > 1);
    session.free(large).unwrap();
    wait_until("its block is gone", || now() == held);
    for addr in all {
        session.free(addr).unwrap();
    }
    wait_until("the first block is gone", || now() == (0, 0));
    session.close().unwrap();
}

#[test]
fn an_empty_block_goes_back_after_a_short_idle_time() {
    let instance = Instance::builder().config("broker.idle_s = 1\n").start();
    let session = instance.open();
    let addr = session.malloc(100).unwrap();
    assert_eq!(instance.status().blocks, 1);
    session.free(addr).unwrap();
    wait_until("the empty block goes back", || instance.status().blocks == 0);
    let again = session.malloc(100).unwrap();
    session.write(again, &[1; 100]).unwrap();
}

#[test]
fn a_reservation_is_kept_free_and_goes_back_with_the_session() {
    let instance = Instance::builder().daemons(2).capacity("64MiB").start();
    let reserving = Options { reserve_bytes: 100 << 20, ..instance.options() };
    let first = Session::open(&reserving).unwrap();
    assert_eq!(instance.status().reserved, 100 << 20);

    let refused = Session::open(&reserving).unwrap_err();
    assert_eq!(refused.status(), Status::NoSpace);
    let partial = Session::open(&Options { accept_partial: true, ..reserving }).unwrap();
    assert_eq!(partial.stat().unwrap().reserved_bytes, 28 << 20);

    // What is reserved is used first, and stays promised to its session.
    let held: Vec<_> = (0..40).map(|_| first.malloc(2 << 20).unwrap()).collect();
    for addr in &held {
        first.write(*addr, b"reserved").unwrap();
    }
    let other = instance.open();
    assert_eq!(other.malloc(1 << 20).unwrap_err().status(), Status::NoSpace);
    first.close().unwrap();
    partial.close().unwrap();
    other.malloc(1 << 20).unwrap();
    other.close().unwrap();
    instance.wait_empty();
}

/// Where a block is smaller than what small allocations share.
#[test]
fn every_size_is_allocated_in_the_smallest_blocks() {
    let instance = Instance::builder().layout("24/24/16").capacity("64MiB").start();
    let session = instance.open();
    let mut all = Vec::new();
    for bytes in [1, 100, 4_095, 4_096, 5_000, 20_000, 32_768, 32_769, 40_000, 65_536, 1 << 20] {
        let addr = session.malloc(bytes).unwrap();
        assert!(session.usable_size(addr).unwrap() >= bytes);
        session.fill(addr, 7, bytes).unwrap();
        all.push(session.realloc(addr, bytes + 1).unwrap());
    }
    for addr in all {
        session.free(addr).unwrap();
    }
    session.close().unwrap();
    instance.wait_empty();
}
