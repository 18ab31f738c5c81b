//! Who may do what: another user, a reader, and what their descriptors allow.

use std::path::Path;
use std::thread;
use std::time::Instant;

use dmce_abi::Status;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Fetch, OpeningId, RegionName, RegionOpen, Setup,
};
use dmce_sys::map::{FileRange, Mapping, Populate, Protection};
use dmce_sys::object;
use dmce_tests::client::{ROUTES, own_client};
use dmce_tests::{Client, Instance, cannot_run};
use libdmce::connection::Connection;
use libdmce::{Mirror, Prot, RegionOptions};
use std::os::fd::AsFd;

/// An instance that every user may connect to.
fn open_to_all() -> Instance {
    Instance::builder().config("broker.socket_mode = \"0666\"\n").start()
}

/// A client that runs as nobody; the test's own user must be root.
fn as_nobody(instance: &Instance) -> Option<Client> {
    as_nobody_with(instance, &[])
}

/// The same with environment variables.
fn as_nobody_with(instance: &Instance, env: &[(&str, &str)]) -> Option<Client> {
    if dmce_sys::identity::effective_uid() != 0 {
        cannot_run("only root can start a client of another user");
        return None;
    }
    // Nobody may not enter the folder of the build: the program goes where it may.
    let program = instance.dir().join("client");
    std::fs::copy(own_client(), &program).unwrap();
    let wrapper = instance.dir().join("as-nobody");
    let text = format!(
        "#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups {}\n",
        program.display()
    );
    std::fs::write(&wrapper, text).unwrap();
    set_mode(&wrapper, 0o755);
    Some(Client::open_with(&wrapper, instance, env))
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn another_user_reaches_nothing_and_learns_no_names() {
    let instance = open_to_all();
    let session = instance.open();
    let plain = RegionOptions::default();
    session.region_create("vol", "secret", 4096, &plain).unwrap();
    let addr = session.malloc(4096).unwrap();
    let Some(mut nobody) = as_nobody(&instance) else { return };
    assert_eq!(nobody.ask("ropen vol secret r"), Err(Status::NotFound));
    assert_eq!(nobody.ask("ropen vol secret rw"), Err(Status::NotFound));
    assert_eq!(nobody.ask("delete vol secret"), Err(Status::NotFound));
    assert_eq!(nobody.ask("list vol"), Ok(String::new()));
    assert_eq!(nobody.ask(format!("check {} 0 16", addr.to_raw())), Err(Status::Address));
    assert_eq!(nobody.ask(format!("fill {} 0 16", addr.to_raw())), Err(Status::Address));
}

/// By message, over a link and through the broker. Compared are counts, with the time that there
/// was.
#[test]
fn a_user_with_a_rate_gets_every_answer_and_others_do_not_wait_for_it() {
    const ASKED: u64 = 40;
    let quota = "[quota.uid.65534]\nrequests_per_s = 20\nrequests_burst = 10\n";
    let config = format!("broker.socket_mode = \"0666\"\n{quota}");
    for route in ROUTES {
        let instance = Instance::builder().daemons(1).config(&config).start();
        let begin = Instant::now();
        let Some(mut nobody) = as_nobody_with(&instance, &route) else { return };
        let mut root = Client::open_with(&own_client(), &instance, &route);
        let [limited, free] = [&mut nobody, &mut root].map(|client| client.number("malloc 64"));
        let (limited, free) = (limited.unwrap(), free.unwrap());
        nobody.ask(format!("fill {limited} 0 64")).unwrap();
        let was = nobody.number(format!("raise {limited} 0")).unwrap();
        nobody.tell(format!("count {limited} {ASKED} add"));
        let mut of_root = 0;
        thread::scope(|scope| {
            let counted = scope.spawn(|| nobody.answer());
            while !counted.is_finished() {
                root.ask(format!("raise {free} 1")).unwrap();
                of_root += 1;
            }
            counted.join().unwrap().unwrap();
        });
        let allowed = 10 + begin.elapsed().as_millis() as u64 * 20 / 1000;
        assert!(ASKED <= allowed && allowed < of_root, "{route:?}: {allowed}, {of_root}");
        assert_eq!(nobody.number(format!("raise {limited} 0")), Ok(was.wrapping_add(ASKED)));
    }
}

#[test]
fn the_mode_decides_what_another_user_may() {
    let instance = open_to_all();
    let session = instance.open();
    let readable = RegionOptions { mode: 0o644, ..RegionOptions::default() };
    session.region_create("vol", "open", 4096, &readable).unwrap();
    let region = session.region_open("vol", "open", Prot::READ_WRITE).unwrap();
    region.write(0, &[0; 64], Mirror::Both).unwrap();
    let Some(mut nobody) = as_nobody(&instance) else { return };
    assert_eq!(nobody.ask("list vol"), Ok("open".into()));
    assert_eq!(nobody.ask("ropen vol open rw"), Err(Status::Denied));
    assert_eq!(nobody.ask("delete vol open"), Err(Status::Denied));
    nobody.ask("ropen vol open r").unwrap();
    assert_eq!(nobody.ask("rfill 0 1 16"), Err(Status::Denied));
    let addr = nobody.number("raddr 0").unwrap();
    assert_eq!(nobody.ask(format!("map {addr} 16 rw")), Err(Status::Denied));
    assert_eq!(nobody.ask(format!("fill {addr} 1 16")), Err(Status::Denied));
    nobody.ask(format!("map {addr} 16 r")).unwrap();
}

#[test]
fn a_reader_gets_a_descriptor_that_cannot_write_map_or_truncate() {
    let instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "kept", 8192, &RegionOptions::default()).unwrap();

    let mut raw = Connection::connect(instance.socket()).unwrap();
    let setup = Setup {
        segment_version: dmce_abi::version::SEGMENT_VERSION,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: false,
        copies: 0,
        name: String::new(),
    };
    raw.request(&ClientRequest::Setup(setup)).unwrap();
    let region = RegionName { volume: "vol".into(), name: "kept".into() };
    let open = RegionOpen { opening: OpeningId(1), region, read: true, write: false };
    let (ClientReply::Opened(opened), _) = raw.request(&ClientRequest::RegionOpen(open)).unwrap()
    else {
        panic!("the region opens")
    };
    let wanted = Fetch { block: opened.first.block, writable: true };
    assert!(raw.request(&ClientRequest::Fetch(wanted)).is_err(), "a reader asked to write");
    let wanted = Fetch { block: opened.first.block, writable: false };
    let (ClientReply::Fetched(info), fds) = raw.request(&ClientRequest::Fetch(wanted)).unwrap()
    else {
        panic!("the block is fetched")
    };
    assert!(!info.writable);
    let fd = fds[0].as_fd();
    assert!(object::write_at(fd, b"x", 0).is_err());
    assert!(object::truncate(fd, 0).is_err());
    assert!(object::commit(fd, 0, 1 << 20).is_err());
    let range = FileRange { offset: 0, bytes: 4096 };
    assert!(Mapping::shared(fd, range, Protection::ReadWrite, Populate::No).is_err());
    assert!(Mapping::shared(fd, range, Protection::Read, Populate::No).is_ok());
}
