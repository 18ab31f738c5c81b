use std::path::PathBuf;

use dmce_abi::AddrLayout;
use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, SessionId, Span, Ticket,
};
use dmce_sys::process;

use super::*;

/// A folder of its own, removed whatever happens.
struct Folder {
    path: PathBuf,
    dir: ObjectDir,
}

impl Folder {
    /// In the shared memory file system: others may not have what is asked for.
    fn new(label: &str) -> Self {
        let name = format!("dmce.test-headers-{label}-{}", process::own_pid());
        let path = PathBuf::from(dmce_sys::object::DEFAULT_DIR).join(name);
        std::fs::create_dir(&path).unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        Self { path, dir }
    }

    fn names(&self) -> Vec<String> {
        self.dir.names("").unwrap()
    }

    fn read(&self, name: &str) -> BlockHeader {
        let fd = self.dir.open_read_only(name).unwrap();
        header::read(fd.as_fd(), AddrLayout::IN_SERVER).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn of_block(number: u32) -> BlockHeader {
    let (block, guid) = (BlockId::try_from(number).unwrap(), Guid([7; 16]));
    let (session, ticket) = (SessionId::try_from(3).unwrap(), Ticket { session: guid, number: 1 });
    let description = BlockDescription {
        block,
        guid,
        epoch: 1,
        page_size: 4096,
        bytes_max: 4096,
        span: Span { first: block, count: 1, guid },
        owner: Owner::Session { session, ticket, uid: 0, copies: 1 },
        membership: Membership::alone(),
    };
    let daemon = DaemonId::try_from(1).unwrap();
    BlockHeader { daemon, description }
}

/// Makes as many as there may be.
fn fill(headers: &mut Headers, folder: &Folder) {
    while let Some(due) = headers.due_at() {
        headers.tend(&folder.dir, due);
    }
}

#[test]
fn headers_are_the_same_whether_their_objects_were_made_ahead_or_not() {
    let folder = Folder::new("same");
    let mut headers = Headers::default();
    headers.make(&folder.dir, "anew", &of_block(5)).unwrap();
    fill(&mut headers, &folder);
    assert_eq!((headers.blanks.len(), folder.names()), (BLANKS_MAX, vec!["anew".to_owned()]));
    headers.make(&folder.dir, "ahead", &of_block(5)).unwrap();
    assert_eq!(headers.blanks.len(), BLANKS_MAX - 1);
    assert!(headers.due_at().is_some());
    let bytes = |name| std::fs::read(folder.path.join(name)).unwrap();
    assert_eq!(bytes("ahead"), bytes("anew"));
    assert_eq!(folder.read("ahead"), of_block(5));
    let stat = dmce_sys::object::stat(folder.dir.open_read_write("ahead").unwrap().as_fd());
    let stat = stat.unwrap();
    assert_eq!((stat.links, stat.mode, stat.bytes), (1, 0o600, header::HEADER_BYTES));
}

#[test]
fn a_name_that_is_taken_is_left_and_told() {
    let folder = Folder::new("taken");
    let mut headers = Headers::default();
    fill(&mut headers, &folder);
    headers.make(&folder.dir, "a", &of_block(5)).unwrap();
    let again = headers.make(&folder.dir, "a", &of_block(6)).unwrap_err();
    assert!(matches!(again, HeaderError::Object(ObjectError::Exists { .. })), "{again}");
    assert_eq!(folder.read("a"), of_block(5));
    assert_eq!(headers.blanks.len(), BLANKS_MAX - 2, "those that are left are as good");
}

#[test]
fn more_headers_than_were_made_ahead_are_made_and_more_are_made_when_it_is_quiet() {
    let folder = Folder::new("many");
    let mut headers = Headers::default();
    fill(&mut headers, &folder);
    let count = u32::try_from(BLANKS_MAX).unwrap() + 3;
    for number in 1..=count {
        headers.make(&folder.dir, &number.to_string(), &of_block(number)).unwrap();
    }
    for number in 1..=count {
        assert_eq!(folder.read(&number.to_string()), of_block(number));
    }
    let due = headers.due_at().unwrap();
    headers.tend(&folder.dir, Millis(due.0 - 1));
    assert_eq!(headers.blanks.len(), 0);
    fill(&mut headers, &folder);
    assert_eq!(headers.blanks.len(), BLANKS_MAX);
}
