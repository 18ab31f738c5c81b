//! Memory of other processes, and a region with a name.

use libdmce::{Error, Mirror, Options, Prot, RegionOptions, Session};

fn main() -> Result<(), Error> {
    // A private instance is started if there is no broker.
    let session = Session::open(&Options { spawn: true, ..Options::default() })?;

    // Memory of this session: it goes when the session ends.
    let mut text = [0; 13];
    let addr = session.malloc(1 << 20)?;
    session.write(addr, b"not my memory")?;
    session.read(addr, &mut text)?;
    println!("{}", text.escape_ascii());

    // A region has a name, outlives its sessions, and is shared with whoever may open it.
    let mut text = [0; 5];
    session.region_create("demo", "greeting", 1 << 16, &RegionOptions::default())?;
    let region = session.region_open("demo", "greeting", Prot::READ | Prot::WRITE)?;
    region.write(0, b"hello", Mirror::Both)?;
    region.read(0, &mut text, Mirror::Any)?;
    println!("{}", text.escape_ascii());
    session.region_delete("demo", "greeting")?;
    session.close()
}
