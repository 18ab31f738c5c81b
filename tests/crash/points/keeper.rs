//! Who has memory all the while, and loses none of it.

use std::sync::atomic::{AtomicBool, Ordering};

use dmce_tests::Instance;
use libdmce::{AllocOptions, DmceAddr, Mirror, Prot, Region, RegionOptions, Session};

/// The volume of all regions here.
pub const VOLUME: &str = "points";
/// The region that a keeper shares with the one who dies.
pub const SHARED: &str = "shared";
/// Places of the shared region: the first bytes of each are the other's, the rest the keeper's. So
/// they have pages in common.
pub const PLACES: u64 = 24;
/// Bytes of a place.
pub const PLACE_BYTES: u64 = 12_000;
/// Of these the bytes that are the other's.
pub const OTHERS_BYTES: u64 = 10_000;

const BYTES: usize = 300_000;
const REST: usize = 2_000;
const _: () = assert!(REST as u64 == PLACE_BYTES - OTHERS_BYTES);
/// Its allocations are for pages of different sizes, so that each has a block of its own.
const ALLOCATIONS: u32 = 4;
/// Regions that nobody has open.
const IDLE: u32 = 4;

/// A session with memory on all daemons.
pub struct Keeper {
    session: Session,
    region: Region,
    held: Vec<DmceAddr>,
}

impl Keeper {
    /// Has its memory, and has written to all of it.
    pub fn start(instance: &Instance) -> Self {
        let session = instance.open();
        let of = |power: u32| AllocOptions { page_size: 4096 << power, ..AllocOptions::default() };
        let held = (0..ALLOCATIONS).map(|power| session.malloc_with(BYTES as u64, &of(power)));
        let held: Vec<_> = held.collect::<Result<_, _>>().expect("there is room");
        for (byte, addr) in (1..).zip(&held) {
            session.fill(*addr, byte, BYTES as u64).expect("it is its own");
        }
        let options = RegionOptions::default();
        session
            .region_create(VOLUME, SHARED, PLACES * PLACE_BYTES, &options)
            .expect("there is room");
        let region = session.region_open(VOLUME, SHARED, Prot::READ_WRITE).expect("it is there");
        Self { session, region, held }
    }

    /// Writes to its parts of the shared region, all over, until it is told to stop. No write
    /// fails, and none is missing.
    pub fn rival(&self, stop: &AtomicBool) {
        let rest = |place: u64| place * PLACE_BYTES + OTHERS_BYTES;
        for round in (1..=u8::MAX).cycle() {
            for place in 0..PLACES {
                self.region.write(rest(place), &[round; REST], Mirror::Both).expect("it is there");
            }
            for place in 0..PLACES {
                let mut found = [0; REST];
                self.region.read(rest(place), &mut found, Mirror::Any).expect("it is there");
                assert_eq!(found, [round; REST], "place {place}");
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// The daemon of the primary of the shared region, and the block that it is in.
    pub fn primary(&self) -> (u32, u32) {
        let addr = self.region.addr(0).expect("it is open");
        let block = addr.unpack(self.session.layout()).block;
        (self.region.info().expect("it is open").primary_daemon, block)
    }

    /// Adds to the first word of the shared region; what it was.
    pub fn add(&self, add: u64) -> u64 {
        let first = self.region.addr(0).expect("it is open");
        self.session.add64(first, add).expect("it is there")
    }

    /// The daemon of the second copy of the shared region.
    pub fn mirror(&self) -> u32 {
        self.region.info().expect("it is open").mirror_daemon
    }

    /// What the other has at a place of the shared region.
    pub fn others(&self, place: u64) -> Vec<u8> {
        let mut found = vec![0; usize::try_from(OTHERS_BYTES).expect("a place is small")];
        let at = place * PLACE_BYTES;
        self.region.read(at, &mut found, Mirror::Any).expect("it is there");
        found
    }

    /// What the mirror has at a place of the shared region where the other writes.
    pub fn mirrored(&self, place: u64) -> Vec<u8> {
        let mut found = vec![0; usize::try_from(OTHERS_BYTES).expect("a place is small")];
        let at = place * PLACE_BYTES;
        self.region.read(at, &mut found, Mirror::Mirror).expect("it is there");
        found
    }

    /// Writes where the other did.
    pub fn write_over(&self, place: u64) {
        let bytes = vec![0xee; usize::try_from(OTHERS_BYTES).expect("a place is small")];
        self.region.write(place * PLACE_BYTES, &bytes, Mirror::Both).expect("it is there");
        assert_eq!(self.others(place), bytes);
    }

    /// Finds all that it has written, and that it can go on.
    pub fn check(&self) {
        let equal = std::cmp::Ordering::Equal;
        for (byte, addr) in (1_u8..).zip(&self.held) {
            for byte in [byte, byte | 0x80] {
                let same = self.session.compare(*addr, &vec![byte; BYTES]);
                assert_eq!(same.expect("it is there"), equal);
                self.session.fill(*addr, byte | 0x80, BYTES as u64).expect("it is its own");
            }
        }
        self.rival(&AtomicBool::new(true));
        let more = self.session.malloc(BYTES as u64).expect("there is room");
        self.session.fill(more, 9, BYTES as u64).expect("it is its own");
        self.session.free(more).expect("it is its own");
    }

    /// Makes regions that nobody has open: who adds to one of an open one ends all who have it.
    pub fn make_idle_regions(&self) {
        for idle in 0..IDLE {
            let options = RegionOptions::default();
            let name = format!("idle-{idle}");
            self.session.region_create(VOLUME, &name, 4096, &options).expect("there is room");
        }
    }

    /// Deletes what nobody has open.
    pub fn delete_idle_regions(&self) {
        for name in self.session.region_list(VOLUME).expect("the broker serves") {
            if name != SHARED {
                self.session.region_delete(VOLUME, &name).expect("nobody has it open");
            }
        }
    }

    /// Gives all back.
    pub fn end(self) {
        self.delete_idle_regions();
        self.region.close().expect("it is open");
        self.session.region_delete(VOLUME, SHARED).expect("it is nobody else's");
        self.session.close().expect("it is open");
    }
}
