//! Somebody in the place of a daemon, who talks nonsense to the broker.

use std::fs::File;
use std::os::fd::AsFd;

use dmce_abi::AddrLayout;
use dmce_abi::block::DaemonId;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::admin::{CopyState, DaemonState, Health};
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, HeldBlock, Register};
use dmce_abi::wire::{self, FrameHeader};
use dmce_shm::header;
use dmce_sys::socket::Socket;
use dmce_tests::checker::wait_sound;
use dmce_tests::{Instance, wait_until};
use libdmce::{Mirror, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 1 << 20;

/// Who says that it is daemon 2.
struct Impostor(Socket);

impl Impostor {
    fn connect(instance: &Instance) -> Self {
        Self(Socket::connect(instance.dir().join("daemon.sock")).unwrap())
    }

    fn say(&self, request: u64, message: &DaemonMessage) {
        let frame = wire::encode(FrameHeader { request, fds: 0 }, message).unwrap();
        self.0.send(&frame, &[]).unwrap();
    }

    fn joins(instance: &Instance, blocks: Vec<HeldBlock>) -> Self {
        let impostor = Self::connect(instance);
        let (daemon, instance) = (DaemonId::try_from(2).unwrap(), instance.name().to_owned());
        let (segment_version, capacity) = (SEGMENT_VERSION, 256 << 20);
        let register = Register { daemon, instance, segment_version, capacity };
        impostor.say(0, &DaemonMessage::Register(register));
        impostor.say(0, &DaemonMessage::Holds { blocks, damaged: Vec::new(), last: true });
        impostor
    }
}

/// Two daemons, of which the second has died, and a region with a copy on each.
fn instance() -> (Instance, Session, Region) {
    let config = "broker.sense_ms = 100\nbroker.suspect_ms = 400\n";
    let mut instance = Instance::builder().daemons(2).region_copies(2).config(config).start();
    let session = instance.open();
    session.region_create("vol", "two", BYTES, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "two", Prot::READ_WRITE).unwrap();
    instance.kill_daemon(2);
    wait_state(&instance, DaemonState::Away);
    (instance, session, region)
}

fn wait_state(instance: &Instance, state: DaemonState) {
    let daemon = || instance.daemons().into_iter().find(|row| row.daemon == 2);
    wait_until("the broker knows", || daemon().is_some_and(|row| row.state == state));
}

/// What is written is read, and the instance is as it should be.
fn goes_on(region: &Region, byte: u8) {
    region.write(1000, &[byte; 9000], Mirror::Both).unwrap();
    let mut found = [0; 9000];
    region.read(1000, &mut found, Mirror::Any).unwrap();
    assert_eq!(found, [byte; 9000]);
}

fn states(instance: &Instance) -> Vec<(u32, CopyState)> {
    let block = instance.blocks().into_iter().next().unwrap();
    block.copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

/// What its block is said to be.
fn held(instance: &Instance) -> HeldBlock {
    let prefix = format!("dmce.{}.2.head-", instance.name());
    let name = instance.objects().into_iter().find(|name| name.starts_with(&prefix)).unwrap();
    let file = File::open(instance.object(&name)).unwrap();
    let header = header::read(file.as_fd(), AddrLayout::IN_SERVER).unwrap();
    HeldBlock { description: header.description, committed: BYTES }
}

#[test]
fn nonsense_in_place_of_a_report_costs_no_copy() {
    let (mut instance, session, region) = instance();
    let is_dropped = |times: usize| {
        let all = || instance.log("broker").matches("is ended: ").count();
        wait_until("it is dropped", || all() == times);
    };
    let noise = Impostor::connect(&instance);
    noise.0.send(&[0xee; 300], &[]).unwrap();
    is_dropped(1);
    goes_on(&region, 1);
    let mut longer = held(&instance);
    longer.committed = longer.description.bytes_max + 4096;
    let mut itself = held(&instance);
    itself.description.membership.peers = vec![DaemonId::try_from(2).unwrap()];
    for (times, wrong) in [(2, longer), (3, itself)] {
        let _impostor = Impostor::joins(&instance, vec![wrong]);
        is_dropped(times);
        wait_state(&instance, DaemonState::Away);
        goes_on(&region, 2);
    }
    assert!(states(&instance).iter().all(|(_, state)| *state == CopyState::Good));
    instance.start_daemon(2);
    wait_until("all is well", || instance.status().state == Health::Ok);
    goes_on(&region, 3);
    assert_eq!(wait_sound(&instance).good, 2);
    drop((region, session));
}

#[test]
fn a_daemon_that_answers_nonsense_is_dropped_and_its_blocks_go_on_from_the_others() {
    let (mut instance, session, region) = instance();
    // It knows of no block: that of daemon 1 is the only copy from then on.
    let impostor = Impostor::joins(&instance, Vec::new());
    wait_until("it is believed", || instance.status().state == Health::Degraded);
    let lost = [(1, CopyState::Good), (2, CopyState::Lost)];
    wait_until("its copy is lost", || states(&instance) == lost);
    goes_on(&region, 4);
    // Nobody has asked it for that.
    impostor.say(u64::MAX, &DaemonMessage::Reply(Ok(DaemonAnswer::Done)));
    wait_state(&instance, DaemonState::Away);
    goes_on(&region, 5);
    instance.start_daemon(2);
    instance.wait_serving();
    assert_eq!(states(&instance), [(1, CopyState::Good), (2, CopyState::Stale)]);
    goes_on(&region, 6);
    assert_eq!(wait_sound(&instance).good, 1);
    drop((region, session));
}
